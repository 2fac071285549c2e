"""Images made for one network: what its BatchNorm layers remember of the data that it was trained on, found again.

DeepInversion (Yin et al., "Dreaming to distill", 2020) without its classes: no labels, no loss on what the network answers, and
gradients with respect to the input only. The weights stay as they are.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._files import atomic_file
from ..errors import UserError
from ..progress import Progress, silent
from ._synthetic import LENGTH, dead_leaves
from ._text import windowed
from ._types import Data

if TYPE_CHECKING:
    from ..models import Model

__all__ = ["inversion", "made_for", "meant_for"]

# Part of the data's fingerprint: a recipe that makes other images is another version.
_RECIPE = "inversion 1"
_STEPS = 60
_RATE = 0.01
_SMOOTHNESS = 5.0
# Images that are made together, for the statistics are theirs: so many, or fewer if they have more pixels than this, for the
# memory is theirs too.
_TOGETHER, _PIXELS = 128, 32 * 224 * 224


def inversion(split: str) -> Data:
    """Images that are not there yet; `made_for` makes those that were drawn."""
    return Data(
        spec="inversion",
        root=None,
        split=split,
        read=_not_made,
        order=tuple(range(LENGTH)),
        labels=None,
        classes=None,
        source=hashlib.sha256(_RECIPE.encode()).hexdigest(),
    )


def _not_made(index: int) -> NoReturn:  # noqa: ARG001 - there is none
    raise UserError("the images of inversion must first be made for a network, as analyze does; dead-leaves needs none")


def meant_for(data: Data, model: Model | None) -> Data:
    """``data`` with the fingerprint it will have once it is made for ``model``. Nothing is made; text is `windowed`, other
    data stay as they are.

    Raises `UserError` if ``data`` needs a network and there is none.
    """
    if data.read is not _not_made:
        return windowed(data, model)
    if model is None:
        _not_made(0)
    about = f"{_RECIPE} {model.fingerprint} {model.input.model_dump_json()} {data.order}"
    return dataclasses.replace(data, source=hashlib.sha256(about.encode()).hexdigest())


def made_for(data: Data, model: Model, progress: Progress = silent) -> Data:
    """``data`` with its images made for ``model``, which is not changed; text `windowed`, other data as they are.

    The images lie in ``$MODHIFI_HOME/inversion`` (default ``~/.cache/modhifi``), which is safe to delete: they are made once.
    Raises `UserError` if the network has no BatchNorm statistics, or the folder cannot be written.
    """
    if data.read is not _not_made:
        return windowed(data, model)
    made = meant_for(data, model)
    home = Path(os.environ.get("MODHIFI_HOME") or Path.home() / ".cache" / "modhifi").expanduser()
    path = home / "inversion" / f"{made.source}.safetensors"
    images = _kept(path, (len(data), *model.input.shape))
    if images is None:
        try:
            with atomic_file(path) as temporary:
                images = _make(data, model, progress)
                safetensors.torch.save_file({"images": images}, temporary)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); let MODHIFI_HOME name a folder that can"
            ) from error
    rows = dict(zip(data.order, images.permute(0, 2, 3, 1).contiguous().numpy(), strict=True))
    return dataclasses.replace(made, read=lambda i: Image.fromarray(rows[i]))


def _kept(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The images (N, 3, H, W) uint8 that were made before; None if the file is gone, or damaged, and they must be made again."""
    try:
        images = safetensors.torch.load_file(path)["images"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return None
    return images if images.shape == shape and images.dtype == torch.uint8 else None


@torch.inference_mode(False)
@torch.enable_grad()
def _make(data: Data, model: Model, progress: Progress) -> Tensor:
    """(N, 3, H, W) uint8 on the CPU: dead leaves of the same numbers, changed until their statistics in ``model`` fit.

    Adam minimises equation 4 of the paper, the sum over the BatchNorm layers of ``‖μ(x) − μ‖ + ‖σ²(x) − σ²‖``, and a little of
    the mean absolute difference between neighbouring pixels (total variation).
    """
    from ..models import InputSpec

    net = copy.deepcopy(model.module).requires_grad_(False)
    gaps: list[Tensor] = []

    def compare(norm: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = args[0]  # (B, C) or (B, C, …)
        variance, mean = torch.var_mean(inputs, [0, *range(2, inputs.dim())], correction=0)
        gaps.append((mean - norm.get_buffer("running_mean")).norm())
        gaps.append((variance - norm.get_buffer("running_var")).norm())

    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
    if not norms:
        raise UserError(
            f"{model.spec} has no BatchNorm statistics that images could be made from; take the data dead-leaves instead"
        )
    for norm in norms:
        norm.register_forward_pre_hook(compare)
    spec = model.input
    assert isinstance(spec, InputSpec)
    mean, std = (torch.tensor(values, device=model.device).view(3, 1, 1) for values in (spec.mean, spec.std))
    plain = spec.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    leaves = dataclasses.replace(dead_leaves(data.split), order=data.order)
    parts = math.ceil(len(data) / max(1, min(_TOGETHER, _PIXELS // math.prod(spec.size))))
    what = "making images (gradients of the input only, no labels)"
    found = []
    for part in range(parts):
        start, stop = (len(data) * end // parts for end in (part, part + 1))
        [(images, _)] = leaves.part(start, stop).batches(plain, stop - start)
        images = images.to(model.device).requires_grad_()  # (B, 3, H, W) in [0, 1]
        adam = torch.optim.Adam([images], lr=_RATE)
        for step in range(_STEPS):
            progress(part * _STEPS + step, parts * _STEPS, what)
            gaps.clear()
            net((images - mean) / std)
            rough = images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()
            adam.zero_grad()
            (torch.stack(gaps).sum() + _SMOOTHNESS * rough).backward()
            adam.step()
            images.data.clamp_(0, 1)
        found.append((images.detach() * 255).round().to("cpu", torch.uint8))
    progress(parts * _STEPS, parts * _STEPS, what)
    return torch.cat(found)
