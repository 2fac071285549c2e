"""`prune`: from an allocation to a plan with the new weights of every consumer and, on request, BatchNorm statistics."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Unpack

from torch import Tensor

from ..evaluation import measure_latency
from ..layers import Edit, in_single
from ..loading import reload
from ..models import CausalLM, Model
from ..plan import GroupPlan, Plan
from ..progress import Progress, silent
from ..specs import PruningFields, PruningSpec, TokenSpec
from ..study import Study
from ..surgery import calibration_data, recalibrated, remaining_columns
from ._allocate import Allocation, asked_for, decide, settled
from ._fits import Fits
from ._latency import LatencyTable
from ._latency_search import Clock, allocate_for_latency
from ._scores import add_score
from ._sequential import sequential
from ._sequential_blocks import sequential_blocks
from ._timing import measure_table

__all__ = ["make_plan", "prune"]


def prune(
    study: Study,
    spec: PruningSpec | None = None,
    *,
    latencies: LatencyTable | None = None,
    latency_batch: int = 1,
    clock: Clock = measure_latency,
    model: Model | None = None,
    device: str = "auto",
    partial: str | Path | None = None,
    progress: Progress = silent,
    **fields: Unpack[PruningFields],
) -> Plan:
    """ModHiFi-P: decides which components to keep and computes the weights that compensate for the others.

    Args:
        study: the study of the network.
        spec: the pruning settings; their fields may be passed as keywords instead, see `allocate`. ``score`` may be any of
            `modhifi.pruning.scores`. ``compensate`` is ``none``, ``scalar`` (δ*, ModHiFi, Prop. 3.8), ``full`` (least squares
            on the study's moments) or ``sequential`` (each layer is fitted to the inputs it gets from the pruned layers
            before it). A latency budget is judged by measurement, the original and the pruned network in turns; the latency
            table only guides the search.
        latencies: layer timings; measured if they are needed and None.
        latency_batch: samples per forward pass for a latency budget.
        clock: the function that times the candidates for a latency budget.
        model: the network; loaded if None and needed. It is run for latency, and on the study's calibration samples, which are
            loaded again, for sequential compensation and BatchNorm statistics.
        device: where the network is loaded if needed, as in `modhifi.load_model`.
        partial: a folder for the layers that sequential compensation has fitted so far. A run that was killed goes on from
            there when the same is asked for again; the folder disappears once the plan is made.
        progress: see `modhifi.progress`.

    Raises:
        UserError: as `allocate` does, or if the calibration samples have changed since the study.
    """
    asked = asked_for(spec, fields)
    if not study.has_score(asked.score):
        model = model or reload(study.model, device=device)
        add_score(study, asked.score, model, progress=progress)
    settings = settled(study, asked)
    if settings.budget == "latency":
        model = model or reload(study.model, device=device)
        table = latencies or measure_table(model, study.structure, batch=latency_batch, progress=progress)
        decided, found = allocate_for_latency(
            study, settings, model, table, batch=latency_batch, clock=clock, progress=progress
        )
    else:
        decided, found = decide(study, settings, latencies), {}
    plan = make_plan(study, decided, model=model, device=device, partial=partial, progress=progress)
    plan.predicted |= found
    return plan


def make_plan(
    study: Study,
    decided: Allocation,
    *,
    model: Model | None = None,
    device: str = "auto",
    partial: str | Path | None = None,
    progress: Progress = silent,
) -> Plan:
    """The plan of an allocation that is already decided; see `prune`."""
    settings = decided.settings
    centred = settings.centred
    in_sequence = settings.compensate == "sequential"
    tensors: dict[str, Tensor] = {}
    cut = {group.name for group in study.groups if decided.counts[group.name] < group.size}
    touched = [name for name, read in study.structure.readers.items() if any(group.name in cut for group, _ in read)]
    if settings.compensate == "none":
        touched = []
    edits: dict[str, Edit] = {}
    ridges: dict[str, float] = {}
    net = model
    fits = Fits(None if partial is None else Path(partial), _key(study, decided))
    if in_sequence and touched:
        net = net or reload(study.model, device=device)
        data, spec = calibration_data(study.data, net, progress), net.input
        if isinstance(net.module, CausalLM):
            assert net.tokens is not None
            windows = (rows for rows, _ in data.batches(net.input, net.tokens.at_once))
            edits, ridges = sequential_blocks(
                study,
                decided.keep,
                net.module,
                windows,
                len(data),
                centred=centred,
                drift=settings.drift,
                fits=fits,
                progress=progress,
            )
        else:
            # Layers are fitted without rounding; only the new weights are rounded, when they are applied.
            edits, ridges = sequential(
                study,
                decided.keep,
                in_single(net.module),
                lambda: (batch for batch, _ in data.batches(spec)),
                len(data),
                centred=centred,
                drift=settings.drift,
                rectified=settings.rectified,
                spread=None,
                fits=fits,
                progress=progress,
            )
        # Layers before the first pruned one see the original inputs and need no change.
        names = list(edits)
        touched = names[min(names.index(name) for name in touched) :]
        fits.delete()
    for done, name in enumerate(touched):
        progress(done, len(touched), "compensating")
        edit = edits[name] if in_sequence else study.edit(name, decided.keep, settings.level, centred)
        if not in_sequence:
            ridges[name] = study.layers[name].ridge(centred, study.ridge_of(name, centred))
        kept = remaining_columns(study.structure, name, edit.weight, decided.keep)
        tensors[f"{name}.weight"] = edit.weight[:, kept].float()
        if centred:
            tensors[f"{name}.shift"] = edit.shift.float()
    progress(len(touched), len(touched), "compensating")
    plan = Plan(
        kind="prune",
        model=study.model,
        calibration=study.data,
        settings=settings.model_copy(
            update={
                "drift": in_sequence and settings.drift,
                "rectified": in_sequence and settings.rectified and not isinstance(study.model.input, TokenSpec),
                "ridges": {name: ridges[name] for name in touched},
                "spread": fits.spread,
            }
        ),
        groups={g.name: GroupPlan(total=g.size, keep=decided.keep[g.name]) for g in study.groups},
        predicted=_summary(study, decided),
    )
    plan.predicted["params"] += _added_biases(study, decided, tensors)
    plan = plan.with_tensors(tensors)
    if settings.recalibrate_bn:
        net = net or reload(study.model, device=device)
        plan = plan.with_tensors(tensors | recalibrated(plan, net, progress=progress))
    return plan


def _key(study: Study, decided: Allocation) -> str:
    """What the fits of two runs must agree in to be the same."""
    asked = [study.key, decided.settings.model_dump(mode="json"), decided.keep]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _added_biases(study: Study, decided: Allocation, tensors: Mapping[str, Tensor]) -> int:
    """Number of parameters of the biases that are added to layers without one to hold the shift."""
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
    if decided.outcome is not None:
        found |= {name: value for name, value in asdict(decided.outcome).items() if value is not None}
    return found if decided.milliseconds is None else found | {"table_ms": decided.milliseconds}
