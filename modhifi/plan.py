"""A plan: which components of a network to keep, the weights that compensate, and what was measured.

Plans are files that can be shared and applied again. On disk a plan is one JSON file; the new weights are stored beside it as
safetensors (same name, suffix ``.safetensors``) and named in the JSON with their sha256. `Plan.save` can also write both into
one ``.zip``.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from torch import Tensor

from .errors import UserError
from .files import atomic_file, claim_parent, read_json
from .specs import AllocationRule, Budget, Compensation, DataRef, ModelRef, PruningSpec, Value

__all__ = ["PLAN_SCHEMA", "CurvePoint", "GroupPlan", "Plan", "Settings", "TensorFile"]

PLAN_SCHEMA = 3
_LARGEST_IN_ZIP = 8 << 30


class GroupPlan(Value):
    """One coupled group of ``total`` components; ``keep`` lists the indices to keep, ascending, never empty."""

    total: int = Field(gt=0)
    keep: list[int] = Field(min_length=1)


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


class TensorFile(Value):
    file: str
    sha256: str


class Plan(BaseModel):
    """A plan, see the module docstring. ``tensors`` maps state names of the original network (see `modhifi.surgery`) to new
    values.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

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

    # The bytes of both files; the JSON refers to the tensor file by ``stem``.
    def _encode(self, stem: str) -> tuple[bytes, bytes | None]:
        blob = safetensors.torch.save(self._tensors) if self._tensors else None
        named = TensorFile(file=f"{stem}.safetensors", sha256=hashlib.sha256(blob).hexdigest()) if blob else None
        content = self.model_dump(mode="json") | {"tensor_file": named.model_dump() if named else None}
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), blob

    def to_zip(self, stem: str = "plan") -> bytes:
        """Both files as one zip archive, which `Plan.load` opens; the dashboard offers it for download."""
        text, blob = self._encode(stem)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{stem}.json", text)
            if blob is not None:
                archive.writestr(f"{stem}.safetensors", blob, compress_type=zipfile.ZIP_STORED)
        return buffer.getvalue()

    @staticmethod
    def claim(path: str | Path) -> Path:
        """Checks before long work that `save` can write to ``path``. Raises `UserError` for a folder, another suffix, or a
        location that is not writable.
        """
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file such as {path / 'plan.json'}")
        if path.suffix not in (".json", ".zip"):
            raise UserError(f"a plan is saved as .json or .zip, not {path.suffix or 'without a suffix'}: {path}")
        claim_parent(path)
        return path

    def save(self, path: str | Path) -> Path:
        """Writes ``path`` atomically: a ``.json`` with a ``.safetensors`` beside it, or a ``.zip`` that holds both."""
        path = self.claim(path)
        if path.suffix == ".zip":
            with atomic_file(path) as temporary:
                temporary.write_bytes(self.to_zip(path.stem))
            return path
        text, blob = self._encode(path.stem)
        if blob is not None:
            with atomic_file(path.with_suffix(".safetensors")) as temporary:
                temporary.write_bytes(blob)
        with atomic_file(path) as temporary:
            temporary.write_bytes(text)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads a plan from a ``.json`` or ``.zip`` file. Raises `UserError` if it is missing, damaged or of another schema, or
        if its tensors do not match the recorded sha256.
        """
        path = Path(path)
        if path.suffix == ".zip":
            return cls._load_zip(path)
        raw = read_json(path, "a plan")
        plan = cls._parse(raw, path)
        if plan.tensor_file is not None:
            beside = path.with_name(Path(plan.tensor_file.file).name)
            try:
                blob = beside.read_bytes()
            except OSError as error:
                raise UserError(f"the plan's tensors {beside} are missing; keep both files together") from error
            plan._decode(blob, beside)
        return plan

    @classmethod
    def _load_zip(cls, path: Path) -> Plan:
        try:
            with zipfile.ZipFile(path) as archive:
                texts = [i for i in archive.infolist() if i.filename.endswith(".json") and "/" not in i.filename]
                if len(texts) != 1:
                    raise UserError(f"{path} is not a plan: it holds {len(texts)} JSON files instead of one")
                if sum(i.file_size for i in archive.infolist()) > _LARGEST_IN_ZIP:
                    raise UserError(f"{path} was not opened: it would unpack to more than 8 GiB")
                plan = cls._parse(json.loads(archive.read(texts[0])), path)
                if plan.tensor_file is not None:
                    plan._decode(archive.read(plan.tensor_file.file), path)
        except FileNotFoundError as error:
            raise UserError(f"the plan {path} does not exist") from error
        except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is damaged or not a plan") from error
        return plan

    @classmethod
    def _parse(cls, raw: Any, path: Path) -> Plan:
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version is None:
            raise UserError(f"{path} is not a plan: it has no schema_version")
        if version != PLAN_SCHEMA:
            raise UserError(
                f"{path} has plan schema {version}, but this version reads {PLAN_SCHEMA}; make the plan again"
            )
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{path} is damaged or not a plan: {where}: {first['msg']}") from error

    def _decode(self, blob: bytes, path: Path) -> None:
        assert self.tensor_file is not None
        if hashlib.sha256(blob).hexdigest() != self.tensor_file.sha256:
            raise UserError(f"the tensors in {path} are damaged or belong to another plan (sha256 differs)")
        try:
            self._tensors = safetensors.torch.load(blob)
        except safetensors.SafetensorError as error:
            raise UserError(f"the tensors in {path} are damaged: {error}") from error
