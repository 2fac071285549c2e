"""Loading: from a spec to a model, including exported folders."""

from ..models import DEFAULT_MODEL
from ._load import list_models, load_model
from ._reload import reload
from ._wrap import wrap

__all__ = ["DEFAULT_MODEL", "list_models", "load_model", "reload", "wrap"]
