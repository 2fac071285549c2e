"""Causal language models from transformers, with the interface of every other network here: tokens in, logits out.

Everything that differs between families is in `FAMILIES`: where the decoder blocks are, what their layers are called, and
how the configuration names their widths. GPT-2 stores its weights transposed (``Conv1D``); such layers become
`torch.nn.Linear` on loading and are converted back on writing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..specs import TokenSpec
from ..text import listed
from ._configuration import check_room, read_configuration

__all__ = [
    "FAMILIES",
    "CausalLM",
    "Family",
    "as_transformers",
    "check_room",
    "check_context",
    "language_model",
    "of_config",
    "open_tokenizer",
    "opens_alone",
    "quiet",
    "read_config",
    "set_heads",
    "shaped_like",
    "token_spec",
    "transformers",
]

# The longest window that is used by default.
_CONTEXT = 1024
# A folder with a tokenizer contains at least one of these files.
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Family:
    """The layers of a decoder block, by their names within the block. ``query``, ``key`` and ``value`` are the same layer if
    they are fused. ``neurons`` is the configuration's name for the hidden width of the MLP; ``grouped`` is true if the
    configuration has separate fields for the number of query heads, the number of key-value heads and the head size.
    """

    blocks: str
    attention: str
    query: str
    key: str
    value: str
    out: str
    hidden: tuple[str, ...]
    down: str
    neurons: str
    grouped: bool

    @property
    def fused(self) -> bool:
        return self.query == self.key


_LLAMA = Family(
    blocks="model.layers",
    attention="self_attn",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.o_proj",
    hidden=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    neurons="intermediate_size",
    grouped=True,
)
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Family(
        blocks="transformer.h",
        attention="attn",
        query="attn.c_attn",
        key="attn.c_attn",
        value="attn.c_attn",
        out="attn.c_proj",
        hidden=("mlp.c_fc",),
        down="mlp.c_proj",
        neurons="n_inner",
        grouped=False,
    ),
    "opt": Family(
        blocks="model.decoder.layers",
        attention="self_attn",
        query="self_attn.q_proj",
        key="self_attn.k_proj",
        value="self_attn.v_proj",
        out="self_attn.out_proj",
        hidden=("fc1",),
        down="fc2",
        neurons="ffn_dim",
        grouped=False,
    ),
}
"""The supported families, by ``model_type`` of the configuration."""


class CausalLM(nn.Module):
    """The transformers language model ``lm`` as a map from (B, T) int64 tokens to (B, T, vocabulary) logits. To generate
    text, use ``lm`` itself.
    """

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

    @property
    def family(self) -> Family:
        return FAMILIES[self.lm.config.model_type]

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """The decoder blocks with their names, in order."""
        path = f"lm.{self.family.blocks}"
        return [(f"{path}.{name}", block) for name, block in self.get_submodule(path).named_children()]

    def heads_of(self, block: nn.Module) -> tuple[int, int, int]:
        """The query heads, key-value heads and channels per head of this block."""
        family = self.family
        size = int(block.get_submodule(family.attention).head_dim)  # type: ignore[arg-type]
        width = int(block.get_submodule(family.out).in_features)  # type: ignore[arg-type]
        keys = width if family.fused else int(block.get_submodule(family.key).out_features)  # type: ignore[arg-type]
        return width // size, keys // size, size


def transformers() -> Any:
    """The transformers library, imported on first use; raises `UserError` if it is not installed."""
    try:
        import transformers as library
    except ImportError as error:
        raise UserError(
            "language models need transformers; install it with: pip install transformers accelerate"
        ) from error
    return library


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside the context, transformers prints no progress bars and warnings: progress is reported in other ways here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def language_model(
    name: str, device: torch.device | None, context: int | None = None, dtype: torch.dtype | None = None
) -> tuple[CausalLM, TokenSpec, Any]:
    """``hf:NAME_OR_DIR``: the network, its input, and its tokenizer (None if the folder has none).

    Args:
        name: of a model on the hub or in the hub's cache, or a folder written by `save_pretrained`.
        device: where the network is loaded. None leaves placement to accelerate (transformers' ``device_map="auto"``), which
            keeps on the CPU or on disk whatever does not fit on the accelerators.
        context: tokens per sample; by default the model's maximum, but at most 1,024.
        dtype: of the weights; the checkpoint's own by default.

    No code of the model runs, whatever its configuration asks for.

    Raises:
        UserError: if transformers is missing, the model cannot be loaded or is not of a supported family, its weights are not
            those of its configuration, the context is out of range, or the tokenizer cannot be opened.
    """
    library = transformers()
    folder = Path(name).expanduser()
    where = str(folder.resolve()) if folder.is_dir() else name
    options: dict[str, Any] = {"dtype": dtype or "auto"} | ({"device_map": "auto"} if device is None else {})
    try:
        with quiet():
            config = read_configuration(library, where, f"hf:{name}", FAMILIES)
            if folder.is_dir():
                check_room(library, config, folder, f"hf:{name}")
            given = token_spec(config, context)
            lm, report = library.AutoModelForCausalLM.from_pretrained(
                where, config=config, trust_remote_code=False, output_loading_info=True, **options
            )
            _check_complete(report, f"hf:{name}", FAMILIES[config.model_type])
    except UserError:
        raise
    except Exception as error:  # hub client, parser and loader raise exceptions that have no common base class
        detail = _first_line(error)
        raise UserError(
            f"hf:{name} could not be loaded ({detail}); name a folder written by save_pretrained, or a model on the hub"
        ) from error
    tokenizer = open_tokenizer(where)
    if device is not None:
        lm = lm.to(device)
    module = CausalLM(_with_linear_layers(lm)).eval().requires_grad_(False)
    return module, given, tokenizer


def read_config(path: Path) -> Any:
    """The configuration in the file ``path``, which is not named ``config.json``; raises `UserError` as `language_model` does."""
    return read_configuration(transformers(), str(path.parent), str(path), FAMILIES, path.name)


def _check_complete(report: Any, what: str, family: Family) -> None:
    """transformers draws weights that it does not find at random, and ignores blocks beyond the configuration's."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{what} lacks weights that its configuration needs ({listed(missing)}); download it again")
    surplus = sorted(name for name in report["unexpected_keys"] if f"{family.blocks}." in f"{name}.")
    if surplus:
        raise UserError(
            f"{what} has weights that its configuration leaves out ({listed(surplus)}); correct config.json"
        )


def token_spec(config: Any, context: int | None = None) -> TokenSpec:
    """The input of a model with this configuration; ``context`` and the errors are as in `language_model`."""
    context = min(int(config.max_position_embeddings), _CONTEXT) if context is None else context
    check_context(config, context)
    return TokenSpec(
        context=context,
        vocabulary=int(config.vocab_size),
        head_counts=head_counts(config),
    )


def open_tokenizer(where: str | Path) -> Any:
    """The tokenizer of a model's folder or name. None if the folder has none: such a model can be shown but not fed text.

    Raises `UserError` if it cannot be opened.
    """
    folder = Path(where)
    try:
        with quiet():
            return transformers().AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # the readers of the many formats raise almost anything
        if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZERS):
            return None
        detail = _first_line(error)
        if "trust_remote_code" in str(error):
            detail = "it needs Python code of its own, which is never run"
        raise UserError(
            f"the tokenizer of {where} cannot be opened ({detail}); fix its files, or remove them"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__


def head_counts(config: Any) -> tuple[int, ...]:
    """The numbers of key-value heads, up to the model's own, that such a configuration can express for all blocks."""
    family = FAMILIES[config.model_type]
    if not family.grouped:
        return (int(config.num_attention_heads),)
    heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    fewer = [kept for kept in range(1, groups) if is_valid(_with_heads(config, heads // groups * kept, kept, size))]
    return (*fewer, groups)


def _with_heads(config: Any, heads: int, groups: int, size: int) -> Any:
    changed = copy.deepcopy(config)
    changed.num_attention_heads, changed.num_key_value_heads, changed.head_dim = heads, groups, size
    return changed


def is_valid(config: Any) -> bool:
    """Whether transformers accepts the configuration on writing and reading: Llama's heads must divide the hidden size."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        if hasattr(config, "validate"):  # early versions accept anything and have no such method
            config.validate()
    except StrictDataclassError:
        return False
    return True


def check_context(config: Any, context: int) -> None:
    """Raises `UserError` unless the model accepts windows of ``context`` tokens."""
    longest = int(config.max_position_embeddings)
    if not 2 <= context <= longest:
        raise UserError(f"the context must be 2 to {longest} tokens for this model, not {context}")


def of_config(config: Any, dtype: torch.dtype = torch.float32) -> CausalLM:
    """An untrained network with this configuration, on the CPU."""
    with quiet():
        lm = transformers().AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    return CausalLM(_with_linear_layers(lm)).eval().requires_grad_(False)


def _replace_layers(module: nn.Module, kind: type[nn.Module], make: Any) -> None:
    """Replaces every layer of type ``kind`` by ``make(layer)``, in place."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, kind):
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, make(layer))


def _with_linear_layers(lm: Any) -> Any:
    """``lm`` with transformers' ``Conv1D`` layers replaced by `torch.nn.Linear`, in place."""
    from transformers.pytorch_utils import Conv1D

    def linear(layer: Any) -> nn.Linear:
        inputs, outputs = layer.weight.shape
        made = nn.Linear(inputs, outputs, device="meta")
        made.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        return made

    if lm.config.model_type == "gpt2":
        if any(hasattr(part, "_hf_hook") for part in lm.modules()):
            raise UserError(
                "GPT-2 models cannot be spread over devices (their layers are converted on loading); choose one device"
            )
        _replace_layers(lm, Conv1D, linear)
    return lm


def as_transformers(module: CausalLM) -> Any:
    """``module.lm`` in the form that transformers writes; a copy if layers must be converted back."""
    lm = module.lm
    if lm.config.model_type != "gpt2":
        return lm
    from transformers.pytorch_utils import Conv1D

    def transposed(layer: Any) -> Any:
        made = Conv1D(0, 0)
        made.nf, made.nx = layer.weight.shape
        made.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
        made.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
        return made

    lm = copy.deepcopy(lm)
    _replace_layers(lm.transformer, nn.Linear, transposed)
    return lm


def shaped_like(module: CausalLM, state: dict[str, Tensor]) -> None:
    """Gives every linear layer inside the blocks, in place, the shape of its weight in ``state``, and a bias if ``state`` has
    one; the values are filled in later.
    """
    for path, block in module.blocks():
        for name, layer in block.named_modules():
            weight = state.get(f"{path}.{name}.weight")
            if isinstance(layer, nn.Linear) and weight is not None:
                layer.out_features, layer.in_features = weight.shape
                layer.weight = nn.Parameter(torch.empty_like(weight, dtype=layer.weight.dtype), requires_grad=False)
                bias = state.get(f"{path}.{name}.bias")
                made = None if bias is None else nn.Parameter(layer.weight.new_empty(bias.shape), requires_grad=False)
                layer.register_parameter("bias", made)
    set_heads(module)


def set_heads(module: CausalLM) -> None:
    """Updates the head counts of the attention modules after their layers were cut, and the widths in the configuration if
    they are the same in all blocks and it can express them: transformers alone then opens what `save_pretrained` of
    ``module.lm`` writes.
    """
    family, config = module.family, module.lm.config
    widths = set()
    for _, block in module.blocks():
        heads, groups, size = module.heads_of(block)
        attention: Any = block.get_submodule(family.attention)
        if hasattr(attention, "num_heads"):
            attention.num_heads = heads
        if hasattr(attention, "split_size"):
            attention.split_size = heads * size
        widths.add((heads, groups, size, int(block.get_submodule(family.down).in_features)))  # type: ignore[arg-type]
    if len(widths) != 1:
        return
    heads, groups, size, neurons = widths.pop()
    candidate = _with_heads(config, heads, groups, size) if family.grouped else copy.deepcopy(config)
    setattr(candidate, family.neurons, neurons)
    if opens_alone(module, candidate):
        for name in (family.neurons, "num_attention_heads", "num_key_value_heads", "head_dim"):
            if hasattr(candidate, name):
                setattr(config, name, getattr(candidate, name))


def opens_alone(module: CausalLM, config: Any | None = None) -> bool:
    """Whether transformers, from the configuration alone, builds a network whose weights have these names and shapes."""
    if not is_valid(config or module.lm.config):
        return False
    with torch.device("meta"), quiet():
        try:
            library = transformers()
            twin = library.AutoModelForCausalLM.from_config(config or module.lm.config, trust_remote_code=False)
        except ValueError:
            return False
    own = {name: tuple(value.shape) for name, value in module.lm.state_dict().items()}
    return {name: tuple(value.shape) for name, value in _with_linear_layers(twin).state_dict().items()} == own
