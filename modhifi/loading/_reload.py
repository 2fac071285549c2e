"""Loading the network that a study or a plan was made for."""

from pathlib import Path

from ..errors import UserError
from ..models import Model
from ..progress import Progress, silent
from ..specs import ModelRef, TokenSpec
from ._load import load_model

__all__ = ["reload"]


def reload(
    ref: ModelRef, weights: str | Path | None = None, *, device: str = "auto", progress: Progress = silent
) -> Model:
    """Loads the network that ``ref`` describes, from ``weights`` if its checkpoint has moved.

    Raises `UserError` if the checkpoint is missing, or its weights differ from those that ``ref`` was made for.
    """
    path = weights or ref.weights
    if path is not None and not Path(path).expanduser().exists():
        raise UserError(f"the checkpoint {path} of {ref.spec} was not found; say where it is with --weights FILE")
    context = ref.input.context if isinstance(ref.input, TokenSpec) else None
    model = load_model(ref.spec, path, classes=ref.classes, context=context, device=device, progress=progress)
    if model.fingerprint != ref.fingerprint:
        raise UserError(
            f"made for other weights: {ref.spec} with fingerprint {ref.fingerprint[:12]}, but"
            f" {path or 'the spec'} gives {model.fingerprint[:12]}; name the right checkpoint with --weights FILE"
        )
    model.input = ref.input
    return model
