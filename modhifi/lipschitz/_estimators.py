"""The estimators of a layer's Lipschitz constant by name, each with the kind of bound that it gives.

To add an estimator, write a module that calls `register_estimator` and import it in this package's ``__init__``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from ..layers import Edit
from ..progress import Progress
from ..registry import Registry
from ._certified import Upper, certified
from ._finite import directional, moved_by, pairs, random
from ._gains import Gains
from ._jacobian import jacobian

__all__ = ["Estimator", "Sample", "estimators", "register_estimator"]


@dataclass
class Sample:
    """What an estimator may use. ``edits``: for each layer, half of what it reads removed and the rest compensated. ``wanted``:
    the names of all requested estimators. ``arrivals``: what reached the output, which one estimator may leave for a later one.
    """

    net: nn.Module
    layers: Sequence[str]
    inputs: Tensor
    edits: Mapping[str, Edit]
    seed: int
    wanted: Sequence[str]
    arrivals: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Estimator:
    """``estimate`` returns the gains seen at each layer (``claim`` is ``lower``) or upper bounds (``upper``); ``says``
    describes in a sentence what its numbers certify.
    """

    name: str
    title: str
    claim: Literal["lower", "upper"]
    says: str
    estimate: Callable[[Sample, Progress], Mapping[str, Gains] | Mapping[str, Upper]]
    language: bool = False
    """Whether it works for language models."""

    @property
    def heading(self) -> str:
        """The title with a capital letter, to begin a sentence."""
        return self.title[:1].upper() + self.title[1:]


_ESTIMATORS: Registry[Estimator] = Registry("estimator")


def register_estimator(estimator: Estimator) -> Estimator:
    """Registers ``estimator`` under its name. Estimators run in the order in which they were registered. Raises ValueError if
    the name is taken, or for a second estimator of upper bounds.
    """
    if estimator.claim == "upper" and any(known.claim == "upper" for known in _ESTIMATORS.values()):
        raise ValueError("a study holds one set of upper bounds, and an estimator for them is already registered")
    return _ESTIMATORS.register(estimator.name, estimator)


def estimators(*, language: bool = False) -> dict[str, Estimator]:
    """All registered estimators by name; with ``language``, only those that work for language models. Constants seen on samples
    are lower bounds of the true constant, and their root-mean-square and quantile hold for these samples only.
    """
    return {name: one for name, one in _ESTIMATORS.items() if one.language or not language}


def _directional(sample: Sample, progress: Progress) -> Mapping[str, Gains]:
    if "jacobian" not in sample.wanted:
        return directional(sample.net, sample.edits, sample.inputs, progress=progress)
    # The Jacobian's power iteration starts from what these errors become at the output.
    gains, sample.arrivals = moved_by(sample.net, sample.edits, sample.inputs, progress=progress)
    return gains


def _jacobian(sample: Sample, progress: Progress) -> Mapping[str, Gains]:
    start = sample.arrivals
    return jacobian(
        sample.net, sample.layers, sample.inputs, start=start, rounds=2 if start is None else 1, progress=progress
    )


def _lower(
    name: str, title: str, how: str, estimate: Callable[[Sample, Progress], Mapping[str, Gains]], **more: bool
) -> None:
    says = f"Lower bound: {how}; other samples can show larger values."
    register_estimator(Estimator(name, title, "lower", says, estimate, **more))


_lower(
    "directional", "directional", "the largest gain seen for the error of an actual edit", _directional, language=True
)
_lower("jacobian", "Jacobian", "the largest operator norm of the Jacobian found on the samples", _jacobian)
_lower(
    "random",
    "random",
    "the largest gain seen for errors in random directions",
    lambda s, progress: random(s.net, s.layers, s.inputs, seed=s.seed, progress=progress),
    language=True,
)
_lower(
    "pairs",
    "pairs",
    "the largest gain seen when one sample's activation replaces another's",
    lambda s, progress: pairs(s.net, s.layers, s.inputs, progress=progress),
    language=True,
)
register_estimator(
    Estimator(
        "certified",
        "operator norms",
        "upper",
        "Upper bound: products of operator norms along every path to the logits, summed where paths meet.",
        lambda s, progress: certified(s.net, s.layers, s.inputs, progress=progress),
    )
)
