"""The small frozen values that travel between rooms: what an input is, which model, which data, what pruning should aim for.

Nothing here computes. Every other room may import this one, and it imports none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict, Unpack, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from .errors import UserError

__all__ = [
    "BUDGETS",
    "AllocationRule",
    "Budget",
    "Compensation",
    "DataRef",
    "InputSpec",
    "Level",
    "ModelRef",
    "PruningFields",
    "PruningSpec",
    "Step",
    "TensorFile",
    "TokenSpec",
    "Value",
]

Budget = Literal["flops", "params", "latency"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
Compensation = Literal["none", "scalar", "full", "sequential"]
Level = Literal["none", "scalar", "full"]
"""The compensation levels whose errors follow from a study alone."""
AllocationRule = Literal["global", "uniform", "ranking", "width"]


class Value(BaseModel):
    """A frozen pydantic model that accepts no unknown field, and only finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)


_Pixels = Annotated[int, Field(ge=1, le=16_384)]
# Of inputs in [0, 1]; a thousand leaves room for networks that take pixels of 0 to 255.
_Mean = Annotated[float, Field(ge=-1000, le=1000)]
_Std = Annotated[float, Field(ge=1e-6, le=1e6)]


class InputSpec(Value):
    """How an image becomes the network's input: RGB, resized so that the shorter side is ``size / crop``, centre-cropped,
    scaled to [0, 1], then ``(x - mean) / std`` per channel.
    """

    size: tuple[_Pixels, _Pixels] = Field(description="height, width in pixels")
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    interpolation: str = Field(default="bilinear", pattern="^(nearest|bilinear|bicubic)$")
    crop: float = Field(default=1.0, gt=0, le=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        return (3, *self.size)

    def example(self, batch: int = 1) -> Tensor:
        """A fixed input of standard normal noise, (batch, 3, H, W) float32 on the CPU."""
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))


class TokenSpec(Value):
    """The input of a language model: windows of ``context`` tokens, each an integer below ``vocabulary``."""

    context: int = Field(ge=2, le=1 << 24, description="tokens per sample")
    vocabulary: int = Field(ge=2, le=1 << 28)
    head_counts: tuple[int, ...] = Field(
        min_length=1,
        description="numbers of key-value heads that the configuration can express for all blocks, ascending",
    )

    @property
    def at_once(self) -> int:
        """Windows per forward pass: as many as hold 8,192 tokens."""
        return max(1, 8192 // self.context)

    @property
    def shape(self) -> tuple[int]:
        """(tokens,) of one sample."""
        return (self.context,)

    def example(self, batch: int = 1) -> Tensor:
        """A fixed input of random tokens, (batch, T) int64 on the CPU."""
        return torch.randint(self.vocabulary, (batch, self.context), generator=torch.Generator().manual_seed(0))


class ModelRef(Value):
    """Everything needed to load the same network again, and to notice if its weights differ."""

    spec: str
    weights: str | None = Field(description="absolute path of the checkpoint, None for weights that come with the spec")
    fingerprint: str = Field(description="sha256 of the weights, see modhifi.models.fingerprint")
    input: InputSpec | TokenSpec
    classes: tuple[str, ...]


class DataRef(Value):
    """Enough to open the same samples again, and to notice if they differ."""

    spec: str
    root: str | None
    split: str
    samples: int
    seed: int
    fingerprint: str


class TensorFile(Value):
    """A file of tensors beside the JSON that names it."""

    file: str
    sha256: str


class Step(Value):
    """One change of shape: the components kept in each group, and the layers that gained a bias."""

    keep: dict[str, tuple[int, ...]]
    added_biases: tuple[str, ...] = ()


class PruningFields(TypedDict, total=False):
    """The keywords from which `PruningSpec.of` makes a `PruningSpec`."""

    flops: float | None
    params: float | None
    latency: float | None
    score: str
    allocation: AllocationRule | None
    constants: str
    compensate: Compensation
    centred: bool | None
    drift: bool
    rectified: bool
    recalibrate_bn: bool
    multiple: int
    overrides: Mapping[str, int] | None
    floors: Mapping[str, int] | None


class PruningSpec(Value):
    """What a pruned network should look like, before anything is decided: one value for the library, the command line and the
    dashboard.
    """

    budget: Budget | Literal["manual", "none"] = Field(
        default="manual", description="what is budgeted; manual: only the overrides are removed"
    )
    remain: float | None = Field(default=None, description="the fraction of the budget to keep, in (0, 1]")
    score: str = Field(
        default="greedy", description="ranks the components within a group, see modhifi.pruning.scores()"
    )
    allocation: AllocationRule | None = Field(
        default=None, description="how the budget is allocated across groups; None for the network's default"
    )
    constants: str = Field(
        default="directional", description="the Lipschitz constants that weight layers in global allocation, or none"
    )
    compensate: Compensation = Field(default="sequential", description="how the remaining weights compensate")
    centred: bool | None = Field(
        default=None, description="whether the lost mean is restored by a bias; None for the study's default"
    )
    drift: bool = Field(default=True, description="sequential: also correct the drift of residual streams")
    rectified: bool = Field(
        default=True, description="sequential: outputs that a ReLU cuts off need only stay below its threshold"
    )
    recalibrate_bn: bool = Field(default=False, description="re-estimate BatchNorm statistics afterwards")
    multiple: int = Field(default=1, ge=1, description="pruned groups keep a multiple of this many channels")
    overrides: dict[str, int] = Field(default_factory=dict, description="group -> components kept, set by hand")
    floors: dict[str, int] = Field(default_factory=dict, description="group -> minimum number of components kept")

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @classmethod
    def of(cls, **asked: Unpack[PruningFields]) -> PruningSpec:
        """From keywords; at most one of ``flops``, ``params`` and ``latency`` gives the fraction to keep.

        Raises `UserError` for two budgets, a fraction outside (0, 1], or a value that a field does not accept.
        """
        fields: dict[str, Any] = dict(asked)
        fractions = {budget: fields.pop(budget, None) for budget in BUDGETS}
        budgets = {budget: fraction for budget, fraction in fractions.items() if fraction is not None}
        if len(budgets) > 1:
            raise UserError(f"set one budget, not {len(budgets)}: {' and '.join(budgets)}")
        for budget, fraction in budgets.items():
            if not (math.isfinite(fraction) and 0 < fraction <= 1):
                raise UserError(f"{budget} is the fraction to keep, above 0 and at most 1, not {fraction}")
            fields |= {"budget": budget, "remain": float(fraction)}
        for name in ("overrides", "floors"):
            fields[name] = dict(fields.get(name) or {})
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name, given = ".".join(map(str, first["loc"])), first["input"]
            if first["type"] == "literal_error":
                what = "compensation" if name == "compensate" else name
                raise UserError(f"unknown {what} {given!r}; choose from {first['ctx']['expected']}") from error
            raise UserError(f"{name}: {first['msg']}, not {given!r}") from error

    @property
    def level(self) -> Level:
        """The compensation level whose errors the study can predict: sequential compensation is predicted as full."""
        return "full" if self.compensate == "sequential" else self.compensate

    def changed(self, **fields: Any) -> PruningSpec:
        """A copy with these fields replaced, validated again."""
        return type(self).model_validate(self.model_dump() | fields)
