"""What a network costs: parameters, multiply-accumulates, bytes, and milliseconds measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..components import Cost, flop_counter, structure_of
from ..models import Model
from ..progress import Progress, silent

__all__ = ["count_cost", "measure_latency", "tensor_bytes"]


def count_cost(model: Model) -> Cost:
    """Parameters, and multiply-accumulates of one sample (counted ×1), counted by running the network once. Those of a
    language model follow from its widths: what attention is computed with is not always known to the counter.
    """
    if model.tokens is not None:
        return structure_of(model).cost()
    with flop_counter() as counter:
        model.module(model.example())
    params = sum(parameter.numel() for parameter in model.module.parameters())
    return Cost(params=params, flops=counter.get_total_flops() // 2)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers, in memory and in a safetensors file (whose header comes on top)."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def measure_latency(
    modules: Sequence[nn.Module],
    example: Tensor,
    *,
    rounds: int = 9,
    seconds: float = 0.06,
    progress: Progress = silent,
) -> list[float]:
    """Milliseconds of one forward pass of each network on ``example`` (B, …): the median over ``rounds``, in each of which
    every network runs for about ``seconds``, one after the other, so that a machine that slows down slows all of them.
    """
    # Imported here: it looks for a compiler and may say so on standard error, which only a measurement should.
    from torch.utils.benchmark import Timer

    timers = [
        Timer(
            "with torch.inference_mode(): net(x)",
            globals={"torch": torch, "net": module, "x": example},
            num_threads=torch.get_num_threads(),
        )
        for module in modules
    ]
    for timer in timers:
        timer.timeit(2)  # the first passes allocate and choose kernels
    runs = [max(1, round(seconds / max(timer.timeit(1).median, 1e-6))) for timer in timers]
    times: list[list[float]] = [[] for _ in modules]
    for done in range(rounds):
        progress(done, rounds, "measuring latency")
        for index, timer in enumerate(timers):
            times[index].append(timer.timeit(runs[index]).median)
    progress(rounds, rounds, "measuring latency")
    return [statistics.median(values) * 1000 for values in times]
