"""Text for language models: one file, cut into windows of tokens once it is known who reads it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from ..errors import UserError
from ._types import Data

if TYPE_CHECKING:
    from ..models import Model

__all__ = ["SHIPPED_TEXT", "TEXT_SPLITS", "text", "tokens_of", "windowed"]

SHIPPED_TEXT = "text:kjv"
TEXT_SPLITS = ("calibration", "test")


def text(spec: str, root: Path | None, split: str) -> Data:
    """``text:FILE``, UTF-8, the same whole in every split, or ``text:kjv``, excerpts of the King James Bible that come with the
    model ``text-llama``: chapters that it was trained on, and held-out ones. Raises `UserError` for a file that cannot be read.
    """
    if spec == SHIPPED_TEXT:
        from ..models import TEXT_MODEL, shipped_folder

        if root is not None:
            raise UserError(f"{spec} comes with the project; leave the data root away")
        if split not in TEXT_SPLITS:
            raise UserError(f"{spec} has no split {split!r}; there is {', '.join(TEXT_SPLITS)}")
        path = shipped_folder(TEXT_MODEL) / f"{split}.txt"
    else:
        path = Path(spec.removeprefix("text:")).expanduser()
        path = (root / path if root is not None else path).resolve()
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the text {path} cannot be read ({type(error).__name__}); name a file of UTF-8 text"
        ) from error
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
    """(n,) int64: the whole text as ``model`` reads it, without special tokens. Raises `UserError` if it cannot."""
    if data.text is None:
        raise UserError(f"{model.spec} is a language model and {data.spec} is no text; give --data text:FILE")
    if model.tokenizer is None:
        raise UserError(f"{model.spec} has no tokenizer; put the files of its tokenizer into its folder")
    # A text longer than the context is meant: the tokenizer's warning of it is not for the caller.
    ids = model.tokenizer(data.text, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def windowed(data: Data, model: Model | None) -> Data:
    """``data`` as ``model`` takes it: text cut into windows of its context, one behind the other and the rest left away,
    then drawn as was asked; images and windows as they are.

    Raises `UserError` if one is text and the other is not for text, or the text is shorter than one window.
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
            f"{data.spec} has {len(ids)} tokens, less than one window of {context}; give a longer text or --context N"
        )
    rows = ids[: count * context].reshape(count, context)
    source = hashlib.sha256(f"windows of {context}".encode() + rows.numpy().tobytes()).hexdigest()
    cut = dataclasses.replace(data, order=tuple(range(count)), source=source, rows=rows)
    return cut if data.asked is None else cut.take(data.asked, data.seed)
