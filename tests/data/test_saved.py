"""Folders as `datasets.Dataset.save_to_disk` writes them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

import modhifi
from modhifi import UserError
from modhifi.specs import ArraySpec, TensorSpec


def encoded(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def save(folder: Path, tables: list[pa.Table]) -> Path:
    """The layout of datasets 2 to 5."""
    folder.mkdir(parents=True)
    names = []
    for number, table in enumerate(tables):
        names.append(f"data-{number:05}-of-{len(tables):05}.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def images(greys: list[int], labels: list[int]) -> pa.Table:
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    column = pa.array([{"bytes": encoded(grey), "path": None} for grey in greys], kind)
    table = pa.table({"id": [0] * len(greys), "image": column, "label": labels})
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


def test_images_with_labels_and_splits(tmp_path: Path) -> None:
    save(tmp_path / "train", [images([0, 10], [0, 1]), images([20], [1])])
    save(tmp_path / "validation", [images([30], [0])])
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    data = modhifi.load_data(str(tmp_path))
    assert [data.read(i).getpixel((0, 0)) for i in data.order] == [(0, 0, 0), (10, 10, 10), (20, 20, 20)]
    assert data.classes == ("cat", "dog")
    assert data.targets is not None
    assert data.targets.tolist() == [0, 1, 1]
    assert data.splits == ("train", "calibration", "val", "test")
    assert len(modhifi.load_data(str(tmp_path), split="test")) == 1
    with pytest.raises(UserError, match=r"has no split 'other'; it has train, validation"):
        modhifi.load_data(str(tmp_path), split="other")


def test_columns_of_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wave, grid = rng.normal(size=(5, 4)).astype(np.float32), rng.integers(0, 9, (5, 2, 3))
    table = pa.table(
        {
            "wave": pa.array(wave.tolist(), pa.list_(pa.float32())),
            "grid": pa.array(grid.tolist(), pa.list_(pa.list_(pa.int64()))),
            "name": ["x"] * 5,
            "ragged": [[1], [1, 2], [], [3], [4]],
            "label": [0, 1, 0, 1, 1],
        }
    )
    data = modhifi.load_data(str(save(tmp_path / "set", [table[:2], table[2:]])), split="test")
    spec = ArraySpec(
        inputs=(
            TensorSpec(name="grid", shape=(2, 3), dtype="int64", high=9),
            TensorSpec(name="wave", shape=(4,), dtype="float32"),
        ),
        form="values",
        rank=2,
    )
    rows, labels = next(data.batches(spec))
    found = spec.unpack(rows)
    assert torch.equal(found[0], torch.from_numpy(grid))
    assert torch.equal(found[1], torch.from_numpy(wave))
    assert labels is not None
    assert labels.tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "state.json").write_text("{}"), "names no files"),
        (
            lambda folder: (folder / "state.json").write_text('{"_data_files": [{"filename": "../a.arrow"}]}'),
            "names no files of its folder",
        ),
        (lambda folder: (folder / "data-00000-of-00001.arrow").unlink(), "does not exist"),
        (lambda folder: (folder / "data-00000-of-00001.arrow").write_bytes(b"x" * 99), "no Arrow stream"),
    ],
)
def test_damaged_folders(tmp_path: Path, change: Any, message: str) -> None:
    folder = save(tmp_path / "set", [images([1], [0])])
    change(folder)
    with pytest.raises(UserError, match=message):
        modhifi.load_data(str(folder))


def test_no_columns_to_use(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", [pa.table({"text": ["a", "b"], "label": [0, 1]})])
    with pytest.raises(UserError, match="has no column of images"):
        modhifi.load_data(str(folder))


def test_the_library_itself(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(np.full((8, 8, 3), grey, np.uint8)) for grey in (0, 10, 20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    whole = datasets.Dataset.from_dict({"image": pictures, "label": [0, 1, 1]}, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select([2])}).save_to_disk(str(tmp_path / "set"))
    data = modhifi.load_data(str(tmp_path / "set"), split="train")
    assert [data.read(i).getpixel((0, 0))[0] for i in data.order] == [0, 10, 20]
    assert data.classes == ("a", "b")
