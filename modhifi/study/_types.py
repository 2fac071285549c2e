"""The study and its folder: ``study.json`` (what, how, structure) and ``study.safetensors`` (moments, weights, tables)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from .._files import atomic_folder, file_sha256, read_json
from .._operators import Edit
from ..components import Consumer, Cost, Group, Skipped, Structure
from ..data import DataRef
from ..errors import UserError
from ..fidelity import centre, full_compensation, ridged, scalar_compensation, singleton_from_moments
from ..lipschitz import Gain
from ..models import ModelRef
from ..statistics import Moments

__all__ = ["STUDY_SCHEMA", "LayerStats", "Study"]

STUDY_SCHEMA = 1
_MANIFEST, _TENSORS = "study.json", "study.safetensors"

Order = Literal["greedy", "naive"]
Level = Literal["none", "scalar", "full"]


@dataclass
class LayerStats:
    """A consumer's own weight, flat (O, n) float32, with the moments of its input."""

    weight: Tensor
    moments: Moments

    def second(self, centred: bool, ridge: float) -> Tensor:
        """The ridged second moment or covariance of the input, (n, n) float64."""
        raw = self.moments.second.double()
        h = centre(raw, self.moments.mean) if centred else raw
        # The moments are float32 sums: their eigenvalues are known to within this much.
        return ridged(h, ridge, torch.finfo(torch.float32).eps * float(raw.norm()))

    def edit(self, block: int, keep: Tensor, compensate: Level, centred: bool, ridge: float) -> Edit:
        """New weights when the components ``keep`` stay (theory, section 4, levels 1 and 2), zero for the others.

        Centred, the mean output that is lost is put back as a constant; raw or without compensation nothing is.
        """
        weight = self.weight.double()
        if compensate == "none":
            left = torch.zeros(weight.shape[1] // block, dtype=torch.bool)
            left[keep] = True
            return Edit(weight * left.repeat_interleave(block), weight.new_zeros(weight.shape[0]))
        solve = scalar_compensation if compensate == "scalar" else full_compensation
        new = solve(self.second(centred, ridge), weight, block, keep)
        shift = (weight - new) @ self.moments.mean if centred else weight.new_zeros(weight.shape[0])
        return Edit(new, shift)

    def error(self, edit: Edit) -> float:
        """``E‖Y − Ŷ‖²`` of one sample, summed over outputs and positions: tr(ΔW H ΔWᵀ) with the shift taken into account."""
        delta = edit.weight.double() - self.weight.double()
        second, mean = self.moments.second.double(), self.moments.mean
        linear = ((delta @ second) * delta).sum() + 2 * (edit.shift @ (delta @ mean)) + edit.shift.square().sum()
        return max(0.0, float(linear)) * self.moments.positions


@dataclass
class Study:
    """Sufficient statistics of one network on one sample of unlabelled data.

    ``tables`` holds what `modhifi.study._tables` derives once from the moments: scores, orders and error curves.
    """

    model: ModelRef
    data: DataRef
    structure: Structure
    layers: dict[str, LayerStats]
    gains: dict[str, Gain]
    tables: dict[str, Tensor]
    ridge: float
    seconds: float
    """How long the analysis took."""

    @property
    def groups(self) -> tuple[Group, ...]:
        return self.structure.groups

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        return self.structure.skipped

    @cached_property
    def dense(self) -> Cost:
        """Cost of the unchanged network."""
        return self.structure.cost()

    def group(self, name: str) -> Group:
        """Raises `UserError` for an unknown name."""
        try:
            return self.structure.group(name)
        except KeyError as error:
            known = ", ".join(group.name for group in self.groups)
            raise UserError(f"no group {name!r}; the groups of {self.model.spec} are: {known}") from error

    def cost(self, counts: dict[str, int]) -> Cost:
        """Cost when ``counts[group]`` components stay."""
        return self.structure.cost(counts)

    def scores(self, group: str) -> dict[str, np.ndarray]:
        """(C,) each: ``fidelity``, Def. 3.1 for single components, energy-weighted over outputs and consumers; ``greedy``,
        the share of the output's energy lost when greedy elimination removes the component.
        """
        return {name: self.tables[f"score/{name}/{group}"].numpy() for name in ("fidelity", "greedy")}

    def order(self, group: str, order: Order = "greedy", centred: bool = False) -> np.ndarray:
        """(C,) int64, the components, most important first: by greedy elimination, or by singleton fidelity (naive)."""
        return self.tables[f"order/{order}/{_basis(centred)}/{group}"].numpy()

    def errors(self, layer: str, order: Order, compensate: Level, centred: bool) -> np.ndarray:
        """(C + 1,) float64: ``E‖Y − Ŷ‖²`` of one sample at ``layer`` when the first 0…C components stay."""
        return self.tables[f"error/{order}/{compensate}/{_basis(centred)}/{layer}"].numpy()

    def energy(self, layer: str, centred: bool) -> float:
        """``E‖Y‖²`` (centred: the variance) of one sample at ``layer``, summed over outputs and positions."""
        return float(self.errors(layer, "greedy", "full", centred)[0])

    def curve(
        self, group: str, order: Order = "greedy", compensate: Level = "full", centred: bool = False
    ) -> np.ndarray:
        """(C + 1,) float64: fidelity of the first 0…C components of the order, energy-weighted over all consumers.

        Scalar: Subset Fidelity as defined (Def. 3.1); full: with any new weights; none: with the weights as they are, where
        it can be negative.
        """
        consumers = self.group(group).consumers
        error = sum(self.errors(consumer.layer, order, compensate, centred) for consumer in consumers)
        energy = sum(self.energy(consumer.layer, centred) for consumer in consumers)
        return np.asarray(1.0 - error / energy) if energy > 0 else np.ones_like(error)

    def hifi_size(
        self, group: str, eta: float, order: Order = "greedy", compensate: Level = "full", centred: bool = False
    ) -> int:
        """The smallest k for which the first k components of the order are a (k, η)-HiFi set (Def. 3.4)."""
        if not 0 < eta <= 1:
            raise UserError(f"eta must lie in (0, 1], not {eta}")
        reached = self.curve(group, order, compensate, centred) >= eta - 1e-12
        return int(reached.argmax())

    def output_fidelity(self, group: str) -> np.ndarray:
        """(O, C) singleton fidelity for each output of the group's first consumer."""
        consumer = self.group(group).consumers[0]
        stats = self.layers[consumer.layer]
        return singleton_from_moments(stats.moments.second, stats.weight, consumer.block).numpy()

    def edit(self, consumer: Consumer, keep: list[int], compensate: Level, centred: bool = True) -> Edit:
        """The new weights of ``consumer`` when the components ``keep`` of its group stay; see `LayerStats.edit`."""
        stats = self.layers[consumer.layer]
        return stats.edit(consumer.block, torch.tensor(keep), compensate, centred, self.ridge)

    # On disk ------------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Writes the folder ``path``, whole or not at all. Raises `UserError` if it holds something else."""
        path = Path(path)
        tensors = {f"table/{name}": table for name, table in self.tables.items()}
        for name, stats in self.layers.items():
            tensors[f"weight/{name}"] = stats.weight
            tensors[f"second/{name}"] = stats.moments.second
            tensors[f"mean/{name}"] = stats.moments.mean
        with atomic_folder(path, _MANIFEST) as folder:
            # Tensors that share memory would be refused; a table may be a view of another.
            safetensors.torch.save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / _TENSORS)
            manifest = {
                "schema_version": STUDY_SCHEMA,
                "model": self.model.model_dump(mode="json"),
                "data": self.data.model_dump(mode="json"),
                "structure": self.structure.model_dump(mode="json"),
                "layers": {
                    name: {"count": stats.moments.count, "positions": stats.moments.positions}
                    for name, stats in self.layers.items()
                },
                "gains": {name: gain.model_dump() for name, gain in self.gains.items()},
                "ridge": self.ridge,
                "seconds": self.seconds,
                "tensors": {"file": _TENSORS, "sha256": file_sha256(folder / _TENSORS)},
            }
            (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Reads a study's folder. Raises `UserError` if it is missing, damaged or of another schema."""
        path = Path(path)
        if not path.is_dir():
            raise UserError(
                f"{path} is not a study's folder; make one with: modhifi analyze MODEL --data DATA --out {path}"
            )
        if not (path / _MANIFEST).exists():
            raise UserError(f"{path} is not a study: it has no {_MANIFEST}; make one with modhifi analyze")
        raw = read_json(path / _MANIFEST, "a study")
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if version != STUDY_SCHEMA:
            raise UserError(f"{path} has study schema {version}, this version reads {STUDY_SCHEMA}; analyze again")
        try:
            if file_sha256(path / _TENSORS) != raw["tensors"]["sha256"]:
                raise UserError(f"{path} is damaged: the sha256 of {_TENSORS} differs; analyze again")
            return cls._from(raw, safetensors.torch.load_file(path / _TENSORS))
        except (OSError, KeyError, TypeError, ValidationError, safetensors.SafetensorError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(f"{path} is damaged ({type(error).__name__}: {detail}); analyze again") from error

    @classmethod
    def _from(cls, raw: dict[str, Any], tensors: dict[str, Tensor]) -> Study:
        layers = {
            name: LayerStats(
                weight=tensors[f"weight/{name}"],
                moments=Moments(tensors[f"second/{name}"], tensors[f"mean/{name}"], **numbers),
            )
            for name, numbers in raw["layers"].items()
        }
        return cls(
            model=ModelRef.model_validate(raw["model"]),
            data=DataRef.model_validate(raw["data"]),
            structure=Structure.model_validate(raw["structure"]),
            layers=layers,
            gains={name: Gain.model_validate(gain) for name, gain in raw["gains"].items()},
            tables={k.removeprefix("table/"): v for k, v in tensors.items() if k.startswith("table/")},
            ridge=float(raw["ridge"]),
            seconds=float(raw["seconds"]),
        )


def _basis(centred: bool) -> str:
    return "centred" if centred else "raw"
