"""Alg. 1 and 2 against doing them by hand; classes that do not exist; the searched strength."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import modhifi
from modhifi import Data, Model, Plan, Study, UserError
from modhifi.layers import observed, patches
from modhifi.unlearning import choose_classes

CLASSES = ("cat", "dog", "7", "cow")


def test_classes_by_name_or_index() -> None:
    assert choose_classes(["dog"], CLASSES) == [1]
    assert choose_classes([3, "cat", " dog ", 0], CLASSES) == [0, 1, 3]
    assert choose_classes(["7"], CLASSES) == [2]  # a name goes before an index
    for wrong, message in [
        (["bird"], "no class 'bird'"),
        (["4"], "no class '4'"),
        (["-1"], "no class"),
        ([""], "no class"),
        ([], "at least one"),
        ([0, 1, 2, 3], "all classes"),
    ]:
        with pytest.raises(UserError, match=message):
            choose_classes(wrong, CLASSES)


@pytest.fixture(scope="module")
def data() -> Data:
    return modhifi.load_data("digits", samples=160)


@pytest.fixture(scope="module")
def plan(digits_study: Study, digits_model: Model, data: Data) -> Plan:
    return modhifi.unlearn(digits_study, ["8"], data, method="published", model=digits_model)


def test_the_slices_with_the_highest_singleton_fidelity_on_the_forget_samples_are_zero(
    plan: Plan, digits_model: Model, digits_study: Study, data: Data
) -> None:
    """Alg. 1, with the fidelity computed from the activations of the forget samples."""
    forget = data.where(data.targets == 8)
    layer = plan.settings.layers[0]
    rows = []
    with (
        torch.inference_mode(),
        observed(digits_model.module, [layer], lambda _, op, x, __: rows.append(patches(op, x).double().numpy())),
    ):
        for images, _ in forget.batches(digits_model.input):
            digits_model.module(images)
    x = np.concatenate(rows)
    w = digits_study.layers[layer].weight.double().numpy()
    y = x @ w.T
    fidelity = np.zeros((len(w), w.shape[1] // 9))
    for i in range(fidelity.shape[1]):
        a = x[:, i * 9 : i * 9 + 9] @ w[:, i * 9 : i * 9 + 9].T
        fidelity[:, i] = (a * y).sum(0) ** 2 / np.maximum((a**2).sum(0) * (y**2).sum(0), 1e-30)
    new = plan.tensors[f"{layer}.weight"].numpy().reshape(len(w), -1, 9)
    zero = (new == 0).all(2)
    count = round(plan.settings.strength * zero.size)
    assert zero.sum() == count
    assert set(map(tuple, np.argwhere(zero))) == {
        tuple(np.unravel_index(i, zero.shape)) for i in np.argsort(fidelity, axis=None)[::-1][:count]
    }
    np.testing.assert_allclose(new[~zero], w.reshape(len(w), -1, 9)[~zero], rtol=1e-6)


def test_the_strength_is_the_smallest_that_reaches_the_target(
    plan: Plan, digits_study: Study, digits_model: Model, data: Data
) -> None:
    assert plan.predicted["forget_accuracy"] == 0.0
    assert plan.predicted["retain_accuracy"] > 0.97
    loose = modhifi.unlearn(digits_study, ["8"], data, method="published", target=0.5, model=digits_model)
    assert loose.predicted["forget_accuracy"] <= 0.5
    if loose.settings.layers == plan.settings.layers:
        assert loose.settings.strength <= plan.settings.strength


def test_what_is_predicted_is_what_the_changed_network_does(plan: Plan, digits_model: Model, data: Data) -> None:
    result = modhifi.evaluate(modhifi.apply(plan, digits_model), data, latency=False)
    assert result.per_class["8"].after == plan.predicted["forget_accuracy"]
    assert result.retain_accuracy == pytest.approx(plan.predicted["retain_accuracy"])


def test_layernorm_networks_are_negated(pictures: Data, chain: Model) -> None:
    """Alg. 2."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(192, 12)
            self.norm = nn.LayerNorm(12)
            self.up = nn.Linear(12, 20)
            self.down = nn.Linear(20, 12)
            self.head = nn.Linear(12, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x.flatten(1))
            return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Mixer().eval().requires_grad_(False)
    model = Model("mixer", net, chain.input, chain.classes, None, modhifi.models.fingerprint(net))
    study = modhifi.analyze(model, pictures)
    assert [group.name for group in study.groups] == ["up"]
    plan = modhifi.unlearn(study, ["a"], pictures, method="published", target=0.9, model=model)
    assert plan.settings.method == "published, negation"
    old, new = study.layers["down"].weight, plan.tensors["down.weight"]
    negated = new == -old
    assert negated.sum() == max(1, round(plan.settings.strength * old.numel()))
    assert torch.equal(new[~negated], old[~negated])


def test_refusals(digits_study: Study, digits_model: Model, chain: Model) -> None:
    data = modhifi.load_data("digits")
    without = data.where(data.targets != 3)
    with pytest.raises(UserError, match="has no image of 3 in its"):
        modhifi.unlearn(digits_study, ["3"], without, model=digits_model)
    with pytest.raises(UserError, match="images of other classes are needed too"):
        modhifi.unlearn(digits_study, ["3"], data.where(data.targets == 3), model=digits_model)
    with pytest.raises(UserError, match="target"):
        modhifi.unlearn(digits_study, ["3"], data, target=1.0, model=digits_model)
    with pytest.raises(UserError, match="other weights"):
        modhifi.unlearn(digits_study, ["3"], data, model=chain)
    for wrong, message in [
        ({"method": "magic"}, "unknown method 'magic'; choose one of erase, published"),
        ({"method": "mask", "depth": 2}, "mask has no depth"),
        ({"depth": 0}, "at least 1"),
        ({"target": "never"}, "or chance"),
        ({"method": "ridge", "towards": "one"}, "zero or mean"),
    ]:
        with pytest.raises(UserError, match=message):
            modhifi.unlearn(digits_study, ["3"], data, model=digits_model, **wrong)
    nobody = dataclasses.replace(data, labels=None, classes=None)
    with pytest.raises(UserError, match="no labels"):
        modhifi.unlearn(digits_study, ["3"], nobody, model=digits_model)
