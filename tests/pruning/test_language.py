"""Plans for language models: equal widths, the published score, and compensation block by block."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.data import windowed
from modhifi.layers import get_operator
from modhifi.models.language import FAMILIES, opens_alone
from modhifi.pruning import add_score, cholesky, pruning_methods, smallest_cost, usual_allocation
from modhifi.pruning._sequential_blocks import sequential_blocks
from modhifi.specs import PruningSpec

Make = Callable[..., Model]


def studied(model: Model, prose: Data) -> Study:
    return modhifi.analyze(model, prose, 24, batch_size=10, constant_samples=2)


@pytest.fixture
def here(prose: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calibration text of these studies lies in no file."""
    monkeypatch.setattr(
        "modhifi.pruning._prune.calibration_data", lambda ref, model, *_: windowed(prose.take(ref.samples), model)
    )


@pytest.mark.parametrize(("family", "counts"), [("llama", (1, 2, 4)), ("mistral", (1, 2, 3, 4))])
def test_equal_widths_are_the_best_pair_that_fits(
    family: str, counts: tuple[int, ...], language: Make, prose: Data
) -> None:
    """Of those that the configuration can say: Llama's query heads, two a key-value head, must divide its 32 channels."""
    study = studied(language(family, num_attention_heads=8, num_key_value_heads=4), prose)
    heads, neurons = ([group for group in study.groups if group.kind == kind] for kind in ("heads", "neurons"))

    def error(groups: list[modhifi.components.Group], size: int) -> float:
        total = 0.0
        for group in groups:
            (reader,) = group.consumers
            local = study.errors(group.name, reader.layer, "greedy", "full", study.centred)[size]
            total += study.constant(reader.layer, typical=True) ** 2 * local
        return total

    for ratio in (0.95, 0.85, 0.7):
        found = modhifi.allocate(study, params=ratio)
        pairs = []
        for h, n in itertools.product(counts, range(1, 25)):
            chosen = {g.name: h for g in heads} | {g.name: n for g in neurons}
            if study.cost(chosen).params <= ratio * study.dense.params + 0.5:
                pairs.append((error(heads, h) + error(neurons, n), (h, n)))
        best = min(pairs)[0]
        h, n = found.counts[heads[0].name], found.counts[neurons[0].name]
        assert {*found.counts.values()} <= {h, n}
        assert error(heads, h) + error(neurons, n) == pytest.approx(best)
        assert found.cost.params <= ratio * study.dense.params + 0.5
    multiple = modhifi.allocate(study, params=0.85, multiple=8)
    assert multiple.counts[neurons[0].name] % 8 == 0
    least = smallest_cost(study, PruningSpec(budget="params"))
    few = {g.name: 1 for g in (*heads, *neurons)}
    assert least == study.cost(few).params / study.dense.params
    assert modhifi.allocate(study, params=least).counts == few


def test_floors_and_what_is_set_by_hand_hold_for_equal_widths(language: Make, prose: Data) -> None:
    study = studied(language(num_attention_heads=8, num_key_value_heads=4), prose)
    heads, neurons = ([group.name for group in study.groups if group.kind == kind] for kind in ("heads", "neurons"))
    found = modhifi.allocate(study, params=0.8, floors={neurons[0]: 14})
    assert found.counts[neurons[0]] == found.counts[neurons[1]] >= 14
    with pytest.raises(UserError, match=r"params 0\.3 cannot be reached"):
        modhifi.allocate(study, params=0.3, floors={neurons[1]: 23})
    by_hand = dict.fromkeys(neurons, 5) | dict.fromkeys(heads, 3)
    assert modhifi.allocate(study, params=0.9, overrides=by_hand).counts == by_hand
    with pytest.raises(UserError, match="cannot be reached"):
        modhifi.allocate(study, params=0.5, overrides=dict.fromkeys(neurons, 24) | dict.fromkeys(heads, 4))
    # Three of four cannot be said, so all four stay.
    found = modhifi.allocate(study, params=0.95, floors={heads[0]: 3})
    assert {found.counts[name] for name in heads} == {4}


