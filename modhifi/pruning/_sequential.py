"""Sequential compensation: each layer is fitted to the inputs that the pruned layers before it produce, with the original
network's outputs as the target (see docs/theory.md, *Compensation*).

Where a layer's output is added to a residual stream, the target also absorbs the drift that the stream has accumulated so
far. Where it goes into a ReLU and nowhere else, an output that was cut off need not be met, only stay below the threshold
(Zhang et al. 2016, "Accelerating very deep convolutional networks", section 3.2): such targets follow the fit as far as the
threshold, and the layer is fitted again, a few times with the same factorisation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..fidelity import SPREAD, TAIL, Limit, fit_rows
from ..layers import Edit, bias_of, copied, edited, flat_weight
from ..progress import Progress, prefixed, silent
from ..statistics import FOLDS, InSequence, Site, able
from ..study import Study
from ..surgery import remaining_columns
from ._fits import Fits

__all__ = ["sequential"]

Batches = Callable[[], Iterable[Tensor]]

# Samples that `_chosen_spread` fits and judges on, at most.
_TRIAL = 1024


@torch.inference_mode()
def sequential(
    study: Study,
    keep: Mapping[str, Sequence[int]],
    module: nn.Module,
    batches: Batches,
    samples: int,
    *,
    centred: bool = True,
    tail: float = TAIL,
    drift: bool = True,
    rectified: bool = True,
    spread: float | None = 0.0,
    fits: Fits | None = None,
    progress: Progress = silent,
) -> tuple[dict[str, Edit], dict[str, float]]:
    """New weights in the coordinates of the original network, for the first layer that reads a removed component and every one
    behind it that reads components, and the ridge each was fitted with.

    Args:
        study: of ``module``; its structure says which layers read what, and its moments replace the fit of layers that are too
            wide.
        keep: the components kept in each group.
        module: the original network; it is not changed.
        batches: gives all samples, (B, 3, H, W) each, whenever it is called.
        samples: how many there are.
        centred: whether the lost mean is restored by a constant.
        tail: the smallest ridge that pulls the weights towards the original ones is the eigenvalue of the input's second moment
            below which this share of the energy lies; larger ones are chosen where they are better on unseen samples.
        drift: whether a layer whose output is added to a residual stream (directly, or through BatchNorm or a LayerScale
            module) also corrects what the stream has lost so far.
        rectified: whether outputs that a ReLU cuts off need only stay below its threshold.
        spread: see `modhifi.fidelity.SPREAD`; None for that or 0, whichever gives the smaller error of the network's output on
            samples that the fits have not seen. ``fits.spread`` says which.
        fits: those of an earlier run that did not end; new ones are added.
        progress: see `modhifi.progress`.
    """
    fits = Fits() if fits is None else fits
    if spread is None:
        trial = functools.partial(
            sequential, study, keep, module, centred=centred, tail=tail, drift=drift, rectified=rectified
        )
        spread = _chosen_spread(trial, module, batches, samples, fits, progress)
    fits.spread = spread
    readers = study.structure.readers
    engine = InSequence(copied(module), readers, batches, samples, drift=drift, rectified=rectified)
    cut = {group.name for group in study.groups if len(keep[group.name]) < group.size}
    reads = [any(group.name in cut for group, _ in readers[name]) for name in engine.order]
    # Layers before the first pruned one see the original inputs and need no change.
    names = engine.order[reads.index(True) :] if any(reads) else []

    def fitted(site: Site) -> Edit:
        own = flat_weight(site.layer)
        target, limit = _target(site)
        stays = remaining_columns(study.structure, site.name, own, keep)
        weight, shift, ridge = fit_rows(
            site.rows[:, stays], target, own[:, stays], tail, centred, limit, fold=site.sample % FOLDS, spread=spread
        )
        new = torch.zeros(own.shape, dtype=weight.dtype, device=weight.device)
        new[:, stays] = weight
        return fits.add(site.name, Edit(new.cpu(), shift.cpu()), ridge)

    known = {name: fits.edits[name] for name in names if name in fits.edits}
    for name in names:
        stats = study.layers[name]
        if stats.wide and name not in known:
            read = {group.name: torch.as_tensor(keep[group.name]) for group, _ in readers[name]}
            known[name] = stats.edit(read, "full", centred, study.ridge)
            fits.add(name, known[name], stats.ridge(centred, study.ridge))
    engine.fit(fitted, names, edits=known, progress=progress, what="sequential compensation")
    return {name: fits.edits[name] for name in names}, {name: fits.ridges[name] for name in names}


def _target(site: Site) -> tuple[Tensor, Limit | None]:
    """The rows (r, O) that the layer's output should give without its bias, and which of them are free."""
    seen, bias = site.seen, bias_of(site.layer)
    assert seen is not None
    target = seen.outputs
    lost: Tensor | float = 0.0
    stream: Tensor | float = 0.0
    if seen.affine is None:
        return target, None
    scale, constant = seen.affine
    usable = able(scale)
    scale = torch.where(usable, scale, 1.0)
    if site.stream is not None and seen.stream is not None and site.constant is not None:
        stream, constant = site.stream, site.constant
        lost = torch.where(usable, (seen.stream - stream) / scale, 0.0)
    if seen.active is None:
        return target + lost, None
    bound = -(constant + stream) / scale - bias
    return target + lost, Limit(~seen.active & usable, bound, scale < 0)


def _chosen_spread(
    fit: Callable[..., object], module: nn.Module, batches: Batches, samples: int, fits: Fits, progress: Progress
) -> float:
    """0 or `SPREAD`: that with which layers fitted to every other sample have the smaller error of the network's output on the
    samples between. Of a single sample, 0. ``fit`` is `sequential` without what is given here.
    """
    samples = min(samples, _TRIAL)
    if samples < FOLDS:
        return 0.0
    fitted, judged = (_fold(batches, samples, number) for number in range(FOLDS))
    trials = {}
    for spread in (0.0, SPREAD):
        trials[spread] = fits.trial(f"spread-{spread:g}")
        step = prefixed(progress, f"trial {spread:g} of ")
        fit(fitted, -(-samples // FOLDS), spread=spread, fits=trials[spread], progress=step)
    errors = _output_errors(module, {spread: trial.edits for spread, trial in trials.items()}, judged)
    return min(errors, key=lambda spread: (math.isnan(errors[spread]), errors[spread]))


def _fold(batches: Batches, samples: int, number: int) -> Batches:
    """Of the first ``samples``, those of the fold ``number``."""

    def given() -> Iterator[Tensor]:
        start = 0
        for batch in batches():
            mine = batch[: samples - start][(number - start) % FOLDS :: FOLDS]
            if len(mine):
                yield mine
            start += len(batch)
            if start >= samples:
                return

    return given


@torch.inference_mode()
def _output_errors(
    module: nn.Module, choices: Mapping[float, Mapping[str, Edit]], batches: Batches
) -> dict[float, float]:
    """For each choice of edits ``Σ‖f(x) − f̂(x)‖²`` over all samples if the layers compute with them."""
    net, device = copied(module), next(module.parameters()).device
    totals = dict.fromkeys(choices, 0.0)
    for batch in batches():
        x = batch.to(device)
        expected = net(x.clone())
        for choice, edits in choices.items():
            with edited(net, edits):
                totals[choice] += float((net(x.clone()) - expected).double().square().sum())
    return totals
