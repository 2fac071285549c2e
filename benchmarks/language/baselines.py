"""Baselines for language models that are no part of the library."""

from __future__ import annotations

import torch
from torch import Tensor

import modhifi
from modhifi import Model, Study
from modhifi.components import Group
from modhifi.plan import Plan
from modhifi.pruning import Score, ScoreInputs, register_score
from modhifi.surgery import remaining_columns


def _summed(study: Study, group: Group, centred: bool, root: bool) -> Tensor:
    """(C,): over consumers and columns, E x² or Var x times the weights' ``Σ_o W²``; the products ``√E x² Σ_o |W|`` if
    ``root``.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for consumer in group.consumers:
        stats = study.layers[consumer.layer]
        second, weight = stats.moment_and_weight(centred, 0.0)
        power = second.diagonal().clamp(min=0)
        each = power.sqrt() * weight.abs().sum(0) if root else power * weight.square().sum(0)
        total += each[stats.blocks(group.name)].sum(1)
    return total


def _fluctuation(given: ScoreInputs) -> dict[str, Tensor]:
    return {group.name: _summed(given.study, group, True, False) for group in given.study.groups}


def _products(given: ScoreInputs) -> dict[str, Tensor]:
    return {group.name: _summed(given.study, group, False, True) for group in given.study.groups}


register_score(Score("fluctuation", "Fluctuation (FLAP)", _fluctuation))
register_score(Score("products", "Products (Wanda)", _products))


def flap(study: Study, model: Model, remain: float) -> Plan:
    """FLAP's fluctuation score (An et al. 2024) with equal widths: the mean of what is removed becomes a bias."""
    plan = wanda(study, model, remain, score="fluctuation")
    keep = {name: group.keep for name, group in plan.groups.items()}
    tensors = {}
    for name in study.structure.readers:
        stats = study.layers[name]
        _, weight = stats.moment_and_weight(False, 0.0)
        kept = remaining_columns(study.structure, name, weight, keep)
        tensors[f"{name}.weight"] = weight[:, kept].float()
        tensors[f"{name}.shift"] = (weight[:, ~kept] @ stats.moments.mean[~kept].to(weight)).float()
    return plan.with_tensors(tensors)


def wanda(study: Study, model: Model, remain: float, score: str = "products") -> Plan:
    """Wanda's products (Sun et al. 2024) summed over the weights of a component, with equal widths and no compensation."""
    return modhifi.prune(study, params=remain, score=score, allocation="width", compensate="none", model=model)
