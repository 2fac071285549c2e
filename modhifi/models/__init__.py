"""Models: specs, loading, the small networks of our own, checkpoints (contract: MODEL)."""

from ._load import DEFAULT_MODEL, TEXT_MODEL, architecture, list_models, load_model, shipped_folder
from ._offload import held, onloaded, place_of
from ._reload import reload
from ._types import InputSpec, Model, ModelRef, Step, TokenSpec, fingerprint
from .checkpoints import read_checkpoint
from .language import CausalLM

__all__ = [
    "CausalLM",
    "DEFAULT_MODEL",
    "InputSpec",
    "Model",
    "ModelRef",
    "Step",
    "TEXT_MODEL",
    "TokenSpec",
    "architecture",
    "fingerprint",
    "list_models",
    "load_model",
    "held",
    "onloaded",
    "place_of",
    "read_checkpoint",
    "reload",
    "shipped_folder",
]
