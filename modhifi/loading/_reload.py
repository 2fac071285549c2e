"""Loading the network that a study or a plan was made for."""

from pathlib import Path

from ..errors import UserError
from ..models import IN_MEMORY, Model, is_factory, located
from ..progress import Progress, silent
from ..specs import ModelRef, TokenSpec
from ._load import load_again, load_model

__all__ = ["reload"]


def reload(
    ref: ModelRef, weights: str | Path | None = None, *, device: str = "auto", progress: Progress = silent
) -> Model:
    """Loads the network that ``ref`` describes, from ``weights`` if its checkpoint has moved.

    Raises `UserError` if the checkpoint is missing, its weights differ from those that ``ref`` was made for, or the file of a
    factory is not the one on record.
    """
    if ref.spec.startswith(IN_MEMORY):
        raise UserError(
            f"{ref.spec.removeprefix(IN_MEMORY)} was wrapped in another program (modhifi.wrap); pass it as model=, or use"
            " FILE.py:FACTORY, which can be loaded again"
        )
    path = weights or ref.weights
    if path is not None and not located(path)[0].exists():
        raise UserError(f"the checkpoint {path} of {ref.spec} was not found; say where it is with --weights FILE")
    if is_factory(ref.spec):
        model = load_again(ref, path, device)
    else:
        context = ref.input.context if isinstance(ref.input, TokenSpec) else None
        model = load_model(ref.spec, path, classes=ref.classes, context=context, device=device, progress=progress)
    if model.fingerprint != ref.fingerprint:
        raise UserError(
            f"made for other weights: {ref.spec} with fingerprint {ref.fingerprint[:12]}, but"
            f" {path or 'the spec'} gives {model.fingerprint[:12]}; name the right checkpoint with --weights FILE"
        )
    model.input = ref.input
    return model
