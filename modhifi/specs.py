"""The small frozen values that travel between rooms: what an input is, which model, which data, what pruning should aim for.

Nothing here computes. Every other room may import this one, and it imports none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypedDict, Unpack, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from .errors import UserError

__all__ = [
    "BUDGETS",
    "AllocationRule",
    "ArraySpec",
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
    "TensorSpec",
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
    """How an image becomes the network's input: RGB, or grey if there is one mean, resized so that the shorter side is
    ``size / crop``, centre-cropped, scaled to [0, 1], then ``(x - mean) / std`` per channel.
    """

    size: tuple[_Pixels, _Pixels] = Field(description="height, width in pixels")
    mean: tuple[_Mean] | tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std] | tuple[_Std, _Std, _Std]
    interpolation: str = Field(default="bilinear", pattern="^(nearest|bilinear|bicubic)$")
    crop: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _per_channel(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} standard deviations")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        return (len(self.mean), *self.size)

    def example(self, batch: int = 1) -> Tensor:
        """A fixed input of standard normal noise, (batch, C, H, W) float32 on the CPU."""
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


_FLOATS = ("float16", "bfloat16", "float32", "float64")
# Values of these would be rounded in single precision.
_WIDE = ("int32", "int64", "float64")


class TensorSpec(Value):
    """One input of a network: the shape of one sample, and what random samples are drawn from: a normal distribution with
    ``mean`` and ``std``, or whole numbers from ``low`` to ``high``.
    """

    name: str = Field(min_length=1, description="of the parameter of forward")
    keyword: bool = Field(default=False, description="whether forward takes it by name")
    shape: tuple[Annotated[int, Field(ge=1, le=1 << 28)], ...] = Field(max_length=4)
    dtype: Literal["float16", "bfloat16", "float32", "float64", "bool", "uint8", "int8", "int16", "int32", "int64"]
    mean: float = 0.0
    std: float = Field(default=1.0, ge=0)
    low: int = Field(default=0, ge=-(1 << 53), le=1 << 53)
    high: int = Field(default=0, ge=-(1 << 53), le=1 << 53)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.low > self.high or math.prod(self.shape) > 1 << 28:
            raise ValueError("low must not exceed high, and a sample must not have more than 2²⁸ values")
        return self

    @property
    def floating(self) -> bool:
        return self.dtype in _FLOATS

    def draw(self, generator: torch.Generator) -> Tensor:
        """One random sample of ``shape``, float64."""
        if self.floating:
            return torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.std + self.mean
        return torch.randint(self.low, self.high + 1, self.shape, generator=generator).double()


class ArraySpec(Value):
    """The inputs and the answer of a network in its own form. All inputs of one sample travel together, as one row of numbers:
    a batch is (B, D, 1, 1, 1, 1), a number of dimensions that no input of a network has, see `modhifi.models.adapted`.
    """

    inputs: tuple[TensorSpec, ...] = Field(min_length=1, max_length=64)
    output: str | None = Field(
        default=None, description="the path to the answer among several outputs, such as logits or 0"
    )
    form: Literal["classes", "map", "sequence", "values"] = Field(
        description="classes: (B, K); map: (B, K, …), classes in every place; sequence: (B, T, K); values: no classes"
    )
    rank: int = Field(ge=1, le=8, description="dimensions of the answer, with that of the batch")
    image: InputSpec | None = Field(default=None, description="how images become the one input; None if they cannot")

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, 1, 1, 1, 1): of one sample."""
        return (sum(math.prod(one.shape) for one in self.inputs), 1, 1, 1, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows: one that holds the values of every input."""
        return torch.float64 if any(one.dtype in _WIDE for one in self.inputs) else torch.float32

    def pack(self, values: Sequence[Tensor]) -> Tensor:
        """(B, D, 1, 1, 1, 1) from one tensor (B, …) for each input."""
        flat = torch.cat([value.reshape(len(value), -1).to(self.dtype) for value in values], 1)
        return flat[:, :, None, None, None, None]

    def unpack(self, rows: Tensor) -> list[Tensor]:
        """The inputs (B, …) in `pack`'s rows, in their own dtypes."""
        parts = rows.reshape(len(rows), -1).split([math.prod(one.shape) for one in self.inputs], 1)
        return [
            part.reshape(len(rows), *one.shape).to(getattr(torch, one.dtype))
            for part, one in zip(parts, self.inputs, strict=True)
        ]

    def draw(self, index: int) -> Tensor:
        """(1, D, 1, 1, 1, 1): random sample number ``index``, always the same."""
        generator = torch.Generator().manual_seed(index)
        return self.pack([one.draw(generator)[None] for one in self.inputs])

    def example(self, batch: int = 1) -> Tensor:
        """Fixed random inputs, (batch, D, 1, 1, 1, 1) on the CPU."""
        return torch.cat([self.draw(index) for index in range(batch)])


class ModelRef(Value):
    """Everything needed to load the same network again, and to notice if its weights differ."""

    spec: str
    weights: str | None = Field(description="absolute path of the checkpoint, None for weights that come with the spec")
    fingerprint: str = Field(description="sha256 of the weights, see modhifi.models.fingerprint")
    input: InputSpec | TokenSpec | ArraySpec
    classes: tuple[str, ...]
    source: str | None = Field(default=None, description="sha256 of the Python file whose factory made the network")


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
