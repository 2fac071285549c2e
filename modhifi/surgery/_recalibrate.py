"""BatchNorm statistics re-estimated on unlabelled images: a separate, optional step (see docs/theory.md, *Compensation*)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import Data, identify, load_data, prepare
from ..errors import UserError
from ..models import Model
from ..plan import Plan
from ..progress import Progress, silent
from ..specs import DataRef
from ._apply import apply

__all__ = ["calibration_data", "recalibrate", "recalibrated"]


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Re-estimates the running statistics of every BatchNorm in place: the average over ``batches`` of each batch's mean and
    unbiased variance. Weights do not change. Returns the new statistics by name, {} if there is no BatchNorm.
    """
    norms = {n: m for n, m in module.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
    if not norms:
        return {}
    device = next(module.parameters()).device
    momenta = {name: norm.momentum for name, norm in norms.items()}
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        for batch in batches:
            if len(batch) > 1:  # a single sample has no variance if its feature map is one pixel
                module(batch.to(device))
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            norm.eval()
    return {
        f"{name}.{statistic}": module.get_buffer(f"{name}.{statistic}").detach().cpu().clone()
        for name in norms
        for statistic in ("running_mean", "running_var")
    }


def calibration_data(ref: DataRef, model: Model | None = None, progress: Progress = silent) -> Data:
    """The samples that a study was made on, loaded again, or synthesised again for ``model`` if they were synthesised.

    Raises `UserError` if they have changed since, or if they must be synthesised and ``model`` is None.
    """
    data = identify(load_data(ref.spec, ref.root, ref.split).take(ref.samples, ref.seed), model)
    if data.ref.fingerprint != ref.fingerprint:
        raise UserError(f"the calibration images of {ref.spec} have changed since the study; analyze again")
    return data if model is None else prepare(data, model, progress)


def recalibrated(plan: Plan, model: Model, data: Data | None = None, progress: Progress = silent) -> dict[str, Tensor]:
    """The modified network's BatchNorm statistics on the plan's calibration images, in the original network's coordinates.

    Raises `UserError` if the network has no BatchNorm, or if the calibration images have changed since the study.
    """
    data = data or calibration_data(plan.calibration, model, progress)
    twin = apply(plan, model, masked=True)
    total = len(data)

    def batches() -> Iterable[Tensor]:
        done = 0
        for images, _ in data.batches(model.input):
            progress(done, total, "re-estimating BatchNorm")
            yield images
            done += len(images)
        progress(total, total, "re-estimating BatchNorm")

    found = recalibrate(twin.module, batches())
    if not found:
        raise UserError(f"{plan.model.spec} has no BatchNorm statistics to re-estimate; omit --recalibrate-bn")
    return found
