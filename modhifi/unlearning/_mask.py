"""The trivial baseline: a logit mask."""

from __future__ import annotations

import torch

from ..errors import UserError
from ..evaluation import classifier_of, hiding_logit, masked_rows
from ._classes import Found, Task, curve_point

__all__ = ["mask"]


def mask(task: Task) -> Found:
    """Sets the logits of the forget classes to a constant below every winning logit of the other classes (`hiding_logit`)."""
    head = classifier_of(task.model)
    if head is None:
        raise UserError(f"{task.model.spec} has no linear classifier to mask; choose another method")
    with torch.inference_mode():
        logits = torch.cat([task.model.module(batch.to(task.model.device)).cpu() for batch in task.images.split(128)])
    hidden = hiding_logit(logits, task.forget)
    weight, shift = masked_rows(task.model.module.get_submodule(head), task.forget, hidden)
    answers = logits.clone()
    answers[:, task.forget] = hidden

    taken = curve_point(1.0, answers.argmax(1), task.labels, task.chosen)
    return Found(
        tensors={f"{head}.weight": weight, f"{head}.shift": shift},
        layers=[head],
        point=taken,
        curve=[curve_point(0.0, logits.argmax(1), task.labels, task.chosen), taken],
        method="mask",
    )
