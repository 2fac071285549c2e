"""What is measured, against counting it by hand; the attacks on models that certainly did, and did not, forget."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.evaluation import (
    Evaluation,
    Prediction,
    bn_recall,
    count_cost,
    forgetting_table,
    hiding_logit,
    masked,
    masked_model,
    match_labels,
    measure_latency,
    membership,
    predict,
    probe_accuracy,
    relearning,
    tensor_bytes,
    verdict,
)
from modhifi.models import fingerprint, wordnet_ids
from modhifi.models._libraries import _names
from modhifi.specs import InputSpec


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
    assert not [name for name in json if name.startswith(("forget", "probe", "mia", "bn", "relearning"))]
    assert json["params"] == 269_722


def test_cost_of_a_network_counted_by_hand(chain: Model) -> None:
    cost = count_cost(chain)
    # a: 8·8 positions, 3·9·6; b: 4·4, 6·9·5; c: 80·7; d: 7·4.
    assert cost.flops == 64 * 162 + 16 * 270 + 560 + 28
    assert cost.params == 162 + 6 + 12 + 270 + 560 + 7 + 28 + 4
    assert tensor_bytes(chain.module) == 4 * (cost.params + 12) + 8  # BatchNorm's statistics and its counter


def test_latency_is_in_the_order_of_the_models(chain: Model, digits_model: Model) -> None:
    small, large = measure_latency([chain.module, digits_model.module], chain.example(), rounds=3, seconds=0.02)
    assert [len(one.rounds) for one in (small, large)] == [3, 3]
    assert small.median > 0


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


def test_a_logit_mask_hides_and_no_more(digits_model: Model, digits_test: Data) -> None:
    found = predict(digits_model, digits_test, features=True)
    hidden = hiding_logit(found.logits, [3, 4])
    assert hidden < float(found.logits[:, [0, 1, 2, 5, 6, 7, 8, 9]].max(1).values.min())
    behind = masked(found, [3, 4], hidden)
    assert behind.accuracy([3, 4]) == 0
    assert torch.equal(behind.features, found.features)
    # The masked network answers just so.
    again = predict(masked_model(digits_model, [3, 4], hidden), digits_test, features=True)
    torch.testing.assert_close(again.logits, behind.logits)
    assert digits_model.module.linear.weight[3].abs().sum() > 0


def test_relearning_tells_what_is_hidden_from_what_was_never_there(chain: Model, pictures: Data) -> None:
    """A network whose class row is shifted away has it back in the first steps; one with random features does not."""
    bright = np.random.default_rng(0).integers(0, 90, (96, 8, 8, 3), dtype=np.uint8)
    bright[np.arange(96) % 4 == 1, :, :, 0] += 150
    bright[np.arange(96) % 4 == 2, :, :, 1] += 150
    data = dataclasses.replace(pictures, read=lambda i: Image.fromarray(bright[i]))

    class Means(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
            with torch.no_grad():
                self.linear.weight[1, 0] = scale
                self.linear.weight[2, 1] = scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x.mean((2, 3)))

    knows, blank = Means(1.0).eval(), Means(0.0).eval()
    with torch.no_grad():
        knows.linear.bias[1] -= 2.5
        blank.linear.bias[1] -= 2.5
    curves = [
        relearning(dataclasses.replace(chain, module=net), data, data, [1], steps=(0, 40, 80, 160))
        for net in (knows, blank)
    ]
    assert curves[0][0] == curves[1][0] == 0
    assert sum(curves[0]) > sum(curves[1])
    assert curves[0][-1] > 0.9
    assert float(knows.linear.bias[1].detach()) == -2.5


def test_the_words_follow_the_numbers(digits_model: Model) -> None:
    base = dict.fromkeys(Evaluation.model_fields) | {
        "model": "m",
        "data": digits_model and modhifi.load_data("digits").ref,
        "samples": 10,
        "accuracy": 0.9,
        "per_class": {},
        "confusion": [[1] * 10] * 10,
        "params": 1,
        "flops": 1,
        "bytes": 1,
        "latency_batch": 1,
        "device": "cpu",
        "forget": ["3"],
        "forget_accuracy": 0.0,
        "retain_accuracy": 0.99,
        "probe_accuracy": 0.1,
        "probe_accuracy_before": 0.98,
        "mia": 0.5,
        "bn_recall_accuracy": 0.01,
        "bn_recall_retain_accuracy": 0.99,
        "relearning_steps": [0, 5, 20],
        "relearning_accuracy": [0.0, 0.0, 0.2],
        "relearning_accuracy_mask": [0.0, 0.9, 1.0],
    }

    def said(**changes: object) -> str:
        return " ".join(verdict(Evaluation(**(base | changes))))

    good = said()
    assert "Of the images of class 3, 0.0% are still classified correctly." in good
    assert "Relearning does not bring the class back within 20 steps (with a logit mask: after 5)" in good
    assert "Membership inference finds no signal (AUC 0.50)" in good
    assert "brings" not in good
    assert "Not forgotten: 50.0%" in said(forget_accuracy=0.5)
    assert "BN recall brings the class back: forget accuracy is 91.0%" in said(bn_recall_accuracy=0.91)
    assert "BN recall brings the class back in part: forget accuracy is 20.0%" in said(bn_recall_accuracy=0.2)
    assert "still hold the class: a linear probe finds 85.0% of its images (98.0% in the original network)" in said(
        probe_accuracy=0.85
    )
    assert "Membership inference finds a signal" in said(mia=0.7)
    assert "(AUC 0.70)" in said(mia=0.7)
    assert "Relearning brings the class back after 5 steps" in said(relearning_accuracy=[0.0, 0.6, 1.0])
    assert "classes 3, 4" in said(forget=["3", "4"])
    assert verdict(Evaluation(**(base | {"forget": None}))) == []
    rows = {title: values for title, *values in forgetting_table(Evaluation(**base))}
    assert rows["Linear probe on the forget classes (lower is better)"] == [0.98, None, 0.1]
    assert rows["Forget accuracy after 20 relearning steps (lower is better)"] == [None, 1.0, 0.2]


def test_an_unlearning_plan_is_judged(digits_study: Study, digits_model: Model, digits_test: Data) -> None:
    plan = modhifi.unlearn(digits_study, ["3"], modhifi.load_data("digits"), model=digits_model)
    changed = modhifi.apply(plan, digits_model)
    result = modhifi.evaluate(changed, digits_test.take(250), baseline=digits_model, latency=False)
    json = result.to_json()
    for name in ("forget_accuracy", "retain_accuracy", "probe_accuracy", "mia"):
        assert 0 <= json[name] <= 1
        assert 0 <= json[f"{name}_before"] <= 1
    assert json["forget"] == ["3"]
    assert json["forget_accuracy"] <= 0.1 < json["forget_accuracy_before"]
    assert json["retain_accuracy"] >= json["retain_accuracy_before"] - 0.03
    assert json["bn_recall_accuracy"] is not None
    assert json["forget_accuracy_mask"] == 0
    assert json["probe_accuracy_mask"] == json["probe_accuracy_before"]
    assert json["bn_recall_accuracy_mask"] == 0
    assert json["bn_recall_accuracy_before"] > 0.9
    assert json["relearning_steps"][-1] == 20
    assert json["relearning_accuracy"][0] == json["forget_accuracy"]
    assert json["relearning_accuracy_before"][-1] > 0.9
    assert len(json["relearning_accuracy_mask"]) == len(json["relearning_steps"])
    assert result.forget_accuracy == result.per_class["3"].after
    rest = [row for name, row in result.per_class.items() if name != "3"]
    assert result.retain_accuracy == pytest.approx(
        sum(row.after * row.samples for row in rest) / sum(row.samples for row in rest)
    )


def test_folders_named_by_wordnet_id(tmp_path: Path) -> None:
    """ImageNet's folders, also some of them only, for a network with its 1,000 classes."""
    known = wordnet_ids()
    assert (known[0], known[207], known[999]) == ("n01440764", "n02099601", "n15075141")
    assert [_names(1000)[i] for i in (0, 207, 999)] == ["tench", "golden retriever", "toilet tissue"]
    for name in ("n15075141", "n02099601"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / name / "a.JPEG")
    data = modhifi.load_data(str(tmp_path), split="val")
    model = Model(
        "net", torch.nn.Linear(1, 1), InputSpec(size=(8, 8), mean=(0,) * 3, std=(1,) * 3), _names(1000), None, ""
    )
    matched = match_labels(data, model)
    assert matched.classes == model.classes
    assert matched.targets is not None
    assert matched.targets.tolist() == [207, 999]
    (tmp_path / "val" / "n99999999").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "n99999999" / "a.jpg")
    with pytest.raises(UserError, match="'n02099601' is not one of them"):
        match_labels(modhifi.load_data(str(tmp_path), split="val"), model)