def test_blocks_that_differ_are_pruned_freely_unless_asked_otherwise(language: Make, prose: Data) -> None:
    model = language(num_hidden_layers=3)
    first = studied(model, prose)
    neurons = [group.name for group in first.groups if group.kind == "neurons"]
    uneven = modhifi.prune(first, overrides=dict(zip(neurons, (24, 19, 11), strict=True)), compensate="none")
    study = studied(modhifi.apply(uneven, model), prose)
    assert usual_allocation(first) == "width"
    assert usual_allocation(study) == "global"
    found = modhifi.allocate(study, params=0.95)
    assert found.settings.allocation == "global"
    equal = modhifi.allocate(study, params=0.95, allocation="width")
    assert len({equal.counts[name] for name in neurons}) == 1
    assert opens_alone(
        modhifi.apply(
            modhifi.prune(study, params=0.95, allocation="width", compensate="none"), modhifi.apply(uneven, model)
        ).module
    )
    with pytest.raises(
        UserError, match="the neurons of all blocks cannot keep the same number, at least 15 and at most 11"
    ):
        modhifi.allocate(study, params=0.95, allocation="width", floors={neurons[0]: 15})


def test_a_study_without_constants_says_how_to_go_on(language: Make, prose: Data) -> None:
    study = modhifi.analyze(language(), prose, 24, constants=["none"])
    with pytest.raises(
        UserError, match="no constants; analyze with --constants directional, or prune with --constants none"
    ):
        modhifi.prune(study, params=0.9, compensate="none")
    assert modhifi.prune(study, params=0.9, compensate="none", constants="none").settings.constants == "none"
    plan = pruning_methods(language=True)["width-none"].plan(study, "params", 0.9)
    assert plan.settings.constants == "none"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_cannot_express_stays_whole(family: str, language: Make, prose: Data) -> None:
    model = language(family)
    study = studied(model, prose)
    assert study.centred == (family in ("gpt2", "opt"))
    plan = modhifi.prune(study, params=0.9, compensate="full")
    assert plan.settings.allocation == "width"
    small = modhifi.apply(plan, model)
    assert opens_alone(small.module)
    assert plan.predicted["params"] == sum(value.numel() for value in small.module.parameters())
    if family in ("gpt2", "opt"):
        assert all(len(plan.groups[g.name].keep) == g.size for g in study.groups if g.kind == "heads")
    free = modhifi.apply(modhifi.prune(study, params=0.9, allocation="global", compensate="none"), model)
    widths = {len(kept.keep) for name, kept in free.plan.groups.items() if study.group(name).kind == "neurons"}
    assert opens_alone(free.module) == (len(widths) == 1 and family not in ("gpt2", "opt"))


def test_published_score_is_the_norm_of_cholesky_rows(language: Make, prose: Data) -> None:
    study = studied(language(), prose)
    for group in study.groups:
        (reader,) = group.consumers
        stats = study.layers[reader.layer]
        w, h = stats.weight.double(), stats.moments.second.double()
        columns = reader.columns(group.size)
        q = torch.zeros(group.size, group.size, dtype=torch.float64)
        for i, j in itertools.product(range(group.size), repeat=2):
            a, b = torch.tensor(columns[i]), torch.tensor(columns[j])
            q[i, j] = sum(w[o, a] @ h[a][:, b] @ w[o, b] for o in range(len(w)))
        q *= stats.moments.positions
        factor = torch.linalg.cholesky(q + 1e-4 * q.diagonal().mean() * torch.eye(len(q)))
        expected = factor.square().sum(1)
        assert torch.allclose(cholesky(study, group), expected, rtol=1e-3)
    model = language()
    add_score(study, "cholesky", model)
    plan = modhifi.prune(study, params=0.9, score="cholesky", compensate="none")
    for group in study.groups:
        kept = plan.groups[group.name].keep
        rest = [i for i in range(group.size) if i not in kept]
        values = cholesky(study, group)
        assert not rest or values[kept].min() >= values[rest].max()


