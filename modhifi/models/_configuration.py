"""Reading the configuration of a language model that nobody vouches for: none of its code runs, its numbers are bounded, and
the network that it describes must fit into the weights that come with it.
"""

from __future__ import annotations

import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import check_regular, read_json

__all__ = ["check_files", "check_room", "check_values", "read_configuration"]

_LARGEST_JSON = 256 << 20
_WEIGHTS = (".safetensors", ".bin")
_LAYERS, _HEADS, _LABELS, _SIZE = 1_000, 4_096, 100_000, 2**31 - 1
# What decides how much transformers allocates, under the names of all families, and the largest value of each.
_LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head"), _HEADS),
    "num_labels": _LABELS,
    "vocab_size": 1 << 28,  # as in `TokenSpec`
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim", "head_dim"), _SIZE),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim"), _SIZE),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx"), _SIZE),
}


def read_configuration(library: Any, where: str, what: str, families: Collection[str], file: str | None = None) -> Any:
    """The configuration of the model ``where``, a folder or a name on the hub, from ``config.json`` or another ``file``.
    ``what`` names the model in messages.

    Raises `UserError` unless its type is one of ``families``, whose code is part of transformers, and its numbers are within
    the limits.
    """
    folder = Path(where)
    if folder.is_dir():
        check_files(folder)
        raw = read_json(folder / (file or "config.json"), "a configuration")
    else:
        raw, _ = library.PretrainedConfig.get_config_dict(where)
    check_values(raw, what, families)
    return library.AutoConfig.from_pretrained(folder / file if file else where, trust_remote_code=False)


def check_values(raw: Any, what: str, families: Collection[str]) -> None:
    """Raises `UserError` if the configuration, as parsed from JSON, is of another type or has numbers beyond the limits."""
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(kind, str) or kind not in families:
        named = f"a {kind:.40} model" if isinstance(kind, str) else "of no type that its config.json names"
        code = " and needs Python code of its own, which is never run" if _has_code(raw) else ""
        raise UserError(f"{what} is {named}{code}; choose one of {', '.join(families)}")
    for name, value in raw.items():
        limit = _LIMITS.get(name)
        if limit is not None and value is not None and not (type(value) is int and 1 <= value <= limit):
            raise UserError(f"{what}: {name} must be a whole number from 1 to {limit:,}, not {value!r:.40}; correct it")
        if type(value) is int and abs(value) > 2 * _SIZE:
            raise UserError(f"{what}: {name} is too large a number; correct it in the configuration")


def _has_code(raw: Any) -> bool:
    return isinstance(raw, dict) and "auto_map" in raw


def check_files(folder: Path) -> None:
    """Raises `UserError` if something in the folder would have to be read but is no regular file, or is a JSON above 256 MiB."""
    for path in folder.iterdir():
        if not path.exists() or stat.S_ISDIR(path.stat().st_mode):
            continue
        check_regular(path, f"a file of the model {folder}", _LARGEST_JSON if path.suffix == ".json" else None)


def check_room(library: Any, config: Any, folder: Path, what: str, pruned: int = 1) -> None:
    """Raises `UserError` if the network of this configuration has more parameters than the folder's weight files have bytes,
    times ``pruned`` where the weights are those of a smaller network: nothing of its size may be allocated before.
    """
    with torch.device("meta"):
        twin = library.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    count = sum(value.numel() for value in twin.parameters())
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())
    if count > held * pruned:
        raise UserError(
            f"{what}: its configuration describes {count:,} parameters, but its weight files have {held:,} bytes;"
            " download it again, or use the configuration of these weights"
        )
