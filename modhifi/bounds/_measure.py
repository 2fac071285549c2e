"""The telescoping sum behind ModHiFi, Thm. 3.6, measured layer by layer.

Layers are replaced from the last to the first, so layer ``l`` always sees its original input and everything after it is already
modified. With ``f_l`` the network in which the layers from ``l`` on are modified,

    √E‖f − f̂‖² ≤ Σ_l √E‖f_l − f_{l+1}‖² ≤ Σ_l K_l √E‖Y_l − Ŷ_l‖²,     K_l = max_x ‖f_l − f_{l+1}‖ / ‖Y_l − Ŷ_l‖

so the bound cannot fail on the samples the constants were taken from. On other samples it can, and violations are counted.
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

from ..data import Data, prepare, windowed
from ..errors import UserError
from ..layers import Edit, Replay, batched, edited
from ..lipschitz import Gains
from ..loading import reload
from ..models import Model
from ..plan import Plan
from ..progress import Progress, prefixed, silent
from ..specs import DataRef
from ..study import Study
from ..surgery import calibration_data
from ._predict import plan_edits, predict_edits

__all__ = ["GRAINS", "BoundReport", "BoundRow", "Grain", "HeldOut", "measure"]

_SOURCE = ("spec", "root", "split")
GRAINS = {"block": 1, "stage": 2}
"""Coarser granularities → levels of the module tree above the layers: their parents and grandparents."""


class BoundRow(BaseModel):
    """One modified layer; errors are root mean squares over samples.

    ``gain``: K_l, the largest gain on these samples with the later layers modified; ``gain_rms``: its root mean square;
    ``local``: √E‖Y − Ŷ‖² at the layer; ``bound``: gain · local. With only this layer modified: ``measured`` is √E‖f − f̂‖² of
    the logits, ``alone_bound`` its bound, and ``tightness`` their ratio (None if the measured error is 0). ``predicted``: the
    study's estimate of ``bound`` before anything is run (`predict`).
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
    """Constants from calibration samples ``data``, tested on other samples: how often is the bound violated?

    ``layers``: fraction of (layer, sample) pairs whose error, with only this layer modified, exceeds the bound; ``plan``:
    fraction of samples whose error exceeds the bound of the whole plan; ``expected``: either fraction for a single layer if
    samples are exchangeable, ``1 / (samples + 1)``. ``bound`` and ``tightness`` are for the root-mean-square error over the
    other samples.
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
    """The bound if all layers of a block or stage (`GRAINS`) are replaced together, so that errors which they compensate among
    themselves are not counted. ``steps``: the number of terms of the sum; the other fields as in `BoundReport`.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int
    bound: float
    tightness: float | None
    slack_maximum: float | None
    slack_sum: float | None


class BoundReport(BaseModel):
    """The whole plan. ``bound`` holds on these samples; ``predicted`` is the study's estimate before anything is run
    (`predict`); ``measured`` is √E‖f − f̂‖² of the logits; ``logits`` is √E‖f‖², for scale. Lower is better.

    ``tightness``, bound / measured, is the product of two kinds of slack: ``slack_maximum``, the worst-case gain (the largest
    gain stands for all samples), and ``slack_sum``, summation (errors are added although they partly cancel).
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
    """Over the layers, each modified alone."""
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
    """Bound, measured error and tightness of ``plan``, per layer and for the whole plan, on ``samples`` of ``data``; labels
    are ignored.

    Costs about one forward pass per modified layer (two that start there), half of one per block and stage, and with
    ``held_out`` one more per layer on as many of the study's calibration samples. If ``data`` is the study's own source, the
    calibration samples are excluded from it; if no others remain, ``held_out`` is skipped. Re-estimated BatchNorm statistics
    are not included: the bound concerns the weights of the layers.

    Raises `UserError` if study and plan belong to different weights, the plan modifies no layer, or the calibration samples
    cannot be loaded.
    """
    if plan.model.fingerprint != study.model.fingerprint:
        raise UserError("the study and the plan were made for different weights; make the plan from this study")
    net = model or reload(study.model)
    data = windowed(data, net)
    edits = plan_edits(study, plan)
    if not edits:
        raise UserError("the plan modifies no layer, so there is nothing to bound; use another plan")
    order = [name for name in study.structure.readers if name in edits]
    calibration = _calibration(study, net, progress) if held_out else None
    if calibration is not None and all(getattr(data.ref, part) == getattr(study.data, part) for part in _SOURCE):
        known = set(calibration.order)
        others = data.where([index not in known for index in data.order])
        calibration, data = (calibration, others) if len(others) else (None, data)
    drawn = prepare(data.take(samples, seed), net, progress)
    if not len(drawn):
        raise UserError(f"{data.spec} has no images in its {data.split} split; choose another split")
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
        there = _walk(net, edits, order, _images(some, net), batch_size, prefixed(progress, "calibration samples: "))
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
    """Squared norms (N,), one per sample. ``local``: the error at each layer. ``moved``: the change of the logits when the
    layer is replaced after all later ones. ``alone``: the change of the logits when only this layer is replaced. ``whole``:
    the error of the plan at the logits. ``plain``: the original logits. ``coarse``: local and moved for each segment of
    `GRAINS`.
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
        raise UserError(f"{error} (--no-held-out measures bounds without calibration samples)") from error


@dataclass(frozen=True)
class _Segment:
    """Layers that are replaced together; they affect the rest only through the output of ``module``."""

    module: str
    layers: tuple[str, ...]


def _segments(order: Sequence[str], up: int) -> list[_Segment]:
    """Groups the layers of ``order`` by the module ``up`` levels above them. A layer without such a module stands alone, and so
    do layers of one module if other layers run in between.
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
                for segment, local, moved, replaced in _replacements(module, edits, order, segments, replay):
                    progress(done, runs * len(batches), "measuring the bound")
                    done += 1
                    columns["local", grain, segment.module].append(local)
                    columns["moved", grain, segment.module].append(moved)
                    after = replaced
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


def _replacements(
    module: nn.Module, edits: Mapping[str, Edit], order: Sequence[str], segments: Sequence[_Segment], replay: Replay
) -> Iterator[tuple[_Segment, Tensor, Tensor, Tensor]]:
    """Replaces the segments one after the other, the last one first. Yields for each the squared norms (B,) of the change in
    its module's output and in the logits, and the new logits.
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
            replaced = module(replay.x)
        if alone:
            change = changed_by[0]
        else:
            before = replay.given(segment.module)
            if before is None:
                with replay.at(first), _outputs(module, segment.module) as again:
                    module(replay.x)
                before = again[0]
            change = outputs[0] - before
        # A layer may process one sample in several rows of its batch.
        yield segment, _squares(change.reshape(samples, -1)), _squares(replaced - after), replaced
        after = replaced


@contextlib.contextmanager
def _outputs(module: nn.Module, name: str) -> Iterator[list[Tensor]]:
    """Collects the outputs of the named module inside the context."""
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
        # Rounding errors are not violations.
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
