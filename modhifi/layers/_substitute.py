"""Temporary replacement of module methods, and of weights by wider ones."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._attention import without_fast_path
from ._operators import Operator, shaped_weight

__all__ = ["in_single", "reweighted", "substituted", "widened", "widened_on_cpu"]


@contextlib.contextmanager
def substituted(methods: Iterable[tuple[nn.Module, str, Callable[..., Any]]]) -> Iterator[None]:
    """Inside the context, each (module, name, callable) replaces the named method of the module. Afterwards the previous one is
    restored, even if other code had put it there (accelerate's hooks).
    """
    before: list[tuple[nn.Module, str, Any]] = []
    try:
        for module, name, instead in methods:
            before.append((module, name, module.__dict__.get(name)))
            module.__dict__[name] = instead
        with without_fast_path():
            yield
    finally:
        for module, name, own in reversed(before):
            if own is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = own


@contextlib.contextmanager
def reweighted(weights: Iterable[tuple[Operator, Tensor, Tensor]]) -> Iterator[None]:
    """Inside the context, each (layer, flat weight, bias) computes with that weight and bias, in the dtype of its own."""
    before = []
    try:
        for module, weight, bias in weights:
            table = module._parameters
            own, before_bias = table["weight"], table.get("bias")
            assert own is not None
            before.append((table, own, before_bias))
            table["weight"] = nn.Parameter(shaped_weight(module, weight.to(own)), requires_grad=False)
            table["bias"] = nn.Parameter(bias.to(own), requires_grad=False)
        yield
    finally:
        for table, own, before_bias in reversed(before):
            table["weight"], table["bias"] = own, before_bias


def widened(net: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside the context, ``net`` computes in single precision where its weights are stored in less (float16, bfloat16), so
    that what two networks with the same weights give differs by no more than single precision rounds. Its output is then
    float32; wider weights compute as they are.

    The weights are widened module by module, while each one runs: no more of them than one layer's are held twice. (A module
    that has parameters of its own beside those of its children holds all of these; it may use them without calling them.)
    """

    def wide(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with _swapped(module):
                return forward(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

        return run

    return substituted((module, "forward", wide(module, module.forward)) for module in _owners(net))


def in_single(module: nn.Module) -> nn.Module:
    """``module`` itself, or a copy in single precision if its weights have less and all of them are in memory."""
    parameters = list(module.parameters())
    narrow = any(map(_is_narrow, parameters)) and not any(parameter.is_meta for parameter in parameters)
    return copy.deepcopy(module).float() if narrow else module


def widened_on_cpu(net: nn.Module) -> contextlib.AbstractContextManager[None]:
    """`widened` for a network on the CPU, which multiplies matrices in half precision many times slower than in single."""
    parameter = next(net.parameters(), None)
    return widened(net) if parameter is not None and parameter.device.type == "cpu" else contextlib.nullcontext()


def _is_narrow(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < torch.float32.itemsize


def _widened(value: Any) -> Any:
    return value.float() if _is_narrow(value) else value


def _own(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """The narrow parameters and buffers of the module itself: the table that holds each, its name in there, its value."""
    for table in (module._parameters, module._buffers):
        yield from ((table, name, value) for name, value in table.items() if value is not None and _is_narrow(value))


def _owners(net: nn.Module) -> list[nn.Module]:
    """The outermost modules with narrow parameters or buffers of their own, each once."""
    found: dict[int, nn.Module] = {}
    waiting = [net]
    while waiting:
        module = waiting.pop()
        if next(_own(module), None) is not None:
            found[id(module)] = module
        else:
            waiting += module.children()
    return list(found.values())


@contextlib.contextmanager
def _swapped(module: nn.Module) -> Iterator[None]:
    before = [entry for part in module.modules() for entry in _own(part)]
    try:
        for table, name, value in before:
            wide = value.detach().float()
            table[name] = nn.Parameter(wide, requires_grad=False) if isinstance(value, nn.Parameter) else wide
        yield
    finally:
        for table, name, value in before:
            table[name] = value
