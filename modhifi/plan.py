"""A plan: which components of a network to keep, the weights that compensate, and what was measured.

Plans are files that can be shared and applied again. On disk a plan is one JSON file. The new weights are stored beside it as
safetensors, in a file that is named after the plan and the sha256 of its content (``plan.1f0c….safetensors``) and named in the
JSON: it belongs to this plan alone, and replacing the JSON replaces the plan. `Plan.save` can also write both into one ``.zip``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from torch import Tensor

from .errors import UserError, first_fault
from .files import atomic_file, check_regular, claim_parent, file_sha256, locked, read_json
from .specs import AllocationRule, Budget, Compensation, DataRef, ModelRef, PruningSpec, TensorFile, Value

__all__ = ["PLAN_SCHEMA", "CurvePoint", "GroupPlan", "Plan", "Settings", "TensorFile"]

PLAN_SCHEMA = 3
_LARGEST = 8 << 30
# Hexadecimal digits of the sha256 in the name of a tensor file.
_DIGITS = 12


class GroupPlan(Value):
    """One coupled group of ``total`` components; ``keep`` lists the indices to keep, ascending, never empty."""

    total: int = Field(gt=0)
    keep: list[int] = Field(min_length=1)

    @model_validator(mode="after")
    def _within(self) -> Self:
        rising = all(a < b for a, b in itertools.pairwise(self.keep))
        if not rising or self.keep[0] < 0 or self.keep[-1] >= self.total:
            raise ValueError(f"the components to keep must ascend from 0 to below {self.total}")
        return self


class Settings(PruningSpec):
    """How the plan was made: the request with every default filled in, and the values chosen along the way."""

    budget: Budget | Literal["manual", "none"] = "none"
    allocation: AllocationRule = "global"
    centred: bool = True
    compensate: Compensation = "full"
    drift: bool = False
    rectified: bool = False
    ridges: dict[str, float] = Field(
        default_factory=dict,
        description="layer -> the ridge added to its second moment, relative to the mean eigenvalue",
    )
    spread: float = Field(
        default=0.0,
        description="the power of the factor by which fits reduce the spread that sequential fits give back",
    )
    method: str | None = Field(default=None, description="name of the method, if it is not this project's default")
    strength: float | None = Field(
        default=None, description="unlearning: the strength of the edit, in the unit of its method"
    )
    strength_unit: str | None = Field(default=None, description="unlearning: what the strength measures")
    layers: list[str] = Field(default_factory=list, description="unlearning: the layers edited")
    target: float | None = Field(default=None, description="unlearning: the requested forget accuracy")
    predicted_labels: bool = Field(
        default=False, description="unlearning: samples were labelled by the network's own predictions"
    )
    anchored: bool = Field(
        default=False,
        description="unlearning: BatchNorm statistics are those of the retain set; re-estimating them changes nothing",
    )


class CurvePoint(Value):
    """Accuracies on the calibration samples after an edit of this ``strength``; fractions in [0, 1]."""

    strength: float
    forget_accuracy: float
    retain_accuracy: float


class Plan(BaseModel):
    """A plan, see the module docstring. ``tensors`` maps state names of the original network (see `modhifi.surgery`) to new
    values.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    schema_version: int = PLAN_SCHEMA
    kind: Literal["prune", "unlearn"]
    model: ModelRef
    calibration: DataRef
    settings: Settings
    groups: dict[str, GroupPlan] = Field(default_factory=dict)
    forget: list[str] = Field(default_factory=list)
    curve: list[CurvePoint] = Field(default_factory=list, description="unlearning: every strength that was tried")
    predicted: dict[str, float] = Field(default_factory=dict)
    measured: list[dict[str, Any]] = Field(default_factory=list)
    note: str = ""
    tensor_file: TensorFile | None = None

    _tensors: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._tensors

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Plan:
        """A copy of the plan that carries these tensors in place of its own."""
        copied = self.model_copy()
        copied._tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return copied

    # The bytes of both files; the name of the tensor file begins with ``stem``.
    def _encode(self, stem: str) -> tuple[bytes, bytes | None, str]:
        blob = safetensors.torch.save(self._tensors) if self._tensors else None
        named = None
        if blob is not None:
            digest = hashlib.sha256(blob).hexdigest()
            named = TensorFile(file=f"{stem}.{digest[:_DIGITS]}.safetensors", sha256=digest)
        content = self.model_dump(mode="json") | {"tensor_file": named.model_dump() if named else None}
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        return text.encode("utf-8", "surrogatepass"), blob, named.file if named else ""

    def to_zip(self, stem: str = "plan") -> bytes:
        """Both files as one zip archive, which `Plan.load` opens; the dashboard offers it for download."""
        text, blob, name = self._encode(stem)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{stem}.json", text)
            if blob is not None:
                archive.writestr(name, blob, compress_type=zipfile.ZIP_STORED)
        return buffer.getvalue()

    @staticmethod
    def claim(path: str | Path) -> Path:
        """Checks before long work that `save` can write to ``path``. Raises `UserError` for a folder, another suffix, a file that
        is not a plan, or a location that is not writable.
        """
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file such as {path / 'plan.json'}")
        if path.suffix not in (".json", ".zip"):
            raise UserError(f"a plan is saved as .json or .zip, not {path.suffix or 'without a suffix'}: {path}")
        claim_parent(path)
        if path.is_file() and path.stat().st_size and not _is_plan(path):
            raise UserError(f"{path} is not a plan and was not replaced; name another file")
        return path

    def save(self, path: str | Path) -> Path:
        """Writes ``path`` atomically: a ``.json`` with its tensors beside it, or a ``.zip`` that holds both.

        Raises `UserError` as `claim` does.
        """
        path = self.claim(path)
        if path.suffix == ".zip":
            with atomic_file(path) as temporary:
                temporary.write_bytes(self.to_zip(path.stem))
            return path
        text, blob, name = self._encode(path.stem)
        before = _tensor_file_of(path)
        with contextlib.ExitStack() as held:
            if blob is not None:
                tensors = path.with_name(name)
                with atomic_file(tensors) as temporary:
                    temporary.write_bytes(blob)
                # Until the JSON names it, this file looks as if a process had died before it could write the JSON.
                held.enter_context(locked(tensors))
            try:
                with atomic_file(path) as temporary:
                    temporary.write_bytes(text)
            except BaseException:
                if blob is not None and (before is None or before.file != name):
                    tensors.unlink(missing_ok=True)
                raise
            _sweep_tensors(path, name, before)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads a plan from a ``.json`` or ``.zip`` file. Raises `UserError` if it is missing, damaged or of another schema, or
        if its tensors do not match the recorded sha256.
        """
        path = Path(path)
        if path.suffix == ".zip":
            return cls._load_zip(path)
        plan = cls._parse(read_json(path, "a plan"), path)
        while plan.tensor_file is not None:
            beside = path.with_name(Path(plan.tensor_file.file).name)
            try:
                check_regular(beside, "the plan's tensors", _LARGEST)
                blob = beside.read_bytes()
            except (OSError, UserError) as error:
                # Another process may have replaced the plan, and so removed the tensors, since its JSON was read.
                now = cls._parse(read_json(path, "a plan"), path)
                if now.tensor_file != plan.tensor_file:
                    plan = now
                    continue
                raise UserError(f"the plan's tensors {beside} are missing; keep both files together") from error
            plan._decode(blob, beside)
            break
        return plan

    @classmethod
    def _load_zip(cls, path: Path) -> Plan:
        check_regular(path, "a plan", _LARGEST)
        try:
            with zipfile.ZipFile(path) as archive:
                texts = [i for i in archive.infolist() if i.filename.endswith(".json") and "/" not in i.filename]
                if len(texts) != 1:
                    raise UserError(
                        f"{path} is not a plan: it holds {len(texts)} JSON files instead of one; name a plan"
                    )
                if sum(i.file_size for i in archive.infolist()) > _LARGEST:
                    raise UserError(f"{path} was not opened: it would unpack to more than 8 GiB; make the plan again")
                plan = cls._parse(json.loads(archive.read(texts[0])), path)
                if plan.tensor_file is not None:
                    plan._decode(archive.read(plan.tensor_file.file), path)
        except UserError:
            raise
        except Exception as error:
            # The file is untrusted: zipfile and the decompressors raise almost anything for a damaged one.
            raise UserError(f"{path} is damaged or not a plan; copy or make it again") from error
        return plan

    @classmethod
    def _parse(cls, raw: Any, path: Path) -> Plan:
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version is None:
            raise UserError(f"{path} is not a plan: it has no schema_version; name a plan")
        if version != PLAN_SCHEMA:
            raise UserError(
                f"{path} has plan schema {version!r:.40}, but this version reads {PLAN_SCHEMA}; make the plan again"
            )
        try:
            return cls.model_validate(raw)
        except (ValidationError, RecursionError) as error:
            raise UserError(f"{path} is damaged or not a plan: {first_fault(error)}; make it again") from error

    def _decode(self, blob: bytes, path: Path) -> None:
        assert self.tensor_file is not None
        if hashlib.sha256(blob).hexdigest() != self.tensor_file.sha256:
            raise UserError(
                f"the tensors in {path} are damaged or belong to another plan (sha256 differs); copy both files again"
            )
        try:
            self._tensors = safetensors.torch.load(blob)
        except safetensors.SafetensorError as error:
            raise UserError(f"the tensors in {path} are damaged: {error}; make the plan again") from error


def _is_plan(path: Path) -> bool:
    """Whether the file is a plan of this or another version; a damaged one is none."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".json") and "/" not in name]
                raw = json.loads(archive.read(names[0])) if len(names) == 1 else None
        else:
            raw = read_json(path, "a plan")
    except Exception:  # untrusted: anything may be raised
        return False
    return isinstance(raw, dict) and {"schema_version", "kind", "groups"} <= set(raw)


def _tensor_file_of(path: Path) -> TensorFile | None:
    """The tensor file that the plan at ``path`` names, if there is such a plan."""
    try:
        return TensorFile.model_validate(read_json(path, "a plan")["tensor_file"])
    except (UserError, KeyError, TypeError, ValidationError):
        return None


def _sweep_tensors(path: Path, current: str, before: TensorFile | None) -> None:
    """Removes the tensors of the plan that was replaced, and those whose JSON was never written because a process died.

    A file is removed only if its name and its content prove that it is a plan's.
    """
    pattern = re.compile(rf"{re.escape(path.stem)}\.([0-9a-f]{{{_DIGITS}}})\.safetensors")
    for file in path.parent.glob("*.safetensors"):
        if file.name == current or not file.is_file():
            continue
        match = pattern.fullmatch(file.name)
        expected = match[1] if match else before.sha256 if before is not None and file.name == before.file else None
        if expected is None:
            continue
        with locked(file) as free, contextlib.suppress(OSError):
            if free and file_sha256(file).startswith(expected):
                file.unlink()
