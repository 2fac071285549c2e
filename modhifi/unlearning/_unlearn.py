"""The methods, and the one call that makes a plan with any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..data import Data
from ..errors import UserError
from ..loading import reload
from ..models import Model
from ..plan import Plan, Settings
from ..progress import Progress, silent
from ..study import Study
from ._classes import Found, Task, make_task
from ._erase import erase
from ._gradients import ascent, finetune
from ._linear import closed_form, subspaces
from ._mask import mask
from ._slices import contrastive, published

__all__ = ["Method", "register_method", "unlearn", "unlearning_methods"]

Target = Literal["zero", "mean"]


@dataclass(frozen=True)
class Method:
    """``run(task, depth, towards)`` gives what the method found. ``gradients``: it needs them, and stands here to compare with;
    ``strength``: what the number that was searched means; ``deep``: whether ``depth`` means anything to it.
    """

    title: str
    about: str
    strength: str
    run: Callable[[Task, int | None, Target], Found]
    gradients: bool = False
    deep: bool = False


_METHODS: dict[str, Method] = {}


def register_method(name: str, method: Method) -> Method:
    """Makes ``method`` known to `unlearn`, the command line and the dashboard under ``name``. A new method is one new file that
    calls this, and one line that imports it in this room's ``__init__``. Raises ValueError if the name is taken.
    """
    if name in _METHODS:
        raise ValueError(f"the unlearning method {name!r} is registered already")
    _METHODS[name] = method
    return method


def unlearning_methods() -> dict[str, Method]:
    """All registered methods by name."""
    return dict(_METHODS)


for _name, _method in {
    "erase": Method(
        "Erasure",
        "Takes the class out of what the last layers write to the residual stream, keeps of the features only what tells the"
        " other classes apart, and refits the classifier. Closed forms throughout.",
        "weight λ of the forgotten samples in the classifier's fit",
        lambda task, depth, _: erase(task, depth),
        deep=True,
    ),
    "published": Method(
        "ModHiFi-U as published",
        "Alg. 1 and 2: the slices with the highest fidelity on samples of the class are zeroed (BatchNorm) or negated"
        " (LayerNorm).",
        "fraction of the slices",
        lambda task, depth, _: published(task, depth),
        deep=True,
    ),
    "contrastive": Method(
        "Contrastive selection",
        "Zeroes the slices whose fidelity is high on the class and low on the others, and compensates on the others.",
        "fraction of the slices",
        lambda task, depth, _: contrastive(task, depth),
        deep=True,
    ),
    "ridge": Method(
        "Closed-form ridge",
        "W' = (W H_r + λ t m_fᵀ)(H_r + λ H_f)⁻¹ in the last layers, the one that writes the logits among them.",
        "weight λ of the forgotten samples",
        closed_form,
        deep=True,
    ),
    "subspace": Method(
        "Subspaces (Kodge et al. 2024)",
        "Projects every layer's input away from the directions that the class has and the others have not.",
        "1/α: how little of the retained space is left alone",
        lambda task, _, __: subspaces(task),
    ),
    "mask": Method(
        "Logit mask",
        "The trivial baseline: the class can no longer be answered, and all that the network knows of it stays.",
        "none",
        lambda task, _, __: mask(task),
    ),
    "ascent": Method(
        "Gradient ascent",
        "Raises the loss on samples of the class. A reference: it needs gradients.",
        "steps",
        lambda task, _, __: ascent(task),
        gradients=True,
    ),
    "finetune": Method(
        "Training on the rest",
        "A few epochs on samples of the other classes. A reference: it needs gradients and labels.",
        "epochs",
        lambda task, _, __: finetune(task),
        gradients=True,
    ),
}.items():
    register_method(_name, _method)


def unlearn(
    study: Study,
    forget: Sequence[str | int],
    data: Data,
    *,
    method: str = "erase",
    target: float | Literal["chance"] = 0.0,
    depth: int | None = None,
    towards: Target = "mean",
    predicted_labels: bool = False,
    samples: int = 1000,
    seed: int = 0,
    model: Model | None = None,
    progress: Progress = silent,
) -> Plan:
    """A plan that makes the network forget classes. The strength of the edit is searched: the smallest that brings the accuracy
    on the samples of those classes to ``target``; what was tried is in the plan's ``curve``.

    Args:
        study: of the network; its structure says which layers read what.
        forget: classes by name or index.
        data: images to decide on, not the ones to judge with. Their labels only say which are of the classes to forget.
        method: a name of `unlearning_methods`.
        target: accuracy on the forget samples that is low enough, in [0, 1), or ``chance``, one over the number of classes.
        depth: how many layers are edited, counted from the last; chosen by the method if None.
        towards: of the method ``ridge``: what a layer should answer on the forget samples, nothing (``zero``) or what it answers
            on the others on average (``mean``).
        predicted_labels: take the network's own answers for labels; ``data`` needs none then.
        samples: at most so many images of ``data`` are used, drawn by ``seed``.
        model: the network, if it is at hand; loaded again otherwise.

    Raises:
        UserError: for classes that do not exist, none or all of them, data without labels, no image of the forget classes or
            of the others, a method that is unknown or does not know ``depth``, or a target that no strength reaches.
    """
    if not study.model.classes:
        raise UserError(f"{study.model.spec} is a language model, which has no classes to forget; prune it instead")
    if method not in _METHODS:
        raise UserError(f"unknown method {method!r}; one of {', '.join(_METHODS)}")
    chosen = _METHODS[method]
    if depth is not None and not chosen.deep:
        raise UserError(f"the method {method} has no depth; leave it away")
    if depth is not None and depth < 1:
        raise UserError(f"depth is how many layers are edited, at least 1, not {depth}")
    if towards not in ("zero", "mean"):
        raise UserError(f"towards is zero or mean, not {towards!r}")
    low = 1 / len(study.model.classes) if isinstance(target, str) else target
    if target not in ("chance", low) or not 0 <= low < 1:
        raise UserError(f"target is an accuracy from 0 to below 1, or chance, not {target}")
    net = model or reload(study.model)
    if net.fingerprint != study.model.fingerprint:
        raise UserError("the study was made for other weights than this model's; analyze it again")
    task = make_task(study, net, data, forget, samples, seed, low, predicted_labels, progress)
    found = chosen.run(task, depth, towards)
    return Plan(
        kind="unlearn",
        model=study.model,
        calibration=task.data,
        settings=Settings(
            score="fidelity",
            compensate=found.compensate,
            method=found.method,
            strength=found.point.strength,
            strength_unit=chosen.strength,
            layers=found.layers,
            ridges=found.ridges,
            target=low,
            predicted_labels=predicted_labels,
            anchored=found.anchored,
        ),
        forget=[net.classes[index] for index in task.forget],
        curve=found.curve,
        predicted={
            "forget_accuracy": found.point.forget_accuracy,
            "retain_accuracy": found.point.retain_accuracy,
        },
    ).with_tensors(found.tensors)
