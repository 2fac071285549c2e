"""The layers that sequential compensation has fitted so far, in a folder from which a run that was killed goes on."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import UserError
from ..files import atomic_file
from ..layers import Edit

__all__ = ["Fits"]

_SUFFIX = ".fit.safetensors"


@dataclass
class Fits:
    """``edits`` of layers and the ``ridges`` they were fitted with. With a ``folder``, each is written there once it is found;
    those that an earlier run wrote for the same ``key``, text that says what was asked for, are read from it. ``spread`` is how
    much of the lost spread they give back (`modhifi.fidelity.SPREAD`).

    Raises:
        UserError: if ``folder`` is a file.
    """

    folder: Path | None = None
    key: str = ""
    edits: dict[str, Edit] = field(default_factory=dict)
    ridges: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0
    trials: list[Fits] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.folder is not None and self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file where a folder for unfinished work is needed; move or rename it")
        for path in self._files():
            # A damaged file, or one of another run, is written anew.
            with contextlib.suppress(SafetensorError, OSError, KeyError, ValueError), safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["modhifi"])
                if about["key"] == self.key:
                    self.edits[about["layer"]] = Edit(file.get_tensor("weight"), file.get_tensor("shift"))
                    self.ridges[about["layer"]] = float(about["ridge"])

    def _files(self) -> list[Path]:
        return [] if self.folder is None else sorted(self.folder.glob(f"*{_SUFFIX}"))

    def add(self, layer: str, edit: Edit, ridge: float) -> Edit:
        """Returns ``edit``."""
        self.edits[layer], self.ridges[layer] = edit, ridge
        if self.folder is not None:
            about = json.dumps({"key": self.key, "layer": layer, "ridge": ridge})
            tensors = {"weight": edit.weight.contiguous(), "shift": edit.shift.contiguous()}
            with atomic_file(self.folder / f"{layer}{_SUFFIX}") as made:
                save_file(tensors, made, metadata={"modhifi": about})
        return edit

    def trial(self, name: str) -> Fits:
        """Those of a trial run, in a folder of their own; `delete` removes them too."""
        trial = Fits(None if self.folder is None else self.folder / name, self.key)
        self.trials.append(trial)
        return trial

    def delete(self) -> None:
        """Removes the files; and the folder, if it holds nothing else."""
        for trial in self.trials:
            trial.delete()
        for path in self._files():
            path.unlink(missing_ok=True)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
