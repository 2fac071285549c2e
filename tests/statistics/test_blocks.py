"""Block by block: the same moments as from the network whole, in single precision, and no more memory for more blocks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import modhifi
from modhifi import Data, Model
from modhifi.components import structure_of
from modhifi.data import windowed
from modhifi.layers import observed
from modhifi.models.language import FAMILIES
from modhifi.statistics import Stream, collect_blocks, entered
from modhifi.study import read_columns

Make = Callable[..., Model]


def blockwise(model: Model, data: Data, size: int) -> dict[str, modhifi.statistics.Moments]:
    structure = structure_of(model)
    columns = {name: read_columns(structure, name) for name in structure.readers}
    batches = (rows for rows, _ in data.batches(model.input, size))
    return {
        name: one
        for _, block in collect_blocks(model.module, columns, batches, len(data))
        for name, one in block.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_are_those_of_the_whole_network(family: str, language: Make, prose: Data) -> None:
    model = language(family)
    data = windowed(prose.take(20), model)
    rows: dict[str, list[torch.Tensor]] = {}
    with (
        torch.no_grad(),
        observed(
            model.module,
            list(structure_of(model).readers),
            lambda name, _, x, __: rows.setdefault(name, []).append(x.reshape(-1, x.shape[-1]).double()),
        ),
    ):
        for batch, _ in data.batches(model.input, 20):
            model.module(batch)
    found = blockwise(model, data, 6)  # the last batch is smaller
    assert found.keys() == rows.keys()
    for name, parts in rows.items():
        x = torch.cat(parts)
        assert found[name].count == len(x) == 20 * 16
        assert found[name].positions == 16
        assert torch.allclose(found[name].second.double(), x.T @ x / len(x), rtol=1e-5, atol=1e-6)
        assert torch.allclose(found[name].mean, x.mean(0), rtol=1e-5, atol=1e-6)


def test_bfloat16_weights_have_moments_in_single_precision(language: Make, prose: Data) -> None:
    exact, coarse = language(), language(dtype=torch.bfloat16)
    data = windowed(prose.take(20), exact)
    for name, one in blockwise(coarse, data, 8).items():
        assert one.second.dtype == torch.float32
        expected = blockwise(exact, data, 8)[name].second
        assert float((one.second - expected).norm() / expected.norm()) < 0.05


def test_no_hook_and_no_stand_in_stays(language: Make, prose: Data) -> None:
    model = language()
    data = windowed(prose.take(8), model)

    def clean() -> bool:
        return all(not part._forward_hooks and "forward" not in part.__dict__ for part in model.module.modules())

    stream = entered(model.module, (rows for rows, _ in data.batches(model.input, 4)), 8)
    assert isinstance(stream, Stream)
    assert clean()
    with pytest.raises(IndexError):
        entered(model.module, [torch.full((2, 16), 999)], 2)
    assert clean()
    blockwise(model, data, 4)
    assert clean()


def test_states_may_lie_in_a_file(language: Make, prose: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language()
    data = windowed(prose.take(20), model)
    expected = blockwise(model, data, 6)
    monkeypatch.setattr("modhifi.statistics._blocks._IN_MEMORY", 0)
    for name, one in blockwise(model, data, 6).items():
        assert torch.equal(one.second, expected[name].second)


def mapped() -> list[tuple[int, int]]:
    """Addresses that are those of files."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if len(line) > 5 and line[5].endswith(".safetensors")]
    return [(int(low, 16), int(high, 16)) for low, high in spans]


def live() -> int:
    """Bytes of all tensors in memory, each storage once; those that are mapped from a file are not in it."""
    files = mapped()
    storages = [one.untyped_storage() for one in gc.get_objects() if type(one) is torch.Tensor]
    sizes = {one.data_ptr(): one.nbytes() for one in storages}
    return sum(size for at, size in sizes.items() if not any(low <= at < high for low, high in files))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="counts what the system says is mapped from files")
def test_memory_grows_with_one_block_and_not_with_depth(language: Make, prose: Data, tmp_path: Path) -> None:
    peaks = {}
    for blocks in (2, 6):
        model = language(num_hidden_layers=blocks, intermediate_size=160)
        before, seen = live(), [0]

        def watch(done: int, total: int, what: str, before: int = before, seen: list[int] = seen) -> None:
            if "block" in what:
                seen.append(live() - before)

        kept = tmp_path / str(blocks)
        study = modhifi.analyze(model, prose, 16, out=kept, constants=["none"], progress=watch)
        assert len(seen) == blocks + 2
        peaks[blocks] = max(seen)
        again = modhifi.Study.load(kept)
        name = study.structure.groups[-1].consumers[0].layer
        assert torch.equal(again.layers[name].moments.second, study.layers[name].moments.second)
    one = 4 * 160 * 160
    assert peaks[2] > one / 2  # the measure sees moments
    # Four more blocks leave tables and indices behind, but no moments.
    assert peaks[6] - peaks[2] < 2 * one
    del study, again
    in_memory = live()
    whole = modhifi.analyze(language(num_hidden_layers=6, intermediate_size=160), prose, 16, constants=["none"])
    assert live() - in_memory > 6 * one
    assert len(whole.layers) == 12
