"""Networks from timm and torchvision: pretrained, filled from a checkpoint, or untrained with reproducible random weights."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..specs import InputSpec
from ..text import distinct
from .checkpoints import rows_of

__all__ = ["seeded", "timm_model", "torchvision_model", "wordnet_ids"]

_log = logging.getLogger(__name__)
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic")

Built = tuple[nn.Module, InputSpec, tuple[str, ...]]


def timm_model(name: str, state: Mapping[str, Tensor] | None) -> Built:
    """``timm:NAME``. A name with a tag (``resnet18.a1_in1k``) gets timm's pretrained weights, a name without one gets random
    weights that are the same every time. With ``state``, a checkpoint that the caller fills in later, nothing is downloaded
    and the head has the checkpoint's number of classes.

    Returns the network on the CPU, its input and its class names. Raises `UserError` for an unknown name or tag, or if
    pretrained weights cannot be downloaded.
    """
    import timm
    from timm.data.config import resolve_model_data_config

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(f"timm has no model {architecture!r}{_similar(timm.list_models(f'*{architecture[:8]}*'))}")
    tags = sorted(timm.list_pretrained(f"{architecture}.*"))
    if tag and name not in tags:
        raise UserError(f"timm has no pretrained weights {name!r}{_similar(tags)}")
    if state is None and tag:
        try:
            model: Any = timm.create_model(name, pretrained=True)
        except Exception as error:
            # The hub client and the network stack raise exceptions that have no common base class.
            raise _download_failed(f"timm:{name}", error) from error
    else:
        config = timm.get_pretrained_cfg(name if tag else architecture, allow_unregistered=True)
        classifier: Any = config.classifier if config is not None else None
        # Distilled transformers have two heads of the same size.
        first = classifier[0] if isinstance(classifier, tuple | list) else classifier
        arguments = _head(state, f"{first}.weight")
        with seeded(0):
            model = timm.create_model(name, pretrained=False, **arguments)
        if state is None:
            _warn_random(f"timm:{name}", f"a name with a tag ({tags[0]})" if tags else "")
    if model.num_classes < 1:
        raise UserError(f"timm:{name} only computes features and has no classes; choose a classifier")
    data = resolve_model_data_config(model)
    interpolation = data["interpolation"]
    spec = InputSpec(
        size=tuple(data["input_size"][1:]),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=interpolation if interpolation in _INTERPOLATIONS else "bilinear",
        crop=min(1.0, data["crop_pct"]),
    )
    return model, spec, _names(int(model.num_classes))


def torchvision_model(name: str, state: Mapping[str, Tensor] | None) -> Built:
    """``torchvision:NAME`` (random weights, the same every time) or ``torchvision:NAME@WEIGHTS`` (``DEFAULT`` or another of
    torchvision's names). ``state``, the result and the errors are as in `timm_model`.
    """
    from torchvision import models

    architecture, _, version = name.partition("@")
    known = models.list_models(module=models)
    if architecture not in known:
        near = [candidate for candidate in known if architecture[:6] in candidate]
        raise UserError(f"torchvision has no classification model {architecture!r}{_similar(near)}")
    available = models.get_model_weights(architecture)
    if version and version not in available.__members__:
        raise UserError(
            f"torchvision has no weights {version!r} for {architecture}{_similar(list(available.__members__))}"
        )
    if state is None and version:
        try:
            model = models.get_model(architecture, weights=version, progress=False)
        except Exception as error:
            raise _download_failed(f"torchvision:{name}", error) from error
    else:
        with seeded(0):
            model = models.get_model(architecture, weights=None)
            # The classifier is the last layer with one output per class; SqueezeNet's is a convolution.
            layers = [(key, m) for key, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            heads = [key for key, layer in layers if layer.weight.shape[0] == 1000]
            arguments = _head(state, f"{heads[-1]}.weight") if heads else {}
            if arguments.get("num_classes", 1000) != 1000:
                model = models.get_model(architecture, weights=None, **arguments)
        if state is None:
            _warn_random(f"torchvision:{name}", f"torchvision:{architecture}@DEFAULT")
    weights = available[version] if version else available.DEFAULT
    preset = weights.transforms()
    spec = InputSpec(
        size=(preset.crop_size[0], preset.crop_size[0]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
        crop=min(1.0, preset.crop_size[0] / preset.resize_size[0]),
    )
    count = arguments.get("num_classes", 1000) if state is not None else 1000
    return model, spec, _names(count)


def _head(state: Mapping[str, Tensor] | None, key: str) -> dict[str, Any]:
    """The argument that gives the head as many classes as the checkpoint's."""
    rows = None if state is None else rows_of(state, key)
    return {} if rows is None else {"num_classes": rows}


def _names(count: int) -> tuple[str, ...]:
    """ImageNet's names for 1,000 classes, otherwise the indices."""
    if count != 1000:
        return tuple(str(i) for i in range(count))
    from torchvision.models import ResNet18_Weights

    return distinct(ResNet18_Weights.DEFAULT.meta["categories"])


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, such as ``n01440764``, in the order of the logits."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the context, the CPU's random generator starts from ``seed``; afterwards its state is restored."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(before)


def _warn_random(spec: str, better: str) -> None:
    alternative = f" or use {better}" if better else ""
    _log.warning("%s has random, untrained weights; for trained ones give a weights file%s", spec, alternative)


def _download_failed(spec: str, error: Exception) -> UserError:
    return UserError(
        f"the pretrained weights of {spec} could not be downloaded ({type(error).__name__}); "
        "check the network connection, or download them elsewhere and pass the file as weights"
    )


def _similar(names: list[str]) -> str:
    if not names:
        return ""
    return f"; available: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
