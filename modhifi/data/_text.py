"""Text for language models: one file, cut into windows of tokens once the model is known."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ..errors import UserError
from ..files import check_regular
from ..models import Model
from ..shipped import TEXT_MODEL, shipped_folder
from ._data import Data
from ._paths import resolved

__all__ = ["SHIPPED_TEXT", "TEXT_SPLITS", "text", "tokens_of", "windowed"]

SHIPPED_TEXT = "text:kjv"
_LARGEST = 256 << 20
TEXT_SPLITS = ("calibration", "test")


def text(spec: str, root: Path | None, split: str) -> Data:
    """``text:FILE``, UTF-8, the same text for every split; or ``text:kjv``, excerpts of the King James Bible that ship with the
    model ``text-llama``: chapters that it was trained on (calibration) and held-out chapters (test).

    Raises `UserError` for a file that cannot be read, or is larger than 256 MiB.
    """
    shipped = spec == SHIPPED_TEXT
    path = shipped_folder(TEXT_MODEL) / f"{split}.txt" if shipped else resolved(spec.removeprefix("text:"), root)
    check_regular(path, "the text", _LARGEST)
    try:
        content = path.read_text(encoding="utf-8-sig")  # a byte order mark is no part of the text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the text {path} cannot be read ({type(error).__name__}); name a UTF-8 text file") from error
    return Data(
        spec=spec if spec == SHIPPED_TEXT else f"text:{path}",
        root=None,
        split=split,
        read=_no_picture,
        order=(0,),
        labels=None,
        classes=None,
        source=hashlib.sha256(content.encode()).hexdigest(),
        splits=TEXT_SPLITS if spec == SHIPPED_TEXT else (),
        text=content,
    )


def _no_picture(index: int) -> NoReturn:  # noqa: ARG001 - there is none
    raise UserError("text is for language models (hf:NAME_OR_DIR, text-llama); give this network images")


def tokens_of(data: Data, model: Model) -> Tensor:
    """(n,) int64: the whole text in tokens of ``model``, without special tokens. Raises `UserError` if that is not possible."""
    if data.text is None:
        raise UserError(f"{model.spec} is a language model and {data.spec} is not text; use --data text:FILE")
    if model.tokenizer is None:
        raise UserError(f"{model.spec} has no tokenizer; add the tokenizer files to its folder")
    # Texts longer than the context are expected, so the tokenizer's warning about them is suppressed.
    ids = model.tokenizer(data.text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def windowed(data: Data, model: Model | None) -> Data:
    """``data`` in the form that ``model`` takes: text cut into consecutive windows of its context (the remainder is omitted)
    and sampled as requested; images and windows unchanged.

    Raises `UserError` if only one of ``data`` and ``model`` is for text, or the text is shorter than one window.
    """
    if data.text is None and model is not None and model.tokens is not None:
        tokens_of(data, model)
    if data.text is None or data.rows is not None:
        return data
    if model is None or model.tokens is None:
        _no_picture(0)
    ids, context = tokens_of(data, model), model.tokens.context
    count = len(ids) // context
    if not count:
        raise UserError(
            f"{data.spec} has {len(ids)} tokens, less than one window of {context}; use a longer text or a smaller --context"
        )
    rows = ids[: count * context].reshape(count, context)
    source = hashlib.sha256(f"windows of {context}".encode() + rows.numpy().tobytes()).hexdigest()
    cut = dataclasses.replace(data, order=tuple(range(count)), source=source, rows=rows)
    return cut if data.asked is None else cut.take(data.asked, data.seed)
