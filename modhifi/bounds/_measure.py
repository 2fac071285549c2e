"""The telescoping sum behind Thm. 3.6, followed layer by layer on data.

Swapping the modified layers in from the last to the first, layer ``l`` always sees its original input and everything after
it is already modified. With ``f_l`` the network in which the layers from ``l`` on are modified,

    √E‖f − f̂‖² ≤ Σ_l √E‖f_l − f_{l+1}‖² ≤ Σ_l K_l √E‖Y_l − Ŷ_l‖²,     K_l = max_x ‖f_l − f_{l+1}‖ / ‖Y_l − Ŷ_l‖

so that on the samples the constants were taken from the bound cannot fail; on others it can, and how often it does is counted.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .._operators import Edit, edited
from .._replay import Replay, batched
from ..data import Data, DataRef, made_for, windowed
from ..errors import UserError
from ..lipschitz import Gains
from ..models import Model, reload
from ..plan import Plan
from ..progress import Progress, prefixed, silent
from ..study import Study
from ..surgery import calibration_data
from ._predict import plan_edits, predict_edits

__all__ = ["GRAINS", "BoundReport", "BoundRow", "Grain", "HeldOut", "measure"]

_SOURCE = ("spec", "root", "split")
GRAINS = {"block": 1, "stage": 2}
"""Coarser steps, by how many levels of the module tree above the layers: their parents, and the parents of these."""


class BoundRow(BaseModel):
    """One modified layer; errors are root-mean-squares over samples.

    ``gain``: K_l, the largest on these samples with the later layers modified; ``gain_rms``: its root-mean-square; ``local``:
    √E‖Y − Ŷ‖² at the layer; ``bound``: gain · local. With this layer alone modified: ``measured`` √E‖f − f̂‖² of the logits,
    ``alone_bound`` the bound for it, ``tightness`` their ratio (None where nothing was measured). ``predicted``: what the study
    says of ``bound`` before anything is run (`predict`).
    """

    model_config = ConfigDict(extra="forbid")

    layer: str
    groups: list[str]
    gain: float
    gain_rms: float
    local: float
    bound: float
    alone_bound: float
    measured: float
    tightness: float | None
    predicted: float


class HeldOut(BaseModel):
    """Constants of the calibration images ``data``, held against other images: how often is the bound broken?

    ``layers``: the fraction of (layer, image) pairs in which the error of the layer changed alone was above its bound; ``plan``:
    the fraction of images in which that of the whole plan was; ``expected``: what either is for a single layer if images are
    exchangeable, ``1 / (samples + 1)``. ``bound`` and ``tightness``: of the root-mean-square error over the other images.
    """

    model_config = ConfigDict(extra="forbid")

    data: DataRef
    samples: int
    layers: float
    plan: float
    expected: float
    bound: float
    tightness: float | None


class Grain(BaseModel):
    """The bound when the layers of one ``block`` or ``stage`` (`GRAINS`) are swapped in together, so that what they make up for
    among each other does not count twice. ``steps``: how many terms the sum has; the others as in `BoundReport`.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int
    bound: float
    tightness: float | None
    slack_maximum: float | None
    slack_sum: float | None


class BoundReport(BaseModel):
    """The whole plan. ``bound`` holds on these samples; ``predicted`` is what the study says before anything is run (`predict`);
    ``logits`` is √E‖f‖², for scale.

    Where the slack comes from: ``bound / measured`` is the product of ``slack_maximum``, what the largest gain in place of each
    layer's root-mean-square one costs, and ``slack_sum``, what adding up errors costs that partly cancel.
    """

    model_config = ConfigDict(extra="forbid")

    data: DataRef
    samples: int
    rows: list[BoundRow]
    bound: float
    predicted: float
    measured: float
    tightness: float | None
    slack_maximum: float | None
    slack_sum: float | None
    median_tightness: float | None
    """Of the layers changed alone."""
    logits: float
    grains: dict[str, Grain]
    held_out: HeldOut | None = None


