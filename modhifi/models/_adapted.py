"""Networks of one's own in the form that the rest of the library works with: one tensor in, one tensor out.

An adapted network stays an instance of its class, with the same names of modules and weights. Called in its own way, it answers
in its own way. Called with the rows of an `ArraySpec`, which have six dimensions as no network's own input does, it takes the
inputs out of them and gives its answer as

- (B, K) logits for one class per sample,
- (B, P, K) logits for classes in each of P places (the pixels of a map, the tokens of a sequence),
- (B, 1, D) for D numbers that are no classes.

As in `torch.nn.utils.parametrize`, the module gets a subclass of its class.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..specs import ArraySpec

__all__ = ["adapt", "answers_of", "chosen", "every_answer", "in_own_form", "is_packed"]

_RANK = 6
_SPEC = "_modhifi_spec"


class _Adapted:
    """Comes before the network's class in the order of methods."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward: Callable[..., Any] = super().forward  # type: ignore[misc]
        if kwargs or len(args) != 1 or not is_packed(args[0]):
            return forward(*args, **kwargs)
        spec: ArraySpec = getattr(self, _SPEC)
        positional, named = _own_call(self, spec, args[0])  # type: ignore[arg-type]
        return _in_form(chosen(answers_of(forward(*positional, **named)), spec.output), spec, len(args[0]))


def adapt(module: nn.Module, spec: ArraySpec) -> nn.Module:
    """``module`` itself, which from now on also takes the rows of ``spec``. Raises `UserError` if its ``forward`` is an attribute
    of the object, which would go before that of any class.
    """
    if "forward" in module.__dict__:
        raise UserError(f"forward of {type(module).__name__} was replaced on the object; define it in a class")
    own = type(module)
    module.__class__ = type(own.__name__, (_Adapted, own), {"__module__": own.__module__, "__doc__": own.__doc__})
    setattr(module, _SPEC, spec)
    return module


def in_own_form(module: nn.Module) -> nn.Module:
    """A copy without what `adapt` added; ``module`` itself if that is nothing."""
    if not isinstance(module, _Adapted):
        return module
    plain = copy.deepcopy(module)
    plain.__class__ = type(module).__mro__[2]
    delattr(plain, _SPEC)
    return plain


def is_packed(x: object) -> bool:
    """Whether ``x`` is rows of an `ArraySpec`."""
    return isinstance(x, Tensor) and x.ndim == _RANK


def _own_call(module: nn.Module, spec: ArraySpec, rows: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The positional and the named arguments of ``forward`` for the rows; floating-point ones in the dtype of the weights."""
    dtype = next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), torch.float32)
    values = spec.unpack(rows)
    cast = [value.to(dtype) if value.is_floating_point() else value for value in values]
    both = list(zip(spec.inputs, cast, strict=True))
    return [v for one, v in both if not one.keyword], {one.name: v for one, v in both if one.keyword}


def every_answer(module: nn.Module, x: Tensor) -> list[Tensor]:
    """All tensors that the network gives for ``x``, in their own form: also those that are not the answer."""
    if isinstance(module, _Adapted) and is_packed(x):
        positional, named = _own_call(module, getattr(module, _SPEC), x)
        return list(answers_of(module(*positional, **named)).values())
    return list(answers_of(module(x)).values())


def answers_of(value: Any) -> dict[str, Tensor]:
    """The tensors in a network's output by their paths, such as ``logits`` or ``0.boxes``; the path of a single one is empty."""
    return {".".join(path): tensor for path, tensor in _tensors(value, ())}


def _tensors(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, Mapping)):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _tensors(one, (*path, str(name)))


def chosen(answers: Mapping[str, Tensor], output: str | None) -> Tensor:
    """The answer at the path ``output``, or the only one. Raises `UserError` where there is none or more than one."""
    if output is None and len(answers) == 1:
        return next(iter(answers.values()))
    if output is not None and output in answers:
        return answers[output]
    if not answers:
        raise UserError("the network gives no tensor; return its logits or other numbers")
    found = "; ".join(f"{name or 'itself'}: {'×'.join(map(str, value.shape))}" for name, value in answers.items())
    if output is None:
        raise UserError(f"the network gives several tensors ({found}); name the answer with --output, for instance 0")
    raise UserError(f"the network has no output {output!r:.40}; it gives {found}")


def _in_form(answer: Tensor, spec: ArraySpec, batch: int) -> Tensor:
    if answer.ndim == spec.rank - 1 and batch == 1:  # squeezed
        answer = answer[None]
    if spec.form == "values":
        return answer.reshape(batch, 1, -1)
    if spec.form == "map":
        return answer.flatten(2).transpose(1, 2)  # (B, P, K)
    return answer
