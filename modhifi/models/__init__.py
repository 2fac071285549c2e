"""Models: specs, loading, the small networks of our own, checkpoints (contract: MODEL)."""

from ._types import InputSpec, Model, ModelRef, fingerprint

__all__ = ["InputSpec", "Model", "ModelRef", "fingerprint"]