def measure(
    study: Study,
    plan: Plan,
    data: Data,
    *,
    samples: int = 128,
    seed: int = 0,
    held_out: bool = True,
    model: Model | None = None,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> BoundReport:
    """Bound, measured error and tightness of ``plan``, per layer and whole, on ``samples`` unlabelled images.

    About one forward pass for each modified layer (two that begin there), half a one for each block and stage, and with
    ``held_out`` one for each layer on as many of the study's calibration images; if ``data`` is where these are from, they are
    left out of it, and if nothing else is there, nothing is held out. Re-estimated BatchNorm statistics are left out: the
    bound speaks of the layers' weights. Raises `UserError` if study and plan are of different weights, the plan changes
    nothing, or the calibration images cannot be found.
    """
    if plan.model.fingerprint != study.model.fingerprint:
        raise UserError("the study and the plan were made for different weights")
    net = model or reload(study.model)
    data = windowed(data, net)
    edits = plan_edits(study, plan)
    if not edits:
        raise UserError("the plan changes no layer, so there is nothing to bound")
    order = [name for name in study.structure.readers if name in edits]
    calibration = _calibration(study, net, progress) if held_out else None
    if calibration is not None and all(getattr(data.ref, part) == getattr(study.data, part) for part in _SOURCE):
        known = set(calibration.order)
        others = data.where([index not in known for index in data.order])
        calibration, data = (calibration, others) if len(others) else (None, data)
    drawn = made_for(data.take(samples, seed), net, progress)
    if not len(drawn):
        raise UserError(f"{data.spec} has no images in its {data.split} split")
    here = _walk(net, edits, order, _images(drawn, net), batch_size, progress, coarse=True)
    predicted = predict_edits(study, edits)
    rows = []
    for name in order:
        steps, alone = here.steps(name), here.gains(name)
        local, measured = _rms(here.local[name]), _rms(here.alone[name])
        rows.append(
            BoundRow(
                layer=name,
                groups=[group.name for group, _ in study.structure.readers[name]],
                gain=steps.maximum,
                gain_rms=steps.rms,
                local=local,
                bound=steps.maximum * local,
                alone_bound=alone.maximum * local,
                measured=measured,
                tightness=alone.maximum * local / measured if measured > 0 else None,
                predicted=predicted[name],
            )
        )
    error = _rms(here.whole)
    whole = _summed([here.steps(name) for name in order], error)
    found = [row.tightness for row in rows if row.tightness is not None]
    report = BoundReport(
        data=drawn.ref,
        samples=len(drawn),
        rows=rows,
        bound=whole.bound,
        predicted=sum(predicted.values()),
        measured=error,
        tightness=whole.tightness,
        slack_maximum=whole.slack_maximum,
        slack_sum=whole.slack_sum,
        median_tightness=statistics.median(found) if found else None,
        logits=_rms(here.plain),
        grains={grain: _summed(gains, error) for grain, gains in here.coarse.items()},
    )
    if calibration is not None:
        some = calibration.take(samples, study.data.seed)
        there = _walk(net, edits, order, _images(some, net), batch_size, prefixed(progress, "calibration images: "))
        report.held_out = _held_out(order, there, here, study.data, len(some))
    return report


def _summed(steps: Sequence[Gains], error: float) -> Grain:
    bound = sum(gains.maximum * _rms(gains.local) for gains in steps)
    typical = sum(gains.rms * _rms(gains.local) for gains in steps)
    return Grain(
        steps=len(steps),
        bound=bound,
        tightness=bound / error if error > 0 else None,
        slack_maximum=bound / typical if typical > 0 else None,
        slack_sum=typical / error if error > 0 else None,
    )


@dataclass
class _Walk:
    """Squared norms (N,) for each sample: at each layer, ``local``; at the logits, where it ``moved`` them with the later ones
    modified, and ``alone``; of the ``whole`` plan; and of the logits as they were, ``plain``. ``coarse``: local and moved of each
    segment of `GRAINS`.
    """

    local: dict[str, Tensor]
    moved: dict[str, Tensor]
    alone: dict[str, Tensor]
    whole: Tensor
    plain: Tensor
    coarse: dict[str, list[Gains]]

    def steps(self, name: str) -> Gains:
        return Gains(self.local[name], self.moved[name])

    def gains(self, name: str) -> Gains:
        return Gains(self.local[name], self.alone[name])


def _calibration(study: Study, net: Model, progress: Progress) -> Data:
    try:
        return calibration_data(study.data, net, progress)
    except UserError as error:
        raise UserError(f"{error} (bounds can be measured without them: --no-held-out)") from error


@dataclass(frozen=True)
class _Segment:
    """Layers that are swapped in together; what they do to the rest goes through the output of ``module``."""

    module: str
    layers: tuple[str, ...]


def _segments(order: Sequence[str], up: int) -> list[_Segment]:
    """The layers of ``order`` that share the module ``up`` levels above them; one that has none is alone, and so are those
    between which others run.
    """
    modules = [".".join(name.split(".")[:-up]) or name if up else name for name in order]
    runs = [
        (module, tuple(name for _, name in run))
        for module, run in groupby(zip(modules, order, strict=True), itemgetter(0))
    ]
    often = Counter(module for module, _ in runs)
    found = []
    for module, layers in runs:
        together = often[module] == 1 and len(layers) > 1
        found += [_Segment(module, layers)] if together else [_Segment(name, (name,)) for name in layers]
    return found


def _walk(
    net: Model,
    edits: Mapping[str, Edit],
    order: Sequence[str],
    images: Tensor,
    batch_size: int | None,
    progress: Progress,
    coarse: bool = False,
) -> _Walk:
    module = net.module
    grains = {grain: _segments(order, up) for grain, up in GRAINS.items()} if coarse else {}
    runs = 2 * len(order) + sum(map(len, grains.values()))
    columns: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)
    with torch.no_grad():
        batches = list(batched(module, images, batch_size))
        done = 0
        for batch in batches:
            replay = Replay(module, batch)
            columns[("plain",)].append(_squares(replay.output))
            for grain, segments in {"layer": _segments(order, 0), **grains}.items():
                after = replay.output
                for segment, local, moved, swapped in _swaps(module, edits, order, segments, replay):
                    progress(done, runs * len(batches), "measuring the bound")
                    done += 1
                    columns["local", grain, segment.module].append(local)
                    columns["moved", grain, segment.module].append(moved)
                    after = swapped
                if grain == "layer":
                    columns[("whole",)].append(_squares(after - replay.output))
            for name in order:
                progress(done, runs * len(batches), "measuring the bound")
                done += 1
                with replay.at(name), edited(module, {name: edits[name]}):
                    columns["alone", name].append(_squares(module(batch) - replay.output))
        progress(runs * len(batches), runs * len(batches), "measuring the bound")
    joined = {key: torch.cat(parts) for key, parts in columns.items()}
    return _Walk(
        local={name: joined["local", "layer", name] for name in order},
        moved={name: joined["moved", "layer", name] for name in order},
        alone={name: joined["alone", name] for name in order},
        whole=joined[("whole",)],
        plain=joined[("plain",)],
        coarse={
            grain: [Gains(joined["local", grain, one.module], joined["moved", grain, one.module]) for one in segments]
            for grain, segments in grains.items()
        },
    )


