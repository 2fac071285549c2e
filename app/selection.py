"""What is selected, as small typed values. A page's address carries their names; results never travel in it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

import modhifi
from modhifi.errors import UserError
from modhifi.plan import Budget, Compensation, Constants, Spread
from modhifi.pruning import LANGUAGE_METHODS, METHODS, Method
from modhifi.unlearning import METHODS as FORGETTING

__all__ = [
    "DEFAULT",
    "Choice",
    "Forgetting",
    "Compensation",
    "LabelledData",
    "Source",
    "WORDS",
    "digest",
    "distinct",
    "stat_of",
]

_Value = TypeVar("_Value")

WORDS: Mapping[str, str] = {
    "none": "No compensation",
    "scalar": "Scalar",
    "full": "Full",
    "sequential": "Sequential",
    "greedy": "Greedy",
    "fidelity": "Singleton fidelity",
    "row-sum": "Row sum",
    "removal-cost": "Removal cost",
    "l1": "L1 norm",
    "l2": "L2 norm",
    "group-norm": "Group norm",
    "lamp": "LAMP",
    "random": "Random",
    "taylor": "Taylor (uses labels)",
    "hessian": "Hessian (uses labels)",
    "global": "Global",
    "uniform": "Uniform",
    "ranking": "Ranking",
    "width": "Equal widths",
    "cholesky": "Cholesky rows (published)",
    "flops": "FLOPs",
    "params": "Parameters",
    "latency": "Latency",
}
"""How the words of the library are written on a screen."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def digest(self) -> str:
        return digest(self.model_dump_json())


def distinct(
    values: Iterable[_Value], words: Callable[[_Value], str], tag: Callable[[_Value], str]
) -> dict[str, _Value]:
    """The values by their words, in order. Of several with the same words the last, which is the oldest, keeps them, so that an
    address that names it goes on doing so; the tag is added to the others'.
    """
    listed, seen = list(values), Counter[str]()
    named: list[tuple[str, _Value]] = []
    for value in reversed(listed):
        said = words(value)
        named.append((said if not seen[said] else f"{said} ({tag(value)})", value))
        seen[said] += 1
    return dict(reversed(named))


def stat_of(path: str) -> os.stat_result | None:
    """Of what a person has typed; None if nothing is there, or nothing that may be looked at."""
    try:
        return Path(path).expanduser().stat()
    except (OSError, RuntimeError, ValueError):  # no such user, a name that is too long, a zero byte
        return None


def digest(value: object) -> str:
    """A short name for a value that prints itself exactly; the same on every machine and in every run."""
    return hashlib.sha256(str(value).encode()).hexdigest()[:8]


