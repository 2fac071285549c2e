"""A language model in a folder, in one of two forms.

Where all blocks have the same widths and the configuration can express them, the folder is what transformers' own
`save_pretrained` writes, and transformers alone opens it, as do engines that serve such folders. Otherwise the configuration
is named `_FREE` instead of ``config.json``, so that nobody takes it for the network's, and this project opens it: it builds
what the configuration says and gives every layer the shape of its stored weight.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ..errors import UserError
from ..models import CausalLM, Model
from ..models.language import (
    as_transformers,
    language_model,
    of_config,
    open_tokenizer,
    opens_alone,
    quiet,
    shaped_like,
    transformers,
)

__all__ = ["read_language", "write_language"]

_FREE = "architecture.json"
_WEIGHTS = "model.safetensors"
_GENERATION = "generation_config.json"


def write_language(model: Model, folder: Path) -> None:
    """Weights, configuration and tokenizer into ``folder``."""
    module = model.module
    assert isinstance(module, CausalLM)
    if opens_alone(module):
        with quiet():
            as_transformers(module).save_pretrained(folder)
    else:
        state = {name: value.contiguous().clone() for name, value in module.state_dict().items()}
        safetensors.torch.save_file(state, folder / _WEIGHTS, metadata={"format": "pt"})
        config = module.lm.config.to_json_string(use_diff=False)
        (folder / _FREE).write_text(config, encoding="utf-8")
        if module.lm.generation_config is not None:
            module.lm.generation_config.save_pretrained(folder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def read_language(folder: Path, device: torch.device | None) -> tuple[CausalLM, Any]:
    """The network that `write_language` wrote, on ``device`` (None as in `language_model`), and its tokenizer, None if it has
    none. Raises `UserError` if the files do not go together.
    """
    if not (folder / _FREE).exists():
        module, _, tokenizer = language_model(str(folder), device)
        return module, tokenizer
    if device is None:
        raise UserError(
            f"the blocks of {folder} have widths of their own, so it is not spread over devices; choose one"
        )
    library = transformers()
    try:
        with quiet():
            config = library.AutoConfig.from_pretrained(folder / _FREE)
        state = safetensors.torch.load_file(folder / _WEIGHTS)
        module = of_config(config, next(iter(state.values())).dtype)
        shaped_like(module, state)
        module.load_state_dict(state)
        if (folder / _GENERATION).exists():
            module.lm.generation_config = library.GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} is damaged: its weights do not fit its {_FREE}; export it again") from error
    return module.to(device), open_tokenizer(folder)
