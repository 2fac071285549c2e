from __future__ import annotations

import os
from pathlib import Path

import numpy as np
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


def test_a_disk_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modhifi.data._folders._OTHERS", 20)
    for i in range(21):
        (tmp_path / "usr" / f"{i}").mkdir(parents=True)
    with pytest.raises(UserError, match="is no folder of images: it has more than 20 other files and folders"):
        modhifi.load_data(str(tmp_path))
    monkeypatch.setattr("modhifi.data._folders._OTHERS", 100)
    monkeypatch.setattr("modhifi.data._folders._IMAGES", 3)
    for i in range(4):
        picture(tmp_path / "usr" / "0" / f"{i}.png")
    with pytest.raises(UserError, match="more than 3 images"):
        modhifi.load_data(str(tmp_path))


def test_classes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modhifi.data._folders.MOST_CLASSES", 1)
    for name in "ab":
        picture(tmp_path / name / "a.png")
    with pytest.raises(UserError, match="has 2 class folders; the limit is 1"):
        modhifi.load_data(str(tmp_path))


def test_levels_are_limited(tmp_path: Path) -> None:
    at = tmp_path / "cat"
    for i in range(16):
        at /= str(i)
    picture(at / "a.png")
    assert len(modhifi.load_data(str(tmp_path))) == 1
    picture(at / "deeper" / "a.png")
    with pytest.raises(UserError, match="deeper is nested more than 16 levels deep"):
        modhifi.load_data(str(tmp_path))


def test_links(tmp_path: Path) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    picture(elsewhere / "a.png")
    picture(elsewhere / "more" / "b.png")
    picture(data / "cat" / "c.png")
    (data / "dog").symlink_to(elsewhere)
    (data / "cat" / "deep").symlink_to(elsewhere)
    (data / "cat" / "loop").symlink_to(data)
    (data / "cat" / "d.png").symlink_to(elsewhere / "a.png")
    (data / "cat" / "itself.png").symlink_to(data / "cat" / "itself.png")
    found = modhifi.load_data(str(data))
    assert found.targets is not None
    assert found.targets.tolist() == [0, 0, 1, 1]
    assert found.classes == ("cat", "dog")
    (data / "all").symlink_to(tmp_path)
    with pytest.raises(UserError, match="all is a link that leads back to a folder above it"):
        modhifi.load_data(str(data))


def test_folders_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "cat" / "a.png")
    usual = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match="cat cannot be read"):
        modhifi.load_data(str(tmp_path))


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    try:
        picture(tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.png"))
    except (OSError, UnicodeError):
        pytest.skip("the file system takes Unicode only")
    data = modhifi.load_data(str(tmp_path))
    assert data.classes == ("caf\\xe9",)
    assert next(data.batches(INPUT))[0].shape == (1, 3, 8, 8)
    before = data.ref.fingerprint
    (tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff.png")).rename(
        tmp_path / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xfe.png")
    )
    assert modhifi.load_data(str(tmp_path)).ref.fingerprint != before
    with pytest.raises(UserError, match="not Unicode"):
        modhifi.load_data(str(tmp_path / os.fsdecode(b"caf\xe9")))


@pytest.mark.parametrize("spec", ["a\0b", "x" * 5000, "~no-such-user/x"])
def test_paths_that_no_file_has(spec: str) -> None:
    for form in (spec, f"text:{spec}"):
        with pytest.raises(UserError, match="cannot be opened"):
            modhifi.load_data(form)


def test_an_elongated_image(tmp_path: Path) -> None:
    Image.new("L", (1, 60_000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="1×60000 pixels is too elongated for an input of 224×224; crop it"):
        next(modhifi.load_data(str(tmp_path)).batches(INPUT.model_copy(update={"size": (224, 224)})))


def test_sixteen_bits_are_reduced_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(tmp_path / "a.png")
    assert modhifi.load_data(str(tmp_path)).read(0).getpixel((0, 0)) == round(30_000 / 257)
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="has pixels of 32 bits"):
        modhifi.load_data(str(tmp_path)).read(1)
