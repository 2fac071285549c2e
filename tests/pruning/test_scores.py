"""Scores by name: the study's own against brute force, those of torch-pruning against their papers' formulas."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.components import structure_of
from modhifi.fidelity import inverse, removal_cost, ridged, row_sum
from modhifi.pruning import add_score, allocate, scores
from modhifi.pruning._baselines import baseline


def test_row_sum_and_removal_cost_against_samples() -> None:
    rng = np.random.default_rng(2)
    x, w = rng.normal(size=(400, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(5, 12))
    y = x @ w.T
    parts = [x[:, 3 * i : 3 * i + 3] @ w[:, 3 * i : 3 * i + 3].T for i in range(4)]
    h, weight = torch.from_numpy(x.T @ x / len(x)), torch.from_numpy(w)
    expected = [(part * y).sum(1).mean() for part in parts]
    np.testing.assert_allclose(row_sum(h, weight, 3), expected, rtol=1e-9)
    found = removal_cost([(inverse(ridged(h, 0.0)), weight, 3)])
    for i in range(4):
        others = np.delete(x, range(3 * i, 3 * i + 3), axis=1)
        rest = y - others @ np.linalg.lstsq(others, y, rcond=None)[0]
        assert float(found[i]) == pytest.approx((rest**2).sum(1).mean(), rel=1e-6)


def test_the_cheapest_to_remove_alone_is_what_elimination_removes_first(digits_study: Study) -> None:
    for group in digits_study.groups:
        alone = digits_study.score(group.name, "removal-cost")
        assert digits_study.order(group.name, "greedy")[-1] == alone.argmin()
        # Removing it late, when fewer are left to make up for it, never costs less.
        assert (digits_study.scores(group.name)["greedy"] >= alone * (1 - 1e-6) - 1e-12).all()
        assert digits_study.order(group.name, "removal-cost")[0] == alone.argmax()


@pytest.mark.parametrize("name", ["l1", "l2", "group-norm", "lamp"])
def test_norms_by_hand(digits_model: Model, name: str) -> None:
    structure = structure_of(digits_model)
    weights = dict(digits_model.module.named_parameters())
    found = baseline(name, structure, digits_model)
    p = 1 if name == "l1" else 2
    for group in structure.groups:
        norms = [weights[f"{part.layer}.weight"].abs().pow(p).flatten(1).sum(1) for part in group.producers]
        picked = [norm[part.channels(group.size)[:, 0]] for norm, part in zip(norms, group.producers, strict=True)]
        if name in ("group-norm", "lamp"):
            for part in group.through:
                picked.append(weights[f"{part.layer}.weight"].square()[part.channels(group.size)[:, 0]])
            for reader in group.consumers:
                norm = weights[f"{reader.layer}.weight"].square().transpose(0, 1).flatten(1).sum(1)
                picked.append(norm[torch.from_numpy(reader.channels(group.size))].sum(1))
        value = torch.stack(picked).mean(0)
        lamp = torch.stack([v / value[value >= v].sum() for v in value])
        expected = lamp if name == "lamp" else value / value.mean()
        torch.testing.assert_close(found[group.name].float(), expected, rtol=1e-4, atol=1e-6)


def test_a_component_of_several_channels_is_their_sum(chain: Model) -> None:
    structure = structure_of(chain)
    group = structure.group("b")
    assert group.consumers[0].width == 16
    found = baseline("group-norm", structure, chain)["b"]
    writes = chain.module.b.weight.square().flatten(1).sum(1)
    reads = chain.module.c.weight.square().sum(0).reshape(5, 16).sum(1)
    both = (writes + reads) / 2
    torch.testing.assert_close(found.float(), both / both.mean())


@pytest.mark.parametrize("name", ["taylor", "hessian"])
def test_scores_with_labels_by_hand(chain: Model, pictures: Data, name: str) -> None:
    few = pictures.take(12)
    found = baseline(name, structure_of(chain), chain, few)
    images = torch.cat([batch for batch, _ in few.batches(chain.input)])
    weights = {name: chain.module.get_submodule(name).weight for name in ("b", "norm", "c")}
    for weight in weights.values():
        weight.requires_grad_(True)
    grads = [
        torch.autograd.grad(F.cross_entropy(chain.module(x[None]), label[None]), list(weights.values()))
        for x, label in zip(images, few.targets, strict=True)
    ]
    for weight in weights.values():
        weight.requires_grad_(False)
    mean = {k: torch.stack([g[i] for g in grads]) for i, k in enumerate(weights)}
    if name == "taylor":
        each = {k: (weights[k] * g.mean(0)).abs() for k, g in mean.items()}
    else:
        each = {k: weights[k].square() * g.square().mean(0) for k, g in mean.items()}
    value = (each["b"].flatten(1).sum(1) + each["c"].sum(0).reshape(5, 16).sum(1)) / 2
    torch.testing.assert_close(found["b"].float(), value / value.mean(), rtol=1e-4, atol=1e-6)


def test_random_is_of_its_seed_only(digits_model: Model) -> None:
    structure = structure_of(digits_model)
    before = torch.get_rng_state()
    one, same, other = (baseline("random", structure, digits_model, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    name = structure.groups[0].name
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_a_score_of_the_caller_s_decides(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)
    values = {group.name: torch.arange(group.size).float() for group in study.groups}
    with pytest.raises(UserError, match="no score 'mine'"):
        allocate(study, params=0.6, score="mine")
    study.add_score("mine", values)
    for spread in ("global", "uniform", "ranking"):
        found = allocate(study, params=0.6, score="mine", allocation=spread)
        for group in study.groups:
            assert found.keep[group.name] == list(range(group.size - found.counts[group.name], group.size))
    with pytest.raises(ValueError, match="finite"):
        study.add_score("broken", values | {"a": torch.full((6,), torch.nan)})
    with pytest.raises(ValueError, match="itself"):
        study.add_score("greedy", values)


def test_ranking_takes_the_lowest_score_of_all(digits_study: Study, digits_model: Model) -> None:
    study = dataclasses.replace(digits_study, tables=dict(digits_study.tables))
    add_score(study, "lamp", digits_model)
    found = allocate(study, flops=0.6, score="lamp", allocation="ranking", compensate="none")
    gone, kept = [], []
    for group in study.groups:
        values = study.score(group.name, "lamp")
        gone += [values[i] for i in range(group.size) if i not in found.keep[group.name]]
        kept += [values[found.keep[group.name]].min()] if found.counts[group.name] > 1 else []
    assert max(gone) <= min(kept) + 1e-9


def test_labels_are_asked_for(chain: Model, pictures: Data) -> None:
    unlabelled = dataclasses.replace(pictures, labels=None, classes=None)
    with pytest.raises(UserError, match="labels"):
        baseline("taylor", structure_of(chain), chain, unlabelled)
    assert {one.name for one in scores() if one.needs_labels} == {"taylor", "hessian"}
