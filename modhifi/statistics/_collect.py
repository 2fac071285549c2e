"""The pass over the data: it observes layers, accumulates sums, continues interrupted runs and combines processes.

Under `torch.distributed` (torchrun) every process handles its share of the samples, and all end with the same sums. A run
that is given a file saves its sums there from time to time and continues from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..devices import full_precision
from ..errors import Cancelled
from ..files import atomic_file
from ..layers import get_operator, observed
from ..progress import Progress, silent
from . import _moments
from ._moments import LayerSums, Moments

__all__ = ["Collected", "Partial", "add_up", "agree", "collect", "process_count", "process_rank", "share"]


@dataclass
class Collected:
    """``moments`` by layer. With classes, also the aggregated singleton sums by (layer, group): see `Study.class_fidelity`."""

    moments: dict[str, Moments]
    class_counts: Tensor
    class_energy: dict[str, Tensor] = field(default_factory=dict)
    class_inner: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    class_own: dict[tuple[str, str], Tensor] = field(default_factory=dict)


@dataclass
class Partial:
    """Where an unfinished run saves its sums, once every ``seconds``. ``key`` identifies the run: sums of other runs are
    ignored."""

    path: Path
    key: str
    seconds: float = 60.0

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """(samples done, sums); None if there is nothing to continue from."""
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    return None
                return int(about["done"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError, KeyError, ValueError):
            return None  # missing or truncated: there is nothing to continue from

    def save(self, done: int, sums: Mapping[str, Tensor]) -> None:
        with atomic_file(self.path) as temporary:
            safetensors.torch.save_file(
                {name: value.contiguous() for name, value in sums.items()},
                temporary,
                metadata={"key": self.key, "done": str(done)},
            )

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


def process_count() -> int:
    """The number of processes that share the work: 1 unless `torch.distributed` is initialised."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def process_rank() -> int:
    return torch.distributed.get_rank() if process_count() > 1 else 0


def share(samples: int) -> range:
    """The indices of the samples that this process handles."""
    rank, count = process_rank(), process_count()
    return range(samples * rank // count, samples * (rank + 1) // count)


def collect(
    module: nn.Module,
    layers: Mapping[str, Mapping[str, Tensor]],
    batches: Callable[[int], Iterable[Tensor]],
    samples: int,
    *,
    seed: int = 0,
    classes: int = 0,
    numbers: range | None = None,
    partial: Partial | None = None,
    progress: Progress = silent,
    what: str = "collecting statistics",
) -> Collected:
    """Runs ``module`` once over the data and returns the statistics of each layer's input.

    Args:
        module: the network, in evaluation mode.
        layers: for each layer to observe, the columns (C, k) of the components of each group that it reads.
        batches: ``batches(i)`` yields the samples from index ``i`` on, a tensor (B, …) each; all but the last of the same size.
        samples: the total number over all processes.
        seed: of the draw of positions.
        classes: the number of logits, to also collect sums by predicted class; 0 for none.
        numbers: the indices of the samples that this process handles (`share`); all by default.
        partial: where to save unfinished sums.
        progress: see `modhifi.progress`. On cancellation the sums so far are saved in ``partial``.
        what: the name of the step.

    Raises:
        TypeError: for a layer that is neither a convolution nor a linear layer.
        RuntimeError: if no forward pass reaches a layer.
    """
    device = next(module.parameters()).device
    numbers = numbers or range(samples)
    sums = {
        name: LayerSums(name, get_operator(module, name), groups, samples, seed, classes, _moments.MAX_INPUTS)
        for name, groups in layers.items()
    }
    counts = torch.zeros(classes, dtype=torch.int64)
    done = 0
    everything = {f"{name}/{key}": value for name, one in sums.items() for key, value in one.sums.items()}
    everything["class_counts"] = counts
    kept = partial.load() if partial is not None else None
    if kept is not None and kept[1].keys() == everything.keys() | {"all_positions"}:
        done = kept[0]
        for key, value in everything.items():
            value.copy_(kept[1][key])
        for one, positions in zip(sums.values(), kept[1]["all_positions"].tolist(), strict=True):
            one.positions = positions

    def keep() -> None:
        if partial is not None and done:
            positions = torch.tensor([one.positions for one in sums.values()], dtype=torch.int64)
            partial.save(done, everything | {"all_positions": positions})

    current = torch.zeros(0, dtype=torch.int64)
    last = time.monotonic()
    try:
        with (
            torch.inference_mode(),
            full_precision(),
            observed(module, layers, lambda name, layer, x, y: sums[name].take(layer, x, y, current)),
        ):
            for batch in batches(done) if done < len(numbers) else ():
                progress(done, len(numbers), what)
                current = torch.arange(numbers.start + done, numbers.start + done + len(batch))
                logits = module(batch.to(device))
                if classes:
                    labels = logits.argmax(1)
                    counts += torch.bincount(labels.cpu(), minlength=classes)
                    for one in sums.values():
                        one.classify(labels)
                done += len(batch)
                if partial is not None and time.monotonic() - last >= partial.seconds and done < len(numbers):
                    keep()
                    last = time.monotonic()
        progress(done, len(numbers), what)
    except Cancelled:  # raised between batches, when the sums are consistent
        keep()
        raise
    add_up(list(everything.values()))
    agree(list(sums.values()))
    found = Collected({name: one.result() for name, one in sums.items()}, counts)
    for name, one in sums.items():
        for key, value in one.sums.items():
            kind, _, group = key.partition("/")
            if kind == "class_energy":
                found.class_energy[name] = value.cpu().double()
            elif kind == "class_inner":
                found.class_inner[name, group] = value.cpu().double()
            elif kind == "class_own":
                found.class_own[name, group] = value.cpu().double()
    return found


def add_up(values: list[Tensor]) -> None:
    """Sums ``values`` over all processes, in place."""
    if process_count() > 1:
        for value in values:
            moved = _shareable(value)
            torch.distributed.all_reduce(moved)
            value.copy_(moved)


def agree(layers: list[LayerSums]) -> None:
    """Gives processes that had no samples the number of positions of each layer."""
    if process_count() > 1:
        positions = _shareable(torch.tensor([one.positions for one in layers]))
        torch.distributed.all_reduce(positions, torch.distributed.ReduceOp.MAX)
        for one, seen in zip(layers, positions.tolist(), strict=True):
            one.positions = seen


def _shareable(value: Tensor) -> Tensor:
    """``value`` on a device where the processes can exchange it."""
    return value.cuda() if torch.distributed.get_backend() == "nccl" else value.cpu()
