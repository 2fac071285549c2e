"""Shapley outputs against a loop over orders of arrival, captum, and what must hold of any model."""

import itertools
import math

import pytest
import torch
from captum.attr import ShapleyValues
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modhifi.multimodal import mono_modal_outputs, shapley_values
from modhifi.multimodal._shapley import coalitions, mute, share


class Toy(nn.Module):
    """Early fusion with products of modalities, BatchNorm in it, in float64; nothing of it is a sum over modalities."""

    def __init__(self, modalities: int) -> None:
        super().__init__()
        self.inner = nn.Linear(3 * modalities, 8)
        self.norm = nn.BatchNorm1d(8)
        self.outer = nn.Linear(8, 4)
        self.double()

    def forward(self, inputs: dict[str, Tensor] | tuple[Tensor, ...]) -> Tensor:
        values = list(inputs.values()) if isinstance(inputs, dict) else list(inputs)
        return self.outer(torch.tanh(self.norm(self.inner(torch.cat(values, 1)))) ** 2)


def toy(modalities: int) -> tuple[Toy, dict[str, Tensor]]:
    torch.manual_seed(modalities)
    model = Toy(modalities)
    model.norm.running_mean.uniform_(-1, 1)
    return model, {f"m{i}": torch.randn(6, 3, dtype=torch.float64) for i in range(modalities)}


def by_arrival(value, players: list[str]) -> dict[str, Tensor]:
    """The textbook's definition: the mean, over all orders of arrival, of what each adds to those before it."""
    found = dict.fromkeys(players, 0.0)
    for order in itertools.permutations(players):
        for place, name in enumerate(order):
            found[name] = found[name] + value(set(order[: place + 1])) - value(set(order[:place]))
    return {name: total / math.factorial(len(players)) for name, total in found.items()}


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_against_orders_of_arrival(modalities: int) -> None:
    model, inputs = toy(modalities)
    model.eval()

    def value(present: set[str]) -> Tensor:
        return model({k: v if k in present else torch.zeros_like(v) for k, v in inputs.items()})

    outputs = {
        frozenset(s): value(s) for n in range(modalities + 1) for s in map(set, itertools.combinations(inputs, n))
    }
    expected = by_arrival(value, list(inputs))
    found = shapley_values(outputs, list(inputs))
    for name in inputs:
        assert torch.allclose(found[name], expected[name], atol=1e-12), name
    assert torch.allclose(sum(found.values()), value(set(inputs)) - value(set()), atol=1e-12)
    # Without f(∅), which then counts as 0.
    expected = by_arrival(lambda s: value(s) if s else torch.zeros(6, 4), list(inputs))
    model.train()
    found = mono_modal_outputs(model, inputs)
    for name in inputs:
        assert torch.allclose(found[name], expected[name], atol=1e-12), name
    assert torch.allclose(sum(found.values()), value_of(model, inputs), atol=1e-12)


def value_of(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return model.eval()(inputs)


def test_two_modalities_are_the_papers_formula() -> None:
    model, inputs = toy(2)
    model.eval()
    a, v = inputs.values()
    zero = torch.zeros_like(a)
    both, only_a, only_v = model((a, v)), model((a, zero)), model((zero, v))
    found = mono_modal_outputs(model, (a, v))
    assert list(found) == ["0", "1"]
    assert torch.allclose(found["0"], (both - only_v + only_a) / 2, atol=1e-12)
    assert torch.allclose(found["1"], (both - only_a + only_v) / 2, atol=1e-12)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("muted_to", ["zeros", "baseline"])
def test_against_captum(modalities: int, muted_to: str) -> None:
    """Captum starts from f(∅), which it takes away; each modality is one feature of its own."""
    model, inputs = toy(modalities)
    model.eval()
    baseline = None if muted_to == "zeros" else {k: torch.randn(1, 3, dtype=torch.float64) for k in inputs}
    outputs = {
        present: model(mute(inputs, present, baseline))
        for present in (*coalitions(list(inputs)), frozenset(inputs), frozenset())
    }
    found = shapley_values(outputs, list(inputs))
    explain = ShapleyValues(lambda *values: model(values))
    samples = tuple(inputs.values())
    for target in range(4):
        told = explain.attribute(
            samples,
            baselines=tuple(
                torch.zeros(1, 3, dtype=torch.float64) if baseline is None else baseline[name] for name in inputs
            ),
            feature_mask=tuple(torch.full((1, 3), place) for place in range(modalities)),
            target=target,
        )
        for name, values in zip(inputs, told, strict=True):
            assert torch.allclose(values[:, 0].double(), found[name][:, target], atol=1e-6), name
    assert torch.allclose(sum(found.values()) + outputs[frozenset()], outputs[frozenset(inputs)], atol=1e-12)


def test_muted_passes_leave_batch_norm_as_it_is() -> None:
    model, inputs = toy(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    mono_modal_outputs(model, inputs)
    assert model.norm.training, "and it is back in training mode"
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_batch_norm_is_back_after_a_pass_that_raises() -> None:
    model, inputs = toy(2)
    with pytest.raises(RuntimeError):
        mono_modal_outputs(model, {k: v[:, :2] for k, v in inputs.items()})
    assert model.norm.training


def test_equal_weights_leave_the_whole_alone_exactly() -> None:
    for modalities in range(2, 7):
        names = [str(i) for i in range(modalities)]
        weights = dict.fromkeys(names, 1.0)
        assert share(frozenset(names), weights) == 1.0
        assert all(share(present, weights) == 0.0 for present in coalitions(names))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5), st.integers(0, 1000))
def test_shares_are_those_of_the_weighted_sum(weights: list[float], seed: int) -> None:
    """Σ_S share(S) f(S) = Σ_m w_m φ_m, whatever the outputs."""
    names = [str(i) for i in range(len(weights))]
    by_name = dict(zip(names, weights, strict=True))
    generator = torch.Generator().manual_seed(seed)
    outputs = {
        s: torch.randn(1, 2, dtype=torch.float64, generator=generator)
        for s in (*coalitions(names), frozenset(names), frozenset())
    }
    values = shapley_values(outputs, names)
    weighed = sum(by_name[name] * values[name] for name in names)
    assert torch.allclose(sum(share(s, by_name) * f for s, f in outputs.items()), weighed, atol=1e-10)
