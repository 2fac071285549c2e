"""The certified counterpart: an upper bound of each layer's constant, from operator norms alone.

The network is exported as a graph of elementary operations, each with a Lipschitz constant with respect to each of its inputs.
From the output backwards, ``K(x) = Σ L·K(y)`` over all ``y`` that use ``x``: products along a path, sums where paths branch.
LayerNorm and attention have no finite constant on all of ℝⁿ; theirs hold while inputs have no smaller norm, and queries, keys
and values no larger norm, than was seen. Operations without a known constant give none, with the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..progress import Progress, silent
from ._norms import spread
from ._spectral import convolution_norm, operator_norm

__all__ = ["Upper", "certified"]

aten = torch.ops.aten


class Upper(BaseModel):
    """An upper bound of a layer's constant. ``value``: None if none is known, with the ``reason``. ``ranges``: whether it holds
    only while the norms that LayerNorm divides by, and those of queries, keys and values, remain in the range seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float | None
    ranges: bool = False
    reason: str = ""


def certified(
    module: nn.Module, layers: Sequence[str], images: Tensor, *, progress: Progress = silent
) -> dict[str, Upper]:
    """An upper bound of the Lipschitz constant of ``h_l`` for each layer, with everything beside it held fixed.

    ``images``: (N, 3, H, W) on the CPU. The first gives the shapes; the others are only run if there is a LayerNorm or
    attention, to find its ranges. Spectral norms are those of the convolutions as operators at their input size.
    """
    device = next(module.parameters()).device
    exported = torch.export.export(module, (images[:1].to(device),), strict=False)
    graph = exported.module()
    assert isinstance(graph, torch.fx.GraphModule)
    nodes = [node for node in graph.graph.nodes if node.op in ("placeholder", "call_function", "get_attr", "output")]
    live = _live(nodes)
    seen = _ranges(graph, images.to(device), progress) if any(node.target in _RANGED for node in nodes) else {}
    table = _Table(graph, live, seen)
    gains: dict[torch.fx.Node, list[tuple[torch.fx.Node, float, str]]] = {}
    written: dict[torch.fx.Node, torch.fx.Node] = {}  # an in-place operation replaces what it wrote to
    calls = [node for node in nodes if node.op == "call_function" and node in live]
    for done, node in enumerate(calls):
        progress(done, len(calls), "bounding each operation")
        gains[node] = [(written.get(arg, arg), gain, why) for arg, gain, why in table.gains(node)]
        if getattr(getattr(node.target, "overloadpacket", None), "__name__", "").endswith("_"):
            written[node.all_input_nodes[0]] = node
    progress(len(calls), len(calls), "bounding each operation")
    bounds: dict[torch.fx.Node, Upper] = {}
    for node in nodes:
        if node.op == "output":
            for arg in node.all_input_nodes:
                bounds[written.get(arg, arg)] = Upper(value=1.0)
    for node in reversed(calls):
        after = bounds.get(node)
        if after is None:
            continue
        for arg, gain, why in gains[node]:
            if arg in live:
                through = node.target in _RANGED
                bounds[arg] = _accumulated(bounds.get(arg), after, gain, why, through)
    of = {_layer_of(node): node for node in calls if node.target in (aten.conv2d.default, aten.linear.default)}
    missing = Upper(value=None, reason="not found in the exported graph")
    nothing = Upper(value=0.0)  # not used at all
    return {name: bounds.get(of[name], nothing) if name in of else missing for name in layers}


