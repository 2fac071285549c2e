"""The operator norm of the Jacobian ``J_l`` from a layer's output to the network's output, at each sample.

One backward pass gives ``J_lᵀu`` for *all* layers at once, but ``J_l v`` takes one pass per layer. The block power iteration
therefore works on the side of the network's output, and all layers share the block. For orthonormal columns ``U``, the largest
singular value of ``J_lᵀU`` is at most that of ``J_l`` (Rayleigh and Ritz), and equal to it once ``U`` spans the whole output:
the norm is exact for networks with few outputs. For others, every further round computes ``J_l v`` for the best ``v`` of each
layer so far (for several if there are few layers); the main directions of these vectors are the next block.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn

from ..layers import Replay, batched, get_operator
from ..progress import Progress, silent
from ._gains import Gains

__all__ = ["jacobian"]

BLOCK = 8


def jacobian(
    module: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    *,
    block: int = BLOCK,
    rounds: int = 2,
    start: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> dict[str, Gains]:
    """``‖J_l‖`` at each sample: exact for networks of at most ``2 · block`` outputs, otherwise from below.

    Args:
        module: the network, in evaluation mode.
        layers: Conv2d or Linear layers by name.
        images: (N, 3, H, W) on the CPU.
        block: backward passes (VJP) per round; an exact result takes one per output.
        rounds: the first starts from ``start``, or from random directions without it; each further round takes one pass in
            forward mode (JVP) per layer and ``block`` backward passes.
        start: (N, K) for each layer, directions at the output to start from: the differences of `moved_by`, for example.
        seed: of the random directions.
        batch_size: as many as fit into a gigabyte by default.
        progress: see `modhifi.progress`.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    # Small batches: having to allocate memory anew for every batch is slower than running more batches.
    batches = list(batched(module, images, batch_size, times=4 + 2 * block))
    first = 0
    guard: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    for done, batch in enumerate(batches):
        progress(done, len(batches), "block power iteration")
        begin = None
        if start is not None:
            begin = torch.stack([start[name][first : first + len(batch)] for name in layers], 2)
        first += len(batch)
        try:
            with guard():
                best = _norms(module, layers, batch, block, rounds, begin, seed + done)
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
            # The network overwrites tensors that its gradient needs: from here on, copies of them are kept.
            guard = torch.autograd.graph.allow_mutation_on_saved_tensors
            with guard():
                best = _norms(module, layers, batch, block, rounds, begin, seed + done)
        for name in layers:
            found[name].append(best[name].cpu())
    progress(len(batches), len(batches), "block power iteration")
    squared = {name: torch.cat(values) if values else torch.zeros(0) for name, values in found.items()}
    return {name: Gains(torch.ones_like(value), value) for name, value in squared.items()}


def _norms(
    module: nn.Module,
    layers: Sequence[str],
    x: Tensor,
    block: int,
    rounds: int,
    start: Tensor | None,
    seed: int,
) -> dict[str, Tensor]:
    """The squared norms (B,) of each layer's Jacobian."""
    with torch.enable_grad(), _probed(module, layers) as probes:
        output = module(x).flatten(1)  # (B, K)
    samples, outputs = output.shape
    exact = outputs <= 2 * block
    if exact:
        directions = torch.eye(outputs, device=x.device, dtype=output.dtype).expand(samples, -1, -1)
    else:
        directions = _basis(start, output, block, seed)
    replay = None if exact or rounds < 2 else Replay(module, x)
    best = {name: output.new_zeros(samples, dtype=torch.float64).cpu() for name in layers}
    for left in range(1 if exact else rounds, 0, -1):
        back = _backward(output, probes, directions, keep=left > 1)
        arrived = []
        for name in layers:
            rows = back.pop(name)  # (s, B, d)
            gram = torch.einsum("sbd,tbd->bst", rows, rows).cpu().double()
            values, vectors = torch.linalg.eigh(gram)
            best[name] = torch.maximum(best[name], values[:, -1])
            if replay is not None and left > 1:
                for number in range(1, 1 + max(1, block // len(layers))):
                    towards = torch.einsum("sbd,bs->bd", rows, vectors[:, :, -number].to(rows))
                    arrived.append(_forward(module, replay, name, towards, [one.shape for one in probes[name]]))
        if arrived:
            directions = _basis(torch.stack(arrived, 2), output, block, seed + left)
    return best


def _basis(given: Tensor | None, output: Tensor, block: int, seed: int) -> Tensor:
    """(B, K, block) orthonormal: the main directions of ``given`` (B, K, L), filled up with random ones."""
    samples, outputs = output.shape
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randn(samples, outputs, block, generator=generator, dtype=torch.float64)
    if given is not None:
        unit = torch.nn.functional.normalize(given.double().cpu(), dim=1)
        columns = torch.cat([unit, 1e-6 * columns], 2)
    basis: Tensor = torch.linalg.svd(columns, full_matrices=False).U[:, :, :block]
    return basis.to(output)


@contextlib.contextmanager
def _probed(module: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the context, a zero tensor that requires a gradient is added to the output of each layer, in each of its calls."""
    probes: dict[str, list[Tensor]] = {}
    hooks = []
    try:
        for name in layers:

            def hook(_: nn.Module, __: object, output: Tensor, *, name: str = name) -> Tensor:
                probe = torch.zeros_like(output, requires_grad=True)
                probes.setdefault(name, []).append(probe)
                return output + probe

            hooks.append(get_operator(module, name).register_forward_hook(hook))
        yield probes
    finally:
        for handle in hooks:
            handle.remove()


def _backward(output: Tensor, probes: Mapping[str, list[Tensor]], directions: Tensor, keep: bool) -> dict[str, Tensor]:
    """``J_lᵀu`` for each column ``u`` of ``directions`` (B, K, s): (s, B, d) for each layer."""
    found: dict[str, list[Tensor]] = {name: [] for name in probes}
    count = directions.shape[2]
    for column in range(count):
        grads = torch.autograd.grad(
            output,
            [probe for calls in probes.values() for probe in calls],
            directions[:, :, column],
            retain_graph=keep or column + 1 < count,
            allow_unused=True,
            materialize_grads=True,
        )
        given = iter(grads)
        for name, calls in probes.items():
            # A layer may see a sample in several rows of its batch.
            found[name].append(torch.cat([next(given).reshape(len(output), -1) for _ in calls], 1))
    return {name: torch.stack(rows) for name, rows in found.items()}


def _forward(module: nn.Module, replay: Replay, name: str, towards: Tensor, shapes: list[torch.Size]) -> Tensor:
    """``J_l v`` (B, K) for the directions ``towards`` (B, d) at the layer's outputs, which have these ``shapes``."""
    parts = iter(towards.split([shape.numel() // len(towards) for shape in shapes], 1))
    expected = iter(shapes)

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
        dual: Tensor = forward_ad.make_dual(output, next(parts).reshape(next(expected)))
        return dual

    handle = get_operator(module, name).register_forward_hook(hook)
    try:
        with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level(), replay.at(name):
            # torch's forward-mode formulas of some operations still use torch.jit.
            warnings.simplefilter("ignore", FutureWarning)
            tangent = forward_ad.unpack_dual(module(replay.x)).tangent
            # Nothing arrives if the layer's output is not used.
            arrived = torch.zeros_like(replay.output) if tangent is None else tangent
            found: Tensor = arrived.clone().flatten(1)
            return found
    finally:
        handle.remove()
