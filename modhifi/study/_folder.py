"""The folder of a study: ``study.json`` (references, structure) and ``study.safetensors`` (moments, weights, tables)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..components import Structure
from ..errors import UserError, first_fault
from ..files import FolderKind, atomic_folder, file_sha256, read_json, recover, write_json
from ..lipschitz import Gains, Upper
from ..specs import DataRef, ModelRef, TensorFile, TokenSpec, Value
from ..statistics import FOLDS, Moments
from ._layer import LayerStats
from ._tables import check_tables

if TYPE_CHECKING:
    from ._study import Study

__all__ = ["FOLDER", "STUDY_SCHEMA", "layer_tensors", "read_columns", "read_folder", "read_layer", "write_folder"]

STUDY_SCHEMA = 5
_MANIFEST, _TENSORS = "study.json", "study.safetensors"


def _listed(manifest: Any) -> list[str]:
    """The files of a study, of this or another schema; see `FolderKind`."""
    _ = manifest["schema_version"], manifest["structure"]
    return [manifest["tensors"]["file"], *(f"{layer}.safetensors" for layer in manifest.get("bytes", ()))]


# `prune` keeps the latencies that it measured beside the study.
FOLDER = FolderKind("a study", _MANIFEST, _listed, extra=("latency.json",))


class _Counted(Value):
    counts: tuple[PositiveInt, ...] = Field(min_length=1, max_length=FOLDS)
    positions: int = Field(ge=1)


class _Manifest(Value):
    schema_version: int
    model: ModelRef
    data: DataRef
    structure: Structure
    layers: dict[str, _Counted]
    gains: list[str]
    certified: dict[str, Upper]
    ridge: float = Field(ge=0)
    seconds: float = Field(ge=0)
    key: str
    tensors: TensorFile
    bytes: dict[str, int]


def write_folder(study: Study, path: str | Path) -> Path:
    """See `Study.save`."""
    path = Path(path)
    tensors = {f"table/{name}": table for name, table in study.tables.items()}
    # Language models get one file per layer: together they may not fit into memory.
    apart = isinstance(study.model.input, TokenSpec)
    for name, stats in () if apart else study.layers.items():
        tensors |= {f"{kind}/{name}": value for kind, value in layer_tensors(stats).items()}
    for estimator, by_layer in study.gains.items():
        tensors |= {f"gain/{estimator}/{name}": gains.stacked() for name, gains in by_layer.items()}
    tensors |= {f"norm/{name}": norms for name, norms in study.norms.items()}
    with atomic_folder(path, FOLDER) as folder:
        # safetensors refuses tensors that share memory, and a table may be a view of another.
        safetensors.torch.save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / _TENSORS)
        for name, stats in study.layers.items() if apart else ():
            safetensors.torch.save_file(layer_tensors(stats), folder / f"{name}.safetensors")
        manifest = _Manifest(
            schema_version=STUDY_SCHEMA,
            model=study.model,
            data=study.data,
            structure=study.structure,
            layers={
                name: _Counted(counts=stats.moments.counts, positions=stats.moments.positions)
                for name, stats in study.layers.items()
            },
            gains=list(study.gains),
            certified=study.certified,
            ridge=study.ridge,
            seconds=study.seconds,
            key=study.key,
            tensors=TensorFile(file=_TENSORS, sha256=file_sha256(folder / _TENSORS)),
            bytes={name: (folder / f"{name}.safetensors").stat().st_size for name in study.layers if apart},
        )
        write_json(folder / _MANIFEST, manifest.model_dump(mode="json"))
    return path


def read_folder(path: str | Path) -> dict[str, Any]:
    """The fields of the study in the folder ``path``; see `Study.load`."""
    path = Path(path)
    recover(path)
    if not path.is_dir():
        raise UserError(
            f"{path} is not the folder of a study; make one with: modhifi analyze MODEL --data DATA --out {path}"
        )
    if not (path / _MANIFEST).exists():
        raise UserError(f"{path} is not a study: it has no {_MANIFEST}; make one with modhifi analyze")
    raw = read_json(path / _MANIFEST, "a study")
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != STUDY_SCHEMA:
        raise UserError(
            f"{path} has study schema {version!r:.40}, but this version reads {STUDY_SCHEMA}; analyze again"
        )
    try:
        manifest = _Manifest.model_validate(raw)
        if file_sha256(path / _TENSORS) != manifest.tensors.sha256:
            raise UserError(f"{path} is damaged: the sha256 of {_TENSORS} differs; analyze again")
        return _fields(manifest, safetensors.torch.load_file(path / _TENSORS), path)
    except UserError:
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        # Whatever a manifest or tensors of other types, shapes or names may raise.
        raise UserError(f"{path} is damaged ({first_fault(error)}); analyze again") from error


def _fields(manifest: _Manifest, tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    structure = manifest.structure
    if not structure.groups:
        raise ValueError("it has no groups")
    layers = {}
    for name in structure.readers:
        columns, about, file = read_columns(structure, name), manifest.layers[name], path / f"{name}.safetensors"
        size = manifest.bytes.get(name)
        if size is None:
            kinds = {kind: tensors[f"{kind}/{name}"] for kind in ("weight", "second", "mean")}
            moments = Moments(kinds["second"], kinds["mean"], about.counts, about.positions)
            layers[name] = LayerStats(kinds["weight"], moments, columns)
        elif file.parent != path or file.stat().st_size != size:
            raise ValueError(f"{file.name} is truncated")
        else:
            layers[name] = read_layer(file, about.counts, about.positions, columns)
        layers[name].check()
    gains = {
        estimator: {name: Gains.of(tensors[f"gain/{estimator}/{name}"]) for name in structure.readers}
        for estimator in manifest.gains
    }
    tables = {k.removeprefix("table/"): v for k, v in tensors.items() if k.startswith("table/")}
    check_tables(tables, structure)
    return {
        "model": manifest.model,
        "data": manifest.data,
        "structure": structure,
        "layers": layers,
        "gains": gains,
        "tables": tables,
        "ridge": manifest.ridge,
        "seconds": manifest.seconds,
        "key": manifest.key,
        "certified": dict(manifest.certified),
        "norms": {k.removeprefix("norm/"): v for k, v in tensors.items() if k.startswith("norm/")},
    }


def layer_tensors(stats: LayerStats) -> dict[str, Tensor]:
    """The tensors of one layer that are saved."""
    values = {"weight": stats.weight, "second": stats.moments.seconds, "mean": stats.moments.means}
    return {kind: value.contiguous() for kind, value in values.items()}


def read_layer(file: Path, counts: tuple[int, ...], positions: int, columns: Mapping[str, Tensor]) -> LayerStats:
    """Reads a layer from the file of its `layer_tensors`, which stays memory-mapped: tensors that are not used take no
    memory.
    """
    kinds = safetensors.torch.load_file(file)
    return LayerStats(kinds["weight"], Moments(kinds["second"], kinds["mean"], counts, positions), columns)


def read_columns(structure: Structure, layer: str) -> dict[str, Tensor]:
    """Group → (C, k) columns of its components, for each group that ``layer`` reads."""
    return {group.name: torch.from_numpy(consumer.columns(group.size)) for group, consumer in structure.readers[layer]}
