"""Models: the loaded network, the families that networks come from, and reading checkpoints."""

from ._adapted import adapt, answers_of, chosen, every_answer, in_own_form, is_packed
from ._factory import IN_MEMORY, is_factory, make, restrict_factories
from ._families import DEFAULT_MODEL, Family, architecture, families, family_of, register_family
from ._libraries import wordnet_ids
from ._model import Model, fingerprint
from ._offload import held, onloaded, place_of
from .checkpoints import MOST_CLASSES, fill, located, read_checkpoint
from .language import CausalLM

__all__ = [
    "IN_MEMORY",
    "DEFAULT_MODEL",
    "MOST_CLASSES",
    "CausalLM",
    "Family",
    "Model",
    "adapt",
    "answers_of",
    "architecture",
    "chosen",
    "every_answer",
    "families",
    "family_of",
    "fill",
    "fingerprint",
    "held",
    "in_own_form",
    "is_factory",
    "is_packed",
    "located",
    "make",
    "onloaded",
    "place_of",
    "read_checkpoint",
    "register_family",
    "restrict_factories",
    "wordnet_ids",
]
