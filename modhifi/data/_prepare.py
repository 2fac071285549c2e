"""Preparing data for one network: text is cut into windows, and images are generated if they depend on the network."""

from __future__ import annotations

from ..models import Model
from ..progress import Progress, silent
from ._arrays import without_inputs
from ._data import Data
from ._inversion import generate, generated_for, needs_generating
from ._text import windowed

__all__ = ["identify", "prepare"]


def identify(data: Data, model: Model | None) -> Data:
    """``data`` with the fingerprint that `prepare` would give it, without generating anything.

    Raises `UserError` if ``data`` needs a network and ``model`` is None.
    """
    return generated_for(data, model) if needs_generating(data) else windowed(data, model)


def prepare(data: Data, model: Model, progress: Progress = silent) -> Data:
    """``data`` in the form that ``model`` takes: text cut into windows of its context, ``inversion`` images generated for it;
    of arrays, labels that are one of its inputs removed; all other data unchanged.

    Raises `UserError` if data and network do not match, or images cannot be generated.
    """
    made = generate(data, model, progress) if needs_generating(data) else windowed(data, model)
    return without_inputs(made, model.input)
