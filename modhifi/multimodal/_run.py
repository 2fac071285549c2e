"""`Run`, a comparison of training methods: settings, training curves and measurements so far.

On disk a run is a folder with ``run.json`` and the weights of every trained network, ``METHOD-SEED.safetensors``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import UserError, first_fault
from ..files import FolderKind, read_json
from ._networks import Fusion, network

__all__ = [
    "BALANCING_METHODS",
    "Alone",
    "Epoch",
    "MeanSpread",
    "MethodName",
    "Outcome",
    "Run",
    "Settings",
    "methods_for",
]

SCHEMA = 1
FILE = "run.json"


def _listed(manifest: Any) -> list[str]:
    """The files of a run, of this or another schema; see `FolderKind`."""
    _ = manifest["schema_version"], manifest["settings"]
    return [f"{one['method']}-{one['seed']}.safetensors" for one in manifest["outcomes"]]


FOLDER = FolderKind("a run", FILE, _listed)
MethodName = Literal["joint", "agm", "ogm-ge", "mslr", "mses"]
BALANCING_METHODS: tuple[MethodName, ...] = get_args(MethodName)


def methods_for(fusion: Fusion) -> tuple[MethodName, ...]:
    """The methods that support this fusion: OGM-GE needs late fusion."""
    return tuple(name for name in BALANCING_METHODS if name != "ogm-ge" or fusion == "late")


# Of a sample; networks are built from the shapes in a file.
_Side = Annotated[int, Field(ge=1, le=4096)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(_Record):
    """What to train: ``seeds`` networks for each method and for each modality alone, with seeds from 0. Each seed also draws
    its own training pairs.
    """

    data: str = "digits"
    fusion: Fusion = "late"
    methods: tuple[MethodName, ...] = ("joint", "agm")
    seeds: int = Field(default=3, ge=1, le=100)
    epochs: int = Field(default=20, ge=1, le=10_000)
    pairs: int | None = Field(default=None, ge=2, le=1_000_000)
    """Number of training pairs; by default one per image."""
    degrade: dict[str, float] = Field(default_factory=dict)
    """Modality → share of its PCA energy to keep."""
    alpha: float = Field(default=1.0, ge=0)
    """Strength of AGM."""
    ogm_alpha: float = Field(default=0.5, ge=0)
    patience: int = Field(default=3, ge=1)
    """Patience of MSES, in epochs."""
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
        """Settings from keywords; raises `UserError` for a value out of range, no method, or OGM-GE without late fusion."""
        try:
            made = cls(**asked)
        except ValidationError as error:
            raise UserError(f"{first_fault(error)}, not {error.errors()[0]['input']!r:.40}") from error
        if not made.methods:
            raise UserError(f"name at least one method: {', '.join(BALANCING_METHODS)}")
        if "ogm-ge" in made.methods and made.fusion != "late":
            raise UserError(f"OGM-GE needs late fusion, not {made.fusion}; omit it or choose late")
        return made


class Epoch(_Record):
    """One training epoch: mean training loss, validation accuracy of the model and of each modality's own output φ_m
    (``mono``), and the mean coefficient of each modality.
    """

    loss: float
    accuracy: float
    mono: dict[str, float] = Field(default_factory=dict)
    coefficients: dict[str, float] = Field(default_factory=dict)


class Alone(_Record):
    """The mono-modal reference: a network trained on one modality by the same recipe."""

    modality: str
    seed: int
    history: list[Epoch]
    accuracy: float | None = None
    """Test accuracy; None during training."""


class Outcome(_Record):
    """The training with one method and one seed."""

    method: MethodName
    seed: int
    history: list[Epoch]
    accuracy: float | None = None
    """Test accuracy. It and the following fields are empty during training."""
    mono: dict[str, float] = Field(default_factory=dict)
    """Test accuracy of each modality's own output φ_m."""
    competition: dict[str, float] = Field(default_factory=dict)
    """Competition strength d_m of each modality; lower is better."""
    seconds: float | None = None


