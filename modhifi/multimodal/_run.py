"""A finished (or half-finished) comparison of training methods: what was asked for, what happened, what was measured.

On disk it is a folder: ``run.json``, and the weights of every network that was trained, ``METHOD-SEED.safetensors``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .._files import read_json
from ..errors import UserError
from ._networks import Fusion, network

__all__ = ["METHODS", "Alone", "Epoch", "MethodName", "Outcome", "Run", "Settings", "Spread"]

SCHEMA = 1
FILE = "run.json"
MethodName = Literal["joint", "agm", "ogm-ge", "mslr", "mses"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(_Record):
    """What to train. ``seeds`` networks for each method and modality, from 0 on; each seed draws its own training pairs too."""

    data: str = "digits"
    fusion: Fusion = "late"
    methods: tuple[MethodName, ...] = ("joint", "agm")
    seeds: int = Field(default=3, ge=1, le=100)
    epochs: int = Field(default=20, ge=1, le=10_000)
    pairs: int | None = Field(default=None, ge=2, le=1_000_000)
    """Training pairs; as many as there are images if left out."""
    degrade: dict[str, float] = Field(default_factory=dict)
    """Modality → share of PCA energy that it keeps."""
    alpha: float = Field(default=1.0, ge=0)
    """Of AGM."""
    ogm_alpha: float = Field(default=0.5, ge=0)
    patience: int = Field(default=3, ge=1)
    """Of MSES, in epochs."""
    batch_norm: bool = False
    rate: float = Field(default=0.03, gt=0)
    batch: int = Field(default=32, ge=2)
    decay: float = Field(default=1e-4, ge=0)

    @field_validator("methods")
    @classmethod
    def _once(cls, methods: tuple[MethodName, ...]) -> tuple[MethodName, ...]:
        return tuple(dict.fromkeys(methods))

    @classmethod
    def of(cls, **asked: Any) -> Settings:
        """The same, but what is out of range is a `UserError`."""
        try:
            made = cls(**asked)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{first['loc'][0]}: {first['msg']}, not {first['input']!r}") from error
        if not made.methods:
            raise UserError(f"name at least one method: {', '.join(METHODS)}")
        if "ogm-ge" in made.methods and made.fusion != "late":
            raise UserError(f"OGM-GE is made for late fusion, not {made.fusion}; leave it out or choose late")
        return made


class Epoch(_Record):
    """One epoch of one training: mean training loss, then on validation data the accuracy of the model and of each modality's own
    output φ_m; and the mean coefficient of each modality.
    """

    loss: float
    accuracy: float
    mono: dict[str, float] = Field(default_factory=dict)
    coefficients: dict[str, float] = Field(default_factory=dict)


class Alone(_Record):
    """The mono-modal reference: a network of its own on one modality, by the same recipe."""

    modality: str
    seed: int
    history: list[Epoch]
    accuracy: float | None = None
    """On test data; None while it trains."""


class Outcome(_Record):
    """One method with one seed."""

    method: MethodName
    seed: int
    history: list[Epoch]
    accuracy: float | None = None
    """On test data; None, as is all that follows, while it trains."""
    mono: dict[str, float] = Field(default_factory=dict)
    """Accuracy on test data of each modality's own output φ_m."""
    competition: dict[str, float] = Field(default_factory=dict)
    """d_m of each modality."""
    seconds: float | None = None


class Spread(_Record):
    """Mean over seeds, and sample standard deviation where there are at least two."""

    mean: float
    spread: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = tuple(values)
        return cls(
            mean=statistics.fmean(found),
            spread=statistics.stdev(found) if len(found) > 1 else None,
            values=found,
        )


class Run(_Record):
    """Everything but the weights. ``finished`` is false of one that still trains."""

    schema_version: int = SCHEMA
    settings: Settings
    about: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    shapes: dict[str, tuple[int, int, int]]
    samples: dict[str, int]
    """Pairs in each split."""
    rates: dict[str, float] = Field(default_factory=dict)
    """Of MSLR: the multiple of the rate that each modality was given."""
    alone: list[Alone] = Field(default_factory=list)
    outcomes: list[Outcome] = Field(default_factory=list)
    finished: bool = False

    def of(self, method: str) -> list[Outcome]:
        """The finished trainings with this method, by seed."""
        return [one for one in self.outcomes if one.method == method and one.accuracy is not None]

    def reference(self, modality: str) -> Spread | None:
        """Test accuracy of the mono-modal networks; None while there is none."""
        found = [one.accuracy for one in self.alone if one.modality == modality and one.accuracy is not None]
        return Spread.of(found) if found else None

    def summary(self) -> dict[str, dict[str, Any]]:
        """Method → ``accuracy``, ``mono`` and ``competition`` by modality, as `Spread`, and mean ``seconds``."""
        found: dict[str, dict[str, Any]] = {}
        for method in self.settings.methods:
            done = self.of(method)
            if done:
                found[method] = {
                    "accuracy": Spread.of(_known(done, "accuracy")),
                    "mono": {name: Spread.of(one.mono[name] for one in done) for name in self.modalities},
                    "competition": {name: Spread.of(one.competition[name] for one in done) for name in self.modalities},
                    "seconds": statistics.fmean(_known(done, "seconds")),
                }
        return found

    @classmethod
    def load(cls, path: Path | str) -> Run:
        """Reads a run folder, or its run.json. Raises `UserError` if there is none, or it is damaged or of another version."""
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        content = read_json(file, "a run of multimodal train")
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA:
            raise UserError(f"{file} is no run of this version (schema {version}, not {SCHEMA}); train again")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise UserError(f"{file} is damaged at {where}; train again") from error

    def network(self, folder: Path | str, method: str, seed: int) -> nn.Module:
        """The network that ``method`` trained with ``seed``, from the run's folder, in evaluation mode on the CPU."""
        path = Path(folder) / f"{method}-{seed}.safetensors"
        if not path.is_file():
            raise UserError(
                f"no {path}; methods are {', '.join(self.settings.methods)}, seeds 0 to {self.settings.seeds - 1}"
            )
        net = network(self.settings.fusion, self.shapes, len(self.classes), self.settings.batch_norm)
        try:
            net.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{path} is damaged or of another network; train again") from error
        return net.eval()


def _known(done: Sequence[Outcome], name: str) -> list[float]:
    return [value for value in (getattr(one, name) for one in done) if value is not None]
