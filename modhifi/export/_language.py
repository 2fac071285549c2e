"""Language models in a folder, in one of two forms.

If all blocks have the same widths and the configuration can express them, the folder is written by transformers'
`save_pretrained`, so transformers opens it on its own, as do serving engines that read such folders. Otherwise the
configuration is stored as `_FREE` instead of ``config.json``, because it does not describe the network's shape, and only this
project opens the folder: it builds the configured network and gives every layer the shape of its stored weight.
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
    check_room,
    language_model,
    of_config,
    open_tokenizer,
    opens_alone,
    quiet,
    read_config,
    shaped_like,
    transformers,
)

__all__ = ["read_language", "write_language"]

_FREE = "architecture.json"
_WEIGHTS = "model.safetensors"
_GENERATION = "generation_config.json"
# The configured network is built before it is cut to its weights; it may have this many parameters for each of their bytes.
_PRUNED = 64


def write_language(model: Model, folder: Path) -> None:
    """Writes weights, configuration and tokenizer to ``folder``."""
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
    """The network that `write_language` wrote, on ``device`` (None as in `language_model`), and its tokenizer or None. Raises
    `UserError` if the files do not match each other.
    """
    if not (folder / _FREE).exists():
        module, _, tokenizer = language_model(str(folder), device)
        return module, tokenizer
    if device is None:
        raise UserError(
            f"the blocks of {folder} differ in width, so it cannot be spread over devices; choose one device"
        )
    library = transformers()
    try:
        with quiet():
            config = read_config(folder / _FREE)
            check_room(library, config, folder, str(folder), _PRUNED)
        state = safetensors.torch.load_file(folder / _WEIGHTS)
        module = of_config(config, next(iter(state.values())).dtype)
        shaped_like(module, state)
        module.load_state_dict(state)
        if (folder / _GENERATION).exists():
            module.lm.generation_config = library.GenerationConfig.from_pretrained(folder)
    except UserError:
        raise
    except Exception as error:  # the configuration is untrusted: transformers raises almost anything for a broken one
        raise UserError(f"{folder} is damaged: its weights do not fit its {_FREE}; export it again") from error
    return module.to(device), open_tokenizer(folder)
