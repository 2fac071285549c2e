"""From a spec to a loaded model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from ..devices import choose_device
from ..errors import UserError
from ..export import read_export
from ..files import check_regular
from ..models import (
    DEFAULT_MODEL,
    CausalLM,
    Model,
    families,
    family_of,
    fill,
    fingerprint,
    is_factory,
    located,
    make,
    read_checkpoint,
)
from ..models.language import FAMILIES, check_context, language_model
from ..progress import Progress, silent
from ..shipped import TEXT_MODEL, shipped_folder
from ..specs import InputSpec, ModelRef, TokenSpec
from ._wrap import as_model, checked, shapes_of, wrapped

__all__ = ["list_models", "load_again", "load_model"]

_LARGEST_NAMES = 16 << 20
_OTHER_FORMS = (
    (TEXT_MODEL, "a small Llama trained on the bytes of the King James Bible; ships with the project"),
    (
        "hf:NAME_OR_DIR",
        f"a causal language model from transformers ({', '.join(FAMILIES)}): a name on the hub or a folder",
    ),
    (
        "FILE.py:FACTORY",
        "a network of your own: a function in a file that returns a torch.nn.Module, or it and example inputs",
    ),
    ("package.module:FACTORY", "the same in a module that Python can import"),
    ("FOLDER", "a folder written by modhifi export"),
)


def list_models() -> list[tuple[str, str]]:
    """Every form of spec that `load_model` accepts, each with a description."""
    return [*((family.form, family.about) for family in families()), *_OTHER_FORMS]


# Tensors created in a caller's inference mode could not be traced later.
@torch.inference_mode(False)
def load_model(
    spec: str = DEFAULT_MODEL,
    weights: str | Path | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | str | Path | None = None,
    context: int | None = None,
    input: str | None = None,
    output: str | int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Model:
    """Loads a network in evaluation mode, without gradients, on ``device``.

    Args:
        spec: one of the forms in `list_models`.
        weights: a checkpoint to load into the network, ``.safetensors`` or ``.pt/.pth/.th/.ckpt/.bin``, or
            ``FILE#NAME`` for one of several in a file (see `modhifi.models.read_checkpoint`).
        mean: one number per channel of an input in [0, 1]; overrides the model's own, which is 0 for networks of one's own.
        std: likewise, positive; 1 for networks of one's own.
        classes: the class names in the order of the logits, or a file with one name per line; for networks of one's own ``none``
            or () if their outputs are no classes.
        input: for networks of one's own whose factory returns no example inputs: the shapes of one sample's inputs, such as
            ``3x224x224``, joined by commas.
        output: for networks of one's own: the answer among several outputs, see `modhifi.wrap`.
        context: for language models, tokens per sample; by default the model's maximum, but at most 1,024.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``...; for language models also ``map``, which leaves the placement of each
            layer to accelerate (transformers' ``device_map="auto"``).
        progress: called before and after loading; may raise `modhifi.errors.Cancelled`.

    Raises:
        UserError: for an unknown spec, a factory that does not give a network that can be used, a checkpoint that is missing,
            damaged or of another network, pretrained weights that cannot be downloaded, a wrong number of classes, or an
            unavailable device.
    """
    report = progress or silent
    name = _language(spec)
    if name is None and device == "map":
        raise UserError("only language models (hf:NAME_OR_DIR) can be spread over devices; choose one device")
    target = None if device == "map" else choose_device(device)
    report(0, 1, f"loading {spec}")
    path = None if weights is None else _named(weights)
    own = name is None and not _is_folder(spec) and family_of(spec) is None and is_factory(spec)
    if not own and (input is not None or output is not None):
        raise UserError(f"{spec} has an input and an output of its own; omit --input and --output")
    if own:
        assert target is not None
        if context is not None:
            raise UserError(f"{spec} takes no text; omit the context, which is for language models")
        model = _own(spec, path, target, input, output, classes, mean, std)
        report(1, 1, f"loading {spec}")
        return model
    if name is not None:
        if path is not None:
            raise UserError(f"{spec} comes with its own weights; omit the weights file")
        model = _language_model(spec, name, target, context)
    elif _is_folder(spec):
        if path is not None:
            raise UserError(f"{spec} is an exported model with its own weights; omit the weights file")
        assert target is not None
        model = read_export(Path(spec).expanduser(), target)
    else:
        assert target is not None
        model = _classifier(spec, path, target)
    if context is not None:
        if model.tokens is None:
            raise UserError(f"{spec} takes images; omit the context, which is for language models")
        assert isinstance(model.module, CausalLM)
        check_context(model.module.lm.config, context)
        model.input = model.tokens.model_copy(update={"context": context})
    if isinstance(model.input, InputSpec):
        model.input = _override_input(model.input, mean, std)
    elif mean is not None or std is not None:
        raise UserError(f"{spec} takes tokens; omit mean and std, which are for images")
    if classes is not None:
        model.classes = _override_classes(classes, len(model.classes))
    report(1, 1, f"loading {spec}")
    return model


def _language(spec: str) -> str | None:
    """What `language_model` loads for this spec: a name, or a folder that transformers alone opens; None for other specs."""
    if spec == TEXT_MODEL:
        return str(shipped_folder(TEXT_MODEL))
    folder = Path(spec.removeprefix("hf:")).expanduser()
    if (folder / "manifest.json").exists() and not spec.startswith("hf:"):
        return None
    return spec.removeprefix("hf:") if spec.startswith("hf:") and len(spec) > 3 else None


def _language_model(spec: str, name: str, target: torch.device | None, context: int | None) -> Model:
    folder = Path(name).expanduser()
    if (folder / "manifest.json").exists():
        # Exported by this project: it includes its plan, and its blocks may have different widths.
        return read_export(folder, target)
    # The shipped model is so small that computing at less than its training precision gains nothing.
    dtype = torch.float32 if spec == TEXT_MODEL else None
    module, given, tokenizer = language_model(name, target, context, dtype)
    return Model(
        spec=f"hf:{folder.resolve()}" if spec != TEXT_MODEL and folder.is_dir() else spec,
        module=module,
        input=given,
        classes=(),
        weights=None,
        fingerprint=fingerprint(module),
        tokenizer=tokenizer,
    )


def _own(
    spec: str,
    path: Path | None,
    device: torch.device,
    given: str | None,
    output: str | int | None,
    classes: Sequence[str] | str | Path | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Model:
    """A network that a person's own factory makes."""
    made = make(spec)
    checked(made.module, made.spec)
    if path is not None:
        fill(made.module, read_checkpoint(path), spec, path)
    examples = tuple(shapes_of(given)) if given is not None else made.examples
    if isinstance(classes, (str, Path)):
        classes = () if str(classes) == "none" else _names_in(Path(classes).expanduser())
    return wrapped(
        made.module.to(device),
        examples,
        made.spec,
        output=output,
        classes=classes,
        mean=mean,
        std=std,
        weights=None if path is None else str(path),
        source=made.source,
    )


def _named(weights: str | Path) -> Path:
    """Absolute, with the name of the state dict where there is one."""
    path, key = located(weights)
    path = path.resolve()
    return path if key is None else path.with_name(f"{path.name}#{key}")


def load_again(ref: ModelRef, path: str | Path | None, device: str) -> Model:
    """The network of one's own that ``ref`` describes, with weights from ``path``. Raises `UserError` if its file has changed."""
    if ref.source is None or isinstance(ref.input, TokenSpec):
        raise UserError(f"{ref.spec} is Python code, and nothing says which version of it; analyze the network again")
    made = make(ref.spec, ref.source)
    checked(made.module, ref.spec)
    where = None if path is None else _named(path)
    if where is not None:
        fill(made.module, read_checkpoint(where), ref.spec, where)
    net = made.module.to(choose_device(device))
    weights = None if where is None else str(where)
    return as_model(net, ref.input, ref.classes, ref.spec, weights=weights, source=made.source)


def _is_folder(spec: str) -> bool:
    return bool(spec) and family_of(spec) is None and ":" not in spec and Path(spec).expanduser().is_dir()


def _classifier(spec: str, weights: Path | None, device: torch.device) -> Model:
    """A network of one of the `families`, filled from the checkpoint if one is given."""
    family = family_of(spec)
    if family is None:
        forms = "; ".join(form for form, _ in list_models())
        raise UserError(f"unknown model {spec!r}; choose one of: {forms}")
    state = None if weights is None else read_checkpoint(weights)
    module, given, names = family.build(spec, state)
    if state is not None:
        assert weights is not None
        fill(module, state, spec, weights)
    module = module.eval().requires_grad_(False).to(device)
    return Model(
        spec=spec,
        module=module,
        input=given,
        classes=names,
        weights=None if weights is None else str(weights),
        fingerprint=fingerprint(module),
    )


def _override_input(given: InputSpec, mean: Sequence[float] | None, std: Sequence[float] | None) -> InputSpec:
    changes: dict[str, tuple[float, ...]] = {}
    for what, values in (("mean", mean), ("std", std)):
        if values is None:
            continue
        numbers, channels = tuple(values), given.shape[0]
        if len(numbers) != channels or not all(math.isfinite(number) for number in numbers):
            each = "three finite numbers, one per channel (R, G, B)" if channels == 3 else "one finite number"
            raise UserError(f"{what} must be {each}, not {numbers}")
        if what == "std" and min(numbers) <= 0:
            raise UserError(f"std must be positive, not {numbers}")
        changes[what] = numbers
    try:
        return InputSpec.model_validate(given.model_dump() | changes)
    except ValidationError as error:
        raise UserError(f"mean and std must be numbers: {error.errors()[0]['msg']}") from error


def _override_classes(classes: Sequence[str] | str | Path, count: int) -> tuple[str, ...]:
    if isinstance(classes, (str, Path)):
        path = Path(classes).expanduser()
        names, where = _names_in(path), f"{path} has"
    else:
        names, where = tuple(classes), "classes has"
        if not all(isinstance(name, str) and name.strip() for name in names):
            raise UserError("a class name is empty or not text; give every class a name")
    if len(names) != count:
        raise UserError(f"{where} {len(names)} names, but the network has {count} classes; give one name per class")
    if len({name.strip() for name in names}) != count:
        times = Counter(name.strip() for name in names)
        twice = next(name for name in times if times[name] > 1)
        raise UserError(f"{where} {twice!r} more than once; give every class its own name")
    return names


def _names_in(path: Path) -> tuple[str, ...]:
    check_regular(path, "the class names", _LARGEST_NAMES)
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the first name
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the class names in {path} cannot be read ({type(error).__name__}); give a UTF-8 file, one name per line"
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
