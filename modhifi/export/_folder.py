"""The folder of a modified network: ``manifest.json`` (architecture and changes of shape), ``model.safetensors`` (weights),
``plan.json`` with its tensors and, on request, ``model.onnx`` and ``model.pt2``. No file is a pickle.

`read_export` needs nothing but this folder: it builds the architecture, repeats the changes of shape, and loads the weights.
``model.onnx`` and ``model.pt2`` run without this project. The architecture of a network of one's own is its factory, whose file
must still be the one that the manifest records.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..errors import UserError, first_fault
from ..files import FolderKind, atomic_folder, claim_folder, file_sha256, read_json
from ..models import (
    IN_MEMORY,
    CausalLM,
    Model,
    adapt,
    architecture,
    fill,
    fingerprint,
    is_factory,
    make,
    read_checkpoint,
)
from ..plan import Plan
from ..progress import Progress, silent
from ..specs import ArraySpec, InputSpec, Step, TokenSpec, Value
from ..surgery import restructure
from ._formats import formats as known_formats
from ._language import read_language, write_language

__all__ = ["claim_export", "export", "read_export"]

EXPORT_SCHEMA = 1
# The architecture in the manifest of a language model, whose configuration is a file of its own.
_LANGUAGE = "transformers"
_MANIFEST = "manifest.json"
# An input may be this many times as long as that of the architecture.
_TIMES = 4
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _listed(manifest: Any) -> list[str]:
    """The files of an export, of this or another schema; see `FolderKind`."""
    _ = manifest["schema_version"], manifest["architecture"], manifest["fingerprint"]
    return list(manifest["sha256"])


_FOLDER = FolderKind("an exported model", _MANIFEST, _listed)


class _Manifest(Value):
    schema_version: int
    architecture: str
    steps: list[Step]
    input: InputSpec | TokenSpec | ArraySpec
    classes: list[str]
    fingerprint: str
    source: str | None = None
    sha256: dict[str, str]
    bytes: dict[str, int]


def claim_export(out: str | Path) -> None:
    """Checks before long work that `export` can write to ``out``; raises `UserError` as `export` does."""
    claim_folder(Path(out), _FOLDER)


def export(
    model: Model, out: str | Path, formats: Sequence[str] = ("safetensors",), *, progress: Progress = silent
) -> Path:
    """Writes ``model`` and its plan to the folder ``out``, atomically.

    Args:
        model: the network, usually from `modhifi.apply`.
        out: a new or empty folder, or one written by an earlier export.
        formats: ``safetensors`` (always written, and the only format for language models), ``onnx``, ``pt2`` (`torch.export`).
            ONNX and pt2 files take batches of any size; each is run with batches of 1, 2 and 3, and its output must match the
            network's to 1e-4. A network of one's own has its own inputs there, and all tensors of its output.
            ONNX files compute in float32; weights in float16 or bfloat16 are widened, which changes none of them.
        progress: see `modhifi.progress`.

    Raises:
        UserError: for an unknown format, a folder that holds other files, or a network that the format cannot express.
    """
    known = known_formats()
    unknown = [name for name in formats if name not in known]
    if unknown or not formats:
        raise UserError(f"unknown format {', '.join(unknown) or 'none'!r}; choose from {', '.join(known)}")
    if isinstance(model.module, CausalLM):
        if set(formats) != {"safetensors"}:
            raise UserError("language models are written as safetensors only; omit the other formats")
        with atomic_folder(Path(out), _FOLDER) as folder:
            progress(0, 1, "writing safetensors")
            write_language(model, folder)
            _write_about(model, folder, _LANGUAGE)
            progress(1, 1, "written")
        return Path(out)
    net = copy.deepcopy(model.module).cpu().eval()
    with atomic_folder(Path(out), _FOLDER) as folder:
        wanted = ["safetensors", *dict.fromkeys(name for name in formats if name != "safetensors")]
        for done, name in enumerate(wanted):
            progress(done, len(wanted), f"writing {name}")
            known[name].write(net, model, folder / known[name].file)
        _write_about(model, folder, model.architecture)
        progress(len(wanted), len(wanted), "written")
    return Path(out)


def _write_about(model: Model, folder: Path, built_from: str) -> None:
    """Adds the plan and the manifest to the files in ``folder``."""
    if model.plan is not None:
        model.plan.save(folder / "plan.json")
    files = sorted(path for path in folder.iterdir())
    manifest = _Manifest(
        schema_version=EXPORT_SCHEMA,
        architecture=built_from,
        steps=list(model.steps),
        input=model.input,
        classes=list(model.classes),
        fingerprint=model.fingerprint,
        source=model.source,
        sha256={path.name: file_sha256(path) for path in files},
        bytes={path.name: path.stat().st_size for path in files},
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, allow_nan=False)
    (folder / _MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_export(folder: Path, device: torch.device | None) -> Model:
    """The network that `export` wrote to ``folder``, on ``device``; None spreads language models over devices, as in
    `language_model`. Raises `UserError` if the folder is missing or damaged.
    """
    path = folder / _MANIFEST
    if not path.exists():
        raise UserError(f"{folder} is not an exported model: it has no {_MANIFEST}; make one with modhifi export")
    raw = read_json(path, "an exported model's manifest")
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != EXPORT_SCHEMA:
        raise UserError(
            f"{folder} has export schema {version}, but this version reads {EXPORT_SCHEMA}; export it again"
        )
    try:
        manifest = _Manifest.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {first_fault(error)}; export it again") from error
    plan = folder / "plan.json"
    if manifest.architecture == _LANGUAGE:
        if not isinstance(manifest.input, TokenSpec):
            raise UserError(f"{path} is damaged: a language model takes tokens; export it again")
        module, tokenizer = read_language(folder, device)
        if fingerprint(module) != manifest.fingerprint:
            raise UserError(f"{folder} is damaged: it holds other weights than the manifest records; export it again")
        return Model(
            spec=f"hf:{folder.resolve()}",
            module=module,
            input=manifest.input,
            classes=(),
            weights=None,
            fingerprint=manifest.fingerprint,
            plan=Plan.load(plan) if plan.exists() else None,
            tokenizer=tokenizer,
        )
    if device is None:
        raise UserError(
            f"only language models can be spread over devices, and {folder} takes images; choose one device"
        )
    state = read_checkpoint(folder / "model.safetensors", plain=True)
    net = _built(manifest, state, path).eval()
    assert not isinstance(manifest.input, TokenSpec)
    example = manifest.input.example()
    try:
        for step in manifest.steps:
            restructure(net, example, step)
        _set_dtypes(net, state)
        fill(net, state, manifest.architecture, folder / "model.safetensors")
    except (RuntimeError, AttributeError, TypeError) as error:
        raise UserError(f"{folder} is damaged: its weights do not fit its manifest; export it again") from error
    if fingerprint(net) != manifest.fingerprint:
        raise UserError(
            f"{folder} is damaged: model.safetensors holds other weights than the manifest records; export it again"
        )
    return Model(
        spec=str(folder.resolve()),
        module=net.requires_grad_(False).to(device),
        input=manifest.input,
        classes=tuple(manifest.classes),
        weights=None,
        fingerprint=manifest.fingerprint,
        plan=Plan.load(plan) if plan.exists() else None,
        architecture=manifest.architecture,
        steps=tuple(manifest.steps),
        source=manifest.source,
    )


def _built(manifest: _Manifest, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The network of the manifest's architecture before its changes of shape."""
    given, spec = manifest.input, manifest.architecture
    if spec.startswith(IN_MEMORY):
        raise UserError(
            f"{path} was written for {spec.removeprefix(IN_MEMORY)}, wrapped in a program; apply plan.json to it there, or"
            " export it from FILE.py:FACTORY, which can be opened again"
        )
    if is_factory(spec) and manifest.source is not None:
        net = make(spec, manifest.source).module
        return adapt(net, given) if isinstance(given, ArraySpec) else net
    net, usual, classes = architecture(spec, state)
    # Tracing takes memory in proportion to the input, of whose size the weights know nothing.
    if not isinstance(given, InputSpec) or max(given.size) > _TIMES * max(*usual.size, 224):
        raise UserError(f"{path} is damaged: {spec} takes images of about {usual.size}; export it again")
    if len(manifest.classes) != len(classes):
        raise UserError(
            f"{path} is damaged: it names {len(manifest.classes)} classes, and the network has {len(classes)};"
            " export it again"
        )
    return net


def _set_dtypes(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives every weight of ``net`` the dtype that it has in ``state``, if networks compute in it."""
    for name, value in net.state_dict(keep_vars=True).items():
        if value.is_floating_point() and name in state and state[name].dtype in _DTYPES:
            value.data = value.data.to(state[name].dtype)
