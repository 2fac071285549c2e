"""Any `torch.nn.Module` as a `Model`: what its inputs are, which of its outputs is the answer, and whether it can be used."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import UserError, first_fault, user_error
from ..models import IN_MEMORY, MOST_CLASSES, Model, adapt, answers_of, chosen, fingerprint
from ..specs import ArraySpec, InputSpec, TensorSpec

__all__ = ["shapes_of", "wrap", "wrapped"]

_log = logging.getLogger(__name__)
# Relative to the largest: what two passes over the same sample may differ by.
_TOLERANCE = 1e-3
_Shapes = tuple[tuple[int, ...], ...]
_TRAINED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@torch.inference_mode(False)
def wrap(
    module: nn.Module,
    example_inputs: Any,
    *,
    output: str | int | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """A network of one's own as a model for `modhifi.analyze` and everything after it.

    Args:
        module: it is copied, and the copy is used in evaluation mode, where the module is.
        example_inputs: what ``module`` is called with for one or a few samples: a tensor (B, …); a tuple or list of tensors;
            a dict of named ones; or a tuple whose last entry is such a dict. Floating-point and whole numbers of any shape with
            up to four dimensions beside that of the batch. Random inputs with the same mean and standard deviation, or for whole
            numbers the same range, are used wherever examples are needed.
        output: the answer, where there are several outputs: an index or a key, or a path such as ``logits.0``.
        classes: the names of the classes, where the answer is one logit for each of them; () if its numbers are no classes. By
            default (B, K) and (B, K, H, W) with K > 1 are logits for K classes, and (B, T, K) for every place of a sequence.
        mean: per channel of images in [0, 1], where images are the input; by default 0.
        std: likewise, by default 1.

    Raises:
        UserError: for a module that is no network or has no weights, a call that fails, and an answer that is not finite, is no
            single tensor, has no dimension for the batch, or differs from one pass to the next.
    """
    checked(module, "the module")
    try:
        twin = copy.deepcopy(module)
    except RuntimeError as error:
        raise UserError(f"the module cannot be copied ({error}); detach the tensors that it keeps") from error
    return wrapped(
        twin, example_inputs, f"{IN_MEMORY}{type(module).__name__}", output=output, classes=classes, mean=mean, std=std
    )


def wrapped(
    module: nn.Module,
    examples: Any,
    spec: str,
    *,
    output: str | int | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: str | None = None,
    source: str | None = None,
) -> Model:
    """`wrap` without the copy: ``module`` is changed. ``spec`` names the network, also in messages."""
    whole, spec = spec, spec.removeprefix(IN_MEMORY)
    checked(module, spec)
    if module.training and any(isinstance(one, _TRAINED) for one in module.modules()):
        _log.warning("%s came in training mode; it is used in evaluation mode", spec)
    module.eval().requires_grad_(False)
    if any(one.training for one in module.modules()):
        raise UserError(
            f"{spec} stays in training mode after eval(); do not override train() in a way that prevents it"
        )
    values, inputs = _described(module, examples, spec)
    answers = answers_of(_called(module, inputs, values, spec))
    path = None if output is None else str(output)
    answer = chosen(answers, path)
    batch = len(values[0])
    form = _form(answer, batch, classes, spec)
    image = _image(inputs, mean, std, spec)
    given: ArraySpec | InputSpec = ArraySpec(inputs=inputs, output=path, form=form, rank=answer.ndim, image=image)
    plain = list(answers) == [""] and not inputs[0].keyword
    if image is not None and form == "classes" and plain and _keeps_batch(module, inputs, spec):
        given = image
    names: tuple[str, ...] = ()
    if form == "classes":
        count = answer.shape[1]
        names = tuple(map(str, range(count))) if classes is None else tuple(classes)
        if len(names) != count or len(set(names)) != count:
            raise UserError(f"{spec} has {count} outputs and {len(set(names))} class names; give one name per output")
    model = as_model(module, given, names, whole, weights=weights, source=source)
    _check(model)
    return model


def as_model(
    module: nn.Module,
    given: ArraySpec | InputSpec,
    classes: Sequence[str],
    spec: str,
    *,
    weights: str | None = None,
    source: str | None = None,
) -> Model:
    """The model of a module whose input is known. The module is changed."""
    module.eval().requires_grad_(False)
    return Model(
        spec=spec,
        module=adapt(module, given) if isinstance(given, ArraySpec) else module,
        input=given,
        classes=tuple(classes),
        weights=weights,
        fingerprint=fingerprint(module),
        source=source,
    )


def shapes_of(text: str) -> list[Tensor]:
    """Example inputs, (2, …) float32 each, of the shapes in ``text``, such as ``3x224x224`` or ``1x28x28,10``."""
    found = []
    generator = torch.Generator().manual_seed(0)
    for part in text.split(","):
        if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8}){0,3}", part.strip()):
            raise UserError(
                f"{part.strip()!r:.40} is not the shape of an input; write sizes joined by x, such as 3x224x224, and"
                " several inputs joined by commas"
            )
        sizes = [int(size) for size in part.split("x")]
        if math.prod(sizes) > 1 << 28:
            raise UserError(f"an input of {part.strip()} has more than 2²⁸ numbers; give a smaller one")
        found.append(torch.randn(2, *sizes, generator=generator))
    return found


def checked(module: object, what: str) -> None:
    """Raises `UserError` unless ``module`` is a network whose weights are there and whose layers can be changed."""
    if not isinstance(module, nn.Module):
        raise UserError(f"{what} is a {type(module).__name__}, not a torch.nn.Module; give the network itself")
    if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise UserError(
            f"{what} is TorchScript, whose layers cannot be changed; give the Python module it was made from"
        )
    weights = [*module.parameters(), *module.buffers()]
    if any(nn.parameter.is_lazy(one) for one in weights):
        raise UserError(f"{what} has lazy layers without weights; call it once on an example before")
    if any(one.is_meta for one in weights):
        raise UserError(f"{what} has shapes but no weights (device meta); load its weights with assign=True first")
    if not any(True for _ in module.parameters()):
        raise UserError(f"{what} has no parameters, so there is nothing to prune; give a network with weights")


def _described(module: nn.Module, examples: Any, spec: str) -> tuple[list[Tensor], tuple[TensorSpec, ...]]:
    positional, named = _arguments(examples, spec)
    names = [
        name
        for name, one in inspect.signature(module.forward).parameters.items()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    names += [f"input{number}" for number in range(len(names), len(positional))]
    pairs = [*((name, False, v) for name, v in zip(names, positional, strict=False))]
    pairs += [(str(name), True, value) for name, value in named.items()]
    if not pairs:
        raise UserError(f"{spec} has no example inputs; give tensors, or --input with a shape such as 3x224x224")
    found = []
    for name, keyword, value in pairs:
        if not isinstance(value, Tensor):
            raise UserError(f"the example of the input {name} of {spec} is a {type(value).__name__}; give a tensor")
        if not value.ndim or not len(value):
            raise UserError(
                f"the example of the input {name} of {spec} has no samples; its first dimension is the batch"
            )
        if len(value) != len(pairs[0][2]):
            raise UserError(
                f"the examples of {spec} have {len(pairs[0][2])} and {len(value)} samples; give equally many"
            )
        found.append(_tensor(name, keyword, value, spec))
    return [value for _, _, value in pairs], tuple(found)


def _arguments(examples: Any, spec: str) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(examples, Mapping):
        return [], dict(examples)
    if isinstance(examples, (tuple, list)):
        if examples and isinstance(examples[-1], Mapping):
            return list(examples[:-1]), dict(examples[-1])
        return list(examples), {}
    if examples is None:
        raise UserError(f"{spec} needs example inputs; return them with the network, or say --input, such as 3x224x224")
    return [examples], {}


def _tensor(name: str, keyword: bool, value: Tensor, spec: str) -> TensorSpec:
    fields: dict[str, Any] = {"name": name, "keyword": keyword, "shape": tuple(value.shape[1:])}
    fields["dtype"] = str(value.dtype).removeprefix("torch.")
    if value.is_floating_point():
        wide = value.detach().double()
        if not bool(wide.isfinite().all()):
            raise UserError(f"the example of the input {name} of {spec} is not finite; give ordinary numbers")
        spread = float(wide.std(correction=0))
        fields |= {"mean": float(wide.mean()), "std": spread if spread > 0 else 1.0}
    elif not value.is_complex():
        fields |= {"low": int(value.min()), "high": int(value.max())}
    try:
        return TensorSpec.model_validate(fields)
    except ValidationError as error:
        raise UserError(
            f"the input {name} of {spec} cannot be used ({first_fault(error)}); give a simpler one"
        ) from error


@torch.no_grad()
def _called(module: nn.Module, inputs: Sequence[TensorSpec], values: Sequence[Tensor], spec: str) -> Any:
    device = next(module.parameters()).device
    positional = [value.to(device) for one, value in zip(inputs, values, strict=True) if not one.keyword]
    named = {one.name: value.to(device) for one, value in zip(inputs, values, strict=True) if one.keyword}
    try:
        return module(*positional, **named)
    except Exception as error:
        raise _failed(error, spec, inputs, "the example inputs") from error


def _failed(error: Exception, spec: str, inputs: Sequence[TensorSpec], what: str) -> UserError:
    known = user_error(error)
    if known is not None:
        return known
    shapes = ", ".join(f"{one.name} {'×'.join(map(str, one.shape)) or 'one number'} {one.dtype}" for one in inputs)
    said = " ".join(str(error).split())[:100]
    return UserError(
        f"{spec} fails on {what} ({shapes}): {type(error).__name__}: {said}; give inputs that forward takes"
    )


def _form(answer: Tensor, batch: int, classes: Sequence[str] | None, spec: str) -> Any:
    shape = "×".join(map(str, answer.shape)) or "a single number"
    if not answer.is_floating_point():
        kind = str(answer.dtype).removeprefix("torch.")
        raise UserError(f"the answer of {spec} is {kind}, whose errors mean nothing; return the logits before it")
    if not answer.ndim or len(answer) != batch or answer.ndim > 8:
        raise UserError(
            f"the answer of {spec} to {batch} samples is {shape}; its first dimension must be that of the batch"
        )
    if not bool(answer.isfinite().all()):
        raise UserError(f"the answer of {spec} is not finite; check its weights and its example inputs")
    last = answer.shape[-1] if answer.ndim == 3 else answer.shape[1] if answer.ndim > 1 else 1
    none = classes is not None and not len(classes)
    form = "values" if none or not 1 < last <= MOST_CLASSES else {2: "classes", 3: "sequence"}.get(answer.ndim, "map")
    if classes and form != "classes":
        raise UserError(f"the answer of {spec} is {shape}, not one logit per class; omit the class names")
    return form


def _image(
    inputs: Sequence[TensorSpec], mean: Sequence[float] | None, std: Sequence[float] | None, spec: str
) -> InputSpec | None:
    shape = inputs[0].shape
    if len(inputs) > 1 or not inputs[0].floating or len(shape) != 3 or shape[0] not in (1, 3):
        if mean is not None or std is not None:
            raise UserError(f"{spec} does not take images of one or three channels; omit mean and std")
        return None
    channels = shape[0]
    fields = {"size": shape[1:], "mean": mean or (0.0,) * channels, "std": std or (1.0,) * channels}
    try:
        return InputSpec.model_validate(fields)
    except ValidationError as error:
        raise UserError(
            f"mean and std of {spec} must be {channels} numbers each, std positive ({first_fault(error)})"
        ) from error


def _keeps_batch(module: nn.Module, inputs: Sequence[TensorSpec], spec: str) -> bool:
    """Whether the answer to a single sample still has the dimension of the batch."""
    one = _called(module, inputs, [inputs[0].draw(torch.Generator().manual_seed(0))[None].to(_dtype(module))], spec)
    return isinstance(one, Tensor) and one.ndim == 2 and len(one) == 1


def _dtype(module: nn.Module) -> torch.dtype:
    return next((one.dtype for one in module.parameters() if one.is_floating_point()), torch.float32)


@torch.no_grad()
def _check(model: Model) -> None:
    """Raises `UserError` unless the network gives finite answers to random inputs, the same each time, one for each sample."""
    given, name = model.input, model.spec.removeprefix(IN_MEMORY)
    inputs = given.inputs if isinstance(given, ArraySpec) else ()
    x = model.example(2)
    try:
        both, one = model.module(x), model.module(x[:1])
        # Several times: what is random may happen to be the same twice.
        again = torch.stack([model.module(x) for _ in range(4)])
    except Exception as error:
        raise _failed(error, name, inputs, "random inputs like the examples") from error
    if not bool(both.isfinite().all()):
        raise UserError(f"the answer of {name} to random inputs like the examples is not finite; check its weights")
    largest = max(1e-6, float(both.abs().max())) * _TOLERANCE
    if float((both - again).abs().max()) > largest:
        raise UserError(
            f"{name} gives different answers to the same input; switch off what is random in evaluation mode"
        )
    if one.shape[1:] != both.shape[1:] or float((both[:1] - one).abs().max()) > largest:
        raise UserError(
            f"the answer of {name} to a sample depends on the others of its batch; make every sample count alone"
        )
