"""Selections as small typed values. The address of a page carries their names, never results."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator

import modhifi
from modhifi.errors import UserError
from modhifi.pruning import Method, pruning_methods, score_named
from modhifi.specs import Budget, PruningSpec, Value
from modhifi.study import STUDY_SCHEMA
from modhifi.unlearning import unlearning_methods

from .offered import check_data, check_model

__all__ = [
    "DEFAULT",
    "Choice",
    "Forgetting",
    "LabelledData",
    "Source",
    "LABELS",
    "digest",
    "distinct",
    "stat_of",
]

_Value = TypeVar("_Value")

LABELS: Mapping[str, str] = {
    "none": "No compensation",
    "scalar": "Scalar",
    "full": "Full",
    "sequential": "Sequential",
    "global": "Global",
    "uniform": "Uniform",
    "ranking": "Ranking",
    "width": "Equal widths",
    "flops": "FLOPs",
    "params": "Parameters",
    "latency": "Latency",
}
"""Labels of the library's values in the dashboard."""


class _Selection(Value):
    @property
    def digest(self) -> str:
        return digest(self.model_dump_json())


def distinct(
    values: Iterable[_Value], label: Callable[[_Value], str], tag: Callable[[_Value], str]
) -> dict[str, _Value]:
    """The values by unique labels, in order. Of several with the same label the last (the oldest) keeps it, so that an
    address with that label remains valid; the others' labels get the tag.
    """
    listed, seen = list(values), Counter[str]()
    named: list[tuple[str, _Value]] = []
    for value in reversed(listed):
        text = label(value)
        named.append((text if not seen[text] else f"{text} ({tag(value)})", value))
        seen[text] += 1
    return dict(reversed(named))


def stat_of(path: str) -> os.stat_result | None:
    """Stat of a path that a user typed; None if it does not exist or cannot be accessed."""
    try:
        return Path(path).expanduser().stat()
    except (OSError, RuntimeError, ValueError):  # unknown user, overlong name, null byte
        return None


def digest(value: object) -> str:
    """A short hash of a value's string form, which must be exact; the same in every run."""
    return hashlib.sha256(str(value).encode()).hexdigest()[:8]


class LabelledData(_Selection):
    """Labelled images, or text, to measure on."""

    data: str = "digits"
    root: str | None = None
    split: str | None = "test"
    samples: int | None = Field(default=None, ge=1)

    def permitted(self) -> LabelledData:
        """Itself; `UserError` if it names files that this server does not offer (`app.offered`)."""
        check_data(self.data, self.root)
        return self

    def named(self, label: str, usual: LabelledData) -> str:
        """``label``, followed by the data unless they are the ``usual`` ones."""
        if self == usual:
            return label
        parts = [Path(self.data).name, *([f"in {Path(self.root).name}"] if self.root else []), self.split or ""]
        return f"{label} · on {' '.join(part for part in parts if part)}"


