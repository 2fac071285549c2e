"""What is kept of a layer's input, and the running sums it comes from.

Everything is a sum over rows (one row: what the layer's weight multiplies at one position of one sample), so that batches,
processes and interrupted runs add up:

- *dense*: ``Σ x xᵀ`` and ``Σ x`` (theory, section 3), for layers of up to `MAX_INPUTS` inputs;
- *contributions*: for wider layers ``Σ_o Σ A_i A_j``, the (C, C) Gram matrix of the components' contributions to all
  outputs together, and ``Σ x``. It answers what one scalar per component can do, and needs C² numbers instead of n²;
- *classes*: for each class and component ``Σ <A_i, Y>`` and ``Σ ‖A_i‖²``, for each class ``Σ ‖Y‖²``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .._operators import Operator, flat_weight, outputs_at, patches, position_count
from ._positions import draw, draw_size

__all__ = ["MAX_INPUTS", "LayerSums", "Moments", "partition"]

# A dense second moment of more inputs than this would take more than 512 MiB in float32.
MAX_INPUTS = 11_585
# Up to this many rows and columns the symmetric half that is left out would not pay for the splitting.
_TILE = 512
# One position in so many is looked at for the class tables.
_CLASS_POSITIONS = 64


@dataclass
class Moments:
    """``second`` (n, n) float32 and ``mean`` (n,) float64 are averages over ``count`` rows; one sample has ``positions``.

    Of a wide layer ``second`` is the (C, C) matrix of contributions, over the parts that `partition` gives.
    """

    second: Tensor
    mean: Tensor
    count: int
    positions: int


def partition(inputs: int, groups: Mapping[str, Tensor]) -> Tensor:
    """(n,) int64: the number of the part that each column of a layer belongs to: components in the order of ``groups`` ((C, k)
    columns each), and behind them one part for all columns of no group.
    """
    labels = torch.full((inputs,), -1, dtype=torch.int64)
    parts = 0
    for columns in groups.values():
        labels[columns] = torch.arange(parts, parts + len(columns))[:, None]
        parts += len(columns)
    labels[labels < 0] = parts
    return labels


class LayerSums:
    """One layer's running sums; `take` adds a batch, `classify` says which classes its samples are of."""

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
        """``every``: look at all positions instead of drawing some."""
        self.every = every
        self.name, self.samples, self.seed, self.classes = name, samples, seed, classes
        device = layer.weight.device
        self.weight = flat_weight(layer).float()
        self.groups = {group: columns.to(device) for group, columns in groups.items()}
        inputs = self.weight.shape[1]
        self.positions = 0
        self.size = 0
        self.wide = inputs > limit
        # MPS has no float64.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.parts: list[Tensor] = []
        if self.wide:
            labels = partition(inputs, groups).to(device)
            self.parts = [torch.nonzero(labels == part)[:, 0] for part in range(int(labels.max()) + 1)]
        size = len(self.parts) if self.wide else inputs
        self.sums: dict[str, Tensor] = {
            "second": torch.zeros(size, size, dtype=torch.float32, device=device),
            "mean": torch.zeros(inputs, dtype=exact, device=device),
            "count": torch.zeros((), dtype=torch.int64, device=device),
        }
        if classes:
            self.sums["class_energy"] = torch.zeros(classes, dtype=exact, device=device)
            for group, columns in self.groups.items():
                for what in ("inner", "own"):
                    key = f"class_{what}/{group}"
                    self.sums[key] = torch.zeros(classes, len(columns), dtype=torch.float32, device=device)
        self.waiting: dict[str, Tensor] = {}

    def take(self, layer: Operator, x: Tensor, y: Tensor, samples: Tensor) -> None:
        """Adds a batch: the layer's input and output, and the numbers of its samples (B,)."""
        if not self.size:
            self.positions = position_count(layer, x, len(samples))
            drawn = draw_size(self.positions, self.weight.shape[1], self.weight.shape[0], self.samples)
            self.size = self.positions if self.every else drawn
        at = None
        if self.size < self.positions:
            at = draw(self.positions, self.size, self.name, samples, self.seed).to(x.device)
        rows = patches(layer, x, at).float()
        if self.wide:
            self._add_contributions(rows)
        else:
            _add_symmetric(self.sums["second"], rows)
        self.sums["mean"] += rows.sum(0)
        self.sums["count"] += rows.shape[0]
        if self.classes:
            used = min(self.size, max(1, self.positions // _CLASS_POSITIONS))
            # Those drawn come in random order; where all are looked at, some of them are drawn.
            where = torch.arange(used).expand(len(samples), -1)
            if at is None and used < self.size:
                where = draw(self.positions, used, f"{self.name}/class", samples, self.seed)
            where = where.to(x.device)
            chosen = rows.reshape(len(samples), self.size, -1)[
                torch.arange(len(samples), device=x.device)[:, None], where
            ]
            self._note(chosen, outputs_at(layer, y, where if at is None else at[:, :used]))

    def _add_contributions(self, rows: Tensor) -> None:
        outputs = self.weight.shape[0]
        step = max(1, (1 << 26) // (len(self.parts) * outputs))
        for chunk in rows.split(step):
            each = torch.stack([chunk[:, part] @ self.weight[:, part].T for part in self.parts]).flatten(1)  # (C, r·O)
            self.sums["second"].addmm_(each, each.T)

    def _note(self, rows: Tensor, outputs: Tensor) -> None:
        """``rows`` (B, p, n) and ``outputs`` (B·p, O) of a part of the positions, summed over them; the classes come later."""
        batch, used = rows.shape[:2]
        x, y = rows.reshape(batch * used, -1), outputs.float()
        product = x * (y @ self.weight)  # Σ over a component's columns: <A_i, Y>
        self.waiting["class_energy"] = y.square().sum(1).reshape(batch, used).sum(1)
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
            self.waiting[f"class_inner/{group}"] = inner
            self.waiting[f"class_own/{group}"] = own.reshape(batch, used, components).sum(1)

    def classify(self, labels: Tensor) -> None:
        """The classes (B,) of the samples of the last batch."""
        for key, values in self.waiting.items():
            self.sums[key].index_add_(0, labels.to(values.device), values.to(self.sums[key].dtype))
        self.waiting = {}

    def result(self) -> Moments:
        count = int(self.sums["count"])
        if not count:
            raise RuntimeError(f"no forward pass went through {self.name}")
        second = self.sums["second"]
        if not self.wide:
            lower = second.tril()
            second = lower + lower.tril(-1).T
        return Moments(
            second=(second / count).cpu(),
            mean=(self.sums["mean"].cpu().double() / count),
            count=count,
            positions=self.positions,
        )


def _add_symmetric(total: Tensor, rows: Tensor) -> None:
    """``total += rowsᵀ rows``, of which only the lower triangle is kept right: half of the work is left out."""
    for start in range(0, len(total), _TILE):
        end = min(start + _TILE, len(total))
        total[start:end, :end].addmm_(rows[:, start:end].T, rows[:, :end])
