"""Search for the allocation whose pruned network comes closest to the requested latency.

The latency table only guides the search. Each candidate is measured in turns with the original network, and the table's
prediction is corrected by the measured ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..components import structure_of
from ..errors import UserError
from ..evaluation import Timing, ratio
from ..models import Model
from ..plan import Settings
from ..progress import Progress
from ..study import Study
from ._allocate import Allocation, decide
from ._latency import LatencyKey, LatencyTable
from ._timing import narrowed

__all__ = ["Clock", "allocate_for_latency"]

Clock = Callable[[Sequence[nn.Module], Tensor], list[Timing]]
"""Times networks in turns on one input, as `modhifi.evaluation.measure_latency` does."""

# Relative tolerance within which a latency counts as met, and the number of candidates measured at most.
_CLOSE = 0.02
_TRIES = 6
# The budget counts as missed if the network is slower than requested by more than this fraction.
_FAR = 0.1


def allocate_for_latency(
    study: Study,
    settings: Settings,
    model: Model,
    table: LatencyTable,
    *,
    batch: int,
    clock: Clock,
    progress: Progress,
) -> tuple[Allocation, dict[str, float]]:
    """The allocation, and its measured times in milliseconds for the plan's ``predicted``.

    Raises `UserError` if the table belongs to another machine, device or network, if the budget cannot be reached, or if the
    timings vary too much to decide.
    """
    if table.key != LatencyKey.here(model.fingerprint, model.device, batch):
        key = table.key
        raise UserError(
            f"the latency table was measured on {key.machine} ({key.device}, {key.threads} threads, batch {key.batch})"
            " or for other weights; measure it again here"
        )
    wanted = settings.remain
    assert wanted is not None
    structure, asking = structure_of(model), wanted
    best: tuple[float, float, Allocation, Timing, Timing] | None = None
    for attempt in range(_TRIES):
        progress(attempt, _TRIES, "measuring the first candidate" if not attempt else "correcting the candidate")
        try:
            decided = decide(study, settings.model_copy(update={"remain": asking}), table)
        except UserError:
            if best is None:
                raise
            break  # nothing smaller exists, so the best candidate so far is the result
        small = narrowed(model, structure, decided.keep)
        now, before = clock([small, model.module], model.example(batch))
        found, spread = ratio(now, before)
        off = found - wanted
        if best is None or abs(off) < abs(best[0]):
            best = (off, spread, decided, now, before)
        if abs(off) <= _CLOSE * wanted:
            break
        asking = min(1.0, max(1e-3, asking * wanted / found))
    assert best is not None
    progress(_TRIES, _TRIES, "correcting the candidate")
    off, spread, decided, now, before = best
    if off > _FAR * wanted:
        reached = wanted + off
        if spread > off:
            raise UserError(
                f"this machine is too busy to judge a latency budget of {wanted:g}: the pruned network takes"
                f" {reached:.2f} ± {spread / 2:.2f} of the original's time; stop other programs and retry, or use"
                " larger batches"
            )
        raise UserError(
            f"latency {wanted:g} cannot be reached on this machine: the fastest candidate takes {reached:.3f} of the"
            f" original's time; set at least {math.ceil(reached * 100) / 100:g}, or use larger batches"
        )
    times = {"latency_ms": now.median, "latency_ms_before": before.median, "latency_ratio_spread": spread}
    return _as_asked(decided, settings), times


def _as_asked(decided: Allocation, settings: Settings) -> Allocation:
    """The allocation with the requested settings, not the corrected ones of the search."""
    return Allocation(**vars(decided) | {"settings": settings})
