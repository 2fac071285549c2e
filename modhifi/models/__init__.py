"""Models: the loaded network, the families that networks come from, and reading checkpoints."""

from ._families import DEFAULT_MODEL, Family, architecture, families, family_of, register_family
from ._model import Model, fingerprint
from ._offload import held, onloaded, place_of
from .checkpoints import MOST_CLASSES, fill, read_checkpoint
from .language import CausalLM

__all__ = [
    "DEFAULT_MODEL",
    "MOST_CLASSES",
    "CausalLM",
    "Family",
    "Model",
    "architecture",
    "families",
    "family_of",
    "fill",
    "fingerprint",
    "held",
    "onloaded",
    "place_of",
    "read_checkpoint",
    "register_family",
]
