from __future__ import annotations

import datetime
import decimal
import io
import json
import os
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
    metadata["info"]["features"]["label"]["names"] = ["crane", "", "crane "]
    data = modhifi.load_data(write(tmp_path / "c.parquet", {"img": IMAGES, "label": [0, 1, 2]}, metadata))
    assert data.classes == ("crane (0)", "(1)", "crane (2)")


@pytest.mark.parametrize("labels", [[-1, -1, -1], pa.array([None] * 3, pa.int64())])
def test_no_row_has_a_label(tmp_path: Path, labels: Any) -> None:
    assert modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": labels})).labels is None


@pytest.mark.parametrize("labels", [[0, -1, 1], [0, None, 1], [0.5, 1.0, 2.0], ["a", None, "b"], [0, -5, 1]])
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


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.int64(), pa.uint64()])
def test_indices_of_any_integer_type(tmp_path: Path, kind: Any) -> None:
    labels = pa.array([2, 0, 1], kind)
    for column in (labels, labels.dictionary_encode()):
        data = modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": column}))
        assert data.targets is not None
        assert data.targets.tolist() == [2, 0, 1]
        assert data.classes == ("0", "1", "2")


def test_names_as_a_dictionary(tmp_path: Path) -> None:
    labels = pa.array(["dog", "cat", "dog"]).dictionary_encode()
    data = modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": labels}))
    assert data.classes == ("cat", "dog")
    assert data.labels is not None
    assert data.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("label", [100_000, 2**31, 2**63, 2**64 - 1])
def test_classes_are_limited_before_their_names_are_made(tmp_path: Path, label: int) -> None:
    labels = pa.array([0, 1, label], pa.uint64())
    with pytest.raises(UserError, match=f"has the label {label}, but the limit is 100,000 classes"):
        modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": labels}))


@pytest.mark.parametrize(
    "labels",
    [
        [True, False, True],
        [0.0, 1.0, 2.0],
        [decimal.Decimal(0), decimal.Decimal(1), decimal.Decimal(2)],
        [datetime.date(2020, 1, 1)] * 3,
        [datetime.datetime(2020, 1, 1)] * 3,
        [b"a", b"b", b"c"],
        [[0], [1], [2]],
        [{"a": 1}] * 3,
    ],
)
def test_other_types_are_no_labels(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(UserError, match="has the label type"):
        modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": labels}))


def test_a_dictionary_may_not_expand_without_limit(tmp_path: Path) -> None:
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array([bytes(1 << 16)]))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"img": images}), path, store_schema=False)
    assert path.stat().st_size < 1 << 16
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size < 1 << 17
    with pytest.raises(UserError, match="expands to far more than its size"):
        modhifi.load_data(str(path))


def test_declared_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [bytes(1 << 20)] * 100
    pq.write_table(pa.table({"img": images}), tmp_path / "a.parquet", use_dictionary=False, compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 18
    monkeypatch.setattr("modhifi.data._parquet._expanded", None)  # refused before anything is read
    with pytest.raises(UserError, match="expands to far more than its size"):
        modhifi.load_data(str(tmp_path / "a.parquet"))


def test_rows_are_limited(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"img": pa.nulls(10_000_001, pa.binary())})
    with pytest.raises(UserError, match="has 10,000,001 rows, the limit is 10,000,000"):
        modhifi.load_data(path)


def test_fields_that_are_not_needed_are_not_read(tmp_path: Path) -> None:
    paths = pa.array([b"\xff", b"\xfe", b"\xfd"]).view(pa.string())
    images = pa.StructArray.from_arrays([pa.array([i["bytes"] for i in IMAGES]), paths], ["bytes", "path"])
    data = modhifi.load_data(write(tmp_path / "a.parquet", {"img": images}))
    assert data.read(2).getpixel((0, 0)) == 2


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    labels = pa.array([b"\xff", b"a", b"b"]).view(pa.string())
    with pytest.raises(UserError, match="damaged"):
        modhifi.load_data(write(tmp_path / "a.parquet", {"img": IMAGES, "label": labels}))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="not a regular file"):
        modhifi.load_data(str(tmp_path / "a.parquet"))
