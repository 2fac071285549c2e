"""The results of the forgetting measures as a table and in words, for the command line, the report and the dashboard."""

from __future__ import annotations

from collections.abc import Sequence

from ._evaluate import Evaluation

__all__ = ["forgetting_table", "verdict"]

# Title and field of each measure that is a single number; the fields with ``_before`` and ``_mask`` go beside it.
_ROWS = (
    ("Forget accuracy (lower is better)", "forget_accuracy"),
    ("Retain accuracy (higher is better)", "retain_accuracy"),
    ("Linear probe on the forget classes (lower is better)", "probe_accuracy"),
    ("Membership inference, AUC (50%: no signal)", "mia"),
    ("Forget accuracy after BN recall (lower is better)", "bn_recall_accuracy"),
    ("Retain accuracy after BN recall (higher is better)", "bn_recall_retain_accuracy"),
)
# Thresholds: accuracy at which a class counts as back, at which a probe counts as finding it, and the AUC of a signal.
_BACK, _FOUND = 0.5, 0.5
_TRACE = 0.6


Row = tuple[str, float | None, float | None, float | None]


def forgetting_table(e: Evaluation, curve: bool = True) -> list[Row]:
    """(title, original network, logit mask, edited network) for each measure and, with ``curve``, for each relearning step.
    Values are fractions, None where a measure is not available.
    """
    rows: list[Row] = [
        (title, getattr(e, f"{name}_before"), getattr(e, f"{name}_mask"), getattr(e, name)) for title, name in _ROWS
    ]
    curves = (e.relearning_accuracy_before, e.relearning_accuracy_mask, e.relearning_accuracy)
    for number, step in enumerate(e.relearning_steps or () if curve else ()):
        before, mask, after = (values[number] if values else None for values in curves)
        rows.append((f"Forget accuracy after {step} relearning steps (lower is better)", before, mask, after))
    return rows


def verdict(e: Evaluation) -> list[str]:
    """One sentence per measure, bad news first; [] if the plan is not an unlearning plan.

    An attack *brings the class back* if forget accuracy reaches 50%. The features *still hold* the class if a linear probe
    finds more than half of its images; compare with the original network.
    """
    if e.forget is None or e.forget_accuracy is None:
        return []
    who = f"class {e.forget[0]}" if len(e.forget) == 1 else f"classes {', '.join(e.forget)}"
    it, its, them = ("the class", "its", "it") if len(e.forget) == 1 else ("the classes", "their", "them")
    bad, good = [], []
    chance = 1 / max(1, len(e.confusion))
    if e.forget_accuracy > chance:
        bad.append(f"Not forgotten: {e.forget_accuracy:.1%} of the images of {who} are still classified correctly.")
    else:
        good.append(f"Of the images of {who}, {e.forget_accuracy:.1%} are still classified correctly.")
    if e.bn_recall_accuracy is not None:
        if e.bn_recall_accuracy >= _BACK:
            bad.append(
                f"BN recall brings {it} back: forget accuracy is {e.bn_recall_accuracy:.1%} after BatchNorm statistics"
                " are re-estimated on the retained classes."
            )
        elif e.bn_recall_accuracy > e.forget_accuracy + 0.02:
            bad.append(f"BN recall brings {it} back in part: forget accuracy is {e.bn_recall_accuracy:.1%}.")
        else:
            good.append(f"BN recall does not bring {it} back.")
    if e.probe_accuracy is not None:
        before = "" if e.probe_accuracy_before is None else f" ({e.probe_accuracy_before:.1%} in the original network)"
        found = f"{e.probe_accuracy:.1%} of {its} images{before}"
        if e.probe_accuracy > _FOUND:
            bad.append(f"The features still hold {it}: a linear probe finds {found}.")
        else:
            good.append(f"A linear probe on the features finds {found}.")
    if e.mia is not None:
        if e.mia > _TRACE:
            bad.append(
                f"Membership inference finds a signal: the loss separates {its} training images from new ones (AUC"
                f" {e.mia:.2f})."
            )
        else:
            good.append(f"Membership inference finds no signal (AUC {e.mia:.2f}).")
    if e.relearning_accuracy and e.relearning_steps:
        steps = _steps_until_back(e.relearning_steps, e.relearning_accuracy)
        mask = "" if e.relearning_accuracy_mask is None else _beside(e.relearning_steps, e.relearning_accuracy_mask)
        if steps is None:
            good.append(f"Relearning does not bring {it} back within {e.relearning_steps[-1]} steps{mask}.")
        else:
            bad.append(
                f"Relearning brings {it} back after {steps} step{'s' if steps != 1 else ''}{mask}; a network that never"
                f" saw {it} also learns {them}."
            )
    return bad + good


def _steps_until_back(steps: Sequence[int], accuracy: Sequence[float]) -> int | None:
    return next((step for step, value in zip(steps, accuracy, strict=True) if value >= _BACK), None)


def _beside(steps: Sequence[int], mask: Sequence[float]) -> str:
    back = _steps_until_back(steps, mask)
    return f" (with a logit mask: {'not at all' if back is None else f'after {back}'})"