class MeanSpread(_Record):
    """Mean over seeds, and the sample standard deviation if there are at least two."""

    mean: float
    spread: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> MeanSpread:
        found = tuple(values)
        return cls(
            mean=statistics.fmean(found),
            spread=statistics.stdev(found) if len(found) > 1 else None,
            values=found,
        )


class Run(_Record):
    """A run without its weights. ``finished`` is False during training."""

    schema_version: int = SCHEMA
    settings: Settings
    about: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    shapes: dict[str, tuple[_Side, _Side, _Side]]
    samples: dict[str, int]
    """Number of pairs in each split."""
    rates: dict[str, float] = Field(default_factory=dict)
    """MSLR: modality → multiple of the common learning rate."""
    alone: list[Alone] = Field(default_factory=list)
    outcomes: list[Outcome] = Field(default_factory=list)
    finished: bool = False

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """A training that has an accuracy has all of its measurements."""
        names = set(self.modalities)
        if set(self.shapes) != names:
            raise ValueError("the shapes are not those of the modalities")
        for one in self._done():
            if set(one.mono) != names or set(one.competition) != names or one.seconds is None:
                raise ValueError(f"the measurements of {one.method} with seed {one.seed} are incomplete")
        return self

    def _done(self) -> list[Outcome]:
        """The finished trainings."""
        return [one for one in self.outcomes if one.accuracy is not None]

    def of(self, method: str) -> list[Outcome]:
        """The finished trainings with this method, in order of seeds."""
        return [one for one in self._done() if one.method == method]

    def reference(self, modality: str) -> MeanSpread | None:
        """Test accuracy of the mono-modal networks of a modality; None if none has finished."""
        found = [one.accuracy for one in self.alone if one.modality == modality and one.accuracy is not None]
        return MeanSpread.of(found) if found else None

    def summary(self) -> dict[str, dict[str, Any]]:
        """Method → ``accuracy``, ``mono`` and ``competition`` (both by modality) as `MeanSpread`, and mean ``seconds`` of
        training.
        """
        found: dict[str, dict[str, Any]] = {}
        for method in self.settings.methods:
            done = self.of(method)
            if done:
                found[method] = {
                    "accuracy": MeanSpread.of(_known(done, "accuracy")),
                    "mono": {name: MeanSpread.of(one.mono[name] for one in done) for name in self.modalities},
                    "competition": {
                        name: MeanSpread.of(one.competition[name] for one in done) for name in self.modalities
                    },
                    "seconds": statistics.fmean(_known(done, "seconds")),
                }
        return found

    @classmethod
    def load(cls, path: Path | str) -> Run:
        """Reads a run from its folder or run.json. Raises `UserError` if it is missing, damaged or of another schema."""
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        content = read_json(file, "a run")
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA:
            raise UserError(f"{file} has run schema {version}, but this version reads {SCHEMA}; train again")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"{file} is damaged: {first_fault(error)}; train again") from error

    def network(self, folder: Path | str, method: str, seed: int) -> nn.Module:
        """The network trained with ``method`` and ``seed``, read from ``folder``, in evaluation mode on the CPU. Raises
        `UserError` if its file is missing or damaged.
        """
        path = Path(folder) / f"{method}-{seed}.safetensors"
        if not path.is_file():
            raise UserError(
                f"no {path}; the methods are {', '.join(self.settings.methods)}, the seeds 0 to"
                f" {self.settings.seeds - 1}"
            )
        about = self.settings.fusion, self.shapes, len(self.classes), self.settings.batch_norm
        try:
            state = load_file(path)
            with torch.device("meta"):
                wanted = {name: value.shape for name, value in network(*about).state_dict().items()}
            # Compared before the network takes any memory: its shapes come from a file.
            if wanted != {name: value.shape for name, value in state.items()}:
                raise ValueError("other names or shapes")
            net = network(*about)
            net.load_state_dict(state)
        except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged or belongs to another network; train again") from error
        return net.eval()


def _known(done: Sequence[Outcome], name: str) -> list[float]:
    return [value for value in (getattr(one, name) for one in done) if value is not None]
