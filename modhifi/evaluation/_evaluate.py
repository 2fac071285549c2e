"""`evaluate`: all measurements of a modified network and its baseline in one value, printed by ``evaluate --json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from ..data import Data, in_memory, load_data, prepare
from ..errors import UserError
from ..models import Model
from ..progress import Progress, silent
from ..specs import DataRef
from ._accuracy import Prediction, classifier_of, logits_of, match_labels, predict
from ._answers import answers_beside
from ._closeness import Closeness, calibration_samples
from ._cost import Timing, count_cost, measure_latency, tensor_bytes
from ._forgetting import (
    RELEARNING_STEPS,
    hiding_logit,
    masked,
    masked_model,
    membership,
    probe_accuracy,
    recalled,
    relearning,
)
from ._perplexity import checked, decode_speed, read_beside

__all__ = ["ClassAccuracy", "Evaluation", "evaluate", "latencies"]

_LANGUAGE = ("perplexity", "tokens", "context", "stride", "prefill", "decode")
_OF_CLASSES = ("accuracy", "mean_iou", "per_class", "confusion")
_OF_MAPS = ("mean_iou",)
_FORGETTING = ("forget", "retain", "probe", "mia", "bn_recall", "relearning")
# Training images of the forget classes that membership inference uses at most.
_MEMBERS = 1000


class ClassAccuracy(BaseModel):
    model_config = ConfigDict(extra="forbid")

    before: float | None
    after: float
    samples: int


class Evaluation(BaseModel):
    """Accuracies and other fractions are in [0, 1], None where the images have no labels; ``flops`` are multiply-accumulates of
    one sample; ``bytes`` are those of the weights. Fields that end in ``_before`` belong to the baseline and are None without
    one.

    ``agreement``, ``relative_error`` and ``kl`` (nats) say how close the answers are to the baseline's, without labels; see
    `modhifi.evaluation.Closeness`. They are None without a baseline. They are meant for samples outside the calibration:
    ``calibration_samples`` says how many of the ``samples`` the plan was calibrated on, None if that is not known.

    For maps and sequences, ``agreement``, ``kl`` and ``accuracy`` count places, and ``mean_iou`` is the mean over classes of
    intersection over union. Where the answer is no class, only ``relative_error`` makes sense.

    The second block is for language models: perplexity over ``tokens`` tokens in windows of ``context`` tokens that start
    ``stride`` tokens apart, and prefill and decode throughput in tokens/s. Their ``accuracy`` is the top-1 next-token accuracy,
    and ``samples`` counts windows.

    The last block is for unlearning plans only. Fields that end in ``_mask`` belong to the baseline with a logit mask on the
    forget classes; the functions in `modhifi.evaluation` define each number.
    """

    model_config = ConfigDict(extra="forbid")

    model: str
    data: DataRef
    samples: int
    agreement: float | None = None
    relative_error: float | None = None
    kl: float | None = None
    calibration_samples: int | None = None
    accuracy: float | None
    accuracy_before: float | None
    mean_iou: float | None = None
    mean_iou_before: float | None = None
    per_class: dict[str, ClassAccuracy]
    confusion: list[list[int]]
    confusion_before: list[list[int]] | None
    params: int
    params_before: int | None
    flops: int
    flops_before: int | None
    bytes: int
    bytes_before: int | None
    latency_ms: float | None
    latency_ms_before: float | None
    latency_spread_ms: float | None = None
    latency_spread_ms_before: float | None = None
    latency_batch: int
    device: str

    perplexity: float | None = None
    perplexity_before: float | None = None
    tokens: int | None = None
    context: int | None = None
    stride: int | None = None
    prefill_tokens_per_second: float | None = None
    prefill_tokens_per_second_before: float | None = None
    decode_tokens_per_second: float | None = None
    decode_tokens_per_second_before: float | None = None

    forget: list[str] | None = None
    forget_accuracy: float | None = None
    forget_accuracy_before: float | None = None
    forget_accuracy_mask: float | None = None
    retain_accuracy: float | None = None
    retain_accuracy_before: float | None = None
    retain_accuracy_mask: float | None = None
    probe_accuracy: float | None = None
    probe_accuracy_before: float | None = None
    probe_accuracy_mask: float | None = None
    mia: float | None = None
    mia_before: float | None = None
    mia_mask: float | None = None
    bn_recall_accuracy: float | None = None
    bn_recall_accuracy_before: float | None = None
    bn_recall_accuracy_mask: float | None = None
    bn_recall_retain_accuracy: float | None = None
    bn_recall_retain_accuracy_before: float | None = None
    bn_recall_retain_accuracy_mask: float | None = None
    relearning_steps: list[int] | None = None
    relearning_accuracy: list[float] | None = None
    relearning_accuracy_before: list[float] | None = None
    relearning_accuracy_mask: list[float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values. Fields of language models and of unlearning are omitted where they do not apply; language models have
        perplexity instead of accuracies, and images without labels have no accuracies.
        """
        values = self.model_dump(mode="json")
        left: tuple[str, ...] = () if self.forget is not None else _FORGETTING
        left += _LANGUAGE if self.perplexity is None else ()
        left += _OF_MAPS if self.mean_iou is None else ()
        left += _OF_CLASSES if self.accuracy is None or self.perplexity is not None else ()
        return {name: value for name, value in values.items() if not name.startswith(left)}


