"""Maps and numbers: what `evaluate` says of them, against counts by hand."""

from __future__ import annotations

import torch

import modhifi
from modhifi.evaluation._answers import Places
from tests.loading.networks import NETWORKS


def test_accuracy_and_mean_iou_of_a_map() -> None:
    own = NETWORKS["map"]
    torch.manual_seed(1)
    module = own.make().eval()
    model = modhifi.wrap(module, own.examples)
    x = torch.randn(40, 3, 10, 10)
    labels = torch.randint(0, 4, (40, 10, 10))  # class 4 never occurs as a label
    labels[:, :2] = 255
    found = modhifi.evaluate(model, {"x": x, "labels": labels}, model, latency=False)
    with torch.no_grad():
        answer = module(x).argmax(1)
    known = labels != 255
    assert found.accuracy == float((answer == labels)[known].double().mean())
    overlaps = []
    for k in range(5):
        both = ((answer == k) & (labels == k) & known).sum()
        either = (((answer == k) | (labels == k)) & known).sum()
        if either:
            overlaps.append(float(both / either))
    assert abs(found.mean_iou - sum(overlaps) / len(overlaps)) < 1e-6
    assert found.mean_iou_before == found.mean_iou
    assert found.agreement == 1.0
    assert found.relative_error == 0.0
    assert {"accuracy", "mean_iou", "mean_iou_before"} <= found.to_json().keys()


def test_labels_that_do_not_fit_are_left_out() -> None:
    own = NETWORKS["map"]
    model = modhifi.wrap(own.make(), own.examples)
    found = modhifi.evaluate(model, {"x": torch.randn(6, 3, 10, 10), "labels": torch.arange(6)}, latency=False)
    assert found.accuracy is None
    assert "mean_iou" not in found.to_json()
    own = NETWORKS["image"]
    model = modhifi.wrap(own.make(), own.examples)
    labels = torch.zeros(6, 10, 10, dtype=torch.long)
    found = modhifi.evaluate(model, {"x": torch.randn(6, 3, 10, 10), "labels": labels}, latency=False)
    assert found.accuracy is None


def test_labels_of_arrays_are_indices() -> None:
    own = NETWORKS["table"]
    model = modhifi.wrap(own.make(), own.examples, classes=("a", "b", "c"))
    x, labels = torch.randn(30, 6), torch.arange(30) % 2
    found = modhifi.evaluate(model, (x, labels), latency=False)
    with torch.no_grad():
        assert found.accuracy == float((model.module(model.input.pack([x])).argmax(1) == labels).double().mean())
    assert list(found.per_class) == ["a", "b"]


def test_no_places() -> None:
    nothing = Places(torch.zeros(3, 3, dtype=torch.int64))
    assert nothing.accuracy is None
    assert nothing.mean_iou is None
