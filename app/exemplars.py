"""Top-activating images of a component, and the pixels responsible (integrated gradients, captum)."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import IntegratedGradients
from numpy.typing import NDArray
from PIL import Image, ImageColor
from torch import Tensor

import modhifi
from modhifi.data import Data
from modhifi.layers import get_operator
from modhifi.models import Model
from modhifi.progress import Progress
from modhifi.specs import InputSpec

from .figures import ORANGE

__all__ = ["Exemplar", "exemplars"]

COUNT = 8
_STEPS = 16
_BATCH = 128
_HEAT = np.array(ImageColor.getrgb(ORANGE), dtype=np.float64)
_SIDE = 160


@dataclass(frozen=True)
class Exemplar:
    """One image as the network sees it, and again with the pixels marked that activate the component; both PNG.

    ``energy``: the component's mean squared activation on it, as a multiple of the mean over all images;
    ``predicted``: the predicted class.
    """

    image: bytes
    marked: bytes
    energy: float
    predicted: str


def exemplars(
    study: modhifi.Study, model: Model, data: Data, group: str, component: int, progress: Progress
) -> list[Exemplar]:
    """The `COUNT` images of ``data`` on which the component has the most energy at the first layer that reads it, in
    descending order.
    """
    consumer = study.group(group).consumers[0]
    layer = get_operator(model.module, consumer.layer)
    channels = torch.from_numpy(consumer.channels(study.group(group).size)[component]).to(model.device)
    seen: list[Tensor] = []

    def watch(_: torch.nn.Module, args: tuple[Tensor]) -> None:
        of_channels = args[0].index_select(1 if isinstance(layer, torch.nn.Conv2d) else -1, channels)
        seen.append(of_channels.square())

    def run(batch: Tensor) -> tuple[Tensor, Tensor]:
        """The component's energy (B,), differentiable, and the logits."""
        seen.clear()
        logits = model.module(batch)
        return seen[0].reshape(len(batch), -1).mean(1), logits

    handle = layer.register_forward_pre_hook(watch)
    try:
        found: list[Tensor] = []
        predictions: list[Tensor] = []
        with torch.no_grad():
            for batch, _ in data.batches(model.input, _BATCH):
                progress(len(found) * _BATCH, len(data), "finding top-activating images")
                energy, logits = run(batch.to(model.device))
                found.append(energy.cpu())
                predictions.append(logits.argmax(1).cpu())
        strength, predicted = torch.cat(found), torch.cat(predictions)
        best = torch.argsort(strength, descending=True)[:COUNT]
        images = torch.cat([next(data.part(i, i + 1).batches(model.input))[0] for i in best.tolist()])
        attribution = IntegratedGradients(lambda batch: run(batch)[0])
        marks = []
        for done, image in enumerate(images):
            progress(done, len(images), "attributing to pixels")
            image = image[None].to(model.device)
            marks.append(attribution.attribute(image, n_steps=_STEPS, internal_batch_size=_STEPS).detach().abs().sum(1))
        progress(len(images), len(images), "attributing to pixels")
    finally:
        handle.remove()
    whole = float(strength.mean())
    return [
        Exemplar(
            image=_png(picture),
            marked=_png(_overlaid(picture, mark[0].cpu().double().numpy())),
            energy=float(strength[index]) / whole if whole > 0 else 0.0,
            predicted=study.model.classes[int(predicted[index])],
        )
        for picture, mark, index in zip(_pixels(images, model), marks, best.tolist(), strict=True)
    ]


def _pixels(images: Tensor, model: Model) -> list[NDArray[np.float64]]:
    """The images before normalisation, (H, W, 3) each, 0 to 255."""
    spec = model.input
    assert isinstance(spec, InputSpec)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (spec.mean, spec.std))
    values = (images * std + mean).clamp(0, 1).mul(255).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return [np.asarray(one, dtype=np.float64) for one in values.numpy()]


def _overlaid(picture: NDArray[np.float64], mark: NDArray[np.float64]) -> NDArray[np.float64]:
    """The picture in grey, overlaid with orange by attribution; the top percentile is fully orange."""
    top = float(np.quantile(mark, 0.99)) or float(mark.max()) or 1.0
    weight = np.clip(mark / top, 0.0, 1.0)[:, :, None]
    grey = picture.mean(2, keepdims=True)
    return np.asarray((1 - weight) * grey + weight * _HEAT)


def _png(picture: NDArray[np.float64]) -> bytes:
    image = Image.fromarray(picture.round().astype(np.uint8)).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