def _accumulated(so_far: Upper | None, after: Upper, gain: float, why: str, through: bool) -> Upper:
    """The bound of a tensor with one more use, by an operation with ``gain`` whose own bound is ``after``."""
    before = so_far or Upper(value=0.0)
    if before.value is None:
        return before
    if after.value is None:
        return after
    if not math.isfinite(gain):
        return Upper(value=None, reason=why)
    return Upper(value=before.value + gain * after.value, ranges=before.ranges or after.ranges or through)


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """The operation's arguments by the names in its schema, including defaults."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    named = {arg.name: arg.default_value for arg in schema if arg.has_default_value()}
    named |= {arg.name: value for arg, value in zip(schema, node.args, strict=False)}
    return named | dict(node.kwargs)


def _layer_of(node: torch.fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def _live(nodes: Sequence[torch.fx.Node]) -> set[torch.fx.Node]:
    """The nodes that depend on the network's input."""
    found: set[torch.fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


class _Ranges(torch.fx.Interpreter):
    """Runs the graph and records the smallest norm that each LayerNorm divides by, and the largest norms of a query, a key and
    a value in each attention.
    """

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.found: dict[torch.fx.Node, tuple[float, ...]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        if n.target in _RANGED:
            args, _ = self.fetch_args_kwargs_from_env(n)
            if n.target is aten.scaled_dot_product_attention.default:
                new = tuple(float(value.norm(dim=-1).max()) for value in args[:3])
                old = self.found.get(n, new)
                self.found[n] = tuple(map(max, old, new))
            else:
                given, centred = _arguments(n), n.target is aten.layer_norm.default
                new = (float(spread(args[0], len(given["normalized_shape"]), given["eps"], centred).min()),)
                self.found[n] = tuple(map(min, self.found.get(n, new), new))
        return super().run_node(n)


def _ranges(graph: torch.fx.GraphModule, images: Tensor, progress: Progress) -> dict[torch.fx.Node, tuple[float, ...]]:
    interpreter = _Ranges(graph)
    with torch.no_grad():
        for done, image in enumerate(images):
            progress(done, len(images), "recording the ranges of norms")
            interpreter.run(image[None])
    return interpreter.found


# fmt: off
_NON_EXPANSIVE = {
    aten.relu, aten.relu_, aten.hardtanh, aten.hardtanh_, aten.relu6, aten.relu6_, aten.dropout, aten.dropout_,
    aten.contiguous, aten.alias, aten.detach, aten.detach_, aten.clone, aten.flatten, aten.view, aten.reshape,
    aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze, aten.unflatten, aten.slice, aten.select,
    aten.unbind, aten.split, aten.split_with_sizes, aten.chunk, aten.roll, aten.narrow, aten.movedim, aten.cat,
    aten.stack, aten.tanh, aten.elu, aten.elu_, aten.celu, aten.softplus, aten.feature_dropout, aten.flip,
}
# fmt: on
"""Operations that never increase the distance between two points, in each of their inputs."""
_SMOOTH = {
    aten.sigmoid: 0.25,
    aten.sigmoid_: 0.25,
    aten.hardsigmoid: 1 / 6,
    aten.hardsigmoid_: 1 / 6,
    aten.gelu: 1.13,
    aten.silu: 1.1,
    aten.silu_: 1.1,
    aten.mish: 1.09,
    aten.mish_: 1.09,
    aten.hardswish: 1.5,
    aten.hardswish_: 1.5,
    aten.softmax: 0.5,
    aten._softmax: 0.5,
}
"""The largest slope, rounded up; for softmax, the largest norm of diag(p) − ppᵀ."""
_POOLS = {aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.mean, aten.upsample_nearest2d, aten.upsample_bilinear2d}
"""Operations that are linear in each channel separately."""
_RANGED = {aten.layer_norm.default, aten.rms_norm.default, aten.scaled_dot_product_attention.default}


class _Table:
    """The Lipschitz constant of every operation."""

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        live: set[torch.fx.Node],
        seen: dict[torch.fx.Node, tuple[float, ...]],
    ) -> None:
        self.graph, self.live, self.seen = graph, live, seen
        self.norms: dict[tuple[Any, ...], float] = {}
        self.constants: dict[torch.fx.Node, Any] = {}

    def gains(self, node: torch.fx.Node) -> list[tuple[torch.fx.Node, float, str]]:
        """(input, constant, why it is infinite) for each input that depends on the network's input."""
        inputs = [arg for arg in node.all_input_nodes if arg in self.live]
        target = node.target
        packet: Any = getattr(target, "overloadpacket", None)
        if target is operator.getitem or packet in _NON_EXPANSIVE:
            return [(arg, 1.0, "") for arg in inputs]
        if packet in _SMOOTH:
            return [(arg, _SMOOTH[packet], "") for arg in inputs]
        rule: Callable[[torch.fx.Node, list[torch.fx.Node]], list[float] | None] | None = {
            aten.conv2d: self._convolution,
            aten.linear: self._linear,
            aten.batch_norm: self._batch_norm,
            aten.layer_norm: self._layer_norm,
            aten.rms_norm: self._layer_norm,
            aten.scaled_dot_product_attention: self._attention,
            aten.add: self._add,
            aten.add_: self._add,
            aten.sub: self._add,
            aten.mul: self._scale,
            aten.mul_: self._scale,
            aten.div: self._scale,
            aten.div_: self._scale,
            aten.expand: self._expand,
            aten.leaky_relu: self._leaky,
            aten.leaky_relu_: self._leaky,
            aten.max_pool2d: self._max_pool,
            aten.pad: self._pad,
        }.get(packet)
        if rule is None and packet in _POOLS:
            rule = self._pool
        found = rule(node, inputs) if rule is not None else None
        if found is not None:
            return [(arg, gain, "") for arg, gain in zip(inputs, found, strict=True)]
        name = str(target).removeprefix("aten.").split(".")[0]
        several = len(inputs) > 1 and name in ("mul", "mul_", "matmul", "bmm")
        why = "a product of two activations has no finite constant" if several else f"no constant is known for {name}"
        return [(arg, math.inf, why) for arg in inputs]

    def _value(self, argument: Any) -> Any:
        """The value of an argument that does not depend on the network's input."""
        if not isinstance(argument, torch.fx.Node):
            return argument
        if argument.op == "get_attr":
            return operator.attrgetter(str(argument.target))(self.graph)
        if argument not in self.constants:
            args = [self._value(arg) for arg in argument.args]
            kwargs = {name: self._value(arg) for name, arg in argument.kwargs.items()}
            self.constants[argument] = argument.target(*args, **kwargs)  # type: ignore[operator]
        return self.constants[argument]

    def _convolution(self, node: torch.fx.Node, inputs: list[torch.fx.Node]) -> list[float] | None:
        given = _arguments(node)
        if inputs != [given["input"]] or isinstance(given["padding"], str):
            return None
        weight = self._value(given["weight"])
        size = tuple(given["input"].meta["val"].shape[2:])
        settings = [tuple(given[name]) for name in ("stride", "padding", "dilation")]
        key = (weight.data_ptr(), size, *settings)
        if key not in self.norms:
            stride, padding, dilation = (value * 2 if len(value) == 1 else value for value in settings)
            self.norms[key] = convolution_norm(
                weight, size, stride=stride, padding=padding, dilation=dilation, groups=given["groups"]
            )
        return [self.norms[key]]

    def _linear(self, node: torch.fx.Node, inputs: list[torch.fx.Node]) -> list[float] | None:
        if inputs != [node.args[0]]:
            return None
        weight = self._value(node.args[1])
        return [float(torch.linalg.matrix_norm(weight.detach().cpu().double(), 2))]

    def _batch_norm(self, node: torch.fx.Node, _: list[torch.fx.Node]) -> list[float] | None:
        given = _arguments(node)
        if given["training"]:
            return None
        scale = (self._value(given["running_var"]).cpu().double() + given["eps"]).rsqrt()
        weight = self._value(given["weight"])
        return [float((scale if weight is None else scale * weight.cpu()).abs().max())]

    def _layer_norm(self, node: torch.fx.Node, _: list[torch.fx.Node]) -> list[float] | None:
        weight = self._value(_arguments(node)["weight"])
        largest = 1.0 if weight is None else float(weight.abs().max())
        return [largest / self.seen[node][0]]

    def _attention(self, node: torch.fx.Node, inputs: list[torch.fx.Node]) -> list[float] | None:
        """For one head with scores S = s·QKᵀ, P = softmax(S) by rows and output PV, where queries, keys and values have norms
        of at most R_q, R_k, R_v: the output of a row changes by the covariance of V and dS under its p, and
        ``‖Cov_p(V, dS)‖ ≤ R_v·√(Σ_j p_j dS_j²)``. With dS_ij = s(dq_i·k_j + q_i·dk_j) this gives ``s·R_v·R_k‖dQ‖`` and,
        because a column of P sums to at most n, ``s·R_v·R_q·√n‖dK‖``; ``‖P dV‖ ≤ √n‖dV‖`` for the same reason. Heads do not
        mix.
        """
        given = _arguments(node)
        query, key, value = given["query"], given["key"], given["value"]
        if any(arg not in (query, key, value) for arg in inputs):
            return None
        largest_q, largest_k, largest_v = self.seen[node]
        shape = query.meta["val"].shape
        scale = given["scale"] if given["scale"] is not None else shape[-1] ** -0.5
        root = math.sqrt(shape[-2] * shape[1] / key.meta["val"].shape[1])  # several heads may share keys and values
        constants = {query: 0.0, key: 0.0, value: 0.0}
        constants[query] += scale * largest_v * largest_k
        constants[key] += scale * largest_v * largest_q * root
        constants[value] += root
        return [constants[arg] for arg in inputs]

    def _add(self, node: torch.fx.Node, inputs: list[torch.fx.Node]) -> list[float] | None:
        other = abs(float(node.kwargs.get("alpha", 1)))  # type: ignore[arg-type]
        found = dict.fromkeys(inputs, 0.0)
        for arg, factor in ((node.args[0], 1.0), (node.args[1], other)):
            if isinstance(arg, torch.fx.Node) and arg in found:
                found[arg] += factor * _broadcast_gain(arg, node)
        return list(found.values())

    def _scale(self, node: torch.fx.Node, inputs: list[torch.fx.Node]) -> list[float] | None:
        first, second = node.args[:2]
        if len(inputs) != 1 or first is second:
            return None
        by_division = node.target.overloadpacket in (aten.div, aten.div_)  # type: ignore[union-attr]
        if by_division and first is not inputs[0]:
            return None
        factor = torch.as_tensor(self._value(second if first is inputs[0] else first)).cpu().double().abs()
        factor = 1 / factor if by_division else factor
        return [float(factor.max()) * _broadcast_gain(inputs[0], node)]

    def _expand(self, node: torch.fx.Node, inputs: list[torch.fx.Node]) -> list[float] | None:
        return [_broadcast_gain(inputs[0], node)]

    def _leaky(self, node: torch.fx.Node, _: list[torch.fx.Node]) -> list[float] | None:
        return [max(1.0, abs(float(_arguments(node)["negative_slope"])))]

    def _max_pool(self, node: torch.fx.Node, _: list[torch.fx.Node]) -> list[float] | None:
        """A value can be the maximum of every window that contains it."""
        given = _arguments(node)
        window, step, dilation = (_pair(given[name]) for name in ("kernel_size", "stride", "dilation"))
        if window is None or dilation != (1, 1):
            return None
        times = [math.ceil(w / s) for w, s in zip(window, step or window, strict=True)]
        return [math.sqrt(times[0] * times[1])]

    def _pad(self, node: torch.fx.Node, _: list[torch.fx.Node]) -> list[float] | None:
        return [1.0] if _arguments(node)["mode"] == "constant" else None

    def _pool(self, node: torch.fx.Node, inputs: list[torch.fx.Node]) -> list[float] | None:
        shape = tuple(inputs[0].meta["val"].shape)
        rest = node.args[1:]
        if node.target.overloadpacket is aten.mean:  # type: ignore[union-attr]
            out = node.meta["val"]
            return [math.sqrt(out.numel() / math.prod(shape))]
        function = node.target

        def forward(x: Tensor) -> Tensor:
            return function(x, *rest, **node.kwargs)  # type: ignore[operator, no-any-return]

        # All channels are treated alike, so one of them suffices.
        return [operator_norm(forward, (1, 1, *shape[2:]), torch.device("cpu"))]


def _broadcast_gain(arg: torch.fx.Node, node: torch.fx.Node) -> float:
    """The factor by which the norm of an input grows if it is broadcast to the shape of the output."""
    return math.sqrt(max(1.0, node.meta["val"].numel() / max(1, arg.meta["val"].numel())))


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if not value:
        return None
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
