"""What a pass in sections keeps from one section to the next, batch by batch."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["IN_MEMORY", "Kept"]

# Up to so many bytes are kept as they are in memory; if there are more, in half precision, and if that is still too much, in
# files.
IN_MEMORY = 2 << 30


class Kept:
    """Tensors of every batch, on the CPU or in files that disappear with it. ``size``: bytes that all batches will take.

    Numbers that half precision cannot hold are kept as they are.
    """

    def __init__(self, size: float) -> None:
        self.half = size > IN_MEMORY
        self._folder = Path(tempfile.mkdtemp(prefix="modhifi.")) if size / 2 > IN_MEMORY else None
        if self._folder is not None:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._held: dict[int, dict[str, Tensor]] = {}

    def put(self, batch: int, values: Mapping[int, Tensor]) -> None:
        packed = {str(number): self._packed(value) for number, value in values.items()}
        if self._folder is None:
            self._held[batch] = packed
        else:
            save_file(packed, self._file(batch))

    def get(self, batch: int, device: torch.device) -> dict[int, Tensor]:
        """A copy of what was put; half precision is widened to single."""
        held = self._held[batch] if self._folder is None else load_file(self._file(batch))
        return {
            int(number): value.to(
                device, torch.float32 if self.half and value.dtype == torch.float16 else value.dtype, copy=True
            )
            for number, value in held.items()
        }

    def drop(self, batch: int) -> None:
        """Forgets a batch."""
        self._held.pop(batch, None)
        if self._folder is not None:
            self._file(batch).unlink(missing_ok=True)

    def _packed(self, value: Tensor) -> Tensor:
        value = value.contiguous()
        if self.half and value.dtype == torch.float32:
            half = value.half()
            if bool(half.isfinite().all()) or not bool(value.isfinite().all()):
                value = half
        return value.cpu()

    def _file(self, batch: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{batch}.safetensors"
