"""What follows from second moments, against Gram matrices and least squares on the samples themselves."""

import numpy as np
import pytest
import torch

from modhifi.fidelity import (
    aggregate_gram,
    centre,
    compensation,
    eliminate,
    error_curve,
    fidelity_curve,
    full_compensation,
    gram,
    inverse,
    output_energy,
    removal_cost,
    ridged,
    scalar_compensation,
    singleton_fidelity,
    singleton_from_moments,
)

OUTPUTS, COMPONENTS, BLOCK = 4, 5, 3


@pytest.fixture
def layer() -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Samples x (N, n) that are correlated and not centred, their second moment, and a weight."""
    rng = np.random.default_rng(0)
    n = COMPONENTS * BLOCK
    x = rng.normal(size=(300, n)) @ rng.normal(size=(n, n)) + rng.normal(size=n)
    return x, torch.from_numpy(x.T @ x / len(x)), torch.from_numpy(rng.normal(size=(OUTPUTS, n)))


def contributions(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(O, N, C): what each component adds to each output."""
    parts = [x[:, i * BLOCK : (i + 1) * BLOCK] @ w[:, i * BLOCK : (i + 1) * BLOCK].T for i in range(COMPONENTS)]
    return np.stack(parts, 2).transpose(1, 0, 2)


def measured_error(x: np.ndarray, w: torch.Tensor, new: torch.Tensor) -> float:
    return float((((x @ (w - new).numpy().T) ** 2).sum(1)).mean())


def columns(keep: list[int]) -> list[int]:
    return [i * BLOCK + k for i in keep for k in range(BLOCK)]


def test_gram_and_its_shortcuts(layer) -> None:
    x, h, w = layer
    a = contributions(x, w.numpy())
    expected = np.einsum("oni,onj->oij", a, a) / len(x)
    np.testing.assert_allclose(gram(h, w, BLOCK), expected, rtol=1e-9)
    np.testing.assert_allclose(aggregate_gram(h, w, BLOCK), expected.sum(0), rtol=1e-9)
    np.testing.assert_allclose(output_energy(h, w), (a.sum(2) ** 2).mean(1), rtol=1e-9)
    torch.testing.assert_close(singleton_from_moments(h, w, BLOCK), singleton_fidelity(torch.from_numpy(expected)))


def test_full_compensation_is_least_squares(layer) -> None:
    x, h, w = layer
    keep = [0, 3, 4]
    new = full_compensation(h, w, BLOCK, keep)
    fitted, *_ = np.linalg.lstsq(x[:, columns(keep)], x @ w.numpy().T, rcond=None)
    np.testing.assert_allclose(new[:, columns(keep)], fitted.T, rtol=1e-7)
    assert float(new[:, columns([1, 2])].abs().max()) == 0.0


def test_scalar_compensation_scales_whole_slices(layer) -> None:
    _, h, w = layer
    keep = [1, 2]
    new = scalar_compensation(h, w, BLOCK, keep)
    delta = compensation(gram(h, w, BLOCK), keep)
    for position, component in enumerate(keep):
        torch.testing.assert_close(new[:, columns([component])], w[:, columns([component])] * delta[:, position, None])


@pytest.mark.parametrize("level", ["none", "scalar", "full"])
def test_error_curve_against_measuring_every_size(layer, level: str) -> None:
    x, h, w = layer
    order = torch.tensor([2, 0, 4, 1, 3])
    curve = error_curve(h, w, BLOCK, order, level)
    for size in range(COMPONENTS + 1):
        keep = order[:size].tolist()
        if level == "full":
            new = full_compensation(h, w, BLOCK, keep)
        elif level == "scalar":
            new = scalar_compensation(h, w, BLOCK, keep)
        else:
            new = torch.zeros_like(w)
            new[:, columns(keep)] = w[:, columns(keep)]
        assert float(curve[size]) == pytest.approx(measured_error(x, w, new), rel=1e-7, abs=1e-9)


def test_full_is_never_worse_than_scalar_than_none_with_the_best_scalars(layer) -> None:
    _, h, w = layer
    order = torch.tensor([1, 4, 0, 3, 2])
    none, scalar, full = (error_curve(h, w, BLOCK, order, level) for level in ("none", "scalar", "full"))
    assert bool((full <= scalar + 1e-9).all())
    assert bool((scalar <= none + 1e-9).all())


def test_elimination_costs_are_the_growth_of_the_optimal_error(layer) -> None:
    """Each removal costs what refitting from scratch says, and is the cheapest one there was."""
    _, h, w = layer

    def error(keep: list[int]) -> float:
        delta = w - full_compensation(h, w, BLOCK, keep)
        return float(((delta @ h) * delta).sum())

    order, costs = eliminate([(inverse(h), w, BLOCK)])
    left = list(range(COMPONENTS))
    for component in order.flip(0).tolist():
        growth = {i: error([j for j in left if j != i]) - error(left) for i in left}
        assert component == min(growth, key=growth.__getitem__)
        assert float(costs[component]) == pytest.approx(growth[component], rel=1e-6)
        left.remove(component)


