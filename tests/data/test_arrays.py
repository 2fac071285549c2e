"""Arrays in a network's own shape, from files and from memory."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import modhifi
from modhifi import UserError
from modhifi.data import in_memory, prepare
from modhifi.specs import ArraySpec, InputSpec, TensorSpec
from tests.loading.networks import NETWORKS

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(5, 2, 3)).astype(np.float32), RNG.integers(0, 9, (5, 4))


def spec(**shapes: tuple[int, ...]) -> ArraySpec:
    kinds = {"a": "float32", "b": "int64"}
    inputs = tuple(TensorSpec(name=n, shape=s, dtype=kinds.get(n, "float32"), high=9) for n, s in shapes.items())
    return ArraySpec(inputs=inputs, form="values", rank=2)


def save(path: Path, **named: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **named)
    elif path.suffix == ".npy":
        np.save(path, named["a"])
    else:
        save_file({name: torch.from_numpy(value) for name, value in named.items()}, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_several_arrays_in_a_file(tmp_path: Path, suffix: str) -> None:
    data = modhifi.load_data(str(save(tmp_path / f"x{suffix}", b=B, labels=B[:, 0].copy(), a=A)))
    given = spec(a=(2, 3), b=(4,))
    batches = list(data.batches(given, 2))
    assert [len(rows) for rows, _ in batches] == [2, 2, 1]
    first, second = given.unpack(torch.cat([rows for rows, _ in batches]))
    assert first.dtype == torch.float32
    assert second.dtype == torch.int64
    assert torch.equal(first, torch.from_numpy(A))
    assert torch.equal(second, torch.from_numpy(B))
    assert data.targets is not None
    assert data.targets.tolist() == B[:, 0].tolist()
    some = data.take(3, seed=2)
    assert torch.equal(given.unpack(next(some.batches(given))[0])[0], torch.from_numpy(A[list(some.order)]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_numbers_that_no_network_takes(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(5, 2, dtype=dtype)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no ordinary real numbers"):
        modhifi.load_data(str(tmp_path / "x.safetensors"))


def test_one_array_for_images(tmp_path: Path) -> None:
    images = RNG.normal(size=(4, 3, 6, 5)).astype(np.float64)
    data = modhifi.load_data(str(save(tmp_path / "x.npy", a=images)))
    rows, labels = next(data.batches(InputSpec(size=(6, 5), mean=(9.0,) * 3, std=(9.0,) * 3)))
    assert labels is None
    assert torch.equal(rows, torch.from_numpy(images).float()), "nothing is normalised"


def test_wide_numbers_survive() -> None:
    given = ArraySpec(
        inputs=(TensorSpec(name="a", shape=(2,), dtype="int64"), TensorSpec(name="b", shape=(), dtype="bool")),
        form="values",
        rank=2,
    )
    values = [torch.tensor([[1 << 40, -3], [5, 6]]), torch.tensor([True, False])]
    assert all(torch.equal(a, b) for a, b in zip(given.unpack(given.pack(values)), values, strict=True))


class Pickled:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemError('it ran')",))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_pickles_do_not_run(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    array = np.array([Pickled()], dtype=object)
    (np.savez if suffix == ".npz" else np.save)(path, array, allow_pickle=True)
    with pytest.raises(UserError, match="is damaged or not a"):
        modhifi.load_data(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": A, "b": B[:3]}, r"different or no length \(a \(5, 2, 3\), b \(3, 4\)\)"),
        ({"a": A[:0]}, "different or no length"),
        ({"labels": B[:, 0]}, "has no arrays to give to a network"),
        ({"a": A, "y": B, "labels": B}, r"several arrays of labels \(y, labels\)"),
        ({"a": A, "labels": B[:, 0] - 20}, "negative labels"),
        ({"a": A, "labels": B[:, 0] + 10**6}, "the limit is 100,000 classes"),
        ({"a": A.astype(complex)}, "complex128"),
        ({"a": np.array(["x"] * 5)}, "save ordinary real numbers"),
        ({"a": np.zeros((5, 0))}, "rows without numbers"),
        ({"a": np.zeros((10**9, 0))}, "1,000,000,000 samples, or rows without numbers"),
        ({"a": A, "labels": np.zeros((5, 0), np.int64)}, "rows without numbers"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(UserError, match=message):
        modhifi.load_data(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"x{suffix}", a=A)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="is damaged or not a"):
        modhifi.load_data(str(path))
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(UserError, match="is damaged or not a"):
        modhifi.load_data(str(path))


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    data = modhifi.load_data(str(save(tmp_path / "x.npz", a=A, c=A)))
    with pytest.raises(UserError, match=r"are 2×3, and the network takes 7 as a"):
        next(data.batches(spec(a=(7,), c=(2, 3))))
    with pytest.raises(UserError, match=r"has the arrays a, c, and the network takes b"):
        next(data.batches(spec(b=(4,))))
    infinite = in_memory(torch.from_numpy(A) / 0)
    with pytest.raises(UserError, match="values that are not finite"):
        next(infinite.batches(spec(a=(2, 3))))
    with pytest.raises(UserError, match="are images, which this network does not take"):
        next(modhifi.load_data("digits").batches(spec(a=(2, 3))))
    with pytest.raises(UserError, match="are arrays, not images"):
        data.read(0)


class Samples(Dataset[object]):
    """A data set that gives dicts."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> object:
        return {"a": torch.from_numpy(A[index]), "labels": int(B[index, 0])}


class Stream(IterableDataset[object]):
    def __iter__(self) -> object:
        return iter(torch.from_numpy(A))


_TENSOR = torch.from_numpy(A)
_LABELS = torch.from_numpy(B[:, 0])


@pytest.mark.parametrize(
    ("given", "labelled"),
    [
        (_TENSOR, False),
        ((_TENSOR,), False),
        ({"a": _TENSOR}, False),
        ((_TENSOR, _LABELS), True),
        ((_TENSOR, torch.rand(5)), False),
        (TensorDataset(_TENSOR, _LABELS), True),
        (DataLoader(TensorDataset(_TENSOR, _LABELS), batch_size=2), True),
        (Samples(), True),
        (Stream(), False),
    ],
)
def test_data_in_memory(given: object, labelled: bool) -> None:
    data = in_memory(given)
    rows, labels = next(data.batches(spec(a=(2, 3))))
    assert torch.equal(spec(a=(2, 3)).unpack(rows)[0], _TENSOR)
    assert (labels is not None) == labelled
    if labelled:
        assert torch.equal(labels, _LABELS)
    assert in_memory(given).ref == data.ref
    assert modhifi.load_data(data.spec).ref == data.ref, "later steps of the same program open it again"


def test_whole_numbers_that_are_an_input() -> None:
    data = in_memory((_TENSOR, torch.from_numpy(B)))
    assert data.labels is not None
    model = modhifi.wrap(NETWORKS["table"].make(), torch.rand(2, 6))
    model.input = spec(a=(2, 3), b=(4,))
    assert prepare(data, model).labels is None
    model.input = spec(a=(2, 3))
    assert prepare(data, model).labels is not None


@pytest.mark.parametrize("given", [3, "digits", [torch.rand(3), "x"], [("a", "b")], {"a": [1]}])
def test_what_is_no_data(given: object) -> None:
    with pytest.raises(UserError):
        in_memory(given)


def test_another_program_lacks_what_was_in_memory() -> None:
    with pytest.raises(UserError, match=r"given from memory, in another program; save them as \.npz"):
        modhifi.load_data("memory:0123456789abcdef")
