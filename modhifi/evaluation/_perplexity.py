"""What a language model makes of a text, and how fast it reads and writes."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Data, tokens_of
from ..errors import UserError
from ..models import CausalLM, Model, TokenSpec
from ..models.language import check_context
from ..progress import Progress, silent

__all__ = ["Reading", "decode_speed", "perplexity", "read", "windows"]

# Logits that are held at once, 256 MiB in single precision.
_LOGITS = 1 << 26
# Tokens written when the speed of writing is measured, and how often.
_WRITTEN, _ROUNDS = 24, 3


@dataclass(frozen=True)
class Reading:
    """Of every token but the first one of a text: the sum of ``−log p(token | what precedes it)`` in nats, how many there
    are, and how many of them are the model's first guess. ``windows`` were run.
    """

    loss: float
    tokens: int
    right: int
    windows: int

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean loss; infinite where that is too much for a float."""
        mean = self.loss / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """``(start, first, end)``: tokens ``start`` up to before ``end`` are run together, and those from ``first`` on are
    judged. Windows begin ``stride`` tokens after one another, so that every token but the first is judged once, all but
    those of the first window after at least ``context − stride`` others.
    """
    seen, start = 1, 0
    while seen < tokens:
        end = min(start + context, tokens)
        yield start, seen, end
        seen, start = end, start + stride


def perplexity(
    model: Model, data: Data, *, context: int | None = None, stride: int | None = None, progress: Progress = silent
) -> float:
    """See `read`, of which it is the one number."""
    return read(model, data, context=context, stride=stride, progress=progress).perplexity


@torch.inference_mode()
def read(
    model: Model,
    data: Data,
    *,
    context: int | None = None,
    stride: int | None = None,
    progress: Progress = silent,
    what: str = "reading",
) -> Reading:
    """Runs the language model over the text of ``data`` in `windows`, or over the first so many of them as were asked of
    `Data.take`.

    Args:
        model: with a tokenizer.
        data: of ``text:FILE``.
        context: tokens of a window, the model's own by default.
        stride: tokens between the beginnings of two windows, half of the context by default.
        progress: see `modhifi.progress`.
        what: the step's name.

    Raises:
        UserError: if ``data`` is no text, is shorter than two tokens, or context and stride do not go together.
    """
    context, stride = checked(model, context, stride)
    ids = tokens_of(data, model)
    if len(ids) < 2:
        raise UserError(f"{data.spec} has {len(ids)} tokens; perplexity needs at least two")
    places = list(windows(len(ids), context, stride))
    if data.asked is not None:
        places = places[: data.asked]
    assert model.tokens is not None
    together = max(1, _LOGITS // (context * model.tokens.vocabulary))
    loss, tokens, right = 0.0, 0, 0
    done = 0
    while done < len(places):
        progress(done, len(places), what)
        # The last window may be shorter than the others.
        length = places[done][2] - places[done][0]
        part = [place for place in places[done : done + together] if place[2] - place[0] == length]
        rows = torch.stack([ids[start:end] for start, _, end in part]).to(model.device)  # (B, T)
        logits = model.module(rows)[:, :-1].float()  # (B, T − 1, V): of the token that follows
        each = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").reshape(len(part), -1)
        hits = logits.argmax(2) == rows[:, 1:]
        judged = _judged(part, length).to(model.device)
        loss += float(each[judged].double().sum())
        tokens += int(judged.sum())
        right += int(hits[judged].sum())
        done += len(part)
    progress(len(places), len(places), what)
    return Reading(loss, tokens, right, len(places))


def checked(model: Model, context: int | None, stride: int | None) -> tuple[int, int]:
    """Context and stride with their defaults. Raises `UserError` as `read` does."""
    if not isinstance(model.input, TokenSpec):
        raise UserError(f"{model.spec} takes images; perplexity is for language models")
    assert isinstance(model.module, CausalLM)
    context = model.input.context if context is None else context
    check_context(model.module.lm.config, context)
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride < context:
        raise UserError(f"the stride is 1 to {context - 1} tokens with a context of {context}, not {stride}")
    return context, stride


def _judged(places: Sequence[tuple[int, int, int]], length: int) -> Tensor:
    """(B, length − 1) bool: which of the predictions of each window count."""
    at = torch.arange(1, length)
    return torch.stack([start + at >= first for start, first, _ in places])


@torch.inference_mode()
def decode_speed(models: Sequence[Model], progress: Progress = silent) -> list[float]:
    """Tokens a second that each of the language models writes one by one, with its key-value cache, behind half a context:
    the median over some rounds, in each of which all of them take their turn.
    """
    speeds: list[list[float]] = [[] for _ in models]
    for done in range(_ROUNDS):
        progress(done, _ROUNDS, "measuring the speed of writing")
        for index, model in enumerate(models):
            assert model.tokens is not None
            half = max(1, model.tokens.context // 2)
            prompt = model.example()[:, :half]
            count = min(_WRITTEN, half)
            short, long = (_seconds(model, prompt, new) for new in (1, 1 + count))
            speeds[index].append(count / max(long - short, 1e-9))
    progress(_ROUNDS, _ROUNDS, "measuring the speed of writing")
    return [statistics.median(values) for values in speeds]


def _seconds(model: Model, prompt: Tensor, new: int) -> float:
    assert isinstance(model.module, CausalLM)
    began = time.perf_counter()
    model.module.lm.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        use_cache=True,
    )
    if prompt.device.type == "cuda":
        torch.cuda.synchronize(prompt.device)
    return time.perf_counter() - began
