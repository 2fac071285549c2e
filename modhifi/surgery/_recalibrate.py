"""BatchNorm statistics re-estimated on unlabelled images: a separate, optional step (theory, section 4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import Data, DataRef, load_data, made_for, meant_for
from ..errors import UserError
from ..models import Model, reload
from ..plan import Plan
from ..progress import Progress, silent
from ._apply import apply

__all__ = ["calibration_data", "recalibrate", "recalibrated"]


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Re-estimates the running statistics of every BatchNorm in place, as the average over ``batches`` of each batch's mean
    and unbiased variance; weights stay. Returns the new statistics by name, {} if there is no BatchNorm.
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
            if len(batch) > 1:  # one value per channel has no variance where the map is a single pixel
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
    """The images that a study was made on, loaded again, or made again for its network ``model`` if they were made for it.

    Raises `UserError` if they are not those any more, or must be made and there is no network.
    """
    data = meant_for(load_data(ref.spec, ref.root, ref.split).take(ref.samples, ref.seed), model)
    if data.ref.fingerprint != ref.fingerprint:
        raise UserError(f"the calibration images of {ref.spec} have changed since the study; analyze again")
    return data if model is None else made_for(data, model, progress)


def recalibrated(
    plan: Plan, model: Model | None = None, data: Data | None = None, progress: Progress = silent
) -> dict[str, Tensor]:
    """The statistics that ``plan``'s network gets on its own calibration images, in the coordinates of the unchanged network.

    Raises `UserError` if the network has no BatchNorm, or the calibration images are not the ones the study saw.
    """
    base = model or reload(plan.model)
    data = data or calibration_data(plan.calibration, base, progress)
    twin = apply(plan, base, masked=True)
    total = len(data)

    def batches() -> Iterable[Tensor]:
        done = 0
        for images, _ in data.batches(base.input):
            progress(done, total, "re-estimating BatchNorm")
            yield images
            done += len(images)
        progress(total, total, "re-estimating BatchNorm")

    found = recalibrate(twin.module, batches())
    if not found:
        raise UserError(
            f"{plan.model.spec} has no BatchNorm whose statistics could be re-estimated; leave that step away"
        )
    return found
