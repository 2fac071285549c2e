"""Images generated for one network from the statistics that its BatchNorm layers recorded in training.

DeepInversion (Yin et al., "Dreaming to distill", 2020) without its class conditioning: no labels, no loss on the network's
outputs, and gradients with respect to the input only. The weights do not change.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..files import atomic_file
from ..models import Model
from ..progress import Progress, silent
from ..specs import InputSpec
from ._data import Data
from ._synthetic import LENGTH, dead_leaves

__all__ = ["generate", "generated_for", "inversion", "needs_generating"]

# Part of the data's fingerprint: raise the version whenever the recipe generates different images.
_RECIPE = "inversion 1"
_STEPS = 60
_RATE = 0.01
_SMOOTHNESS = 5.0
# Images are generated in batches, whose statistics are matched as a whole: this many images, or fewer if together they would
# have more pixels than this, to limit memory.
_BATCH, _PIXELS = 128, 32 * 224 * 224


def inversion(split: str) -> Data:
    """Images that do not exist yet; `generate` makes the ones that were drawn."""
    return Data(
        spec="inversion",
        root=None,
        split=split,
        read=_not_generated,
        order=tuple(range(LENGTH)),
        labels=None,
        classes=None,
        source=hashlib.sha256(_RECIPE.encode()).hexdigest(),
    )


def _not_generated(index: int) -> NoReturn:  # noqa: ARG001 - there is none
    raise UserError(
        "inversion images must be generated for a network first, as analyze does; dead-leaves needs no network"
    )


def needs_generating(data: Data) -> bool:
    """Whether the images of ``data`` have yet to be generated for a network."""
    return data.read is _not_generated


def generated_for(data: Data, model: Model | None) -> Data:
    """``data`` with the fingerprint that its images will have once they are generated for ``model``.

    Raises `UserError` if ``model`` is None.
    """
    if model is None:
        _not_generated(0)
    about = f"{_RECIPE} {model.fingerprint} {model.input.model_dump_json()} {data.order}"
    return dataclasses.replace(data, source=hashlib.sha256(about.encode()).hexdigest())


def generate(data: Data, model: Model, progress: Progress = silent) -> Data:
    """``data`` with its images generated for ``model``, which is not changed.

    The images are generated once and cached in ``$MODHIFI_HOME/inversion`` (default ``~/.cache/modhifi``), which is safe to
    delete. Raises `UserError` if the network has no BatchNorm statistics, or the folder is not writable.
    """
    made = generated_for(data, model)
    home = Path(os.environ.get("MODHIFI_HOME") or Path.home() / ".cache" / "modhifi").expanduser()
    path = home / "inversion" / f"{made.source}.safetensors"
    images = _cached(path, (len(data), *model.input.shape))
    if images is None:
        try:
            with atomic_file(path) as temporary:
                images = _make(data, model, progress)
                safetensors.torch.save_file({"images": images}, temporary)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); set MODHIFI_HOME to a writable folder"
            ) from error
    pixels = images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)
    rows = dict(zip(data.order, pixels.contiguous().numpy(), strict=True))
    return dataclasses.replace(made, read=lambda i: Image.fromarray(rows[i]))


def _cached(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The cached images (N, 3, H, W) uint8; None if the file is missing or damaged and they must be generated again."""
    try:
        images = safetensors.torch.load_file(path)["images"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return None
    return images if images.shape == shape and images.dtype == torch.uint8 else None


@torch.inference_mode(False)
@torch.enable_grad()
def _make(data: Data, model: Model, progress: Progress) -> Tensor:
    """(N, 3, H, W) uint8 on the CPU: dead leaves with the same indices, changed until their statistics in ``model`` match.

    Adam minimises equation 4 of the paper, the sum over the BatchNorm layers of ``‖μ(x) − μ‖ + ‖σ²(x) − σ²‖``, plus a small
    weight on the mean absolute difference between neighbouring pixels (total variation).
    """
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
            f"{model.spec} has no BatchNorm statistics to generate images from; use the data dead-leaves instead"
        )
    for norm in norms:
        norm.register_forward_pre_hook(compare)
    spec = model.input
    if not isinstance(spec, InputSpec):
        raise UserError(f"{model.spec} is no image classifier, for which images can be generated; use noise instead")
    mean, std = (torch.tensor(values, device=model.device).view(-1, 1, 1) for values in (spec.mean, spec.std))
    plain = spec.model_copy(update={"mean": (0.0,) * len(spec.mean), "std": (1.0,) * len(spec.std)})
    leaves = dataclasses.replace(dead_leaves(data.split), order=data.order)
    parts = math.ceil(len(data) / max(1, min(_BATCH, _PIXELS // math.prod(spec.size))))
    what = "generating images (gradients of the input only, no labels)"
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
