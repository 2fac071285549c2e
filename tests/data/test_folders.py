from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import modhifi
from modhifi import UserError
from modhifi.specs import InputSpec

INPUT = InputSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def picture(path: Path, grey: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (grey, grey, grey)).save(path)


def test_class_folders(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "a.png")
    picture(tmp_path / "cat" / "deep" / "b.JPG")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    data = modhifi.load_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert data.targets is not None
    assert data.targets.tolist() == [0, 1]
    assert data.splits == ()
    batch, _ = next(data.batches(INPUT))
    assert batch.shape == (2, 3, 8, 8)
    assert modhifi.load_data(str(tmp_path), split="test").ref.fingerprint == data.ref.fingerprint


def test_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("validation", 2)):
        for i in range(count):
            picture(tmp_path / split / f"class{i}" / "a.png")
    sizes = {
        split: len(modhifi.load_data(str(tmp_path), split=split)) for split in ("train", "calibration", "val", "test")
    }
    assert sizes == {"train": 3, "calibration": 3, "val": 2, "test": 2}


def test_split_that_is_not_there(tmp_path: Path) -> None:
    picture(tmp_path / "test" / "cat" / "a.png")
    with pytest.raises(UserError, match="no split 'train'; it has test"):
        modhifi.load_data(str(tmp_path), split="train")
    with pytest.raises(UserError, match="no split 'dev'"):
        modhifi.load_data(str(tmp_path), split="dev")


def test_folder_of_images_is_unlabelled(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", ".hidden.png"):
        picture(tmp_path / name)
    data = modhifi.load_data(tmp_path.name, root=tmp_path.parent)
    assert len(data) == 2
    assert data.targets is None
    assert data.classes is None
    assert next(data.batches(INPUT))[1] is None


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 100)
    before = modhifi.load_data(str(tmp_path)).ref.fingerprint
    picture(tmp_path / "a.png", 101)
    assert modhifi.load_data(str(tmp_path)).ref.fingerprint != before


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no images"):
        modhifi.load_data(str(tmp_path))


def test_folder_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("no images here")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.csv").write_text("1,2")
    with pytest.raises(UserError, match="contains no images"):
        modhifi.load_data(str(tmp_path))


@pytest.mark.parametrize("kept", [0, 20, 45])
def test_file_that_only_claims_to_be_an_image(tmp_path: Path, kept: int) -> None:
    picture(tmp_path / "cat" / "a.png")
    whole = (tmp_path / "cat" / "a.png").read_bytes()
    (tmp_path / "cat" / "b.png").write_bytes(whole[:kept])
    data = modhifi.load_data(str(tmp_path))
    with pytest.raises(UserError, match=r"b\.png is damaged or not an image"):
        list(data.batches(INPUT))


def test_mixture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "cat" / "b.png")
    with pytest.raises(UserError, match="both"):
        modhifi.load_data(str(tmp_path))


@pytest.mark.parametrize("limit", [100, 50])
def test_image_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    picture(tmp_path / "a.png")  # 120 pixels: more than the limit, and more than twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UserError, match=r"a\.png has too many pixels"):
        modhifi.load_data(str(tmp_path)).read(0)


def test_unknown_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown data 'no-such-thing'"):
        modhifi.load_data("no-such-thing")
    picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"neither a folder nor a \.parquet file"):
        modhifi.load_data(str(tmp_path / "a.png"))
