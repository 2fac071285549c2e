"""A loaded network with what must be known to feed it and to read its answers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ._offload import place_of, whole

if TYPE_CHECKING:
    from ..components import Structure
    from ..plan import Plan

__all__ = ["InputSpec", "Model", "ModelRef", "Step", "TokenSpec", "fingerprint"]


class InputSpec(BaseModel):
    """How an image becomes the network's input: RGB, resized so that the shorter side is ``size / crop``, centre-cropped,
    scaled to [0, 1], then ``(x - mean) / std`` per channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[int, int] = Field(description="height, width in pixels")
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = Field(default="bilinear", pattern="^(nearest|bilinear|bicubic)$")
    crop: float = Field(default=1.0, gt=0, le=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one sample."""
        return (3, *self.size)

    def example(self, batch: int = 1) -> Tensor:
        """A fixed input of standard normal noise, (batch, 3, H, W) float32 on the CPU."""
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))


class TokenSpec(BaseModel):
    """What a language model takes: windows of ``context`` tokens, numbers below ``vocabulary``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context: int = Field(ge=2, description="tokens of one sample")
    vocabulary: int = Field(ge=2)
    head_counts: tuple[int, ...] = Field(
        min_length=1,
        description="numbers of key-value heads that its configuration can give all blocks, ascending",
    )

    @property
    def at_once(self) -> int:
        """Windows in one forward pass: as many as have 8,192 tokens."""
        return max(1, 8192 // self.context)

    @property
    def shape(self) -> tuple[int]:
        """(tokens,) of one sample."""
        return (self.context,)

    def example(self, batch: int = 1) -> Tensor:
        """A fixed input of random tokens, (batch, T) int64 on the CPU."""
        return torch.randint(self.vocabulary, (batch, self.context), generator=torch.Generator().manual_seed(0))


class ModelRef(BaseModel):
    """Everything needed to load the same network again, and to notice if it is another one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: str
    weights: str | None = Field(description="absolute path of the checkpoint, None for weights that come with the spec")
    fingerprint: str = Field(description="sha256 of the weights, see modhifi.models.fingerprint")
    input: InputSpec | TokenSpec
    classes: tuple[str, ...]


class Step(BaseModel):
    """One change of shape: for each group the components that stay, and the layers that got a bias."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keep: dict[str, tuple[int, ...]]
    added_biases: tuple[str, ...] = ()


@dataclass
class Model:
    """``module`` is a plain `torch.nn.Module` in evaluation mode; it maps (B, 3, H, W) float32 to (B, classes) logits. A language
    model (`modhifi.models.CausalLM`) maps (B, T) int64 tokens to (B, T, vocabulary) logits and has no classes.
    """

    spec: str
    module: nn.Module
    input: InputSpec | TokenSpec
    classes: tuple[str, ...]
    weights: str | None
    fingerprint: str
    plan: Plan | None = None
    """The plan that made this network, None for one as it was loaded."""
    architecture: str = ""
    """The spec whose untrained network has this one's shape before ``steps``; ``spec`` itself unless it is an exported folder."""
    steps: tuple[Step, ...] = ()
    """How the shape differs from the architecture's, in order: one step a plan."""
    structures: dict[tuple[int, ...], Structure] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `modhifi.components.structure_of` found, by shape of the input; ``module`` is not to change its shape."""
    tokenizer: Any = None
    """A language model's, of transformers; None where it came without one."""

    def __post_init__(self) -> None:
        self.architecture = self.architecture or self.spec

    @property
    def device(self) -> torch.device:
        return place_of(self.module)

    @property
    def ref(self) -> ModelRef:
        return ModelRef(
            spec=self.spec,
            weights=self.weights,
            fingerprint=self.fingerprint,
            input=self.input,
            classes=self.classes,
        )

    @property
    def tokens(self) -> TokenSpec | None:
        """What a language model takes, None for a network that takes images."""
        return self.input if isinstance(self.input, TokenSpec) else None

    def example(self, batch: int = 1) -> Tensor:
        """A fixed random input on the model's device, for tracing and timing; see the example of its ``input``."""
        return self.input.example(batch).to(self.device)


def fingerprint(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of the state dict, in the order of the names; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = whole(module, name, tensor).detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
