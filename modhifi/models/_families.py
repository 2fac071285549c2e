"""Families of image classifiers: which specs belong to a family, and how its networks are built.

To add a family, write a module that calls `register_family` and import it in this package's ``__init__``.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import UserError
from ..files import read_json
from ..registry import Registry
from ..shipped import assets
from ..specs import InputSpec
from ._libraries import Built, timm_model, torchvision_model
from .checkpoints import fill, read_checkpoint, rows_of
from .cifar_resnet import CIFAR10_CLASSES, CIFAR10_INPUT, DEPTHS, cifar_resnet
from .cifar_vgg import CifarVGG
from .digits_vit import digits_vit

__all__ = ["DEFAULT_MODEL", "Family", "architecture", "families", "family_of", "register_family"]

DEFAULT_MODEL = "digits-resnet20"
"""The shipped network that the dashboard shows on a first visit."""


@dataclass(frozen=True)
class Family:
    """``build(spec, state)`` returns the network on the CPU, its input and its class names. Without ``state`` the network has
    the weights that the spec stands for. With ``state``, a checkpoint that the caller fills in later, it is untrained and has
    the checkpoint's number of classes, and nothing is downloaded.
    """

    form: str
    """How a spec is written, for display."""
    about: str
    matches: Callable[[str], bool]
    build: Callable[[str, Mapping[str, Tensor] | None], Built]
    examples: tuple[str, ...] = ()
    """Specs that the dashboard suggests."""


_FAMILIES: Registry[Family] = Registry("family")


def register_family(family: Family) -> Family:
    """Registers ``family`` with `modhifi.load_model`, ``modhifi models`` and the dashboard. If several families match a spec,
    the first one registered is used. Raises ValueError if the form is taken.
    """
    return _FAMILIES.register(family.form, family)


def families() -> tuple[Family, ...]:
    """All registered families, in order."""
    return tuple(_FAMILIES.values())


def family_of(spec: str) -> Family | None:
    """The family that ``spec`` belongs to; None if there is none."""
    return next((family for family in _FAMILIES.values() if family.matches(spec)), None)


def architecture(spec: str, state: Mapping[str, Tensor]) -> tuple[nn.Module, InputSpec, tuple[str, ...]]:
    """The untrained network of ``spec`` with as many classes as ``state``, on the CPU, its usual input, and its classes.
    Nothing is downloaded; ``state`` may come from a pruned version of the network.

    Raises `UserError` for an unknown spec, or a classifier in ``state`` that no network has.
    """
    family = family_of(spec)
    if family is None:
        raise UserError(
            f"unknown architecture {spec!r}; the manifest is from another version, so export the model again"
        )
    return family.build(spec, state)


def _class_count(state: Mapping[str, Tensor], usual: int) -> int:
    """Rows of the classifier in ``state``; ``usual`` if it has none."""
    name = "linear.weight" if "linear.weight" in state else "head.weight"
    found = rows_of(state, name)
    return usual if found is None else found


def _class_names(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    return names if len(names) == count else tuple(map(str, range(count)))


def _shipped(name: str, about: str, make: Callable[[int], nn.Module]) -> Family:
    """A shipped network: its model card holds the input and the classes, the safetensors file next to it the weights."""

    def build(spec: str, state: Mapping[str, Tensor] | None) -> Built:
        folder = assets()
        with importlib.resources.as_file(folder / f"{name}.json") as path:
            card = read_json(path, f"the model card of {name}")
        names = tuple(card["classes"])
        count = len(names) if state is None else _class_count(state, len(names))
        module = make(count)
        if state is None:
            with importlib.resources.as_file(folder / f"{name}.safetensors") as path:
                fill(module, read_checkpoint(path, plain=True), spec, "the shipped checkpoint")
        return module, InputSpec.model_validate(card["input"]), _class_names(names, count)

    return Family(name, about, lambda spec: spec == name, build, (name,))


def _cifar_resnet(spec: str, state: Mapping[str, Tensor] | None) -> Built:
    if state is None:
        raise UserError(f"{spec} ships without weights; name a checkpoint file (--weights FILE)")
    count = _class_count(state, len(CIFAR10_CLASSES))
    depth = int(spec.removeprefix("cifar10-resnet"))
    return cifar_resnet(depth, count), CIFAR10_INPUT, _class_names(CIFAR10_CLASSES, count)


def _prefixed(prefix: str) -> Callable[[str], bool]:
    return lambda spec: spec.startswith(prefix) and len(spec) > len(prefix)


register_family(
    _shipped(
        DEFAULT_MODEL,
        "the default: a ResNet-20 for scikit-learn's handwritten digits; ships with the project",
        lambda classes: cifar_resnet(20, classes),
    )
)
register_family(
    _shipped("cifar10-vgg8", "an over-parameterised plain CNN for CIFAR-10; ships with the project", CifarVGG)
)
register_family(
    _shipped(
        "digits-vit",
        "a small vision transformer for scikit-learn's handwritten digits; ships with the project",
        digits_vit,
    )
)
register_family(
    Family(
        f"cifar10-resnetN, N = {', '.join(map(str, DEPTHS))}",
        "He et al.'s CIFAR-10 ResNets with option A shortcuts; a weights file is required",
        lambda spec: bool(re.fullmatch(rf"cifar10-resnet({'|'.join(map(str, DEPTHS))})", spec)),
        _cifar_resnet,
        ("cifar10-resnet20", "cifar10-resnet56"),
    )
)
register_family(
    Family(
        "timm:NAME",
        "a timm classifier: pretrained if NAME has a tag (resnet18.a1_in1k), otherwise with random weights",
        _prefixed("timm:"),
        lambda spec, state: timm_model(spec.removeprefix("timm:"), state),
        ("timm:resnet18", "timm:resnet50"),
    )
)
register_family(
    Family(
        "torchvision:NAME",
        "a torchvision classifier: NAME@DEFAULT is pretrained, NAME alone has random weights",
        _prefixed("torchvision:"),
        lambda spec, state: torchvision_model(spec.removeprefix("torchvision:"), state),
        ("torchvision:vgg16_bn", "torchvision:resnet18", "torchvision:resnet50"),
    )
)
