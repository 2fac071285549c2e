"""What the measures of forgetting say together, in rows and in words: one text for the command line, the report and the page."""

from __future__ import annotations

from collections.abc import Sequence

from ._evaluate import Evaluation

__all__ = ["forgetting_table", "verdict"]

# Title and field of every measure that is one number; fields with ``_before`` and ``_mask`` stand beside it.
_ROWS = (
    ("Forget accuracy", "forget_accuracy"),
    ("Retain accuracy", "retain_accuracy"),
    ("Linear probe on the forgotten", "probe_accuracy"),
    ("Membership inference (AUC, 50%: no trace)", "mia"),
    ("Forget accuracy after BN recall", "bn_recall_accuracy"),
    ("Retain accuracy after BN recall", "bn_recall_retain_accuracy"),
)
# A class counts as back when so much of it is answered, and as still there for a probe above so much.
_BACK, _FOUND = 0.5, 0.5
_TRACE = 0.6


Row = tuple[str, float | None, float | None, float | None]


def forgetting_table(e: Evaluation, curve: bool = True) -> list[Row]:
    """(title, unchanged network, with a logit mask, changed network) for every measure, and with ``curve`` for every step of
    relearning; fractions, None where it was not measured.
    """
    rows: list[Row] = [
        (title, getattr(e, f"{name}_before"), getattr(e, f"{name}_mask"), getattr(e, name)) for title, name in _ROWS
    ]
    curves = (e.relearning_accuracy_before, e.relearning_accuracy_mask, e.relearning_accuracy)
    for number, step in enumerate(e.relearning_steps or () if curve else ()):
        before, mask, after = (values[number] if values else None for values in curves)
        rows.append((f"Forget accuracy, {step} steps of relearning", before, mask, after))
    return rows


def verdict(e: Evaluation) -> list[str]:
    """One sentence for each attack, the worst news first. [] for what is no unlearning.

    An attack *brings the class back* where it answers at least half of its images; a probe that finds more than half still
    *knows* it, which the same figure for the unchanged network puts into proportion.
    """
    if e.forget is None or e.forget_accuracy is None:
        return []
    who = f"class {e.forget[0]}" if len(e.forget) == 1 else f"classes {', '.join(e.forget)}"
    bad, good = [], []
    chance = 1 / max(1, len(e.confusion))
    if e.forget_accuracy > chance:
        bad.append(f"Not forgotten: {e.forget_accuracy:.1%} of the images of {who} are still answered rightly.")
    else:
        good.append(f"Not answered any more: {e.forget_accuracy:.1%} of the images of {who}.")
    if e.bn_recall_accuracy is not None:
        if e.bn_recall_accuracy >= _BACK:
            bad.append(
                f"BN recall brings it back: {e.bn_recall_accuracy:.1%} after BatchNorm was re-estimated on the others."
            )
        elif e.bn_recall_accuracy > e.forget_accuracy + 0.02:
            bad.append(f"BN recall brings back a part of it: {e.bn_recall_accuracy:.1%}.")
        else:
            good.append("BN recall does not bring it back.")
    if e.probe_accuracy is not None:
        before = "" if e.probe_accuracy_before is None else f", {e.probe_accuracy_before:.1%} in the unchanged network"
        found = f"{e.probe_accuracy:.1%} of its images{before}"
        if e.probe_accuracy > _FOUND:
            bad.append(f"The features still know it: a linear probe finds {found}.")
        else:
            good.append(f"A linear probe on the features finds {found}.")
    if e.mia is not None:
        if e.mia > _TRACE:
            bad.append(
                f"Membership shows: the loss tells its training images from new ones with an AUC of {e.mia:.2f}."
            )
        else:
            good.append(f"Membership does not show (AUC {e.mia:.2f}).")
    if e.relearning_accuracy and e.relearning_steps:
        steps = _steps_until_back(e.relearning_steps, e.relearning_accuracy)
        mask = "" if e.relearning_accuracy_mask is None else _beside(e.relearning_steps, e.relearning_accuracy_mask)
        if steps is None:
            good.append(f"It does not come back within {e.relearning_steps[-1]} steps of relearning{mask}.")
        else:
            bad.append(
                f"Relearning brings it back after {steps} step{'s' if steps != 1 else ''}{mask}; a network that never"
                " saw the class learns it too."
            )
    return bad + good


def _steps_until_back(steps: Sequence[int], accuracy: Sequence[float]) -> int | None:
    return next((step for step, value in zip(steps, accuracy, strict=True) if value >= _BACK), None)


def _beside(steps: Sequence[int], mask: Sequence[float]) -> str:
    back = _steps_until_back(steps, mask)
    return f" (a logit mask: {'not at all' if back is None else f'after {back}'})"
