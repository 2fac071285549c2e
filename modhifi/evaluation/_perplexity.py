"""Perplexity and decode throughput of language models."""

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
from ..layers import widened_on_cpu
from ..models import CausalLM, Model
from ..models.language import check_context
from ..progress import Progress, silent
from ..specs import TokenSpec
from ._closeness import Closeness

__all__ = ["Reading", "decode_speed", "perplexity", "read", "read_beside", "windows"]

# Logits in memory at once: 256 MiB in single precision.
_LOGITS = 1 << 26
# Tokens generated per round when decode throughput is measured, and the number of rounds.
_WRITTEN, _ROUNDS = 24, 3


@dataclass(frozen=True)
class Reading:
    """Totals over all tokens of a text but the first: ``loss``, the sum of ``−log p(token | context)`` in nats; ``tokens``,
    their number; ``right``, how many of them the model predicts as the most likely token. ``windows`` is the number of
    windows run.
    """

    loss: float
    tokens: int
    right: int
    windows: int

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean loss; inf if that overflows a float."""
        mean = self.loss / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


def windows(tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yields ``(start, first, end)``: the window of tokens ``[start, end)``, of which those from ``first`` on are judged.
    Windows start ``stride`` tokens apart. Every token but the first is judged exactly once, after the first window with at
    least ``context − stride`` tokens before it.
    """
    seen, start = 1, 0
    while seen < tokens:
        end = min(start + context, tokens)
        yield start, seen, end
        seen, start = end, start + stride


def perplexity(
    model: Model, data: Data, *, context: int | None = None, stride: int | None = None, progress: Progress = silent
) -> float:
    """Perplexity of ``model`` on the text of ``data``, see `read`."""
    return read(model, data, context=context, stride=stride, progress=progress).perplexity


def read(
    model: Model,
    data: Data,
    *,
    context: int | None = None,
    stride: int | None = None,
    progress: Progress = silent,
    what: str = "perplexity",
) -> Reading:
    """Runs a language model over the text of ``data`` in `windows`: all of them, or as many as `Data.take` selected.

    Args:
        model: a language model with a tokenizer.
        data: text, ``text:FILE``.
        context: tokens per window, by default the model's context.
        stride: tokens between the starts of two windows, by default half the context.
        progress: see `modhifi.progress`.
        what: name of the step in progress reports.

    Raises:
        UserError: if ``data`` is not text or is shorter than two tokens, or if ``context`` or ``stride`` is out of range.
    """
    found, _ = read_beside([model], data, context=context, stride=stride, progress=progress, what=what)
    return found[0]


@torch.inference_mode()
def read_beside(
    models: Sequence[Model],
    data: Data,
    *,
    context: int | None = None,
    stride: int | None = None,
    progress: Progress = silent,
    what: str = "perplexity",
) -> tuple[list[Reading], Closeness]:
    """`read` for the modified network, and for the baseline if ``models`` has a second one, window by window; and how close the
    first is to the second over the same tokens.
    """
    model = models[0]
    context, stride = checked(model, context, stride)
    ids = tokens_of(data, model)
    if len(ids) < 2:
        raise UserError(f"{data.spec} has {len(ids)} tokens; perplexity needs at least 2")
    places = list(windows(len(ids), context, stride))
    if data.asked is not None:
        places = places[: data.asked]
    assert model.tokens is not None
    together = max(1, _LOGITS // (len(models) * context * model.tokens.vocabulary))
    totals = [[0.0, 0, 0] for _ in models]  # loss, tokens, right
    closeness = Closeness()
    done = 0
    while done < len(places):
        progress(done, len(places), what)
        # The last window may be shorter than the others.
        length = places[done][2] - places[done][0]
        part = [place for place in places[done : done + together] if place[2] - place[0] == length]
        rows = torch.stack([ids[start:end] for start, _, end in part]).to(model.device)  # (B, T)
        judged = _judged(part, length).to(model.device)
        known: Tensor | None = None
        for one, total in zip(models, totals, strict=True):
            with widened_on_cpu(one.module):
                logits = one.module(rows)[:, :-1].float()  # (B, T − 1, V): of the token that follows
            each = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").reshape(len(part), -1)
            total[0] += float(each[judged].double().sum())
            total[1] += int(judged.sum())
            total[2] += int((logits.argmax(2) == rows[:, 1:])[judged].sum())
            if known is None:
                known = logits
            else:
                for now, then, row in zip(known, logits, judged, strict=True):
                    closeness.take(then[row], now[row])
        done += len(part)
    progress(len(places), len(places), what)
    return [Reading(loss, int(tokens), int(right), len(places)) for loss, tokens, right in totals], closeness


def checked(model: Model, context: int | None, stride: int | None) -> tuple[int, int]:
    """Context and stride with defaults filled in. Raises `UserError` as `read` does."""
    if not isinstance(model.input, TokenSpec):
        raise UserError(f"{model.spec} takes images; perplexity is for language models")
    assert isinstance(model.module, CausalLM)
    context = model.input.context if context is None else context
    check_context(model.module.lm.config, context)
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride < context:
        raise UserError(f"the stride must be 1 to {context - 1} tokens for a context of {context}, not {stride}")
    return context, stride


def _judged(places: Sequence[tuple[int, int, int]], length: int) -> Tensor:
    """(B, length − 1) bool: the predictions of each window that are judged."""
    at = torch.arange(1, length)
    return torch.stack([start + at >= first for start, first, _ in places])


@torch.inference_mode()
def decode_speed(models: Sequence[Model], progress: Progress = silent) -> list[float]:
    """Decode throughput of each language model in tokens/s: tokens generated one at a time with the key-value cache after a
    prompt of half the context. Median over several rounds, the models in turns.
    """
    speeds: list[list[float]] = [[] for _ in models]
    for done in range(_ROUNDS):
        progress(done, _ROUNDS, "measuring decode throughput")
        for index, model in enumerate(models):
            assert model.tokens is not None
            half = max(1, model.tokens.context // 2)
            prompt = model.example()[:, :half]
            count = min(_WRITTEN, half)
            short, long = (_seconds(model, prompt, new) for new in (1, 1 + count))
            speeds[index].append(count / max(long - short, 1e-9))
    progress(_ROUNDS, _ROUNDS, "measuring decode throughput")
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