class Source(_Selection):
    """A network and the unlabelled samples it is analysed with: everything a study depends on."""

    model: str = "digits-resnet20"
    weights: str | None = None
    data: str = "digits"
    root: str | None = None
    split: str | None = None
    samples: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0)
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    classes: tuple[str, ...] | None = None

    @field_validator("model", "data", mode="after")
    @classmethod
    def _named(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value.strip()

    @property
    def lane(self) -> str:
        """Jobs in one lane, that is, on one network, run one at a time."""
        read_as = (self.mean, self.std, self.classes)
        return f"{self.model} {self.weights or ''} {digest(read_as) if any(read_as) else ''}".strip()

    @property
    def stamp(self) -> str:
        """Size and modification time of files named by path, so that an overwritten file gets a new stamp."""
        found = [stat_of(path) for path in (self.weights, self.model) if path]
        return "".join(f"{one.st_size} {one.st_mtime_ns} " for one in found if one is not None)

    @property
    def id(self) -> str:
        """The name of its study in the cache.

        Depends on the fields, the version of the study's format, and the stamp of the checkpoint, so that an
        overwritten checkpoint gets a study of its own.
        """
        text = f"{self.model_dump_json()} schema {STUDY_SCHEMA} {self.stamp}"
        readable = re.sub(r"[^a-z0-9]+", "-", Path(self.model).name.lower()).strip("-")[:32]
        return f"{readable}-{self.samples}-{digest(text)}"

    @property
    def label(self) -> str:
        where = Path(self.root).name if self.root else ""
        data = Path(self.data).name if where in ("", self.data) else f"{Path(self.data).name} in {where}"
        weights = f" ({Path(self.weights).name})" if self.weights else ""
        seed = f", seed {self.seed}" if self.seed else ""
        return f"{Path(self.model).name}{weights} · {data}, {self.samples}{seed}"

    def permitted(self) -> Source:
        """Itself; `UserError` if it names files that this server does not offer (`app.offered`)."""
        check_model(self.model, self.weights)
        check_data(self.data, self.root)
        return self

    def checked(self) -> Source:
        """Itself if the files it names are offered and exist; otherwise `UserError`, before a job is started in vain."""
        self.permitted()
        weights = stat_of(self.weights) if self.weights else None
        if self.weights and (weights is None or stat.S_ISDIR(weights.st_mode)):
            raise UserError(f"no checkpoint at {self.weights}; give the path of a .safetensors, .pt, .pth or .th file")
        if self.root and stat_of(self.root) is None:
            raise UserError(f"no data at {self.root}; give the path of a folder or a .parquet file with images")
        return self

    @property
    def labelled(self) -> LabelledData:
        """The default test data: the test split of the same source."""
        return LabelledData(data=self.data, root=self.root)


DEFAULT = Source()
"""The study that a first visit shows."""


class Forgetting(_Selection):
    """A request to forget classes, from which a plan is made."""

    classes: tuple[str, ...]
    method: str = "erase"
    target: float | Literal["chance"] = 0.0
    depth: int | None = Field(default=None, ge=1)
    towards: Literal["zero", "mean"] = "mean"
    predicted_labels: bool = False

    @property
    def label(self) -> str:
        how = [] if self.method == "erase" else [unlearning_methods()[self.method].title]
        how += [] if self.target == 0 else ["to chance" if self.target == "chance" else f"to {self.target:.0%}"]
        how += [] if self.depth is None else [f"last {self.depth} layers"]
        how += ["towards zero"] if self.method == "ridge" and self.towards == "zero" else []
        how += ["by predicted labels"] if self.predicted_labels else []
        return " · ".join([f"Without {', '.join(self.classes)}", *how])


class Choice(_Selection):
    """A request to prune, from which a plan is made."""

    spec: PruningSpec = Field(default_factory=lambda: PruningSpec.of(flops=0.5))
    method: str | None = None
    """The name of the requested `modhifi.pruning.Method`, if any."""

    @classmethod
    def of(cls, method: Method, study: modhifi.Study, budget: Budget, remain: float) -> Choice:
        """The request of a named method at this budget."""
        return cls(spec=method.for_budget(study, budget, remain), method=method.name)

    @property
    def remain(self) -> float:
        """The fraction of the budget to keep."""
        return 1.0 if self.spec.remain is None else self.spec.remain

    @property
    def label(self) -> str:
        spec = self.spec
        begin = f"{self.remain:.0%} {LABELS[spec.budget]} · "
        if self.method is not None:
            return begin + (pruning_methods() | pruning_methods(language=True))[self.method].title
        score = "" if spec.score == "greedy" else f"{score_named(spec.score).title.lower()}, "
        weighted = "" if spec.constants == "directional" else f" by {spec.constants} constants"
        weighted = " without constants" if spec.constants == "none" else weighted
        hand = f", {len(spec.overrides)} set manually" if spec.overrides else ""
        hand += f", {len(spec.floors)} with a minimum" if spec.floors else ""
        widths = f", multiples of {spec.multiple}" if spec.multiple > 1 else ""
        bn = ", BN re-estimated" if spec.recalibrate_bn else ""
        allocation = f"{LABELS[spec.allocation or 'global'].lower()}{weighted}"
        return f"{begin}{score}{allocation}, {LABELS[spec.compensate].lower()}{bn}{widths}{hand}"
