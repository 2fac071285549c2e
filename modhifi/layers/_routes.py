"""Where the output of a layer goes: through modules that treat each channel separately, into an addition, into a ReLU.

A forward pass is observed, and the operands of its additions can be replaced: this is how a layer is fitted to what its output
becomes on the residual stream.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ._attention import without_fast_path
from ._operators import Operator, get_operator

__all__ = ["Route", "followed", "rows_at"]

_RECTIFIERS = ("relu", "relu_")
_ADDITIONS = ("add", "__add__", "__radd__", "__iadd__", "add_")  # += is the last one, in place


@dataclasses.dataclass(frozen=True)
class Route:
    """Where a tensor comes from: a layer's output, passed on by ``modules`` that treat each channel separately, and possibly
    ``added`` to another tensor. ``uses`` counts the operations that use it, along the whole route.
    """

    layer: str
    operator: Operator
    modules: tuple[nn.Module, ...] = ()
    added: bool = False
    uses: list[int] = dataclasses.field(default_factory=lambda: [0])

    @property
    def only_once(self) -> bool:
        """Whether the layer's output is used by nothing but the route itself and one operation at its end."""
        return self.uses[0] == len(self.modules) + self.added + 1

    def run(self, y: Tensor) -> Tensor:
        for module in self.modules:
            y = module(y)
        return y

    def affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and constant (O,) of each channel, for tensors with the shape of ``like``."""
        probe = torch.zeros_like(like[:1])
        constant = self.run(probe)
        scale = self.run(probe + 1) - constant
        first = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
        return rows_at(self.operator, scale, first)[0], rows_at(self.operator, constant, first)[0]


class _Watching(TorchFunctionMode):
    """Reports every addition of two tensors of the same shape of which one comes from a known layer (the returned tensor
    replaces it), and every ReLU of such a tensor or sum.
    """

    def __init__(
        self,
        added: Callable[[Route, Tensor, Tensor], Tensor | None] | None,
        cut_off: Callable[[Route, Tensor], None] | None,
    ) -> None:
        super().__init__()
        self.added, self.cut_off = added, cut_off
        self.passing = 0
        """How many modules that pass a tensor on are running."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        # Reading a shape is not a use, and a module that passes a tensor on uses it once, whatever it does inside.
        if name != "__get__" and not self.passing:
            for used in _routes((*args, *(kwargs or {}).values())):
                used.uses[0] += 1
        if name in _RECTIFIERS:
            route = _route_of(args[0])
            if route is not None and self.cut_off is not None:
                self.cut_off(route, args[0])
            cut = func(*args, **(kwargs or {}))
            if route is not None and cut is args[0]:
                del cut._route  # in place: the tensor is no longer that output
            return cut
        if name in _ADDITIONS and len(args) == 2 and not kwargs and self.added is not None:
            first, second = args
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
                for own, other in ((first, second), (second, first)):
                    route = _route_of(own)
                    if route is None or route.added:
                        continue
                    instead = self.added(route, own, other)
                    if instead is None:
                        continue
                    if name != "add_":
                        total = torch.add(instead, other)
                    else:
                        total = first.copy_(instead).add_(second) if own is first else first.add_(instead)
                    total._route = dataclasses.replace(route, added=True)  # type: ignore[attr-defined]
                    return total
        return func(*args, **(kwargs or {}))


def _route_of(value: object) -> Route | None:
    return getattr(value, "_route", None) if isinstance(value, Tensor) else None


def _routes(values: Sequence[object]) -> list[Route]:
    """The routes of the tensors in ``values``, including those in lists, each once."""
    flat = [one for value in values for one in (value if isinstance(value, (list, tuple)) else (value,))]
    return list({id(route): route for route in map(_route_of, flat) if route is not None}.values())


@contextlib.contextmanager
def followed(
    net: nn.Module,
    layers: Sequence[str],
    see: Callable[[str, Operator, Tensor, Tensor], Tensor],
    added: Callable[[Route, Tensor, Tensor], Tensor | None] | None,
    cut_off: Callable[[Route, Tensor], None] | None,
) -> Iterator[None]:
    """Inside the context, ``see`` may replace the output of each named layer, ``added`` is called where that output is added to
    another tensor, and ``cut_off`` where the output or such a sum goes into a ReLU.
    """
    hooks = []

    def ran(layer: nn.Module, args: tuple[Any, ...], output: Tensor, *, name: str) -> Tensor:
        result = see(name, layer, args[0], output)  # type: ignore[arg-type]
        result._route = Route(name, layer)  # type: ignore[attr-defined, arg-type]
        return result

    watching = _Watching(added, cut_off)

    def passes(_: nn.Module, args: tuple[Any, ...]) -> None:
        watching.passing += 1
        route = _route_of(args[0])
        if route is not None:
            route.uses[0] += 1

    def passed(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        watching.passing -= 1
        route = _route_of(args[0])
        if route is not None and not route.added and output is not args[0]:
            output._route = dataclasses.replace(route, modules=(*route.modules, module))  # type: ignore[attr-defined]

    try:
        for name in layers:
            layer = get_operator(net, name)
            hooks.append(
                layer.register_forward_hook(lambda layer, args, output, name=name: ran(layer, args, output, name=name))
            )
        for module in net.modules():
            if isinstance(module, _BatchNorm) or type(module).__name__.startswith("LayerScale"):
                hooks.append(module.register_forward_pre_hook(passes))
                hooks.append(module.register_forward_hook(passed))
        with watching, without_fast_path():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def rows_at(layer: Operator, y: Tensor, at: Tensor) -> Tensor:
    """(samples·p, O): a tensor in the shape of the layer's output, at the positions (samples, p) of each sample."""
    tokens = y if isinstance(layer, nn.Linear) else y.flatten(2).transpose(1, 2)
    tokens = tokens.reshape(len(at), -1, tokens.shape[-1])
    return tokens[torch.arange(len(at), device=y.device)[:, None], at].reshape(-1, tokens.shape[-1])
