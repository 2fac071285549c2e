"""From an allocation to a plan: the new weights of every consumer, and if asked the BatchNorm statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor

from .._operators import Edit
from ..components import Group, structure_of
from ..errors import UserError
from ..evaluation import measure_latency
from ..fidelity import aggregate_gram
from ..models import CausalLM, Model, TokenSpec, reload
from ..plan import GroupPlan, Plan
from ..progress import Progress, silent
from ..study import LEVELS, Study
from ..surgery import calibration_data, recalibrated, remaining_columns
from ._allocate import Allocation, Wish, allocate
from ._baselines import BASELINES, NEEDS_LABELS, baseline
from ._latency import LatencyTable, measure_table, narrowed
from ._sequential import sequential
from ._sequential_blocks import sequential_blocks

__all__ = ["CHOLESKY", "cholesky", "make_plan", "prune", "score"]

CHOLESKY = "cholesky"

# A latency counts as met within this much; the table's prediction is corrected by what was measured, so many times.
_CLOSE = 0.02
_TRIES = 6
# Slower than asked by more than this, the budget is not met.
_FAR = 0.1


def prune(
    study: Study,
    *,
    drift: bool = True,
    rectified: bool = True,
    recalibrate_bn: bool = False,
    latencies: LatencyTable | None = None,
    latency_batch: int = 1,
    model: Model | None = None,
    device: str = "auto",
    progress: Progress = silent,
    **wish: Unpack[Wish],
) -> Plan:
    """ModHiFi-P: which components stay, and the weights that make up for the rest.

    Arguments and errors as `allocate`, and:

    Args:
        compensate: ``none``, ``scalar`` (δ*, Prop. 3.8), ``full`` (least squares on the study's moments) or ``sequential`` (each
            layer fitted to what the changed layers before it give; theory, section 4).
        score: also one of `modhifi.pruning.BASELINES`, or ``cholesky`` (see `cholesky`).
        latency: what is measured on this machine counts, dense and narrowed network in turns; the table of latencies only says
            where to look.
        drift: whether sequential compensation also makes up for what residual streams have lost.
        rectified: whether it only keeps below the threshold what a ReLU cuts off.
        recalibrate_bn: re-estimate BatchNorm statistics at the end.
        latencies: measured if it is needed and not given.
        latency_batch: images in one forward pass, where latency is the budget.
        model: the network, if it is at hand. It is run for sequential compensation and for BatchNorm statistics, on the study's
            calibration images, which are loaded again, and for latency.
        device: where it is loaded if it is not at hand but needed, as in `load_model`.
        progress: see `modhifi.progress`.

    Raises:
        UserError: also where the calibration images have changed since the study.
    """
    levels = (*LEVELS, "sequential")
    compensate = wish.get("compensate", "sequential")
    if compensate not in levels:
        raise UserError(f"unknown compensation {compensate!r}; it is one of: {', '.join(levels)}")
    wanted = wish.get("score", "greedy")
    if not study.has_score(wanted):
        model = model or reload(study.model, device=device)
        score(study, wanted, model, progress=progress)
    if wish.get("latency") is not None:
        model = model or reload(study.model, device=device)
        decided, found = _for_latency(study, wish, model, latencies, latency_batch, progress)
    else:
        decided, found = allocate(study, latencies=latencies, **wish), {}
    plan = make_plan(
        study,
        decided,
        drift=drift,
        rectified=rectified,
        recalibrate_bn=recalibrate_bn,
        model=model,
        device=device,
        progress=progress,
    )
    plan.predicted |= found
    return plan


def score(study: Study, name: str, model: Model, *, progress: Progress = silent) -> None:
    """Makes a score of other methods known to the study (`Study.scored`), one of `modhifi.pruning.BASELINES` or ``cholesky``.

    Raises `UserError` for another name, or if the score needs labels and the calibration images have none.
    """
    if name == CHOLESKY:
        study.scored(name, {group.name: cholesky(study, group) for group in study.groups})
        return
    if name not in BASELINES:
        known = ", ".join((*study.scores(study.groups[0].name), CHOLESKY, *BASELINES))
        raise UserError(f"unknown score {name!r}; a score is one of: {known}")
    data = calibration_data(study.data, model) if name in NEEDS_LABELS else None
    study.scored(name, baseline(name, study.structure, model, data, study.data.seed, progress))


def cholesky(study: Study, group: Group, ridge: float = 1e-4) -> Tensor:
    """(C,) float64: ``‖L_i‖²`` with ``L Lᵀ = Q + λ`` and Q the components' similarity, summed over outputs and consumers,
    which the published implementation ranks the neurons of language models by (App. D.2). Row ``i`` of a Cholesky factor has
    the squared norm ``(L Lᵀ)_ii``: it is ``E‖A_i‖² + λ``. ``ridge``: λ relative to the mean of Q's diagonal.
    """
    total = torch.zeros(group.size, dtype=torch.float64)
    for consumer in group.consumers:
        stats = study.layers[consumer.layer]
        gram = aggregate_gram(*stats.operator(False, 0.0), stats.blocks(group.name))
        total += gram.diagonal() * stats.moments.positions
    return total + ridge * total.mean()


def make_plan(
    study: Study,
    decided: Allocation,
    *,
    drift: bool = True,
    rectified: bool = True,
    recalibrate_bn: bool = False,
    model: Model | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Plan:
    """The plan of an allocation: `prune` without the deciding."""
    settings = decided.settings
    compensate, centred = settings.compensate, settings.centred
    in_sequence = compensate == "sequential"
    tensors: dict[str, Tensor] = {}
    cut = {group.name for group in study.groups if decided.counts[group.name] < group.size}
    touched = [name for name, read in study.structure.readers.items() if any(group.name in cut for group, _ in read)]
    if compensate == "none":
        touched = []
    edits: dict[str, Edit] = {}
    ridges: dict[str, float] = {}
    net = model
    if in_sequence and touched:
        net = net or reload(study.model, device=device)
        data = calibration_data(study.data, net, progress)
        if isinstance(net.module, CausalLM):
            assert net.tokens is not None
            windows = (rows for rows, _ in data.batches(net.input, net.tokens.at_once))
            edits, ridges = sequential_blocks(
                study, decided.keep, net.module, windows, len(data), centred=centred, drift=drift, progress=progress
            )
        else:
            edits, ridges = sequential(
                study,
                decided.keep,
                net.module,
                torch.cat([batch for batch, _ in data.batches(net.input)]),
                centred=centred,
                drift=drift,
                rectified=rectified,
                progress=progress,
            )
        # What runs before the first layer that loses something is as it was.
        names = list(edits)
        touched = names[min(names.index(name) for name in touched) :]
    for done, name in enumerate(touched):
        progress(done, len(touched), "compensating")
        edit = edits[name] if in_sequence else study.edit(name, decided.keep, settings.level, centred)
        if not in_sequence:
            ridges[name] = study.layers[name].ridge(centred, study.ridge)
        stays = remaining_columns(study.structure, name, edit.weight, decided.keep)
        tensors[f"{name}.weight"] = edit.weight[:, stays].float()
        if centred:
            tensors[f"{name}.shift"] = edit.shift.float()
    progress(len(touched), len(touched), "compensating")
    plan = Plan(
        kind="prune",
        model=study.model,
        calibration=study.data,
        settings=settings.model_copy(
            update={
                "drift": in_sequence and drift,
                "rectified": in_sequence and rectified and not isinstance(study.model.input, TokenSpec),
                "ridges": {name: ridges[name] for name in touched},
                "recalibrate_bn": recalibrate_bn,
            }
        ),
        groups={g.name: GroupPlan(total=g.size, keep=decided.keep[g.name]) for g in study.groups},
        predicted=_summary(study, decided),
    )
    plan.predicted["params"] += _added_biases(study, decided, tensors)
    plan.with_tensors(tensors)
    if recalibrate_bn:
        plan.with_tensors(tensors | recalibrated(plan, net, progress=progress))
    return plan


def _for_latency(
    study: Study, wish: Wish, model: Model, table: LatencyTable | None, batch: int, progress: Progress
) -> tuple[Allocation, dict[str, float]]:
    """The allocation whose network, narrowed for real, comes closest to the latency that was asked for, and its times."""
    if table is not None and not table.fits(model, batch):
        raise UserError(
            f"the table of latencies is of {table.machine} ({table.device}, batches of {table.batch}) or of other weights;"
            " measure it here"
        )
    table = table or measure_table(model, study.structure, batch=batch, progress=progress)
    wanted = wish["latency"]
    assert wanted is not None
    structure, asking = structure_of(model), wish.copy()
    best: tuple[float, Allocation, dict[str, float]] | None = None
    for attempt in range(_TRIES):
        progress(attempt, _TRIES, "measuring the latency of a first cut" if not attempt else "correcting the cut")
        try:
            decided = allocate(study, latencies=table, **asking)
        except UserError:
            if best is None:
                raise
            break  # further down there is nothing; what was measured is what there is
        small = narrowed(model, structure, decided.keep)
        now, before = measure_latency([small, model.module], model.example(batch))
        off = now / before - wanted
        if best is None or abs(off) < abs(best[0]):
            best = (off, decided, {"latency_ms": now, "latency_ms_before": before})
        if abs(off) <= _CLOSE * wanted:
            break
        asking["latency"] = min(1.0, max(1e-3, (asking["latency"] or wanted) * wanted / (now / before)))
    assert best is not None
    progress(_TRIES, _TRIES, "correcting the cut")
    off, decided, _ = best
    if off > _FAR * wanted:
        raise UserError(
            f"latency {wanted:g} cannot be reached on this machine: the fastest that was tried takes {wanted + off:.3f} of the"
            f" time; ask for at least {math.ceil((wanted + off) * 100) / 100:g}, or measure larger batches"
        )
    decided.settings.remain = wanted
    return decided, best[2]


def _added_biases(study: Study, decided: Allocation, tensors: Mapping[str, Tensor]) -> int:
    """Parameters of the biases that take up a constant where a layer has none."""
    rows = {row.name: row for row in study.structure.layers}
    added = 0
    for name, read in study.structure.readers.items():
        if f"{name}.shift" in tensors and read[0][1].shift is None:
            row = rows[name]
            added += row.outputs + sum(decided.counts[share.group] * share.width for share in row.out_shares)
    return added


def _summary(study: Study, decided: Allocation) -> dict[str, float]:
    found = {
        "fidelity": decided.mean_fidelity,
        "bound": decided.bound,
        "params": decided.cost.params,
        "params_before": study.dense.params,
        "flops": decided.cost.flops,
        "flops_before": study.dense.flops,
    }
    if math.isnan(decided.bound):
        del found["bound"]
    return found if decided.milliseconds is None else found | {"table_ms": decided.milliseconds}
