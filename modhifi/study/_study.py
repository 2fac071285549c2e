"""`Study` and its folder: ``study.json`` (references, structure) and ``study.safetensors`` (moments, weights, tables)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from ..components import Cost, Group, Skipped, Structure
from ..errors import UserError, first_fault
from ..fidelity import output_energy, singleton_from_moments
from ..files import FolderKind, atomic_folder, file_sha256, read_json, recover, write_json
from ..layers import Edit
from ..lipschitz import Gains, Upper, estimators
from ..progress import Progress, silent
from ..specs import DataRef, ModelRef, TensorFile, TokenSpec, Value
from ..statistics import Moments
from ..text import listed
from ._layer import LayerStats, Level
from ._tables import (
    ORDERS,
    SCORES,
    check_tables,
    energy_key,
    error_key,
    order_key,
    ranked,
    score_key,
    tabulate,
    tabulate_order,
)

__all__ = ["FOLDER", "STUDY_SCHEMA", "Study", "layer_tensors", "read_columns", "read_layer"]

STUDY_SCHEMA = 4
_MANIFEST, _TENSORS = "study.json", "study.safetensors"


def _listed(manifest: Any) -> list[str]:
    """The files of a study, of this or another schema; see `FolderKind`."""
    _ = manifest["schema_version"], manifest["structure"]
    return [manifest["tensors"]["file"], *(f"{layer}.safetensors" for layer in manifest.get("bytes", ()))]


# `prune` keeps the latencies that it measured beside the study.
FOLDER = FolderKind("a study", _MANIFEST, _listed, extra=("latency.json",))


class _Counted(Value):
    count: int = Field(ge=1)
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


@dataclass
class Study:
    """Sufficient statistics of one network on one sample of unlabelled data.

    ``tables``: scores, orders and error curves derived from the moments so far (`modhifi.study._tables`); others are derived
    on first use. ``gains``: the gains observed at each layer, by estimator. ``certified``: upper bounds of the Lipschitz
    constants. ``norms``: for each LayerNorm the smallest norm that it divided by, per sample, (N,).
    """

    model: ModelRef
    data: DataRef
    structure: Structure
    layers: dict[str, LayerStats]
    gains: dict[str, dict[str, Gains]]
    tables: dict[str, Tensor]
    ridge: float
    seconds: float
    """Duration of the analysis."""
    key: str = ""
    """sha256 over weights, data and settings: an analysis with the same key is not repeated."""
    certified: dict[str, Upper] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.structure.groups

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.structure.skipped

    @property
    def centred(self) -> bool:
        """Whether moments are centred by default, so that a bias restores the lost mean. In language models this takes a bias
        in every consumer; most have none, and their configuration cannot declare one.
        """
        readers = [consumer for group in self.groups for consumer in group.consumers]
        return not isinstance(self.model.input, TokenSpec) or all(consumer.shift is not None for consumer in readers)

    @cached_property
    def dense(self) -> Cost:
        """Cost of the original network."""
        return self.structure.cost()

    def group(self, name: str) -> Group:
        """The group of this name. Raises `UserError` if there is none."""
        try:
            return self.structure.group(name)
        except KeyError as error:
            names = [group.name for group in self.groups]
            alike = difflib.get_close_matches(name, names, n=3)
            known = f"did you mean {' or '.join(alike)}?" if alike else f"groups are {listed(names)}"
            raise UserError(f"{self.model.spec} has no group {name!r}; {known}") from error

    def cost(self, counts: dict[str, int]) -> Cost:
        """Cost of the network if each group keeps ``counts[group]`` components."""
        return self.structure.cost(counts)

    def missing(
        self,
        compensate: Level = "full",
        centred: bool | None = None,
        group: str | None = None,
        orders: Sequence[str] = ORDERS,
    ) -> list[str]:
        """The groups, or ``group`` alone, whose curves at this compensation level have not been derived yet."""
        centred = self.centred if centred is None else centred
        groups = self.groups if group is None else (self.group(group),)
        return [
            one.name
            for one in groups
            if any(
                error_key(one.name, c.layer, order, compensate, centred) not in self.tables
                for c in one.consumers
                for order in orders
            )
        ]

    def derive(
        self,
        compensate: Level = "full",
        centred: bool | None = None,
        group: str | None = None,
        orders: Sequence[str] = ORDERS,
        *,
        device: torch.device | None = None,
        progress: Progress = silent,
    ) -> None:
        """Derives the scores, orders and curves that are missing, for all groups or ``group`` alone.

        Raw moments and scalar compensation can take long for wide layers, so the dashboard derives them in the background.
        ``orders`` may include scores added by `add_score`. ``device`` is where to compute, if it is a GPU.
        """
        centred = self.centred if centred is None else centred
        what = "deriving scores and curves"
        wanted = self.missing("full", centred, group)
        done = 0
        found = tabulate(
            self.structure,
            self.layers,
            self.ridge,
            groups=frozenset(wanted),
            centred=centred,
            device=device,
            check=lambda: progress(done, len(wanted), what),
        )
        progress(0, len(wanted), what)
        for done, (_, tables) in enumerate(found if wanted else (), 1):
            self.tables |= tables
            progress(done, len(wanted), what)
        lacking = set(self.missing(compensate, centred, group, orders))
        readers = {
            name: [g.name for g, _ in read if g.name in lacking] for name, read in self.structure.readers.items()
        }
        layers = [name for name, groups in readers.items() if groups]
        for done, name in enumerate(layers):
            progress(done, len(layers), what)
            index = {
                one: {order: torch.from_numpy(self.order(one, order, centred)) for order in orders}
                for one in readers[name]
            }
            self.tables |= tabulate_order(
                name,
                self.layers[name],
                index,
                compensate,
                self.ridge,
                centred,
                partial(progress, done, len(layers), what),
            )
        progress(len(layers), len(layers), what)

    def add_score(self, score: str, values: Mapping[str, Tensor]) -> None:
        """Adds a custom score, (C,) per group, higher for more important components; `order` and the curves then accept its
        name. Raises ValueError for a built-in name, a wrong shape or values that are not finite.
        """
        if score in SCORES:
            raise ValueError(f"{score} is a score of the study itself; choose another name")
        for group in self.groups:
            value = values[group.name].detach().cpu().double()
            if value.shape != (group.size,) or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{score} must have {group.size} finite numbers for {group.name}")
            for centred in (True, False):
                self.tables[score_key(group.name, score, centred)] = value
                self.tables[order_key(group.name, score, centred)] = ranked(value)

    def has_score(self, score: str) -> bool:
        """Whether the study has this score, built in or added by `add_score`."""
        return score in SCORES or order_key(self.groups[0].name, score, True) in self.tables

    def _derived(self, key: str, group: str, centred: bool) -> Tensor:
        if key not in self.tables:
            self.derive("full", centred, group)
        if key not in self.tables:  # its file has the curves without the scores that they belong to
            raise UserError(f"this study is damaged: it lacks the table {key}; analyze again")
        return self.tables[key]

    def scores(self, group: str, centred: bool | None = None) -> dict[str, np.ndarray]:
        """The built-in scores, (C,) each, as shares of the output energy of all consumers.

        ``fidelity``: Subset Fidelity of each component alone (ModHiFi, Def. 3.1), energy-weighted over outputs and consumers.
        ``greedy``: error added when backward elimination removes the component. ``removal-cost``: error added when only this
        component is removed and the others compensate. ``row-sum``: E⟨Y, A_i⟩ (App. D.2), which can be negative.
        """
        centred = self.centred if centred is None else centred
        return {name: self._derived(score_key(group, name, centred), group, centred).numpy() for name in SCORES}

    def score(self, group: str, score: str, centred: bool | None = None) -> np.ndarray:
        """(C,): one of `scores`, or one added by `add_score`. Raises `UserError` for another name."""
        centred = self.centred if centred is None else centred
        self._check(score)
        return self._derived(score_key(group, score, centred), group, centred).numpy()

    def order(self, group: str, order: str = "greedy", centred: bool | None = None) -> np.ndarray:
        """(C,) int64: the components, most important first by this score. Raises `UserError` for an unknown score."""
        centred = self.centred if centred is None else centred
        self._check(order)
        return self._derived(order_key(group, order, centred), group, centred).numpy()

    def _check(self, score: str) -> None:
        if not self.has_score(score):
            raise UserError(f"this study has no score {score!r}; choose one of {', '.join(SCORES)}")

    def errors(self, group: str, layer: str, order: str, compensate: Level, centred: bool) -> np.ndarray:
        """(C + 1,) float64: ``E‖Y − Ŷ‖²`` of one sample at ``layer`` if the first 0…C components of ``group`` are kept, and all
        components of the other groups that the layer reads.
        """
        key = error_key(group, layer, order, compensate, centred)
        if key not in self.tables:
            self.derive(compensate, centred, group, (order,))
        return self.tables[key].numpy()

    def energy(self, layer: str, centred: bool) -> float:
        """``E‖Y‖²`` (centred: the variance) of one sample at ``layer``, summed over outputs and positions."""
        key = energy_key(layer, centred)
        if key not in self.tables:
            stats = self.layers[layer]
            energy = output_energy(*stats.moment_and_weight(centred, self.ridge)).sum() * stats.moments.positions
            self.tables[key] = energy.reshape(1)
        return float(self.tables[key])

    def curve(
        self, group: str, order: str = "greedy", compensate: Level = "full", centred: bool | None = None
    ) -> np.ndarray:
        """(C + 1,) float64: fidelity of the first 0…C components of the order, energy-weighted over all consumers. Other groups
        that the consumers read are kept, so the curve starts above 0 where there are any.

        ``compensate``: ``scalar`` is Subset Fidelity as defined (ModHiFi, Def. 3.1), ``full`` allows any new weights, ``none``
        leaves the weights unchanged and can be negative.
        """
        centred = self.centred if centred is None else centred
        consumers = self.group(group).consumers
        error = sum(self.errors(group, consumer.layer, order, compensate, centred) for consumer in consumers)
        energy = sum(self.energy(consumer.layer, centred) for consumer in consumers)
        return np.asarray(1.0 - error / energy) if energy > 0 else np.ones_like(error)

    def hifi_size(
        self, group: str, eta: float, order: str = "greedy", compensate: Level = "full", centred: bool | None = None
    ) -> int:
        """The smallest k for which the first k components of the order form a (k, η)-HiFi set (ModHiFi, Def. 3.4)."""
        if not 0 < eta <= 1:
            raise UserError(f"eta must be above 0 and at most 1, not {eta}")
        reached = self.curve(group, order, compensate, centred) >= eta - 1e-12
        return int(reached.argmax())

    def output_fidelity(self, group: str, centred: bool | None = None) -> np.ndarray:
        """(O, C): singleton fidelity for each output of the group's first consumer; (1, C) if that layer is wide."""
        centred = self.centred if centred is None else centred
        stats = self.layers[self.group(group).consumers[0].layer]
        return singleton_from_moments(*stats.moment_and_weight(centred, self.ridge), stats.blocks(group)).numpy()

    def class_fidelity(self, group: str) -> tuple[np.ndarray, np.ndarray]:
        """(K,) int64 classes, and (K, C) the fidelity of each component alone on the samples predicted as each class: how well
        it reconstructs all outputs of the consumers, ``1 − min_δ E‖Y − δ A_i‖² / E‖Y‖²`` (raw moments, one δ for all outputs).
        Classes predicted for fewer than 8 samples are omitted.
        """
        self.group(group)
        return self.tables["classes"].numpy(), self.tables[f"class/{group}"].numpy()

    @property
    def estimators(self) -> tuple[str, ...]:
        """The estimators (`modhifi.lipschitz.estimators`) whose constants the study has."""
        return (*self.gains, *(["certified"] if self.certified else []))

    def constant(self, layer: str, estimator: str = "directional", typical: bool = False) -> float:
        """The layer's Lipschitz constant by this estimator: the largest gain observed or, if ``typical``, the root mean square.
        ``certified`` returns the upper bound either way, ``none`` returns 1. Raises `UserError` if the study does not have it.
        """
        if estimator == "none":
            return 1.0
        if estimator not in estimators():
            raise UserError(f"unknown constants {estimator!r}; choose one of {', '.join([*estimators(), 'none'])}")
        known = self.certified if estimator == "certified" else self.gains.get(estimator, {})
        if layer not in known:
            if not self.estimators:
                raise UserError(
                    f"this study has no constants; analyze with --constants {estimator}, or prune with --constants"
                    " none, which weights all layers equally"
                )
            have = ", ".join(self.estimators)
            raise UserError(
                f"this study has no {estimator} constants, only {have}; analyze with --constants {estimator} too"
            )
        if estimator == "certified":
            upper = self.certified[layer]
            if upper.value is None:
                raise UserError(
                    f"{layer} has no certified constant: {upper.reason}; use constants of another estimator"
                )
            return upper.value
        gains = self.gains[estimator][layer]
        return gains.rms if typical else gains.maximum

    def edit(
        self, layer: str, keep: Mapping[str, Sequence[int]], compensate: Level, centred: bool | None = None
    ) -> Edit:
        """The new weights of ``layer`` if each group keeps the components ``keep[group]``; see `LayerStats.edit`. Groups that
        the layer does not read are ignored.
        """
        centred = self.centred if centred is None else centred
        stats = self.layers[layer]
        read = {group: torch.as_tensor(keep[group], dtype=torch.int64) for group in stats.groups if group in keep}
        return stats.edit(read, compensate, centred, self.ridge)

    # On disk --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the folder ``path`` atomically. Raises `UserError` if it holds other files."""
        path = Path(path)
        tensors = {f"table/{name}": table for name, table in self.tables.items()}
        # Language models get one file per layer: together they may not fit into memory.
        apart = isinstance(self.model.input, TokenSpec)
        for name, stats in () if apart else self.layers.items():
            tensors |= {f"{kind}/{name}": value for kind, value in layer_tensors(stats).items()}
        for estimator, by_layer in self.gains.items():
            tensors |= {f"gain/{estimator}/{name}": gains.stacked() for name, gains in by_layer.items()}
        tensors |= {f"norm/{name}": norms for name, norms in self.norms.items()}
        with atomic_folder(path, FOLDER) as folder:
            # safetensors refuses tensors that share memory, and a table may be a view of another.
            safetensors.torch.save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / _TENSORS)
            for name, stats in self.layers.items() if apart else ():
                safetensors.torch.save_file(layer_tensors(stats), folder / f"{name}.safetensors")
            manifest = _Manifest(
                schema_version=STUDY_SCHEMA,
                model=self.model,
                data=self.data,
                structure=self.structure,
                layers={
                    name: _Counted(count=stats.moments.count, positions=stats.moments.positions)
                    for name, stats in self.layers.items()
                },
                gains=list(self.gains),
                certified=self.certified,
                ridge=self.ridge,
                seconds=self.seconds,
                key=self.key,
                tensors=TensorFile(file=_TENSORS, sha256=file_sha256(folder / _TENSORS)),
                bytes={name: (folder / f"{name}.safetensors").stat().st_size for name in self.layers if apart},
            )
            write_json(folder / _MANIFEST, manifest.model_dump(mode="json"))
        return path

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Reads the folder of a study. Raises `UserError` if it is missing, damaged or of another schema."""
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
            return cls._from(manifest, safetensors.torch.load_file(path / _TENSORS), path)
        except UserError:
            raise
        except (OSError, LookupError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            # Whatever a manifest or tensors of other types, shapes or names may raise.
            raise UserError(f"{path} is damaged ({first_fault(error)}); analyze again") from error

    @classmethod
    def _from(cls, manifest: _Manifest, tensors: dict[str, Tensor], path: Path) -> Study:
        structure = manifest.structure
        if not structure.groups:
            raise ValueError("it has no groups")
        layers = {}
        for name in structure.readers:
            columns, about, file = read_columns(structure, name), manifest.layers[name], path / f"{name}.safetensors"
            size = manifest.bytes.get(name)
            if size is None:
                kinds = {kind: tensors[f"{kind}/{name}"] for kind in ("weight", "second", "mean")}
                layers[name] = LayerStats(
                    kinds["weight"], Moments(kinds["second"], kinds["mean"], about.count, about.positions), columns
                )
            elif file.parent != path or file.stat().st_size != size:
                raise ValueError(f"{file.name} is truncated")
            else:
                layers[name] = read_layer(file, about.count, about.positions, columns)
            layers[name].check()
        gains = {
            estimator: {name: Gains.of(tensors[f"gain/{estimator}/{name}"]) for name in structure.readers}
            for estimator in manifest.gains
        }
        tables = {k.removeprefix("table/"): v for k, v in tensors.items() if k.startswith("table/")}
        check_tables(tables, structure)
        return cls(
            model=manifest.model,
            data=manifest.data,
            structure=structure,
            layers=layers,
            gains=gains,
            tables=tables,
            ridge=manifest.ridge,
            seconds=manifest.seconds,
            key=manifest.key,
            certified=dict(manifest.certified),
            norms={k.removeprefix("norm/"): v for k, v in tensors.items() if k.startswith("norm/")},
        )


def layer_tensors(stats: LayerStats) -> dict[str, Tensor]:
    """The tensors of one layer that are saved."""
    values = {"weight": stats.weight, "second": stats.moments.second, "mean": stats.moments.mean}
    return {kind: value.contiguous() for kind, value in values.items()}


def read_layer(file: Path, count: int, positions: int, columns: Mapping[str, Tensor]) -> LayerStats:
    """Reads a layer from the file of its `layer_tensors`, which stays memory-mapped: tensors that are not used take no
    memory.
    """
    kinds = safetensors.torch.load_file(file)
    return LayerStats(kinds["weight"], Moments(kinds["second"], kinds["mean"], count, positions), columns)


def read_columns(structure: Structure, layer: str) -> dict[str, Tensor]:
    """Group → (C, k) columns of its components, for each group that ``layer`` reads."""
    return {group.name: torch.from_numpy(consumer.columns(group.size)) for group, consumer in structure.readers[layer]}
