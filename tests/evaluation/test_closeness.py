"""How close two networks' answers are, against the definitions in float64 over all logits at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import modhifi
from modhifi import Data, Evaluation, Model, Study, UserError
from modhifi.data import tokens_of
from modhifi.evaluation import Closeness, calibration_samples, logits_of, windows

Make = Callable[..., Model]


def by_definition(f: NDArray[np.float64], g: NDArray[np.float64]) -> tuple[float, float, float]:
    """Agreement, relative error and divergence of (N, K) logits, sample by sample."""
    same, error, spread, divergence = 0, 0.0, 0.0, 0.0
    mean = [math.fsum(column) / len(f) for column in f.T]
    for row, other in zip(f, g, strict=True):
        same += int(np.argmax(row)) == int(np.argmax(other))
        error += math.fsum((row - other) ** 2)
        spread += math.fsum((row - mean) ** 2)
        logs = [values - values.max() - math.log(np.exp(values - values.max()).sum()) for values in (row, other)]
        divergence += math.fsum(np.exp(logs[0]) * (logs[0] - logs[1]))
    return same / len(f), math.sqrt(error / spread), divergence / len(f)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 40), st.integers(2, 9), st.sampled_from([0.0, 5.0, 1e5]), st.integers(1, 13), st.integers(0, 99))
def test_sums_over_batches_are_the_definitions(samples: int, classes: int, offset: float, step: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    f = offset + generator.normal(0, 3, (samples, classes))
    g = f + generator.normal(0, 1, (samples, classes))
    found = Closeness()
    for start in range(0, samples, step):
        found.take(torch.from_numpy(f[start : start + step]), torch.from_numpy(g[start : start + step]))
    assert (found.agreement, found.relative_error, found.kl) == pytest.approx(by_definition(f, g), rel=1e-8, abs=1e-12)


def test_large_batches_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    f, g = np.random.default_rng(0).normal(size=(2, 23, 5))
    monkeypatch.setattr("modhifi.evaluation._closeness._AT_ONCE", 20)
    found = Closeness()
    found.take(torch.from_numpy(f), torch.from_numpy(g))
    assert (found.agreement, found.relative_error, found.kl) == pytest.approx(by_definition(f, g), rel=1e-10)


def test_edges() -> None:
    found = Closeness()
    assert (found.agreement, found.relative_error, found.kl) == (None, None, None)
    f = torch.randn(6, 4)
    found.take(f[:0], f[:0])
    assert found.agreement is None
    found.take(f, f)
    assert (found.agreement, found.relative_error, found.kl) == (1.0, 0.0, 0.0)
    # The mean answer in place of every one is an error of 1.
    flat = Closeness()
    flat.take(f, f.mean(0).expand_as(f))
    assert flat.relative_error == pytest.approx(1.0, rel=1e-6)
    # One sample has no spread to compare with; an answer that is ruled out entirely is infinitely far in divergence.
    single = Closeness()
    single.take(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -math.inf]]))
    assert (single.agreement, single.relative_error, single.kl) == (0.0, None, None)
    # What the original network rules out contributes nothing, whatever the other says: 0 log 0 = 0.
    masked = Closeness()
    masked.take(torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, 0.0, 0.0]]))
    assert masked.kl == pytest.approx(math.log(3 / 2))
    with pytest.raises(ValueError, match="shapes"):
        Closeness().take(f, f[:, :3])


@pytest.mark.parametrize("labelled", [True, False])
def test_images_with_labels_and_without(labelled: bool, chain: Model, pictures: Data) -> None:
    data = pictures if labelled else dataclasses.replace(pictures, labels=None, classes=None)
    study = modhifi.analyze(chain, pictures, 32, constants=["none"])
    small = modhifi.apply(modhifi.prune(study, flops=0.5, compensate="none", constants="none"), chain)
    result = modhifi.evaluate(small, data, baseline=chain, latency=False)
    images = torch.cat([batch for batch, _ in data.batches(chain.input)])
    with torch.no_grad():
        f, g = (net.module(images).double().numpy() for net in (chain, small))
    found = (result.agreement, result.relative_error, result.kl)
    assert found == pytest.approx(by_definition(f, g), rel=1e-5)
    assert result.kl > 0  # type: ignore[operator]
    assert (result.accuracy is not None) == labelled
    json = result.to_json()
    assert {"agreement", "relative_error", "kl", "params", "flops", "latency_ms", "samples"} <= json.keys()
    assert ({"accuracy", "accuracy_before", "per_class"} <= json.keys()) == labelled
    assert not labelled or result.accuracy == float((g.argmax(1) == pictures.targets.numpy()).mean())  # type: ignore[union-attr]
    known = modhifi.evaluate(small, data, chain, latency=False, known=logits_of(chain, data))
    assert known == result
    alone = modhifi.evaluate(small, data, latency=False)
    assert (alone.agreement, alone.relative_error, alone.kl) == (None, None, None)
    assert "agreement" in alone.to_json()


def test_language_models_over_all_predicted_tokens(language: Make, prose: Data) -> None:
    model = language("llama")
    study = modhifi.analyze(model, prose, 12, constants=["none"])
    small = modhifi.apply(modhifi.prune(study, params=0.9, compensate="none", constants="none"), model)
    data = dataclasses.replace(prose, text=prose.text[:150])
    result = modhifi.evaluate(small, data, baseline=model, latency=False, context=16, stride=5)
    ids = tokens_of(data, model)
    f, g = [], []
    for start, first, end in windows(len(ids), 16, 5):
        with torch.no_grad():
            for net, rows in ((model, f), (small, g)):
                logits = net.module(ids[None, start:end])[0].double().numpy()
                rows += [logits[at - start - 1] for at in range(first, end)]
    assert len(f) == result.tokens == len(ids) - 1
    found = (result.agreement, result.relative_error, result.kl)
    assert found == pytest.approx(by_definition(np.array(f), np.array(g)), rel=1e-4)
    alone = modhifi.evaluate(small, data, latency=False, context=16, stride=5)
    assert alone.perplexity == pytest.approx(result.perplexity)
    assert (alone.agreement, alone.relative_error, alone.kl) == (None, None, None)


def test_synthetic_images_and_an_unlearning_plan_without_labels(digits_study: Study, digits_model: Model) -> None:
    leaves = modhifi.load_data("dead-leaves", samples=20)
    small = modhifi.apply(modhifi.prune(digits_study, flops=0.7, compensate="full"), digits_model)
    result = modhifi.evaluate(small, leaves, digits_model, latency=False)
    assert result.accuracy is None
    assert result.agreement is not None
    assert 0.0 < result.agreement <= 1.0
    made = modhifi.unlearn(
        digits_study, ["3"], modhifi.load_data("digits", samples=128), method="mask", model=digits_model
    )
    with pytest.raises(UserError, match="dead-leaves has no labels, which judging an unlearning plan needs") as told:
        modhifi.evaluate(modhifi.apply(made, digits_model), leaves, digits_model, latency=False)
    assert "\n" not in str(told.value)


def test_samples_that_the_plan_was_made_from(digits_study: Study, digits_model: Model, tmp_path: Path) -> None:
    small = modhifi.apply(modhifi.prune(digits_study, flops=0.7, compensate="none"), digits_model)

    def among(data: Data) -> int | None:
        return calibration_samples(data, small, digits_model)

    assert among(modhifi.load_data("digits", samples=40)) == 40
    assert among(modhifi.load_data("digits", split="test", samples=40)) == 0
    assert among(modhifi.load_data("dead-leaves", samples=4)) == 0
    assert calibration_samples(modhifi.load_data("digits"), digits_model, digits_model) is None
    # A folder without splits is all the same: of the 10 images, 6 were used and 5 are asked for.
    data = modhifi.load_data("digits")
    for i in range(10):
        data.read(data.order[i]).save(tmp_path / f"{i}.png")
    whole = modhifi.load_data(str(tmp_path))
    assert small.plan is not None
    small.plan = small.plan.model_copy(update={"calibration": whole.take(6).ref})
    five = whole.take(5, seed=3)
    assert among(five) == len(set(five.order) & set(whole.take(6).order)) > 0
    (tmp_path / "0.png").unlink()
    assert among(modhifi.load_data(str(tmp_path))) is None, "changed since"


def test_a_text_counts_as_a_whole(language: Make, prose: Data, tmp_path: Path) -> None:
    for name, text in (("one", prose.text), ("two", prose.text[::-1])):  # type: ignore[index]
        (tmp_path / name).write_text(text or "")
    one, two = (modhifi.load_data(f"text:{tmp_path / name}") for name in ("one", "two"))
    model = language("gpt2")
    study = modhifi.analyze(model, one, 8, constants=["none"])
    small = modhifi.apply(modhifi.prune(study, params=0.95, compensate="none", constants="none"), model)
    result = modhifi.evaluate(small, one.take(3), model, latency=False)
    assert (result.samples, result.calibration_samples) == (3, 3)
    assert modhifi.evaluate(small, two.take(3), model, latency=False).calibration_samples == 0


def test_what_earlier_versions_measured_is_still_read(chain: Model, pictures: Data) -> None:
    now = modhifi.evaluate(chain, pictures, latency=False).model_dump(mode="json")
    for name in ("agreement", "relative_error", "kl", "calibration_samples"):
        del now[name]
    assert Evaluation.model_validate(now).agreement is None
