"""Models: specs, loading, the small networks of our own, checkpoints (contract: MODEL)."""

from ._load import DEFAULT_MODEL, architecture, list_models, load_model
from ._reload import reload
from ._types import InputSpec, Model, ModelRef, Step, fingerprint
from .checkpoints import read_checkpoint

__all__ = [
    "DEFAULT_MODEL",
    "InputSpec",
    "Model",
    "ModelRef",
    "Step",
    "architecture",
    "fingerprint",
    "list_models",
    "load_model",
    "read_checkpoint",
    "reload",
]