def test_large_blocks_on_several_threads() -> None:
    """Three heads of 192 columns each, as in SmolLM2: one batch of blocks that torch may factorise in parallel."""
    rng = np.random.default_rng(0)
    root, w = rng.standard_normal((576, 800)), rng.standard_normal((8, 576))
    h = root @ root.T / 800
    found = removal_cost([(inverse(torch.from_numpy(h)), torch.from_numpy(w), 192)])
    inverted = np.linalg.inv(h)
    for i in range(3):
        own = slice(192 * i, 192 * (i + 1))
        expected = np.trace(w[:, own] @ np.linalg.inv(inverted[own, own]) @ w[:, own].T)
        assert float(found[i]) == pytest.approx(expected, rel=1e-8)


def test_elimination_over_two_consumers_adds_their_costs(layer) -> None:
    _, h, w = layer
    generator = torch.Generator().manual_seed(1)
    other = torch.randn(2, COMPONENTS, generator=generator, dtype=torch.float64)
    small = torch.randn(50, COMPONENTS, generator=generator, dtype=torch.float64)
    second = small.T @ small / 50
    order, costs = eliminate([(inverse(h), w, BLOCK), (inverse(second), other, 1)])

    def error(keep: list[int]) -> float:
        total = 0.0
        for moment, weight, block in ((h, w, BLOCK), (second, other, 1)):
            delta = weight - full_compensation(moment, weight, block, keep)
            total += float(((delta @ moment) * delta).sum())
        return total

    first = int(order[-1])
    assert float(costs[first]) == pytest.approx(min(error([j for j in range(5) if j != i]) for i in range(5)), rel=1e-6)
    with pytest.raises(ValueError, match="must read the same components"):
        eliminate([(inverse(h), w, BLOCK), (inverse(h), w, 1)])


def test_centred_never_reconstructs_worse_than_raw(layer) -> None:
    x, h, w = layer
    mean = torch.from_numpy(x.mean(0))
    keep = [0, 2]
    raw = full_compensation(h, w, BLOCK, keep)
    centred = full_compensation(centre(h, mean), w, BLOCK, keep)
    shift = ((w - centred) @ mean).numpy()
    with_shift = ((x @ (w - centred).numpy().T - shift) ** 2).sum(1).mean()
    assert with_shift <= measured_error(x, w, raw) + 1e-9


def test_the_ridge_pulls_towards_the_old_weights(layer) -> None:
    _, h, w = layer
    keep = list(range(COMPONENTS))
    torch.testing.assert_close(full_compensation(ridged(h, 10.0), w, BLOCK, keep), w)
    strong = full_compensation(ridged(h, 1e9), w, BLOCK, [0, 1])
    torch.testing.assert_close(strong[:, columns([0, 1])], w[:, columns([0, 1])], rtol=1e-5, atol=1e-5)


def test_dead_inputs_are_solved_with_a_ridge(layer) -> None:
    _, h, w = layer
    h = h.clone()
    h[columns([2]), :] = h[:, columns([2])] = 0.0
    order, costs = eliminate([(inverse(ridged(h, 1e-6)), w, BLOCK)])
    assert int(order[-1]) == 2
    assert float(costs[2]) < 1e-3 * float(output_energy(h, w).sum())
    assert bool(torch.isfinite(full_compensation(ridged(h * 0, 1e-6), w, BLOCK, [0, 1])).all())


def test_shapes_that_do_not_belong_together_are_refused(layer) -> None:
    _, h, w = layer
    with pytest.raises(ValueError, match="do not match"):
        gram(h, w[:, 1:], BLOCK)
    with pytest.raises(ValueError, match="do not match"):
        gram(h, w, 2)


def test_with_one_weight_a_slice_scalar_is_full(layer) -> None:
    _, h, w = layer
    order = torch.arange(COMPONENTS * BLOCK - 1, -1, -1)
    keep = order[:6].tolist()
    torch.testing.assert_close(scalar_compensation(h, w, 1, keep), full_compensation(h, w, 1, keep))
    delta = compensation(gram(h, w, 1), keep)
    torch.testing.assert_close(scalar_compensation(h, w, 1, keep)[:, keep], w[:, keep] * delta)
    torch.testing.assert_close(error_curve(h, w, 1, order, "scalar"), error_curve(h, w, 1, order, "full"))


