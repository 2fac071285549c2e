"""Every method on the default network; what is particular to erasure; the references that need gradients."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import modhifi
from modhifi import Data, Model, Plan, Study, UserError
from modhifi.components import structure_of
from modhifi.evaluation import Prediction, bn_recall, predict, probe_accuracy
from modhifi.models import fingerprint
from modhifi.unlearning import unlearning_methods, where_it_lives
from modhifi.unlearning._anchor import anchor
from modhifi.unlearning._classes import make_task
from modhifi.unlearning._erase import _Run
from modhifi.unlearning._search import TRIALS, smallest


@pytest.fixture(scope="module")
def data() -> Data:
    return modhifi.load_data("digits")


@pytest.fixture(scope="module")
def erased(digits_study: Study, digits_model: Model, data: Data) -> Plan:
    return modhifi.unlearn(digits_study, ["3"], data, model=digits_model)


def _accuracies(plan: Plan, model: Model, on: Data) -> tuple[float, float]:
    found = predict(modhifi.apply(plan, model), on)
    forget = [model.classes.index(name) for name in plan.forget]
    return found.accuracy(forget), found.accuracy([i for i in range(len(model.classes)) if i not in forget])


@pytest.mark.parametrize("method", [name for name in unlearning_methods() if name != "erase"])
def test_every_method_reaches_its_target_and_says_how(
    method: str, digits_study: Study, digits_model: Model, data: Data
) -> None:
    few = {"depth": 1} if method == "ridge" else {}  # two layers fitted apart from one another need more samples
    plan = modhifi.unlearn(
        digits_study, ["3"], data, method=method, target="chance", samples=120, model=digits_model, **few
    )
    assert plan.settings.method is not None
    assert plan.settings.method.startswith(method)
    assert plan.settings.target == 0.1
    assert plan.predicted["forget_accuracy"] <= 0.1 or method == "finetune"  # which only may
    before, *tried = plan.curve
    assert before.strength == 0
    assert before.forget_accuracy > 0.9
    assert any(point.strength == plan.settings.strength for point in tried)
    # The prediction is what the changed network does on the same images.
    forget, retain = _accuracies(plan, digits_model, data.take(120))
    assert forget == pytest.approx(plan.predicted["forget_accuracy"], abs=1e-6)
    assert retain == pytest.approx(plan.predicted["retain_accuracy"], abs=0.006)


def test_erasure_forgets_and_costs_nearly_nothing(
    erased: Plan, digits_model: Model, digits_test: Data, data: Data
) -> None:
    forget, retain = _accuracies(erased, digits_model, digits_test)
    dense = predict(digits_model, digits_test).accuracy([i for i in range(10) if i != 3])
    assert forget == 0
    assert retain >= dense - 0.01
    assert erased.settings.anchored
    on = _accuracies(erased, digits_model, data)
    assert on == pytest.approx((erased.predicted["forget_accuracy"], erased.predicted["retain_accuracy"]), abs=0.005)


def test_bn_recall_finds_nothing_after_erasure(
    erased: Plan, digits_model: Model, digits_test: Data, data: Data
) -> None:
    changed = modhifi.apply(erased, digits_model)
    forget, retain = bn_recall(changed, data.where(data.targets != 3), digits_test, [3])
    assert forget <= 0.02
    assert retain >= _accuracies(erased, digits_model, digits_test)[1] - 0.005


def test_anchoring_leaves_the_network_as_it_is(digits_study: Study, digits_model: Model, data: Data) -> None:
    """And the statistics are those of the retained samples, counted by hand at the first BatchNorm."""
    task = make_task(digits_study, digits_model, data, ["3"], 200, 0, 0.0, False, lambda *_: None)
    plan = Plan(
        kind="unlearn", model=digits_study.model, calibration=digits_study.data, settings=modhifi.plan.Settings()
    )
    anchored = modhifi.apply(plan.with_tensors(anchor(task, {})), digits_model).module
    with torch.no_grad():
        images = task.images[~task.chosen]
        torch.testing.assert_close(anchored(images), digits_model.module(images), rtol=1e-3, atol=1e-3)
        rows = anchored.conv1(images).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(anchored.bn1.running_mean.double(), rows.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(anchored.bn1.running_var.double(), rows.var(1), rtol=1e-4, atol=1e-5)


def test_the_last_sum_and_how_features_come_from_it_are_found(
    digits_study: Study, digits_model: Model, data: Data
) -> None:
    task = make_task(digits_study, digits_model, data, ["3"], 64, 0, 0.0, False, lambda *_: None)
    run = _Run(task)
    assert run.readout is not None
    assert (run.readout.activation, run.readout.norm, run.readout.first) == ("relu", None, False)
    assert list(run.sums)[-1] == "layer3.2.conv2"
    assert all(site.stream for site in run.sums.values())
    vit = modhifi.load_model("digits-vit", device="cpu")
    study = dataclasses.replace(digits_study, structure=structure_of(vit), layers=_vit_study(vit, data).layers)
    run = _Run(dataclasses.replace(task, model=vit, study=study))
    assert run.readout is not None
    assert run.readout.norm is not None
    assert run.readout.first


_KEPT: dict[str, Study] = {}


def _vit_study(vit: Model, data: Data) -> Study:
    if "vit" not in _KEPT:
        _KEPT["vit"] = modhifi.analyze(vit, data, samples=64)
    return _KEPT["vit"]


def test_a_layernorm_network_keeps_more_than_by_negation(data: Data, digits_test: Data) -> None:
    """Class 5, of which negation can be brought to forget all calibration samples, at a price."""
    vit = modhifi.load_model("digits-vit", device="cpu")
    study = _vit_study(vit, data)
    ours = modhifi.unlearn(study, ["5"], data, model=vit)
    published = modhifi.unlearn(study, ["5"], data, method="published", model=vit)
    assert published.settings.method == "published, negation"
    forget, retain = _accuracies(ours, vit, digits_test)
    their_forget, their_retain = _accuracies(published, vit, digits_test)
    assert forget <= their_forget
    assert retain >= their_retain + 0.05


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.9))
def test_the_smallest_strength_is_found_where_more_is_lower(threshold: float) -> None:
    task = SimpleNamespace(target=0.0, chosen=None, accuracy=lambda edits, _: float(edits["at"] < threshold))
    tried = smallest(task, lambda strength: {"at": strength}, 0.002, 1.0, lambda: None)
    assert len(tried) <= TRIALS
    assert threshold <= tried[-1] <= threshold * 1.06
    assert len(set(tried)) == len(tried)


def test_the_smallest_strength_is_found_where_more_is_not_always_lower() -> None:
    task = SimpleNamespace(target=0.0, chosen=None, accuracy=lambda edits, _: float(not 0.1 < edits["at"] < 0.4))
    assert 0.1 < smallest(task, lambda strength: {"at": strength}, 0.002, 1.0, lambda: None)[-1] < 0.11
    task.accuracy = lambda *_: 1.0
    assert smallest(task, lambda strength: {"at": strength}, 0.002, 1.0, lambda: None) == []


class Branch(nn.Module):
    """One residual block of which everything is known: the stream holds the class, the block could write it off."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 40, 3, padding=1)
        self.norm = nn.BatchNorm2d(40)
        self.two = nn.Conv2d(40, 8, 3, padding=1)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.two(torch.relu(self.norm(self.one(x)))))
        return self.linear(x.mean((2, 3)))


