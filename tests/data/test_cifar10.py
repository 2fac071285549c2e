from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modhifi
from modhifi import UserError


def write_batches(folder: Path, rows: int = 4) -> np.ndarray:
    """CIFAR-10's layout with ``rows`` random images in each file; the pixels of the test batch, (rows, 3072)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
        batch = {b"data": pixels, b"labels": [i % 10 for i in range(rows)], b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return pixels


def test_pickles_of_torchvision(tmp_path: Path) -> None:
    pixels = write_batches(tmp_path / "cifar-10-batches-py")
    data = modhifi.load_data("cifar10", tmp_path, split="test")
    assert len(data) == 4
    assert np.array_equal(np.asarray(data.read(3)), pixels[3].reshape(3, 32, 32).transpose(1, 2, 0))
    assert data.classes is not None
    assert data.classes[int(data.labels[3])] == "cat"
    assert len(modhifi.load_data("cifar10", tmp_path / "cifar-10-batches-py", split="train")) == 20
    train, calibration = (modhifi.load_data("cifar10", tmp_path, split=s, samples=7) for s in ("train", "calibration"))
    assert train.order == calibration.order


class _Writes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_batch_does_not_run(tmp_path: Path) -> None:
    write_batches(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({b"data": _Writes(tmp_path / "ran")}))
    with pytest.raises(UserError, match="mkdir is not allowed"):
        modhifi.load_data("cifar10", tmp_path, split="test")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps({b"data": [1], b"labels": [1]}), pickle.dumps([]), pickle.dumps({})]
)
def test_damaged_batch(tmp_path: Path, content: bytes) -> None:
    write_batches(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(UserError, match=r"test_batch is damaged"):
        modhifi.load_data("cifar10", tmp_path, split="test")


def test_missing_batch(tmp_path: Path) -> None:
    write_batches(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(UserError, match="data_batch_4 is missing"):
        modhifi.load_data("cifar10", tmp_path)


def test_no_root_and_wrong_root(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data-root"):
        modhifi.load_data("cifar10")
    with pytest.raises(UserError, match="does not exist"):
        modhifi.load_data("cifar10", tmp_path / "none")
    with pytest.raises(UserError, match="contains no CIFAR-10"):
        modhifi.load_data("cifar10", tmp_path)
    with pytest.raises(UserError, match="no split 'dev'"):
        modhifi.load_data("cifar10", tmp_path, split="dev")


def test_shared_parquet(shared: Path) -> None:
    root = shared / "data" / "cifar10"
    test = modhifi.load_data("cifar10", root, split="test")
    assert len(test) == 5000
    assert test.targets is not None
    assert test.targets.bincount().tolist() == [500] * 10
    assert test.read(0).size == (32, 32)
    assert len(modhifi.load_data("cifar10", root, samples=512)) == 512