def test_components_that_are_only_a_part_of_what_the_layer_reads(layer) -> None:
    """Columns of no component stay, and under full compensation make up for what goes, too."""
    _, h, w = layer
    own = torch.tensor([columns([i]) for i in (4, 1, 2)])  # components 0 and 3 are somebody else's

    def error(keep: list[int]) -> float:
        new = full_compensation(h, w, own, keep)
        stays = columns([0, 3]) + own[keep].reshape(-1).tolist()
        fitted = w.numpy() @ h[:, stays].numpy() @ np.linalg.pinv(h[stays][:, stays].numpy())
        np.testing.assert_allclose(new[:, stays], fitted, rtol=1e-6, atol=1e-8)
        delta = w - new
        return float(((delta @ h) * delta).sum())

    order, costs = eliminate([(inverse(h), w, own)])
    curve = error_curve(h, w, own, order, "full", inverse(h))
    torch.testing.assert_close(curve, error_curve(h, w, own, order, "full"))
    for size in range(4):
        assert float(curve[size]) == pytest.approx(error(order[:size].tolist()), rel=1e-6, abs=1e-9)
    # Removed one at a time, the costs are the steps of the curve.
    steps = (curve[:-1] - curve[1:]).flip(0)
    torch.testing.assert_close(costs[order.flip(0)], steps)

    # Scalars reconstruct the components' own part of the output; the others keep their weights.
    kept = scalar_compensation(h, w, own, [0, 2])
    assert torch.equal(kept[:, columns([0, 3])], w[:, columns([0, 3])])
    flat = own.reshape(-1)
    part = scalar_compensation(h[flat][:, flat], w[:, flat], BLOCK, [0, 2])
    torch.testing.assert_close(kept[:, flat], part)
    delta = (w - kept)[:, flat]
    expected = float(((delta @ h[flat][:, flat]) * delta).sum())
    assert float(error_curve(h, w, own, torch.tensor([0, 2, 1]), "scalar")[2]) == pytest.approx(expected, rel=1e-6)
    none = error_curve(h, w, own, torch.tensor([0, 2, 1]), "none")
    gone = w[:, columns([1])]
    assert float(none[2]) == pytest.approx(float(((gone @ h[columns([1])][:, columns([1])]) * gone).sum()), rel=1e-9)
    singles = singleton_from_moments(h, w, own)
    torch.testing.assert_close(singles, singleton_from_moments(h, w, BLOCK)[:, [4, 1, 2]])


def test_many_components_leave_several_at_a_time_and_nothing_is_lost() -> None:
    """Above 256 components: still a permutation, no worse than ranking by singletons, and its error that of a refit."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(600, 600, generator=generator, dtype=torch.float64) * torch.linspace(0.05, 2, 600)[:, None]
    h = ridged(mixing.T @ mixing / 600, 1e-6)
    w = torch.randn(8, 600, generator=generator, dtype=torch.float64)
    order, costs = eliminate([(inverse(h), w, 1)])
    assert sorted(order.tolist()) == list(range(600))
    assert bool((costs > 0).all())
    curve = error_curve(h, w, 1, order, "full")
    naive = error_curve(h, w, 1, torch.argsort(singleton_from_moments(h, w, 1).sum(0), descending=True), "full")
    assert float(curve[300]) < float(naive[300])
    delta = w - full_compensation(h, w, 1, order[:300])
    assert float(curve[300]) == pytest.approx(float(((delta @ h) * delta).sum()), rel=1e-6)
    # One at a time from the start, which is the definition, is not much better.
    left = list(range(600))
    p, weight = inverse(h), w.clone()
    for _ in range(300):
        cost = weight.square().sum(0) / p.diagonal()
        worst = int(cost.argmin())
        weight = weight - weight[:, worst : worst + 1] / p[worst, worst] * p[worst]
        p = p - torch.outer(p[worst], p[worst]) / p[worst, worst]
        stay = [i for i in range(len(left)) if i != worst]
        p, weight, left = p[stay][:, stay], weight[:, stay], [left[i] for i in stay]
    delta = w - full_compensation(h, w, 1, left)
    assert float(curve[300]) < 1.05 * float(((delta @ h) * delta).sum())


def test_a_dead_slice_explains_nothing_at_the_scalar_level(layer) -> None:
    _, h, w = layer
    w = w.clone()
    w[:, columns([3])] = 0.0
    w[1] = 0.0  # and an output without energy
    order = torch.tensor([3, 0, 1, 2, 4])
    curve = error_curve(h, w, BLOCK, order, "scalar")
    assert bool(torch.isfinite(curve).all())
    assert float(curve[0]) == pytest.approx(float(curve[1]), rel=1e-9)
    expected = fidelity_curve(gram(h, w, BLOCK), order)
    energy = output_energy(h, w)
    torch.testing.assert_close(curve, ((1 - expected) * energy[:, None]).sum(0), rtol=1e-6, atol=1e-8)
