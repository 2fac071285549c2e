"""Where the state dict is among what training scripts save beside it, and what they prepend to its names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError

__all__ = ["Checkpoint", "aligned", "without_prefixes", "without_wrappers"]

_log = logging.getLogger(__name__)
# The weights as they were trained, and averages of them; where a file holds several, the first is taken.
_TRAINED = ("state_dict", "model", "model_state_dict", "module", "net", "network", "params", "weights", "student")
_AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "averaged_model", "teacher")
_KNOWN = _TRAINED + _AVERAGED
_NEVER = ("optim", "lr_sched", "sched", "scaler")
# DataParallel, torch.compile, Lightning and self-supervised training prepend these; the last two are also names of layers.
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
_MOST = 0.8
# Wrappers and prefixes may be nested this deeply; a pickle can hold itself.
_NESTED = 8


class Checkpoint(dict[str, Tensor]):
    """A state dict. ``longer``: the names of its tensors before each prefix was taken off, the last one first. ``beside``: names
    without the prefix that most others had, which may belong to something else, such as a loss.
    """

    def __init__(
        self, state: Mapping[str, Tensor], longer: Sequence[Sequence[str]] = (), beside: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(state)
        self.longer, self.beside = longer, beside


def without_wrappers(content: Any, path: Path, key: str | None) -> Any:
    """The innermost of the wrappers in ``content``; ``key`` is the path to it where the caller has chosen, such as ``ema``.

    Says in one line which of several state dicts was taken. Raises `UserError` if ``key`` is not there, or nothing says which of
    several is meant.
    """
    for part in key.split(".") if key is not None else ():
        held = ", ".join(map(str, content)) if isinstance(content, Mapping) else "no names"
        if not isinstance(content, Mapping) or part not in content:
            raise UserError(f"{path} has no {part!r:.40}; it holds {held:.100}; choose one of these")
        content = content[part]
    for _ in range(_NESTED):
        if not isinstance(content, Mapping) or _is_state(content):
            break
        inside = {name: value for name, value in content.items() if isinstance(value, Mapping)}
        found = [name for name in _KNOWN if name in inside]
        others = [str(name) for name in inside if name not in found and _holds_state(name, inside[name])]
        if not found and len(others) > 1:
            raise UserError(f"{path} holds several state dicts; choose one by --weights FILE#NAME: {', '.join(others)}")
        if not found and not others:
            break
        taken, *left = [*(name for name in found if _holds_state(name, inside[name])), *others] or found
        if left:
            _log.warning("%s: took %s, not %s; choose with --weights %s#NAME", path, taken, ", ".join(left), path.name)
        content = inside[taken]
    return content


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _holds_state(name: object, content: Any) -> bool:
    """Whether ``content`` is a state dict, perhaps in known wrappers, and not the state of something else."""
    waiting, seen = [content], set()
    while waiting and not str(name).lower().startswith(_NEVER):
        one = waiting.pop()
        if not isinstance(one, Mapping) or id(one) in seen:
            continue
        if _is_state(one):
            return True
        seen.add(id(one))
        waiting += [one.get(inner) for inner in _KNOWN]
    return False


def without_prefixes(state: Mapping[str, Tensor]) -> Checkpoint:
    """``state`` without the prefixes of all, or most, of its names, and without the counter of `torch.optim.swa_utils`."""
    named = {name: value for name, value in state.items() if name != "n_averaged" or value.ndim}
    beside: set[str] = set()
    longer: list[list[str]] = []
    for _ in range(_NESTED):
        inner = [name for name in named if name not in beside]
        counts = {prefix: sum(name.startswith(prefix) for name in inner) for prefix in _PREFIXES}
        prefix = max(_PREFIXES, key=counts.__getitem__)
        if not inner or counts[prefix] < _MOST * len(inner):
            break
        stripped = {name: name.removeprefix(prefix) for name in inner}
        if len(set(stripped.values()) | beside) < len(named):
            break
        beside |= {name for name in inner if not name.startswith(prefix)}
        longer.insert(0, list(named))
        named = {stripped.get(name, name): value for name, value in named.items()}
    return Checkpoint(named, longer, frozenset(beside))


def aligned(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> Mapping[str, Tensor]:
    """``state`` under the names ``own`` of a network's tensors: as they are; as in the file; or with a prefix, of a network that
    is a part of this one. ``state`` itself if none of these fits. What is left out, and what is added, is said in one line.
    """
    if not isinstance(state, Checkpoint):
        return state
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    if needed <= state.keys():
        left = [name for name in state if name not in own]
        if left and state.beside.issuperset(left):
            shown = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
            _log.warning("%s: left out %s, no part of the network", path, shown)
            return {name: value for name, value in state.items() if name in own}
        return state
    for names in state.longer:
        if needed <= set(names) <= own.keys():
            return dict(zip(names, state.values(), strict=True))
    for prefix in _PREFIXES:
        if needed <= {prefix + name for name in state} <= own.keys():
            _log.warning("%s: its names were taken with %s before them", path, prefix)
            return {prefix + name: value for name, value in state.items()}
    return state
