"""Perplexity against a loop over single tokens in double precision, and the windows that it is taken over."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import modhifi
from modhifi import Data, Model, UserError
from modhifi.data import tokens_of
from modhifi.evaluation import read, windows

Make = Callable[..., Model]


@given(tokens=st.integers(2, 400), context=st.integers(2, 60), part=st.floats(0, 0.999))
def test_every_token_but_the_first_is_judged_once(tokens: int, context: int, part: float) -> None:
    stride = 1 + int(part * (context - 1))
    stride = min(stride, context - 1)
    judged = []
    for number, (start, first, end) in enumerate(windows(tokens, context, stride)):
        assert start == number * stride
        assert start < first < end <= tokens
        assert end - start <= context
        assert not number or first - start >= context - stride
        judged += range(first, end)
    assert judged == list(range(1, tokens))


@pytest.mark.parametrize(("family", "context", "stride"), [("llama", 16, 8), ("mistral", 12, 11), ("gpt2", 20, 3)])
def test_perplexity_is_that_of_a_loop(family: str, context: int, stride: int, language: Make, prose: Data) -> None:
    model, exact = language(family), language(family)
    exact.module.double()
    data = modhifi.data.Data(**(vars(prose) | {"text": prose.text[:90]}))
    ids = tokens_of(data, model)
    loss, right = [], 0
    for at in range(1, len(ids)):
        # The first window that holds the token, found by counting.
        start = 0
        while at >= start + context:
            start += stride
        with torch.no_grad():
            logits = exact.module(ids[None, start:at])[0, -1]
        loss.append(-float(torch.log_softmax(logits, 0)[ids[at]]))
        right += int(logits.argmax() == ids[at])
    found = read(model, data, context=context, stride=stride)
    assert found.tokens == len(ids) - 1
    assert found.loss == pytest.approx(sum(loss), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(loss) / len(loss)), rel=1e-4)
    assert found.right == right
    some = read(model, data.take(2), context=context, stride=stride)
    assert some.windows == 2
    assert some.loss == pytest.approx(sum(loss[: context - 1 + stride]), rel=1e-5)


def test_evaluation_says_perplexity_and_speed(language: Make, prose: Data) -> None:
    model = language()
    study = modhifi.analyze(model, prose, 24, constant_samples=2)
    small = modhifi.apply(modhifi.prune(study, params=0.9, compensate="full"), model)
    value = modhifi.evaluate(small, prose.take(5), model).to_json()
    assert value["perplexity_before"] == pytest.approx(read(model, prose.take(5)).perplexity)
    assert value["perplexity"] == pytest.approx(read(small, prose.take(5)).perplexity)
    assert (value["context"], value["stride"], value["samples"], value["data"]["samples"]) == (16, 8, 5, 5)
    assert value["params"] < value["params_before"]
    assert value["flops"] < value["flops_before"]
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second", "latency_ms"):
        assert value[name] > 0
        assert value[f"{name}_before"] > 0
    assert not any(name.startswith(("accuracy", "per_class", "confusion", "forget")) for name in value)


def test_what_cannot_be_read(language: Make, prose: Data, digits_model: Model, digits_test: Data) -> None:
    model = language()
    for context, stride in ((1, None), (49, None), (16, 16), (16, -1)):
        with pytest.raises(UserError, match=r"the (context|stride) must be"):
            read(model, prose, context=context, stride=stride)
    with pytest.raises(UserError, match="perplexity is for language models"):
        read(digits_model, prose)
    with pytest.raises(UserError, match="context and stride are for language models"):
        modhifi.evaluate(digits_model, digits_test, stride=3)
    with pytest.raises(UserError, match="is not text"):
        modhifi.evaluate(model, digits_test)
