"""The telescoping sum behind Thm. 3.6, followed layer by layer on data.

Swapping the modified layers in from the last to the first, layer ``l`` always sees its original input and everything after
it is already modified. With ``f_l`` the network in which the layers from ``l`` on are modified,

    √E‖f − f̂‖² ≤ Σ_l √E‖f_l − f_{l+1}‖² ≤ Σ_l K_l √E‖Y_l − Ŷ_l‖²,     K_l = max_x ‖f_l − f_{l+1}‖ / ‖Y_l − Ŷ_l‖

so that on the samples the constants were taken from the bound cannot fail; on others it can.
"""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from .._operators import Edit, edited
from ..data import Data, DataRef, made_for
from ..errors import UserError
from ..lipschitz import gain_of
from ..models import Model, reload
from ..plan import Plan
from ..progress import Progress, silent
from ..study import Study
from ..surgery import remaining_columns

__all__ = ["BoundReport", "BoundRow", "measure"]


class BoundRow(BaseModel):
    """One modified layer; errors are root-mean-squares over samples.

    ``gain``: K_l, the largest on these samples with the later layers modified; ``gain_rms``: its root-mean-square; ``local``:
    √E‖Y − Ŷ‖² at the layer; ``bound``: gain · local. With this layer alone modified: ``measured`` √E‖f − f̂‖² of the logits,
    ``alone_bound`` the bound for it, ``tightness`` their ratio (None where nothing was measured).
    """

    model_config = ConfigDict(extra="forbid")

    layer: str
    groups: list[str]
    gain: float
    gain_rms: float
    local: float
    bound: float
    alone_bound: float
    measured: float
    tightness: float | None


class BoundReport(BaseModel):
    """The whole plan. ``bound`` holds on these samples; ``predicted`` is what the study said before anything was run (gains
    of the unmodified network); ``logits`` is √E‖f‖², for scale.
    """

    model_config = ConfigDict(extra="forbid")

    data: DataRef
    samples: int
    rows: list[BoundRow]
    bound: float
    predicted: float | None
    measured: float
    tightness: float | None
    logits: float


def measure(
    study: Study,
    plan: Plan,
    data: Data,
    *,
    samples: int = 128,
    seed: int = 0,
    model: Model | None = None,
    batch_size: int = 64,
    progress: Progress = silent,
) -> BoundReport:
    """Bound, measured error and tightness of ``plan``, per layer and whole, on ``samples`` unlabelled images.

    Two forward passes for each modified layer. Re-estimated BatchNorm statistics are left out: the bound speaks of the layers'
    weights. Raises `UserError` if study and plan are of different weights, or the plan changes nothing.
    """
    if plan.model.fingerprint != study.model.fingerprint:
        raise UserError("the study and the plan were made for different weights")
    net = model or reload(study.model)
    edits = plan_edits(study, plan)
    if not edits:
        raise UserError("the plan changes no layer, so there is nothing to bound")
    order = [name for name in study.structure.readers if name in edits]
    drawn = made_for(data.take(samples, seed), net, progress)
    batches = [batch.to(net.device) for batch, _ in drawn.batches(net.input, batch_size)]
    if not batches:
        raise UserError(f"{data.spec} has no images in its {data.split} split")

    done = 0

    def run(active: list[str], watched: str | None = None) -> tuple[Tensor, Tensor]:
        """Logits (N, K) with the layers ``active`` modified, and ‖difference‖² (N,) that the edit of ``watched`` made."""
        nonlocal done
        progress(done, 2 * len(order) + 1, "measuring the bound")
        local: list[Tensor] = []

        def see(name: str, difference: Tensor) -> None:
            if name == watched:
                local.append(difference.flatten(1).double().square().sum(1).cpu())

        with torch.inference_mode(), edited(net.module, {name: edits[name] for name in active}, see):
            logits = torch.cat([net.module(batch).double().cpu() for batch in batches])
        done += 1
        # A layer may see a sample in several rows of its batch.
        return logits, torch.cat(local).reshape(len(logits), -1).sum(1) if local else torch.zeros(0)

    plain, _ = run([])
    after = plain  # f_{l+1}: the layers after the current one modified
    rows: list[BoundRow] = []
    for position in range(len(order) - 1, -1, -1):
        name = order[position]
        swapped, local = run(order[position:], name)
        gain = gain_of(local, (swapped - after).square().sum(1))
        alone, _ = run([name])
        moved = (alone - plain).square().sum(1)
        rms_local = math.sqrt(float(local.mean()))
        measured = math.sqrt(float(moved.mean()))
        alone_bound = gain_of(local, moved).maximum * rms_local
        rows.append(
            BoundRow(
                layer=name,
                groups=[group.name for group, _ in study.structure.readers[name]],
                gain=gain.maximum,
                gain_rms=gain.rms,
                local=rms_local,
                bound=gain.maximum * rms_local,
                alone_bound=alone_bound,
                measured=measured,
                tightness=alone_bound / measured if measured > 0 else None,
            )
        )
        after = swapped
    progress(done, done, "measuring the bound")
    bound = sum(row.bound for row in rows)
    error = math.sqrt(float((after - plain).square().sum(1).mean()))
    return BoundReport(
        data=drawn.ref,
        samples=len(drawn),
        rows=rows[::-1],
        bound=bound,
        predicted=plan.predicted.get("bound"),
        measured=error,
        tightness=bound / error if error > 0 else None,
        logits=math.sqrt(float(plain.square().sum(1).mean())),
    )


def plan_edits(study: Study, plan: Plan) -> dict[str, Edit]:
    """The plan's new weights in base coordinates, for every layer that it changes."""
    edits = {}
    keep = {name: group.keep for name, group in plan.groups.items()}
    for name in study.structure.readers:
        own = study.layers[name].weight.double()
        stays = remaining_columns(study.structure, name, own, keep)
        weight = torch.zeros_like(own)
        weight[:, stays] = plan.tensors.get(f"{name}.weight", own[:, stays]).double()
        shift = plan.tensors.get(f"{name}.shift", own.new_zeros(own.shape[0])).double()
        if not torch.equal(weight, own) or bool(shift.any()):
            edits[name] = Edit(weight, shift)
    return edits
