"""Cost of a network: parameters, multiply-accumulates, bytes, and measured latency in milliseconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..components import Cost, flop_counter, structure_of
from ..models import Model
from ..progress import Progress, silent

__all__ = ["Timing", "count_cost", "measure_latency", "ratio", "tensor_bytes"]


def count_cost(model: Model) -> Cost:
    """Parameters, and multiply-accumulates of one sample (each counted once), counted by running the network once. For language
    models both are computed from the widths, because the counter does not know every attention kernel.
    """
    if model.tokens is not None:
        return structure_of(model).cost()
    with flop_counter() as counter:
        model.module(model.example())
    params = sum(parameter.numel() for parameter in model.module.parameters())
    return Cost(params=params, flops=counter.get_total_flops() // 2)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers in memory; a safetensors file adds its header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one forward pass, one value per round of the measurement."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """The interquartile range in milliseconds; 0 for a single round."""
        return _interquartile(self.rounds)


def ratio(now: Timing, before: Timing) -> tuple[float, float]:
    """Running time of ``now`` as a fraction of that of ``before``, both measured in the same rounds: the median of the ratios
    per round, and their interquartile range.
    """
    each = [one / other for one, other in zip(now.rounds, before.rounds, strict=True)]
    return statistics.median(each), _interquartile(each)


def _interquartile(values: Sequence[float]) -> float:
    low, high = np.quantile(np.asarray(values), (0.25, 0.75))
    return float(high - low)


def measure_latency(
    modules: Sequence[nn.Module],
    example: Tensor,
    *,
    rounds: int = 9,
    seconds: float = 0.06,
    progress: Progress = silent,
) -> list[Timing]:
    """Times one forward pass of each network on ``example`` (B, …). In each of ``rounds`` rounds every network runs for about
    ``seconds``, in turns, so that a slowdown of the machine affects all of them alike.
    """
    # Imported here, because the import looks for a compiler and may print to standard error.
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
        timer.timeit(2)  # the first passes allocate memory and select kernels
    runs = [max(1, round(seconds / max(timer.timeit(1).median, 1e-6))) for timer in timers]
    times: list[list[float]] = [[] for _ in modules]
    for done in range(rounds):
        progress(done, rounds, "measuring latency")
        for index, timer in enumerate(timers):
            times[index].append(1000 * timer.timeit(runs[index]).median)
    progress(rounds, rounds, "measuring latency")
    return [Timing(tuple(values)) for values in times]