@lru_cache(maxsize=1)
def _code() -> str:
    """Names the version of the package by its text, so that a study made by other code is made anew."""
    files = sorted(Path(modhifi.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class LabelledData(_Frozen):
    """Labelled images to measure on."""

    data: str = "digits"
    root: str | None = None
    split: str | None = "test"
    samples: int | None = Field(default=None, ge=1)

    def named(self, label: str, usual: LabelledData) -> str:
        """``label``, with where it was measured if that is not as ``usual``."""
        if self == usual:
            return label
        parts = [Path(self.data).name, *([f"in {Path(self.root).name}"] if self.root else []), self.split or ""]
        return f"{label} · on {' '.join(part for part in parts if part)}"


class Source(_Frozen):
    """A network and the unlabelled images that it is analysed with: all that a study depends on."""

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
            raise ValueError("must be named")
        return value.strip()

    @property
    def lane(self) -> str:
        """Jobs on one network take turns."""
        read_as = (self.mean, self.std, self.classes)
        return f"{self.model} {self.weights or ''} {digest(read_as) if any(read_as) else ''}".strip()

    @property
    def stamp(self) -> str:
        """Size and time of change of what was named by its path: another one for a file that was overwritten."""
        found = [stat_of(path) for path in (self.weights, self.model) if path]
        return "".join(f"{one.st_size} {one.st_mtime_ns} " for one in found if one is not None)

    @property
    def id(self) -> str:
        """The name of its study in the cache and in the address.

        Depends on the choice, on the package's own code, and on size and time of change of a checkpoint that was
        named, so that a file that was overwritten is not answered for by the study of its predecessor.
        """
        text = f"{self.model_dump_json()} {_code()} {self.stamp}"
        readable = re.sub(r"[^a-z0-9]+", "-", Path(self.model).name.lower()).strip("-")[:32]
        return f"{readable}-{self.samples}-{digest(text)}"

    @property
    def label(self) -> str:
        where = Path(self.root).name if self.root else ""
        data = Path(self.data).name if where in ("", self.data) else f"{Path(self.data).name} in {where}"
        weights = f" ({Path(self.weights).name})" if self.weights else ""
        seed = f", seed {self.seed}" if self.seed else ""
        return f"{Path(self.model).name}{weights} · {data}, {self.samples}{seed}"

    def checked(self) -> Source:
        """Itself, if the files it names are there; `UserError` otherwise, before a job is started for nothing."""
        weights = stat_of(self.weights) if self.weights else None
        if self.weights and (weights is None or stat.S_ISDIR(weights.st_mode)):
            raise UserError(f"no checkpoint at {self.weights}; give the path of a .safetensors, .pt, .pth or .th file")
        if self.root and stat_of(self.root) is None:
            raise UserError(f"no data at {self.root}; give the folder (or .parquet file) that holds the images")
        return self

    @property
    def labelled(self) -> LabelledData:
        """Where one looks for labels first: the same source, its test part."""
        return LabelledData(data=self.data, root=self.root)


DEFAULT = Source()
"""What a first visit shows."""


class Forgetting(_Frozen):
    """How to forget: the wish, before a plan is made of it."""

    classes: tuple[str, ...]
    method: str = "erase"
    target: float | Literal["chance"] = 0.0
    depth: int | None = Field(default=None, ge=1)
    towards: Literal["zero", "mean"] = "mean"
    predicted_labels: bool = False

    @property
    def label(self) -> str:
        how = [] if self.method == "erase" else [FORGETTING[self.method].title]
        how += [] if self.target == 0 else ["to chance" if self.target == "chance" else f"to {self.target:.0%}"]
        how += [] if self.depth is None else [f"last {self.depth} layers"]
        how += ["towards zero"] if self.method == "ridge" and self.towards == "zero" else []
        how += ["by predicted labels"] if self.predicted_labels else []
        return " · ".join([f"Without {', '.join(self.classes)}", *how])


class Choice(_Frozen):
    """How to prune: the wish, before a plan is made of it."""

    budget: Budget = "flops"
    remain: float = Field(default=0.5, gt=0, le=1)
    score: str = "greedy"
    allocation: Spread = "global"
    constants: Constants = "directional"
    compensate: Compensation = "sequential"
    recalibrate_bn: bool = False
    multiple: int = Field(default=1, ge=1)
    overrides: tuple[tuple[str, int], ...] = ()
    floors: tuple[tuple[str, int], ...] = ()
    method: str | None = None
    """The name in `modhifi.pruning.METHODS` where that one was asked for."""

    @classmethod
    def of(cls, method: Method, budget: Budget, remain: float) -> Choice:
        """The wish that a named method stands for."""
        return cls(
            budget=budget,
            remain=remain,
            score=method.score,
            allocation=method.allocation,
            compensate=method.compensate,
            recalibrate_bn=method.recalibrate_bn,
            method=method.name,
        )

    @property
    def level(self) -> Literal["none", "scalar", "full"]:
        """The level of compensation that the prediction is made with."""
        return "full" if self.compensate == "sequential" else self.compensate

    @property
    def arguments(self) -> dict[str, Any]:
        """As `modhifi.pruning.allocate` takes them."""
        return {
            self.budget: self.remain,
            "score": self.score,
            "allocation": self.allocation,
            "constants": self.constants,
            "compensate": self.compensate,
            "multiple": self.multiple,
            "overrides": dict(self.overrides),
            "floors": dict(self.floors),
        }

    @property
    def label(self) -> str:
        begin = f"{self.remain:.0%} {WORDS[self.budget]} · "
        if self.method is not None:
            return begin + (METHODS | LANGUAGE_METHODS)[self.method].title
        score = "" if self.score == "greedy" else f"{WORDS[self.score].lower()}, "
        weighed = "" if self.constants == "directional" else f" by {self.constants} constants"
        weighed = " without constants" if self.constants == "none" else weighed
        hand = f", {len(self.overrides)} by hand" if self.overrides else ""
        hand += f", {len(self.floors)} floors" if self.floors else ""
        widths = f", multiples of {self.multiple}" if self.multiple > 1 else ""
        bn = ", BN re-estimated" if self.recalibrate_bn else ""
        spread = f"{WORDS[self.allocation].lower()}{weighed}"
        return f"{begin}{score}{spread}, {WORDS[self.compensate].lower()}{bn}{widths}{hand}"
