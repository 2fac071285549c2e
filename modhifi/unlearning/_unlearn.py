"""The registry of unlearning methods, and `unlearn`, which makes a plan with any of them."""

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
from ..registry import Registry
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
    """``run(task, depth, towards)`` returns the method's result. ``strength``: the meaning of the number that is searched.
    ``gradients``: whether the method needs gradients and serves only as a reference. ``deep``: whether it supports ``depth``.
    """

    title: str
    about: str
    strength: str
    run: Callable[[Task, int | None, Target], Found]
    gradients: bool = False
    deep: bool = False


_METHODS: Registry[Method] = Registry("unlearning method")


def register_method(name: str, method: Method) -> Method:
    """Makes ``method`` known to `unlearn`, the command line and the dashboard under ``name``. A new method is one new file that
    calls this, and one line that imports it in this room's ``__init__``. Raises ValueError if the name is taken.
    """
    return _METHODS.register(name, method)


def unlearning_methods() -> dict[str, Method]:
    """All registered methods by name."""
    return dict(_METHODS)


for _name, _method in {
    "erase": Method(
        "Erasure",
        "Removes the class from what the last layers write to the residual stream, keeps only the features that"
        " separate the retained classes, and refits the classifier. All steps are in closed form.",
        "weight λ of the forget set in the classifier's fit",
        lambda task, depth, _: erase(task, depth),
        deep=True,
    ),
    "published": Method(
        "ModHiFi-U as published",
        "Alg. 1 and 2: zeroes (BatchNorm) or negates (LayerNorm) the slices with the highest fidelity on the forget"
        " set.",
        "fraction of the slices",
        lambda task, depth, _: published(task, depth),
        deep=True,
    ),
    "contrastive": Method(
        "Contrastive selection",
        "Zeroes the slices whose fidelity is high on the forget set and low on the retain set, and compensates on the"
        " retain set.",
        "fraction of the slices",
        lambda task, depth, _: contrastive(task, depth),
        deep=True,
    ),
    "ridge": Method(
        "Closed-form ridge",
        "W' = (W H_r + λ t m_fᵀ)(H_r + λ H_f)⁻¹ in the last layers, including the one that writes the logits.",
        "weight λ of the forget set",
        closed_form,
        deep=True,
    ),
    "subspace": Method(
        "Subspaces (Kodge et al. 2024)",
        "Projects every layer's input away from directions that occur in the forget set but not in the retain set.",
        "1/α: how little of the retain space is protected",
        lambda task, _, __: subspaces(task),
    ),
    "mask": Method(
        "Logit mask",
        "The trivial baseline: sets the logit of the class below every other. What the network knows of the class"
        " remains.",
        "none",
        lambda task, _, __: mask(task),
    ),
    "ascent": Method(
        "Gradient ascent",
        "Raises the loss on the forget set. A reference method that needs gradients.",
        "steps",
        lambda task, _, __: ascent(task),
        gradients=True,
    ),
    "finetune": Method(
        "Fine-tuning on the retain set",
        "Trains for up to 5 epochs on the retain set. A reference method that needs gradients and labels.",
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
    """A plan that makes the network forget classes. The method searches for the smallest strength of the edit that brings the
    accuracy on the forget set down to ``target``; the plan's ``curve`` records every strength tried.

    Args:
        study: the study of the network.
        forget: class names or indices.
        data: calibration images; judge the plan on others. Labels are used only to identify the forget classes.
        method: a name from `unlearning_methods`.
        target: forget accuracy that is low enough, in [0, 1), or ``chance``, one over the number of classes.
        depth: number of layers to edit, counted from the last; chosen by the method if None.
        towards: for ``ridge``, the output that a layer should have on the forget set: ``zero``, or the ``mean`` of its
            outputs on the retain set.
        predicted_labels: label the images by the network's own predictions; ``data`` then needs no labels.
        samples: maximum number of images of ``data`` to use.
        seed: seed of the draw of images and of the methods.
        model: the network; loaded if None.
        progress: see `modhifi.progress`.

    Raises:
        UserError: for unknown classes, none or all of them; data without labels; no image of the forget classes or none of the
            others; an unknown method, or one that does not support ``depth``; or a target that no strength reaches.
    """
    if not study.model.classes:
        raise UserError(f"{study.model.spec} has no classes to forget; prune it instead")
    if method not in _METHODS:
        raise UserError(f"unknown method {method!r}; choose one of {', '.join(_METHODS)}")
    chosen = _METHODS[method]
    if depth is not None and not chosen.deep:
        raise UserError(f"the method {method} has no depth; omit it")
    if depth is not None and depth < 1:
        raise UserError(f"depth, the number of layers to edit, must be at least 1, not {depth}")
    if towards not in ("zero", "mean"):
        raise UserError(f"towards must be zero or mean, not {towards!r}")
    low = 1 / len(study.model.classes) if isinstance(target, str) else target
    if target not in ("chance", low) or not 0 <= low < 1:
        raise UserError(f"target must be an accuracy from 0 to below 1, or chance, not {target}")
    net = model or reload(study.model)
    if net.fingerprint != study.model.fingerprint:
        raise UserError("the study was made for other weights than this model's; analyze the model again")
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
