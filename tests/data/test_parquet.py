from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import modhifi
from modhifi import UserError


def encoded(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), grey).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [{"bytes": encoded(i), "path": f"{i}.png"} for i in range(3)]


def write(path: Path, columns: dict[str, Any], metadata: dict[str, Any] | None = None) -> str:
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path)
    return str(path)


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("images", [IMAGES, [image["bytes"] for image in IMAGES]])
def test_image_columns(tmp_path: Path, column: str, images: list[Any]) -> None:
    data = modhifi.load_data(write(tmp_path / "a.parquet", {"other": [1, 2, 3], column: images}))
    assert [data.read(i).getpixel((0, 0)) for i in data.order] == [0, 1, 2]
    assert data.labels is None
    assert data.classes is None


def test_labels_as_indices(tmp_path: Path) -> None:
    data = modhifi.load_data(write(tmp_path / "a.parquet", {"label": [2, 0, 1], "img": IMAGES}))
    assert data.targets is not None
    assert data.targets.tolist() == [2, 0, 1]
    assert data.classes == ("0", "1", "2")


def test_labels_as_names(tmp_path: Path) -> None:
    data = modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": ["dog", "cat", "dog"]}))
    assert data.classes == ("cat", "dog")
    assert data.targets is not None
    assert data.targets.tolist() == [1, 0, 1]


def test_names_in_the_metadata(tmp_path: Path) -> None:
    metadata = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}
    data = modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": [0, 0, 1]}, metadata))
    assert data.classes == ("ant", "bee", "cat")
    with pytest.raises(UserError, match="only 3 classes"):
        modhifi.load_data(write(tmp_path / "b.parquet", {"img": IMAGES, "label": [0, 0, 3]}, metadata))


@pytest.mark.parametrize("labels", [[-1, -1, -1], pa.array([None] * 3, pa.int64())])
def test_no_row_has_a_label(tmp_path: Path, labels: Any) -> None:
    assert modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": labels})).labels is None


@pytest.mark.parametrize("labels", [[0, -1, 1], [0, None, 1], [0.5, 1.0, 2.0], ["a", None, "b"]])
def test_bad_labels(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(UserError, match="has the label"):
        modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": labels}))


def test_no_image_column(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image column .* its columns are audio, label"):
        modhifi.load_data(write(tmp_path / "a.parquet", {"audio": [b"x"], "label": [1]}))


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        modhifi.load_data(write(tmp_path / "a.parquet", {"img": pa.array([], pa.binary())}))


@pytest.mark.parametrize("kept", [0, 10, 300])
def test_truncated(tmp_path: Path, kept: int) -> None:
    path = Path(write(tmp_path / "a.parquet", {"img": IMAGES}))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"a\.parquet is truncated"):
        modhifi.load_data(str(path))


@pytest.mark.parametrize("image", [{"bytes": b"junk", "path": ""}, {"bytes": None, "path": "x.png"}])
def test_row_without_an_image(tmp_path: Path, image: dict[str, Any]) -> None:
    data = modhifi.load_data(write(tmp_path / "a.parquet", {"img": [IMAGES[0], image]}))
    with pytest.raises(UserError, match=r"row 1 of .*a\.parquet"):
        data.read(1)