def _swaps(
    module: nn.Module, edits: Mapping[str, Edit], order: Sequence[str], segments: Sequence[_Segment], replay: Replay
) -> Iterator[tuple[_Segment, Tensor, Tensor, Tensor]]:
    """Swaps the segments in, the last one first: for each the squared norms (B,) of what it changes in its module's output and in
    the logits, and the logits.
    """
    samples, after = len(replay.x), replay.output
    for segment in reversed(segments):
        first, alone = segment.layers[0], len(segment.layers) == 1
        changed_by: list[Tensor] = []

        def see(name: str, difference: Tensor, wanted: str = first, found: list[Tensor] = changed_by) -> None:
            if name == wanted:
                found.append(difference)

        later = {name: edits[name] for name in order[order.index(first) :]}
        with replay.at(first), edited(module, later, see), _outputs(module, segment.module) as outputs:
            swapped = module(replay.x)
        if alone:
            change = changed_by[0]
        else:
            before = replay.given(segment.module)
            if before is None:
                with replay.at(first), _outputs(module, segment.module) as again:
                    module(replay.x)
                before = again[0]
            change = outputs[0] - before
        # A layer may see a sample in several rows of its batch.
        yield segment, _squares(change.reshape(samples, -1)), _squares(swapped - after), swapped
        after = swapped


@contextlib.contextmanager
def _outputs(module: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """What the named module gives while this is open."""
    found: list[Tensor] = []
    handle = module.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output.clone()))
    try:
        yield found
    finally:
        handle.remove()


def _squares(difference: Tensor) -> Tensor:
    return difference.flatten(1).square().sum(1).cpu().double()  # MPS has no float64


def _rms(squares: Tensor) -> float:
    return math.sqrt(float(squares.mean()))


def _images(drawn: Data, net: Model) -> Tensor:
    return torch.cat([batch for batch, _ in drawn.batches(net.input)])


def _held_out(order: Sequence[str], there: _Walk, here: _Walk, data: DataRef, samples: int) -> HeldOut:
    broken, bound, each = [], 0.0, torch.zeros_like(here.whole)
    for name in order:
        alone, step = there.gains(name).maximum, there.steps(name).maximum
        # What the arithmetic rounds is no violation.
        broken.append(here.alone[name].sqrt() > alone * here.local[name].sqrt() * (1 + 1e-4))
        each += step * here.local[name].sqrt()
        bound += step * _rms(here.local[name])
    error = _rms(here.whole)
    return HeldOut(
        data=data,
        samples=samples,
        layers=float(torch.stack(broken).double().mean()),
        plan=float((here.whole.sqrt() > each).double().mean()),
        expected=1 / (samples + 1),
        bound=bound,
        tightness=bound / error if error > 0 else None,
    )
