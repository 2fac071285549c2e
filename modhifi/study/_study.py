"""`Study`: what was collected and derived, and the questions that it answers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..components import Cost, Group, Skipped, Structure
from ..errors import UserError
from ..fidelity import output_energy, singleton_from_moments
from ..layers import Edit
from ..lipschitz import Gains, Upper, estimators
from ..progress import Progress, silent
from ..specs import DataRef, ModelRef, TokenSpec
from ..text import listed
from ._folder import read_folder, write_folder
from ._layer import LayerStats, Level
from ._tables import (
    ORDERS,
    SCORES,
    VARIANCE,
    energy_key,
    error_key,
    independent_key,
    order_key,
    ranked,
    ridge_key,
    score_key,
    tabulate,
    tabulate_order,
)

__all__ = ["Study"]


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
        unseen: bool = True,
    ) -> list[str]:
        """The groups, or ``group`` alone, whose curves at this compensation level have not been derived yet."""
        centred = self.centred if centred is None else centred
        groups = self.groups if group is None else (self.group(group),)
        return [
            one.name
            for one in groups
            if any(
                error_key(one.name, c.layer, order, compensate, centred, unseen) not in self.tables
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
        unseen: bool = True,
        device: torch.device | None = None,
        progress: Progress = silent,
    ) -> None:
        """Derives the scores, orders and curves that are missing, for all groups or ``group`` alone.

        Raw moments and scalar compensation can take long for wide layers, so the dashboard derives them in the background.
        ``orders`` may include scores added by `add_score`; ``unseen`` as in `errors`. ``device`` is where to compute, if it is
        a GPU.
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
        lacking = set(self.missing(compensate, centred, group, orders, unseen))
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
                self.ridge_of(name, centred) if unseen else self.ridge,
                centred,
                unseen,
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

    def errors(
        self, group: str, layer: str, order: str, compensate: Level, centred: bool, unseen: bool = True
    ) -> np.ndarray:
        """(C + 1,) float64: ``E‖Y − Ŷ‖²`` of one sample at ``layer`` if the first 0…C components of ``group`` are kept, and all
        components of the other groups that the layer reads.

        ``unseen``: the error on samples that the weights were not fitted to (`modhifi.fidelity.crossfitted_curve`); otherwise
        that on the calibration samples, with the ridge of the study, as published. The two differ without limit where a layer
        has more inputs than there are independent samples.
        """
        key = error_key(group, layer, order, compensate, centred, unseen)
        if key not in self.tables:
            self.derive(compensate, centred, group, (order,), unseen=unseen)
        return self.tables[key].numpy()

    def ridge_of(self, layer: str, centred: bool) -> float:
        """The ridge that `edit` adds to the moment of ``layer``, relative to its mean eigenvalue: that with the smallest error on
        unseen samples, see `LayerStats.best_ridge`.
        """
        key = ridge_key(layer, centred)
        if key not in self.tables:
            self.tables[key] = torch.tensor([self.layers[layer].best_ridge(centred, self.ridge)], dtype=torch.float64)
        return float(self.tables[key])

    def independent(self, layer: str) -> float:
        """How many independent samples the calibration data is worth at ``layer``; see `LayerStats.independent`."""
        key = independent_key(layer)
        if key not in self.tables:
            self.tables[key] = torch.tensor([self.layers[layer].independent()], dtype=torch.float64)
        return float(self.tables[key])

    def samples_needed(self) -> dict[str, int]:
        """Layer → the number of calibration samples that would be worth as many independent ones as it has inputs, for the
        layers that have seen fewer. Their errors on unseen samples are large, and pruning leaves them nearly whole.
        """
        found = {}
        for name, stats in self.layers.items():
            inputs, worth = stats.moments.seconds.shape[1], self.independent(name)
            if worth < inputs:
                found[name] = math.ceil(self.data.samples * inputs / max(worth, 1.0))
        return found

    def sample_warning(self) -> str | None:
        """`samples_needed` in one sentence; None if the samples do."""
        needed = self.samples_needed()
        if not needed:
            return None
        layers = f"{len(needed)} layers have" if len(needed) > 1 else "1 layer has"
        return (
            f"{layers} more inputs than independent samples were seen ({listed(list(needed))}), so that little can be said of"
            f" what they need; about {max(needed.values()):,} samples would do"
        )

    def energy(self, layer: str, centred: bool) -> float:
        """``E‖Y‖²`` (centred: the variance) of one sample at ``layer``, summed over outputs and positions."""
        key = energy_key(layer, centred)
        if key not in self.tables:
            stats = self.layers[layer]
            energy = output_energy(*stats.moment_and_weight(centred, self.ridge)).sum() * stats.moments.positions
            self.tables[key] = energy.reshape(1)
        return float(self.tables[key])

    def curve(
        self,
        group: str,
        order: str = "greedy",
        compensate: Level = "full",
        centred: bool | None = None,
        *,
        unseen: bool = True,
    ) -> np.ndarray:
        """(C + 1,) float64: fidelity of the first 0…C components of the order, energy-weighted over all consumers. Other groups
        that the consumers read are kept, so the curve starts above 0 where there are any.

        ``compensate``: ``scalar`` is Subset Fidelity (ModHiFi, Def. 3.1), ``full`` allows any new weights, ``none`` leaves the
        weights and the lost mean as they are. ``unseen`` as in `errors`: fidelity on unseen samples need not be monotone, and is
        negative where a fit is worse than none. As published: ``compensate="scalar", centred=False, unseen=False``.
        """
        centred = self.centred if centred is None else centred
        consumers = self.group(group).consumers
        error = sum(self.errors(group, consumer.layer, order, compensate, centred, unseen) for consumer in consumers)
        energy = sum(self.energy(consumer.layer, centred) for consumer in consumers)
        return np.asarray(1.0 - error / energy) if energy > 0 else np.ones_like(error)

    def hifi_size(
        self,
        group: str,
        eta: float,
        order: str = "greedy",
        compensate: Level = "full",
        centred: bool | None = None,
        *,
        unseen: bool = True,
    ) -> int:
        """The smallest k for which the first k components of the order form a (k, η)-HiFi set (ModHiFi, Def. 3.4), by `curve`."""
        if not 0 < eta <= 1:
            raise UserError(f"eta must be above 0 and at most 1, not {eta}")
        reached = self.curve(group, order, compensate, centred, unseen=unseen) >= eta - 1e-12
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
    def variance(self) -> float | None:
        """``E‖f − E f‖²``: the variance of one sample's output, summed over logits (and tokens); None without constants."""
        return float(self.tables[VARIANCE]) if VARIANCE in self.tables else None

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
        return stats.edit(read, compensate, centred, self.ridge_of(layer, centred))

    def save(self, path: str | Path) -> Path:
        """Writes the folder ``path`` atomically. Raises `UserError` if it holds other files."""
        return write_folder(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Study:
        """Reads the folder of a study. Raises `UserError` if it is missing, damaged or of another schema."""
        return cls(**read_folder(path))