def evaluate(
    model: Model,
    data: Data | Any,
    baseline: Model | None = None,
    *,
    latency: bool = True,
    context: int | None = None,
    stride: int | None = None,
    known: Tensor | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Measures ``model``, and ``baseline`` beside it, on images, on text for language models, or on what a network of one's own
    takes (also tensors, data sets and loaders, as in `modhifi.data.in_memory`). ``context`` and ``stride``
    configure perplexity, see `modhifi.evaluation.read`. Images without labels give no accuracies; how close the answers are to
    the baseline's is measured without. ``known``: the baseline's logits for these images, (N, K), if they are known
    (`logits_of`).

    A model made by an unlearning plan is also judged by forget and retain accuracy and by the attacks. Membership inference
    needs the training images of the data source and is None if it has no train split.

    Raises:
        UserError: if the data has no images, labels that do not match the network, or, for an unlearning plan, no labels or too
            few images for the linear probe.
    """
    data = in_memory(data)
    if model.tokens is not None:
        return _evaluate_language(model, data, baseline, latency, context, stride, progress)
    if context is not None or stride is not None:
        raise UserError(f"{model.spec} takes no text; context and stride are for language models")
    original = model if baseline is None else baseline
    data = prepare(data, original, progress)
    forget = None if model.plan is None or model.plan.kind != "unlearn" else model.plan.forget
    if not len(data):
        raise UserError(f"{data.spec} has no samples in its {data.split} split; choose another split")
    if not model.classes:
        return _evaluate_answers(model, data, baseline, latency, progress)
    if data.labels is not None and data.labels.ndim > 1:
        data = dataclasses.replace(data, labels=None)  # those of a map, which this network does not give
    if forget is not None and data.labels is None:
        raise UserError(f"{data.spec} has no labels, which judging an unlearning plan needs; give labelled images")
    features = forget is not None and classifier_of(model) is not None
    after, now = _outputs(model, data, features, progress, "evaluating the modified network")
    before: Prediction | None = None
    then: Tensor | None = None
    if baseline is not None and known is not None and not features:
        matched = None if data.labels is None else match_labels(data, baseline).targets
        before, then = None if matched is None else Prediction.of(known, matched), known
    elif baseline is not None:
        before, then = _outputs(baseline, data, features, progress, "evaluating the original network")
    if data.labels is not None:
        data = match_labels(data, model)
    closeness = Closeness()
    if then is not None and then.shape == now.shape:
        closeness.take(then, now)
    pair = [model] if baseline is None else [model, baseline]
    timings = _timed(pair, latency, progress)
    classes = model.classes
    result = Evaluation(
        data=data.ref,
        samples=len(data),
        calibration_samples=calibration_samples(data, model, original),
        accuracy=after.accuracy() if after else None,
        accuracy_before=before.accuracy() if before else None,
        per_class=_per_class(classes, after, before) if after else {},
        confusion=after.confusion(len(classes)) if after else [],
        confusion_before=before.confusion(len(classes)) if before else None,
        **_common(pair, closeness, timings),
    )
    if forget is not None and after is not None:
        _judge(result, model, baseline, data, [classes.index(name) for name in forget], after, before, progress)
    return result


def _evaluate_answers(
    model: Model, data: Data, baseline: Model | None, latency: bool, progress: Progress
) -> Evaluation:
    pair = [model] if baseline is None else [model, baseline]
    counts, closeness = answers_beside(pair, data, progress=progress)
    timings = _timed(pair, latency, progress)
    accuracies = [None if one is None else one.accuracy for one in counts]
    overlaps = [None if one is None else one.mean_iou for one in counts]
    return Evaluation(
        data=data.ref,
        samples=len(data),
        calibration_samples=calibration_samples(data, model, pair[-1]),
        accuracy=accuracies[0],
        accuracy_before=_at(accuracies, 1),
        mean_iou=overlaps[0],
        mean_iou_before=_at(overlaps, 1),
        per_class={},
        confusion=[],
        confusion_before=None,
        **_common(pair, closeness, timings),
    )


def _at(values: Sequence[Any], index: int) -> Any:
    """None where there is no baseline."""
    return values[index] if index < len(values) else None


def _timed(pair: Sequence[Model], latency: bool, progress: Progress) -> list[Timing]:
    return measure_latency([one.module for one in pair], pair[0].example(), progress=progress) if latency else []


def _common(pair: Sequence[Model], closeness: Closeness, timings: Sequence[Timing]) -> dict[str, Any]:
    """The fields of an `Evaluation` that every kind of network has: of the modified one, and the baseline if there are two."""
    costs = [count_cost(one) for one in pair]
    sizes = [tensor_bytes(one.module) for one in pair]
    return {
        "model": pair[0].spec,
        "agreement": closeness.agreement,
        "relative_error": closeness.relative_error,
        "kl": closeness.kl,
        "params": costs[0].params,
        "params_before": _at([cost.params for cost in costs], 1),
        "flops": costs[0].flops,
        "flops_before": _at([cost.flops for cost in costs], 1),
        "bytes": sizes[0],
        "bytes_before": _at(sizes, 1),
        **latencies(timings),
        "latency_batch": 1,
        "device": str(pair[0].device),
    }


def _outputs(
    model: Model, data: Data, features: bool, progress: Progress, what: str
) -> tuple[Prediction | None, Tensor]:
    """The prediction, None without labels, and the logits (N, K)."""
    if data.labels is None:
        return None, logits_of(model, data, progress=progress, what=what)
    found = predict(model, match_labels(data, model), features=features, progress=progress, what=what)
    assert found.logits is not None
    return found, found.logits


def latencies(timings: Sequence[Timing]) -> dict[str, Any]:
    """The latency fields of an `Evaluation` from the timings of a network and its baseline; None where one is missing."""
    now, before = (*timings, None, None)[:2]
    return {
        "latency_ms": None if now is None else now.median,
        "latency_ms_before": None if before is None else before.median,
        "latency_spread_ms": None if now is None else now.spread,
        "latency_spread_ms_before": None if before is None else before.spread,
    }


def _evaluate_language(
    model: Model,
    data: Data,
    baseline: Model | None,
    latency: bool,
    context: int | None,
    stride: int | None,
    progress: Progress,
) -> Evaluation:
    context, stride = checked(model, context, stride)
    pair = [model] if baseline is None else [model, baseline]
    found, closeness = read_beside(pair, data, context=context, stride=stride, progress=progress)
    timings = _timed(pair, latency, progress)
    speeds = decode_speed(pair, progress) if latency else []
    assert model.tokens is not None
    prefill = [1000 * model.tokens.context / each.median for each in timings]
    shares = [one.right / one.tokens for one in found]
    return Evaluation(
        data=data.ref.model_copy(update={"samples": found[0].windows}),
        samples=found[0].windows,
        calibration_samples=_windows_of(data, model, pair[-1], found[0].windows),
        accuracy=shares[0],
        accuracy_before=_at(shares, 1),
        per_class={},
        confusion=[],
        confusion_before=None,
        perplexity=found[0].perplexity,
        perplexity_before=_at([one.perplexity for one in found], 1),
        tokens=found[0].tokens,
        context=context,
        stride=stride,
        prefill_tokens_per_second=_at(prefill, 0),
        prefill_tokens_per_second_before=_at(prefill, 1),
        decode_tokens_per_second=_at(speeds, 0),
        decode_tokens_per_second_before=_at(speeds, 1),
        **_common(pair, closeness, timings),
    )


def _windows_of(data: Data, model: Model, original: Model, windows: int) -> int | None:
    """`calibration_samples` of a text, in windows."""
    found = calibration_samples(data, model, original)
    return windows if found else found


def _per_class(classes: Sequence[str], after: Prediction, before: Prediction | None) -> dict[str, ClassAccuracy]:
    table = {}
    for index, name in enumerate(classes):
        now = after.accuracy([index])
        if now is not None:
            table[name] = ClassAccuracy(
                before=before.accuracy([index]) if before else None,
                after=now,
                samples=int((after.label == index).sum()),
            )
    return table


def _judge(
    result: Evaluation,
    model: Model,
    baseline: Model | None,
    data: Data,
    forget: list[int],
    after: Prediction,
    before: Prediction | None,
    progress: Progress,
) -> None:
    """Fills the unlearning fields of ``result``: each measure for the edited network, for the baseline, and for the baseline
    with a logit mask, most of which follow from the baseline's own logits.
    """
    result.forget = [model.classes[index] for index in forget]
    retain = [index for index in range(len(model.classes)) if index not in forget]
    # The mask needs a linear classifier; its predictions follow from the baseline's logits.
    hidden = None
    if before is not None and baseline is not None and before.features is not None:
        assert before.logits is not None
        hidden = hiding_logit(before.logits, forget)

    def put(name: str, value: Callable[[Prediction], float | None], now: Prediction, then: Prediction | None) -> None:
        setattr(result, name, value(now))
        if then is not None:
            setattr(result, f"{name}_before", value(then))
            if hidden is not None:
                setattr(result, f"{name}_mask", value(masked(then, forget, hidden)))

    put("forget_accuracy", lambda found: found.accuracy(forget), after, before)
    put("retain_accuracy", lambda found: found.accuracy(retain), after, before)
    if after.features is not None:
        progress(0, 2, "linear probe")
        result.probe_accuracy = probe_accuracy(after, forget)
        progress(1, 2, "linear probe")
        if before is not None:
            # A mask does not change the features.
            result.probe_accuracy_before = result.probe_accuracy_mask = probe_accuracy(before, forget)
        progress(2, 2, "linear probe")
    if "train" in data.splits and data.split != "train":
        seen = match_labels(load_data(data.spec, data.root, "train"), model)
        assert seen.targets is not None
        members = seen.where(torch.isin(seen.targets, torch.tensor(forget)))
        if len(members):
            members = members.take(_MEMBERS)
            inside = predict(model, members, progress=progress, what="membership inference")
            result.mia = membership(inside, after, forget)
            if baseline is not None and before is not None:
                known = predict(
                    baseline, match_labels(members, baseline), progress=progress, what="membership inference"
                )
                result.mia_before = membership(known, before, forget)
                if hidden is not None:
                    result.mia_mask = membership(masked(known, forget, hidden), masked(before, forget, hidden), forget)
    # The attacker's labelled images come from another split than the test images, if there is one.
    other = next((name for name in ("calibration", "train") if name in data.splits and name != data.split), None)
    source = match_labels(load_data(data.spec, data.root, other) if other else data, model)
    some = source.take(1000)
    assert some.targets is not None
    retained = some.where(torch.isin(some.targets, torch.tensor(retain)))
    if len(retained) > 1:
        now = recalled(model, retained, data, progress)
        then = recalled(baseline, retained, match_labels(data, baseline), progress) if baseline is not None else None
        if now is not None:
            put("bn_recall_accuracy", lambda found: found.accuracy(forget), now, then)
            put("bn_recall_retain_accuracy", lambda found: found.accuracy(retain), now, then)
    result.relearning_steps = list(RELEARNING_STEPS)
    result.relearning_accuracy = relearning(model, source, data, forget, progress)
    if baseline is not None:
        result.relearning_accuracy_before = relearning(baseline, source, data, forget, progress)
        if hidden is not None:
            result.relearning_accuracy_mask = relearning(
                masked_model(baseline, forget, hidden), source, data, forget, progress
            )
