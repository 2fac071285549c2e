"""What is measured, against counting it by hand; the attacks on models that certainly did, and did not, forget."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.evaluation import (
    Prediction,
    bn_recall,
    count_cost,
    match_labels,
    measure_latency,
    membership,
    predict,
    probe_accuracy,
    tensor_bytes,
)
from modhifi.models import fingerprint


def test_against_a_plain_loop(digits_model: Model, digits_test: Data) -> None:
    result = modhifi.evaluate(digits_model, digits_test, latency=False)
    images = torch.cat([batch for batch, _ in digits_test.batches(digits_model.input)])
    with torch.inference_mode():
        answers = digits_model.module(images).argmax(1)
    right = answers == digits_test.targets
    assert result.accuracy == pytest.approx(float(right.double().mean()))
    assert result.accuracy_before is None
    assert result.samples == 500
    assert sum(map(sum, result.confusion)) == 500
    assert sum(result.confusion[i][i] for i in range(10)) == int(right.sum())
    for i, (name, row) in enumerate(result.per_class.items()):
        assert name == str(i)
        assert row.after == pytest.approx(float(right[digits_test.targets == i].double().mean()))
    json = result.to_json()
    assert not [name for name in json if name.startswith(("forget", "probe", "mia", "bn"))]
    assert json["params"] == 269_722


def test_cost_of_a_network_counted_by_hand(chain: Model) -> None:
    cost = count_cost(chain)
    # a: 8·8 positions, 3·9·6; b: 4·4, 6·9·5; c: 80·7; d: 7·4.
    assert cost.flops == 64 * 162 + 16 * 270 + 560 + 28
    assert cost.params == 162 + 6 + 12 + 270 + 560 + 7 + 28 + 4
    assert tensor_bytes(chain.module) == 4 * (cost.params + 12) + 8  # BatchNorm's statistics and its counter


def test_latency_is_in_the_order_of_the_models(chain: Model, digits_model: Model) -> None:
    small, large = measure_latency([chain.module, digits_model.module], chain.example(), rounds=3, seconds=0.02)
    assert 0 < small < large


def test_labels_are_matched_by_name_then_by_position(chain: Model, pictures: Data) -> None:
    turned = pictures.relabelled(pictures.labels, ("d", "c", "b", "a"))
    assert torch.equal(match_labels(turned, chain).targets, 3 - pictures.targets)
    part = pictures.relabelled(torch.zeros(96, dtype=torch.int64), ("c",))
    assert match_labels(part, chain).targets.unique().tolist() == [2]
    other = pictures.relabelled(pictures.labels, ("w", "x", "y", "z"))
    assert torch.equal(match_labels(other, chain).targets, pictures.targets)
    with pytest.raises(UserError, match="'w' is not one"):
        match_labels(pictures.relabelled(pictures.labels, ("w", "x", "y")), chain)
    with pytest.raises(UserError, match="no labels"):
        match_labels(dataclasses.replace(pictures, labels=None, classes=None), chain)
    with pytest.raises(UserError, match="no images"):
        match_labels(pictures.where([False] * 96), chain)


def _prediction(label: np.ndarray, features: np.ndarray | None = None, loss: np.ndarray | None = None) -> Prediction:
    target = torch.from_numpy(label)
    return Prediction(
        label=target,
        answer=target.clone(),
        loss=torch.zeros(len(label)) if loss is None else torch.from_numpy(loss).float(),
        features=None if features is None else torch.from_numpy(features).float(),
    )


def test_the_probe_finds_a_class_that_is_there_and_none_that_is_not() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(4), 50)
    there = np.eye(4)[label] * 5 + rng.normal(size=(200, 4))
    assert probe_accuracy(_prediction(label, there), [2]) > 0.95
    gone = there.copy()
    gone[label == 2] = gone[rng.permutation(np.flatnonzero(label != 2))[:50]]  # class 2 looks like all the others
    assert probe_accuracy(_prediction(label, gone), [2]) < 0.4
    assert probe_accuracy(_prediction(label, gone), [0]) > 0.5
    with pytest.raises(UserError, match="at least 5 images"):
        probe_accuracy(_prediction(np.array([0, 0, 1]), np.zeros((3, 2))), [1])


def test_membership_tells_a_memorised_class_from_an_unknown_one() -> None:
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], 300)
    members = _prediction(label, loss=np.where(label == 0, 0.01, 1.0) * rng.random(600))
    others = _prediction(label, loss=np.where(label == 0, 5.0, 1.0) * rng.random(600))
    assert membership(members, others, [0]) > 0.95
    assert abs(membership(members, others, [1]) - 0.5) < 0.07
    assert membership(members, others, [7]) is None


def test_recall_brings_back_a_class_that_only_the_statistics_hid(digits_model: Model, digits_test: Data) -> None:
    """Shifted running means hide everything; re-estimating them on the other classes restores the forgotten one."""
    model = dataclasses.replace(digits_model, module=modhifi.load_model(device="cpu").module)
    for layer in model.module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 3 * layer.running_var.sqrt()
    model.fingerprint = fingerprint(model.module)
    hidden = predict(model, digits_test)
    assert hidden.accuracy() < 0.5
    calibration = modhifi.load_data("digits")
    retained = calibration.where(calibration.targets != 3)
    before = fingerprint(model.module)
    forget, retain = bn_recall(model, retained, digits_test, [3])
    assert forget > 0.9
    assert retain > 0.9
    assert fingerprint(model.module) == before


def test_recall_cannot_bring_back_what_is_really_gone(digits_model: Model, digits_test: Data) -> None:
    model = dataclasses.replace(digits_model, module=modhifi.load_model(device="cpu").module)
    model.module.linear.bias[3] = -1e6
    calibration = modhifi.load_data("digits")
    forget, retain = bn_recall(model, calibration.where(calibration.targets != 3), digits_test, [3])
    assert forget == 0.0
    assert retain > 0.9


def test_recall_without_batchnorm(chain: Model, pictures: Data) -> None:
    chain.module.norm = nn.Identity()
    assert bn_recall(chain, pictures, pictures, [0]) == (None, None)


def test_an_unlearning_plan_is_judged(digits_study: Study, digits_model: Model, digits_test: Data) -> None:
    plan = modhifi.unlearn(digits_study, ["3"], modhifi.load_data("digits"), model=digits_model)
    changed = modhifi.apply(plan, digits_model)
    result = modhifi.evaluate(changed, digits_test, baseline=digits_model, latency=False)
    json = result.to_json()
    for name in ("forget_accuracy", "retain_accuracy", "probe_accuracy", "mia"):
        assert 0 <= json[name] <= 1
        assert 0 <= json[f"{name}_before"] <= 1
    assert json["forget"] == ["3"]
    assert json["forget_accuracy"] <= 0.1 < json["forget_accuracy_before"]
    assert json["retain_accuracy"] >= json["retain_accuracy_before"] - 0.03
    assert json["bn_recall_accuracy"] is not None
    assert result.forget_accuracy == result.per_class["3"].after
    rest = [row for name, row in result.per_class.items() if name != "3"]
    assert result.retain_accuracy == pytest.approx(
        sum(row.after * row.samples for row in rest) / sum(row.samples for row in rest)
    )