def test_erasure_takes_the_class_out_of_the_features(pictures: Data, chain: Model) -> None:
    """A class that is a colour: known to the probe before, and hardly after."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Branch().eval().requires_grad_(False)
    pixels = np.random.default_rng(0).integers(0, 120, (400, 8, 8, 3), dtype=np.uint8)
    labels = torch.arange(400) % 4
    for channel in range(3):
        pixels[labels == channel + 1, :, :, channel] += 90
    data = dataclasses.replace(
        pictures, read=lambda i: Image.fromarray(pixels[i]), order=tuple(range(400)), labels=labels
    )
    model = Model("branch", net, chain.input, chain.classes, None, fingerprint(net))
    features = predict(model, data, features=True)
    rows = features.features.double()
    solved = torch.linalg.lstsq(
        torch.cat([rows, torch.ones(400, 1)], 1), torch.nn.functional.one_hot(labels, 4).double()
    ).solution
    net.linear.weight.copy_(solved[:-1].T)
    net.linear.bias.copy_(solved[-1])
    model.fingerprint = fingerprint(net)
    study = modhifi.analyze(model, data)
    plan = modhifi.unlearn(study, ["b"], data, model=model)
    before = predict(model, data, features=True)
    after = predict(modhifi.apply(plan, model), data, features=True)
    assert before.accuracy() > 0.95
    assert after.accuracy([1]) == 0
    assert after.accuracy([0, 2, 3]) > 0.95
    # One class among four can still be what is none of the others; on its own no linear probe tells it from them.
    assert _told_apart(before, 1) > 0.95
    assert _told_apart(after, 1) < 0.65
    plan = modhifi.unlearn(study, ["b"], data, method="mask", model=model)
    masked = predict(modhifi.apply(plan, model), data, features=True)
    assert probe_accuracy(masked, [1]) == probe_accuracy(before, [1])


def _told_apart(found: Prediction, index: int) -> float:
    """Balanced accuracy of a linear probe that has only to tell one class from the rest."""
    assert found.features is not None
    mine = (found.label == index).numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    return float(balanced_accuracy_score(mine, cross_val_predict(probe, found.features.numpy(), mine, cv=5)))


def test_predicted_labels_need_no_others(digits_study: Study, digits_model: Model, data: Data, erased: Plan) -> None:
    unlabelled = dataclasses.replace(data, labels=None, classes=None)
    plan = modhifi.unlearn(digits_study, ["3"], unlabelled, predicted_labels=True, depth=1, model=digits_model)
    assert plan.settings.predicted_labels
    assert len(plan.settings.layers) == 2
    forget, retain = _accuracies(plan, digits_model, data)
    assert forget <= 0.02
    assert retain > 0.97


def test_two_classes_by_name_and_by_index(digits_study: Study, digits_model: Model, data: Data) -> None:
    plan = modhifi.unlearn(digits_study, ["7", 2], data, depth=1, model=digits_model)
    assert plan.forget == ["2", "7"]
    forget, retain = _accuracies(plan, digits_model, data)
    assert forget == 0
    assert retain > 0.98


def test_nothing_is_left_on_the_network(digits_study: Study, digits_model: Model, data: Data) -> None:
    """No hook after success, after a refusal and after a cancelled run."""

    def stop(done: int, total: int, what: str) -> None:
        raise modhifi.errors.Cancelled

    before = fingerprint(digits_model.module)
    for method in unlearning_methods():
        if method != "mask":  # which takes no time that could be cancelled
            with pytest.raises(modhifi.errors.Cancelled):
                modhifi.unlearn(digits_study, ["3"], data, method=method, model=digits_model, progress=stop)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in digits_model.module.modules())
    assert fingerprint(digits_model.module) == before


def test_a_network_without_a_linear_classifier_is_told_what_else_works(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)
    chain.module.d.out_features = 5
    with pytest.raises(UserError, match="no linear classifier; use the method"):
        modhifi.unlearn(study, ["a"], pictures, model=chain)


def test_where_a_class_lives(digits_study: Study) -> None:
    found = where_it_lives(digits_study, ["3"], at_most=15)
    assert found.table.shape == (10, 15)
    assert len(set(found.components)) == 15
    assert (np.diff(found.apart) <= 0).all()
    # By hand, over all components of all groups.
    best = max(
        float(table[3, i] - np.delete(table[:, i].astype(np.float64), 3).mean())
        for table in (digits_study.class_fidelity(group.name)[1] for group in digits_study.groups)
        for i in range(table.shape[1])
    )
    assert found.apart[0] == pytest.approx(best)
    assert len(where_it_lives(digits_study, []).components) == 40
