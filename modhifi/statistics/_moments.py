"""The statistics stored for a layer's input, and the running sums behind them.

Everything is a sum over rows (one row: what the layer's weight multiplies at one position of one sample), so that batches,
processes and interrupted runs add up. Sums over the samples with an even and with an odd number are kept apart, as two folds:
what is fitted on one is judged on the other.

- *dense*: ``Σ x xᵀ`` and ``Σ x``, for layers with up to `MAX_INPUTS` inputs;
- *contributions*: for wider layers ``Σ_o Σ A_i A_j``, the (C, C) Gram matrix of the components' contributions to all
  outputs together, and ``Σ x``. It determines what one scalar per component can do, and needs C² numbers instead of n²;
- *classes*: for each class and component ``Σ <A_i, Y>`` and ``Σ ‖A_i‖²``, for each class ``Σ ‖Y‖²``.

See docs/theory.md, *Collecting the statistics*.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Operator, flat_weight, outputs_at, patches, position_count
from ._positions import draw, draw_size

__all__ = ["FOLDS", "MAX_INPUTS", "LayerSums", "Moments", "partition"]

# With more inputs than this, a dense second moment would take more than 512 MiB in float32.
MAX_INPUTS = 11_585
# Sample i belongs to fold i modulo this. Rows of one sample are alike, so a sample is never divided.
FOLDS = 2
# In smaller tiles, skipping the symmetric half would save less than the splitting costs.
_TILE = 512
# The class tables use one in this many positions.
_CLASS_POSITIONS = 64


@dataclass
class Moments:
    """``seconds`` (F, n, n) float32 and ``means`` (F, n) float64 are averages over the ``counts`` rows of each fold; a sample has
    ``positions`` rows to draw from. Folds without rows are omitted.

    For a wide layer, ``seconds`` are the (C, C) matrices of contributions, over the parts given by `partition`.
    """

    seconds: Tensor
    means: Tensor
    counts: tuple[int, ...]
    positions: int

    @property
    def count(self) -> int:
        """The number of rows of all folds."""
        return sum(self.counts)

    @property
    def shares(self) -> list[float]:
        """The fraction of the rows that each fold holds."""
        return [count / self.count for count in self.counts]

    @property
    def second(self) -> Tensor:
        """(n, n) float32: the average over all folds."""
        return self._average(self.seconds)

    @property
    def mean(self) -> Tensor:
        """(n,) float64: the average over all folds."""
        return self._average(self.means)

    def _average(self, values: Tensor) -> Tensor:
        total = values[0] * self.shares[0]
        for value, share in zip(values[1:], self.shares[1:], strict=True):
            total += value * share
        return total

    def without(self, fold: int) -> Moments:
        """The moments of all folds but one. Raises `ValueError` if there is no other."""
        others = [index for index in range(len(self.counts)) if index != fold]
        if not others:
            raise ValueError("there is only one fold")
        counts = tuple(self.counts[index] for index in others)
        return Moments(self.seconds[others], self.means[others], counts, self.positions)

    def only(self, fold: int) -> Moments:
        """The moments of one fold."""
        one = slice(fold, fold + 1)
        return Moments(self.seconds[one], self.means[one], self.counts[one], self.positions)


def partition(inputs: int, groups: Mapping[str, Tensor]) -> Tensor:
    """(n,) int64: the index of the part that each column of a layer belongs to. Components come first, in the order of
    ``groups`` ((C, k) columns each), followed by one part for all columns that belong to no group.
    """
    labels = torch.full((inputs,), -1, dtype=torch.int64)
    parts = 0
    for columns in groups.values():
        labels[columns] = torch.arange(parts, parts + len(columns))[:, None]
        parts += len(columns)
    labels[labels < 0] = parts
    return labels


class LayerSums:
    """The running sums of one layer; `take` adds a batch, `classify` assigns its samples to classes."""

    def __init__(
        self,
        name: str,
        layer: Operator,
        groups: Mapping[str, Tensor],
        samples: int,
        seed: int,
        classes: int,
        limit: int,
        *,
        every: bool = False,
    ) -> None:
        """``every``: use all positions instead of drawing some."""
        self.every = every
        self.name, self.samples, self.seed, self.classes = name, samples, seed, classes
        device = layer.weight.device
        self.weight = flat_weight(layer).float()
        self.groups = {group: columns.to(device) for group, columns in groups.items()}
        inputs = self.weight.shape[1]
        self.positions = 0
        self.wide = inputs > limit
        # MPS has no float64.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.parts: list[Tensor] = []
        if self.wide:
            labels = partition(inputs, groups).to(device)
            self.parts = [torch.nonzero(labels == part)[:, 0] for part in range(int(labels.max()) + 1)]
        size = len(self.parts) if self.wide else inputs
        self.sums: dict[str, Tensor] = {
            "second": torch.zeros(FOLDS, size, size, dtype=torch.float32, device=device),
            "mean": torch.zeros(FOLDS, inputs, dtype=exact, device=device),
            "count": torch.zeros(FOLDS, dtype=torch.int64, device=device),
        }
        if classes:
            self.sums["class_energy"] = torch.zeros(classes, dtype=exact, device=device)
            for group, columns in self.groups.items():
                for what in ("inner", "own"):
                    key = f"class_{what}/{group}"
                    self.sums[key] = torch.zeros(classes, len(columns), dtype=torch.float32, device=device)
        self.waiting: dict[str, Tensor] = {}
        self._batch: Tensor | None = None
        self._calls: list[int] = []
        """The positions of each call of the layer in this batch."""

    def take(self, layer: Operator, x: Tensor, y: Tensor, samples: Tensor) -> None:
        """Adds a call of the layer: its input and output, and the indices (B,) of the samples; the same tensor in all calls of
        one batch.
        """
        if samples is not self._batch:
            self._batch, self._calls = samples, []
        positions = position_count(layer, x, len(samples))
        call = len(self._calls)
        self._calls.append(positions)
        self.positions = max(self.positions, sum(self._calls))
        first = self._calls[0]
        drawn = draw_size(first, self.weight.shape[1], self.weight.shape[0], self.samples)
        # The same share of each call, so that the average over rows is that over positions.
        size = positions if self.every or drawn == first else max(1, round(positions * drawn / first))
        at = None
        key = f"{self.name}#{call}" if call else self.name
        if size < positions:
            at = draw(positions, size, key, samples, self.seed).to(x.device)
        rows = patches(layer, x, at).float()
        for fold in range(FOLDS):
            mine = samples % FOLDS == fold
            if not bool(mine.any()):
                continue
            whole = bool(mine.all())
            part = rows if whole else rows.reshape(len(samples), size, -1)[mine.to(rows.device)].flatten(0, 1)
            if self.wide:
                self._add_contributions(self.sums["second"][fold], part)
            else:
                _add_symmetric(self.sums["second"][fold], part)
            self.sums["mean"][fold] += part.sum(0)
            self.sums["count"][fold] += part.shape[0]
        if self.classes:
            used = min(size, max(1, positions // _CLASS_POSITIONS))
            # Drawn positions come in random order, so the first of them will do; if all are used, some are drawn here.
            where = torch.arange(used).expand(len(samples), -1)
            if at is None and used < size:
                where = draw(positions, used, f"{key}/class", samples, self.seed)
            where = where.to(x.device)
            chosen = rows.reshape(len(samples), size, -1)[torch.arange(len(samples), device=x.device)[:, None], where]
            self._note(chosen, outputs_at(layer, y, where if at is None else at[:, :used]))

    def _add_contributions(self, total: Tensor, rows: Tensor) -> None:
        outputs = self.weight.shape[0]
        step = max(1, (1 << 26) // (len(self.parts) * outputs))
        for chunk in rows.split(step):
            each = torch.stack([chunk[:, part] @ self.weight[:, part].T for part in self.parts]).flatten(1)  # (C, r·O)
            total.addmm_(each, each.T)

    def _note(self, rows: Tensor, outputs: Tensor) -> None:
        """Sums ``rows`` (B, p, n) and ``outputs`` (B·p, O) over some of the positions; `classify` assigns them to classes."""
        batch, used = rows.shape[:2]
        x, y = rows.reshape(batch * used, -1), outputs.float()
        product = x * (y @ self.weight)  # Σ over a component's columns: <A_i, Y>
        self._wait("class_energy", y.square().sum(1).reshape(batch, used).sum(1))
        for group, columns in self.groups.items():
            components, block = columns.shape
            flat = columns.reshape(-1)
            inner = product[:, flat].reshape(batch, used, components, block).sum((1, 3))
            if block == 1:
                own = x[:, flat].square() * self.weight[:, flat].square().sum(0)
            else:
                parts = self.weight[:, flat].reshape(-1, components, block).transpose(0, 1)  # (C, O, k)
                slices = x[:, flat].reshape(-1, components, block)
                own = (torch.einsum("rck,ckl->rcl", slices, parts.transpose(1, 2) @ parts) * slices).sum(2)
            self._wait(f"class_inner/{group}", inner)
            self._wait(f"class_own/{group}", own.reshape(batch, used, components).sum(1))

    def _wait(self, key: str, values: Tensor) -> None:
        """Adds the ``values`` of one call, (B, …)."""
        self.waiting[key] = self.waiting[key] + values if key in self.waiting else values

    def classify(self, labels: Tensor) -> None:
        """Assigns the samples of the last batch to the classes ``labels`` (B,)."""
        for key, values in self.waiting.items():
            self.sums[key].index_add_(0, labels.to(values.device), values.to(self.sums[key].dtype))
        self.waiting = {}

    def result(self) -> Moments:
        counts = [count for count in self.sums["count"].tolist() if count]
        if not counts:
            raise RuntimeError(f"no forward pass reached {self.name}")
        seen = self.sums["count"] > 0
        second, mean = self.sums["second"][seen], self.sums["mean"][seen].cpu().double()
        if not self.wide:
            lower = second.tril()
            second = lower + lower.tril(-1).mT
        return Moments(
            seconds=(second / second.new_tensor(counts)[:, None, None]).cpu(),
            means=mean / mean.new_tensor(counts)[:, None],
            counts=tuple(counts),
            positions=self.positions,
        )


def _add_symmetric(total: Tensor, rows: Tensor) -> None:
    """``total += rowsᵀ rows``; only the lower triangle is valid, which halves the work."""
    for start in range(0, len(total), _TILE):
        end = min(start + _TILE, len(total))
        total[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end])
