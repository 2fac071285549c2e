"""A plan: what stays of which network, how the rest makes up for it, and what was measured. It can be carried and replayed.

On disk a plan is one JSON file; tensors that replace weights of the changed network lie beside it as safetensors (same
name, suffix ``.safetensors``) and are named in the JSON with their sha256. `Plan.save` also writes both into one ``.zip``.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from torch import Tensor

from ._files import atomic_file, claim_parent, read_json
from .data import DataRef
from .errors import UserError
from .models import ModelRef

__all__ = [
    "PLAN_SCHEMA",
    "Budget",
    "Compensation",
    "Constants",
    "CurvePoint",
    "GroupPlan",
    "Plan",
    "Settings",
    "Spread",
    "TensorFile",
]

PLAN_SCHEMA = 3
Compensation = Literal["none", "scalar", "full", "sequential"]
Spread = Literal["global", "uniform", "ranking", "width"]
Constants = Literal["directional", "jacobian", "random", "pairs", "certified", "none"]
Budget = Literal["flops", "params", "latency"]
_LARGEST_IN_ZIP = 8 << 30


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class GroupPlan(_Frozen):
    """One coupled group: of ``total`` components those in ``keep`` stay (indices, ascending, never empty)."""

    total: int = Field(gt=0)
    keep: list[int] = Field(min_length=1)


class Settings(_Frozen):
    """How the plan was decided."""

    budget: Budget | Literal["manual", "none"] = "none"
    remain: float | None = Field(default=None, description="the fraction of the budget that was asked to remain")
    score: str = "greedy"
    allocation: Spread = "global"
    constants: Constants = Field(
        default="directional", description="the Lipschitz constants that global allocation weighs by"
    )
    compensate: Compensation = "full"
    centred: bool = True
    drift: bool = Field(default=False, description="sequential: residual streams' losses are made up for")
    rectified: bool = Field(
        default=False, description="sequential: what a ReLU cuts off is only kept below its threshold"
    )
    ridges: dict[str, float] = Field(
        default_factory=dict,
        description="layer -> what was added to its second moment, relative to the mean eigenvalue",
    )
    recalibrate_bn: bool = False
    multiple: int = Field(default=1, ge=1, description="groups that lose something keep a multiple of so many channels")
    overrides: dict[str, int] = Field(default_factory=dict, description="group -> components kept, set by hand")
    floors: dict[str, int] = Field(default_factory=dict, description="group -> components kept at least")
    method: str | None = Field(
        default=None, description="the named method, where it is another one than this project's"
    )
    strength: float | None = Field(
        default=None, description="unlearning: how far the edit goes, in the unit of its method"
    )
    layers: list[str] = Field(default_factory=list, description="unlearning: the layers edited")
    target: float | None = Field(default=None, description="unlearning: the forget accuracy that was asked for")
    predicted_labels: bool = Field(
        default=False, description="unlearning: the network's own answers said which samples are of the forget classes"
    )
    anchored: bool = Field(
        default=False,
        description="unlearning: BatchNorm's statistics are those of the retained samples, so that re-estimating them"
        " changes nothing",
    )

    @property
    def level(self) -> Literal["none", "scalar", "full"]:
        """The level of compensation whose errors the study knows: sequential ones are predicted as full ones."""
        return "full" if self.compensate == "sequential" else self.compensate


class CurvePoint(_Frozen):
    """What an edit of this ``strength`` did on the calibration samples; fractions in [0, 1]."""

    strength: float
    forget_accuracy: float
    retain_accuracy: float


class TensorFile(_Frozen):
    file: str
    sha256: str


class Plan(_Frozen):
    """See the module's text. ``tensors`` maps names of the unchanged network's state (see `modhifi.surgery`) to their values."""

    schema_version: int = PLAN_SCHEMA
    kind: Literal["prune", "unlearn"]
    model: ModelRef
    calibration: DataRef
    settings: Settings
    groups: dict[str, GroupPlan] = Field(default_factory=dict)
    forget: list[str] = Field(default_factory=list)
    curve: list[CurvePoint] = Field(default_factory=list, description="unlearning: the search for the strength")
    predicted: dict[str, float] = Field(default_factory=dict)
    measured: list[dict[str, Any]] = Field(default_factory=list)
    note: str = ""
    tensor_file: TensorFile | None = None

    _tensors: dict[str, Tensor] = PrivateAttr(default_factory=dict)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self._tensors

    def with_tensors(self, tensors: dict[str, Tensor]) -> Plan:
        self._tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        return self

    # Bytes of both files; the JSON names the other by ``stem``.
    def _encode(self, stem: str) -> tuple[bytes, bytes | None]:
        blob = safetensors.torch.save(self._tensors) if self._tensors else None
        named = TensorFile(file=f"{stem}.safetensors", sha256=hashlib.sha256(blob).hexdigest()) if blob else None
        content = self.model_dump(mode="json") | {"tensor_file": named.model_dump() if named else None}
        return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), blob

    def to_zip(self, stem: str = "plan") -> bytes:
        """Both files in one archive, as the dashboard hands it over; `Plan.load` opens it."""
        text, blob = self._encode(stem)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{stem}.json", text)
            if blob is not None:
                archive.writestr(f"{stem}.safetensors", blob, compress_type=zipfile.ZIP_STORED)
        return buffer.getvalue()

    @staticmethod
    def claim(path: str | Path) -> Path:
        """Raises the `UserError` that `save` would, for work that takes long, before it begins: a folder, another suffix, a place
        that cannot be written to.
        """
        path = Path(path)
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file such as {path / 'plan.json'}")
        if path.suffix not in (".json", ".zip"):
            raise UserError(f"a plan is written as .json or .zip, not {path.suffix or 'a name without suffix'}: {path}")
        claim_parent(path)
        return path

    def save(self, path: str | Path) -> Path:
        """Writes ``path`` (``.json``, with ``.safetensors`` beside it, or ``.zip`` with both inside), whole or not at all."""
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
        """Reads a plan's ``.json`` or ``.zip``. Raises `UserError` if it is missing, damaged, of another schema, or its
        tensors are not those it names.
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
                    raise UserError(f"{path} would unpack to more than 8 GiB; it is not opened")
                plan = cls._parse(json.loads(archive.read(texts[0])), path)
                if plan.tensor_file is not None:
                    plan._decode(archive.read(plan.tensor_file.file), path)
        except FileNotFoundError as error:
            raise UserError(f"a plan {path} does not exist") from error
        except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is damaged or not a plan") from error
        return plan

    @classmethod
    def _parse(cls, raw: Any, path: Path) -> Plan:
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version is None:
            raise UserError(f"{path} is not a plan: it has no schema_version")
        if version != PLAN_SCHEMA:
            raise UserError(f"{path} has plan schema {version}, this version reads {PLAN_SCHEMA}; make the plan again")
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
