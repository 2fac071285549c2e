"""A loaded network, with what is needed to feed it and to read its outputs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..plan import Plan
from ..specs import ArraySpec, InputSpec, ModelRef, Step, TokenSpec
from ._offload import place_of, whole

__all__ = ["Model", "fingerprint"]


@dataclass
class Model:
    """``module`` is a plain `torch.nn.Module` in evaluation mode that maps (B, C, H, W) float32 to (B, classes) logits. If its
    weights have another dtype, it gets a hook that casts its input to theirs; its logits then have that dtype. A language model
    (`modhifi.models.CausalLM`) maps (B, T) int64 tokens to (B, T, vocabulary) logits and has no classes. A network of one's own
    with an `ArraySpec` works in its own form, and for the library also in that of `modhifi.models.adapt`; it has classes if its
    answer is one logit for each of them.
    """

    spec: str
    module: nn.Module
    input: InputSpec | TokenSpec | ArraySpec
    classes: tuple[str, ...]
    weights: str | None
    fingerprint: str
    plan: Plan | None = None
    """The plan that produced this network; None for a network as loaded."""
    architecture: str = ""
    """The spec whose untrained network has this one's shape before ``steps``; ``spec`` itself except for exported folders."""
    steps: tuple[Step, ...] = ()
    """How the shape differs from the architecture's, in order: one step per plan."""
    derived: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Values that other packages derive from ``module`` and cache here, by key; valid as long as its shape does not change."""
    tokenizer: Any = None
    """The transformers tokenizer of a language model; None if it has none."""
    source: str | None = None
    """sha256 of the Python file whose factory made the network; None for others."""

    def __post_init__(self) -> None:
        self.architecture = self.architecture or self.spec
        dtype = next((value.dtype for value in self.module.parameters()), torch.float32)
        hooked = _cast_input in self.module._forward_pre_hooks.values()
        if isinstance(self.input, InputSpec) and dtype != torch.float32 and not hooked:
            self.module.register_forward_pre_hook(_cast_input)

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
            source=self.source,
        )

    @property
    def tokens(self) -> TokenSpec | None:
        """The input of a language model; None for other networks."""
        return self.input if isinstance(self.input, TokenSpec) else None

    def example(self, batch: int = 1) -> Tensor:
        """A fixed random input on the model's device, for tracing and timing; see the ``example`` of `input`."""
        return self.input.example(batch).to(self.device)


def _cast_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)


def fingerprint(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of the state dict, sorted by name; the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = whole(module, name, tensor).detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
