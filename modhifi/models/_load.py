"""From a spec to a loaded model (contract: MODEL and ``--weights``)."""

from __future__ import annotations

import importlib.resources
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from .._files import read_json
from ..data._cifar10 import CIFAR10_CLASSES
from ..devices import choose_device
from ..errors import UserError
from ..progress import Progress, silent
from ._libraries import timm_model, torchvision_model
from ._types import InputSpec, Model, fingerprint
from .checkpoints import fill, read_checkpoint
from .cifar_resnet import DEPTHS, cifar_resnet
from .cifar_vgg import CifarVGG
from .digits_vit import digits_vit
from .language import FAMILIES, CausalLM, check_context, language_model

__all__ = ["DEFAULT_MODEL", "TEXT_MODEL", "architecture", "list_models", "load_model", "shipped_folder"]

DEFAULT_MODEL = "digits-resnet20"
TEXT_MODEL = "text-llama"
# The networks that ship with the project, untrained: by name and number of classes.
_SHIPPED: Mapping[str, Callable[[int], nn.Module]] = {
    DEFAULT_MODEL: lambda classes: cifar_resnet(20, classes),
    "cifar10-vgg8": CifarVGG,
    "digits-vit": digits_vit,
}
# The normalisation of the published checkpoints (github.com/akamaster/pytorch_resnet_cifar10), not CIFAR-10's own.
CIFAR10_INPUT = InputSpec(size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

_FORMS = (
    (DEFAULT_MODEL, "the default: a ResNet-20 on scikit-learn's handwritten digits, ships with the project"),
    ("cifar10-vgg8", "a plain convolutional chain for CIFAR-10, over-parameterised, ships with the project"),
    ("digits-vit", "a small vision transformer on scikit-learn's handwritten digits, ships with the project"),
    (
        f"cifar10-resnetN, N = {', '.join(map(str, DEPTHS))}",
        "He et al.'s CIFAR-10 networks, shortcuts of option A; weights from a file",
    ),
    ("timm:NAME", "a network of timm; NAME with a tag (resnet18.a1_in1k) is pretrained, without it has random weights"),
    (
        "torchvision:NAME",
        "a classifier of torchvision; NAME@DEFAULT is pretrained, NAME alone has random weights",
    ),
    (TEXT_MODEL, "a small Llama on the bytes of the King James Bible, ships with the project"),
    (
        "hf:NAME_OR_DIR",
        f"a causal language model of transformers ({', '.join(FAMILIES)}), by its name on the hub or a folder",
    ),
    ("FOLDER", "a network written by export"),
)


def list_models() -> list[tuple[str, str]]:
    """Every form of spec that `load_model` understands, and what it is."""
    return list(_FORMS)


# Tensors made in a caller's inference mode could never be traced.
@torch.inference_mode(False)
def load_model(
    spec: str = DEFAULT_MODEL,
    weights: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | str | Path | None = None,
    context: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Model:
    """Loads a network in evaluation mode, without gradients, on ``device``.

    Args:
        spec: one of the forms of `list_models`.
        weights: a checkpoint to fill the network with, ``.safetensors`` or ``.pt/.pth/.th`` (see `read_checkpoint`).
        mean: per channel of an input in [0, 1], three numbers; overrides what the model says of its input.
        std: the same, positive.
        classes: the names of the classes in the order of the logits, or a file with one name on each line.
        context: for language models, tokens of a sample; as many as the model takes, but at most 1,024, by default.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``...; for language models also ``map``, which leaves it to accelerate
            where each layer lies (transformers' ``device_map="auto"``).
        progress: told before and after; may raise `modhifi.errors.Cancelled`.

    Raises:
        UserError: for an unknown spec, a checkpoint that is missing, damaged or of another network, pretrained weights
            that cannot be fetched, a wrong number of classes, or a device that is not there.
    """
    report = progress or silent
    name = _language(spec)
    if name is None and device == "map":
        raise UserError("only language models (hf:NAME_OR_DIR) are spread over devices; choose one device")
    target = None if device == "map" else choose_device(device)
    report(0, 1, f"loading {spec}")
    path = None if weights is None else Path(weights).expanduser().resolve()
    if name is not None:
        if path is not None:
            raise UserError(f"{spec} comes with its own weights; leave the weights file away")
        model = _language_model(spec, name, target, context)
    elif _is_folder(spec):
        if path is not None:
            raise UserError(f"{spec} is an exported model with its own weights; leave the weights file away")
        from ..export import read_export

        assert target is not None
        model = read_export(Path(spec).expanduser(), target)
    else:
        assert target is not None
        module, given, names = _build(spec, path)
        module = module.eval().requires_grad_(False).to(target)
        model = Model(
            spec=spec,
            module=module,
            input=given,
            classes=names,
            weights=None if path is None else str(path),
            fingerprint=fingerprint(module),
        )
    if context is not None:
        if model.tokens is None:
            raise UserError(f"{spec} takes images; a context is for language models")
        assert isinstance(model.module, CausalLM)
        check_context(model.module.lm.config, context)
        model.input = model.tokens.model_copy(update={"context": context})
    if isinstance(model.input, InputSpec):
        model.input = _override_input(model.input, mean, std)
    elif mean is not None or std is not None:
        raise UserError(f"{spec} takes tokens, which have no mean and std; leave them away")
    if classes is not None:
        model.classes = _override_classes(classes, len(model.classes))
    report(1, 1, f"loading {spec}")
    return model


def _language(spec: str) -> str | None:
    """What `language_model` loads for this spec: a name, or a folder that transformers alone opens; None for all others."""
    if spec == TEXT_MODEL:
        return str(shipped_folder(TEXT_MODEL))
    folder = Path(spec.removeprefix("hf:")).expanduser()
    if (folder / "manifest.json").exists() and not spec.startswith("hf:"):
        return None
    return spec.removeprefix("hf:") if spec.startswith("hf:") and len(spec) > 3 else None


def _language_model(spec: str, name: str, target: torch.device | None, context: int | None) -> Model:
    folder = Path(name).expanduser()
    if (folder / "manifest.json").exists():
        from ..export import read_export

        # Written by this project: its plan comes with it, and its blocks may be of different widths.
        return read_export(folder, target)
    # The shipped one is so small that nothing is gained by computing in less than it was trained in.
    dtype = torch.float32 if spec == TEXT_MODEL else None
    module, given, tokenizer = language_model(name, target, context, dtype)
    return Model(
        spec=f"hf:{folder.resolve()}" if spec != TEXT_MODEL and folder.is_dir() else spec,
        module=module,
        input=given,
        classes=(),
        weights=None,
        fingerprint=fingerprint(module),
        tokenizer=tokenizer,
    )


def _is_folder(spec: str) -> bool:
    return bool(spec) and spec not in _SHIPPED and ":" not in spec and Path(spec).expanduser().is_dir()


def _build(spec: str, weights: Path | None) -> tuple[nn.Module, InputSpec, tuple[str, ...]]:
    """The network with its weights on the CPU, its input and its class names."""
    family, colon, name = spec.partition(":")
    own = re.fullmatch(r"cifar10-resnet(\d+)", spec)
    library = {"timm": timm_model, "torchvision": torchvision_model}.get(family) if colon and name else None
    if spec not in _SHIPPED and library is None and not (own and int(own[1]) in DEPTHS):
        forms = "; ".join(form for form, _ in _FORMS)
        raise UserError(f"unknown model {spec!r}; a model is one of: {forms}")
    if own and weights is None:
        raise UserError(f"{spec} does not come with weights; name a checkpoint file (--weights FILE)")
    state: Mapping[str, Tensor] | None = None if weights is None else read_checkpoint(weights)
    if library is not None:
        module, given, names = library(name, state)
    elif own:
        module, given, names = cifar_resnet(int(own[1])), CIFAR10_INPUT, CIFAR10_CLASSES
    else:
        module, given, names, shipped = _shipped(spec)
        state = shipped if state is None else state
    if state is not None:
        fill(module, state, spec, weights or "the shipped checkpoint")
    return module, given, names


def architecture(spec: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The network of ``spec`` with as many classes as ``state`` has, untrained, on the CPU; nothing is fetched. ``state`` may be
    of a network with fewer components than ``spec`` has.

    Raises `UserError` for an unknown spec.
    """
    family, _, name = spec.partition(":")
    own = re.fullmatch(r"cifar10-resnet(\d+)", spec)
    if family == "timm":
        return timm_model(name, state)[0]
    if family == "torchvision":
        return torchvision_model(name, state)[0]
    head = next((state[name] for name in ("linear.weight", "head.weight") if name in state), None)
    classes = len(CIFAR10_CLASSES) if head is None else head.shape[0]
    if spec in _SHIPPED:
        return _SHIPPED[spec](classes)
    if own:
        return cifar_resnet(int(own[1]), classes)
    raise UserError(f"unknown architecture {spec!r}")


def _shipped(name: str) -> tuple[nn.Module, InputSpec, tuple[str, ...], dict[str, Tensor]]:
    """A network that ships with the project: untrained module, input and classes of its card, trained weights."""
    folder = _assets()
    with importlib.resources.as_file(folder / f"{name}.json") as path:
        card = read_json(path, f"the card of {name}")
    with importlib.resources.as_file(folder / f"{name}.safetensors") as path:
        state = read_checkpoint(path)
    names = tuple(card["classes"])
    return _SHIPPED[name](len(names)), InputSpec.model_validate(card["input"]), names, state


def _assets() -> Traversable:
    """A wheel carries the files inside the package; in a checkout they lie where their recipe wrote them."""
    installed: Traversable = importlib.resources.files("modhifi") / "assets"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "assets"


def shipped_folder(name: str) -> Path:
    """Where a model lies that ships as a folder. Raises `UserError` if the package is not unpacked on a disk."""
    folder = _assets() / name
    if not isinstance(folder, Path) or not folder.is_dir():
        raise UserError(f"the files of {name} are not on this disk; install modhifi unpacked (pip does)")
    return folder


def _override_input(given: InputSpec, mean: Sequence[float] | None, std: Sequence[float] | None) -> InputSpec:
    changes: dict[str, tuple[float, ...]] = {}
    for what, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        numbers = tuple(values)
        if len(numbers) != 3 or not all(math.isfinite(number) for number in numbers):
            raise UserError(f"{what} must be three finite numbers, one a channel (R, G, B), not {numbers}")
        if what == "std" and min(numbers) <= 0:
            raise UserError(f"std must be positive, not {numbers}")
        changes[what] = numbers
    try:
        return InputSpec.model_validate(given.model_dump() | changes)
    except ValidationError as error:
        raise UserError(f"mean and std must be numbers: {error.errors()[0]['msg']}") from error


def _override_classes(classes: Sequence[str] | str | Path, count: int) -> tuple[str, ...]:
    if isinstance(classes, (str, Path)):
        path = Path(classes).expanduser()
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the file of class names {path} cannot be read ({type(error).__name__})") from error
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        where = f"{path} names"
    else:
        names, where = tuple(classes), "classes names"
    if len(names) != count:
        raise UserError(f"{where} {len(names)} classes, but the network has {count}")
    if len(set(names)) != count:
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where} {twice!r} more than once; every class needs a name of its own")
    return names