def refit(
    x: torch.Tensor, y: torch.Tensor, own: torch.Tensor, pull: float, centred: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares with rows added that pull towards ``own``: (O, n) and (O,)."""
    mean_x, mean_y = x.mean(0) * centred, y.mean(0) * centred
    extra = (pull * len(x)) ** 0.5 * torch.eye(x.shape[1], dtype=x.dtype)
    left, right = torch.cat([x - mean_x, extra]), torch.cat([y - mean_y, extra @ own.T])
    weight = torch.linalg.lstsq(left, right, driver="gelsd").solution.T
    return weight, mean_y - weight @ mean_x


def unseen(x: torch.Tensor, y: torch.Tensor, own: torch.Tensor, windows: int, pull: float, centred: bool) -> float:
    """The squared error of fits to the even windows on the odd ones, and the other way round."""
    odd = torch.arange(windows).repeat_interleave(len(x) // windows) % 2 == 1
    total = 0.0
    for half in (odd, ~odd):
        weight, constant = refit(x[half], y[half], own, pull, centred)
        total += float((y[~half] - x[~half] @ weight.T - constant).square().sum())
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("drift", [True, False])
def test_sequential_is_the_fit_to_what_the_changed_blocks_give(
    family: str, drift: bool, language: Make, prose: Data
) -> None:
    model = language(family)
    study = studied(model, prose)
    keep = {g.name: list(range(0, g.size, 2)) for g in study.groups}
    data = windowed(prose.take(24), model)
    rows = torch.cat([rows for rows, _ in data.batches(model.input)])
    batches = (part for part, _ in data.batches(model.input, 9))
    edits, ridges = sequential_blocks(
        study, keep, model.module, batches, 24, centred=study.centred, tail=0.0, drift=drift
    )
    assert list(edits) == list(study.structure.readers)
    # The same in double precision on the network whole, one layer after the other.
    original, changed = language(family), language(family)
    for one in (original, changed):
        one.module.double()

    def looked_at(one: Model, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input and output of the layer, and the stream that its output is added to."""
        path = name.rsplit(".", 2)[0]
        block = one.module.get_submodule(path)
        seen: dict[str, torch.Tensor] = {}
        layers = [
            one.module.get_submodule(f"{path}.{part}") for part in (one.module.family.out, one.module.family.down)
        ]
        hooks = [
            block.register_forward_pre_hook(lambda _, args: seen.update(stream=args[0])),
            layers[0].register_forward_hook(lambda _, args, out: seen.update(x0=args[0], y0=out)),
            layers[1].register_forward_hook(lambda _, args, out: seen.update(x1=args[0], y1=out)),
        ]
        with torch.no_grad():
            one.module(rows)
        for hook in hooks:
            hook.remove()
        second = name.endswith(one.module.family.down)
        stream = seen["stream"] + seen["y0"] if second else seen["stream"]
        flat = [seen[f"x{int(second)}"], seen[f"y{int(second)}"], stream]
        return tuple(value.flatten(0, -2) for value in flat)

    for name, edit in edits.items():
        ((group, reader),) = study.structure.readers[name]
        stays = torch.tensor(reader.columns(group.size)[keep[group.name]].reshape(-1))
        _, y, stream = looked_at(original, name)
        x, _, now = looked_at(changed, name)
        layer = get_operator(changed.module, name)
        bias = 0.0 if layer.bias is None else layer.bias.detach()
        target = y - bias + (stream - now if drift else 0.0)
        x, own = x[:, stays], layer.weight.detach()[:, stays]
        mean = float((x.var(0, correction=0) if study.centred else x.square().mean(0)).mean())
        pull, others = ridges[name] * mean, [mean * r for r in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
        errors = [unseen(x, target, own, 24, each, study.centred) for each in (pull, *others)]
        assert errors[0] <= min(errors) * (1 + 1e-6)
        weight, constant = refit(x, target, own, pull, study.centred)
        now_made = x @ edit.weight[:, stays].double().T + edit.shift.double()
        assert torch.allclose(now_made, x @ weight.T + constant, rtol=1e-2, atol=2e-3 * float(target.abs().max()))
        layer.weight.data.copy_(edit.weight)
        if layer.bias is not None:
            layer.bias.data.add_(edit.shift)


def test_more_compensation_is_nearer_to_the_unchanged_network(language: Make, prose: Data, here: None) -> None:
    model = language(intermediate_size=64)
    study = studied(model, prose)
    rows = torch.cat([rows for rows, _ in windowed(prose.take(24), model).batches(model.input)])

    def away(compensate: str, **wish: object) -> float:
        small = modhifi.apply(modhifi.prune(study, params=0.85, compensate=compensate, model=model, **wish), model)
        with torch.no_grad():
            return float((small.module(rows) - model.module(rows)).square().mean())

    none, scalar, full, sequential = (away(level) for level in ("none", "scalar", "full", "sequential"))
    assert sequential < full < none
    assert full <= scalar * 1.01
    assert sequential < away("none", score="random")


def test_what_language_models_are_not_asked(language: Make, prose: Data, digits_study: Study) -> None:
    study = studied(language(), prose)
    with pytest.raises(UserError, match="no latency budget"):
        modhifi.allocate(study, latency=0.5)
    with pytest.raises(UserError, match="equal widths in all blocks are for language models"):
        modhifi.allocate(digits_study, flops=0.5, allocation="width")
    with pytest.raises(UserError, match="--score cholesky"):
        modhifi.pruning.published(study, params=0.9, model=language())
    with pytest.raises(UserError, match="no classes to forget"):
        modhifi.unlearn(study, ["a"], prose)
    with pytest.raises(UserError, match="are estimated by directional"):
        modhifi.analyze(language(), prose, 8, constants=["certified"])
