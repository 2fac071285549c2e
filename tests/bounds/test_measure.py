"""The bound against the telescoping sum done by hand, and on networks of several families."""

import copy
import math
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.bounds._predict import plan_edits
from modhifi.models import fingerprint
from modhifi.specs import InputSpec


def test_every_point_lies_above_the_line(digits_study: Study, digits_model: Model, digits_test: Data) -> None:
    for ratio in (0.75, 0.5, 0.3):
        plan = modhifi.prune(digits_study, flops=ratio, compensate="full")
        report = modhifi.bounds.measure(digits_study, plan, digits_test, samples=32, model=digits_model)
        assert report.bound >= report.measured > 0
        assert report.tightness == pytest.approx(report.bound / report.measured)
        assert report.bound == pytest.approx(sum(row.gain * row.local for row in report.rows))
        assert report.predicted == pytest.approx(plan.predicted["bound"], rel=0.2)
        for row in report.rows:
            assert row.alone_bound >= row.measured > 0
            assert row.gain >= row.gain_rms > 0


def test_against_two_networks_run_by_hand(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)
    plan = modhifi.prune(study, overrides={"a": 3, "c": 4}, compensate="full")
    report = modhifi.bounds.measure(study, plan, pictures, samples=96, model=chain, held_out=False)
    assert [row.layer for row in report.rows] == ["b", "d"]
    images = torch.cat([batch for batch, _ in pictures.batches(chain.input)])
    masked = modhifi.apply(plan, chain, masked=True)
    last = copy.deepcopy(chain.module)
    last.d.load_state_dict(masked.module.d.state_dict())
    with torch.inference_mode():
        plain, with_d, both = chain.module(images), last(images), masked.module(images)
    assert report.measured == pytest.approx(math.sqrt(float((both - plain).square().sum(1).mean())), rel=1e-3)
    d = report.rows[1]
    # The last layer's error *is* the error of the logits.
    assert d.gain == pytest.approx(1.0, rel=1e-4)
    assert d.local == pytest.approx(math.sqrt(float((with_d - plain).square().sum(1).mean())), rel=1e-3)
    b = report.rows[0]
    step = (both - with_d).square().sum(1).sqrt()
    assert b.gain * b.local >= math.sqrt(float(step.square().mean())) * 0.999


@pytest.mark.parametrize("up", [1, 2])
def test_coarser_steps_by_hand(digits_study: Study, digits_model: Model, digits_test: Data, up: int) -> None:
    """Layers of one block (or stage) swapped in together, on copies of the network with new weights."""
    plan = modhifi.prune(digits_study, flops=0.5, compensate="full")
    data = digits_test.take(12, 0)
    report = modhifi.bounds.measure(digits_study, plan, digits_test, samples=12, model=digits_model, held_out=False)
    images = torch.cat([batch for batch, _ in data.batches(digits_model.input)])
    edits = plan_edits(digits_study, plan)
    parents: dict[str, list[str]] = {}
    for name in edits:
        parents.setdefault(".".join(name.split(".")[:-up]) or name, []).append(name)
    # Where only one layer of a block changes there is nothing to take together.
    parents = {(parent if len(layers) > 1 else layers[0]): layers for parent, layers in parents.items()}
    net = copy.deepcopy(digits_model.module)
    outputs: dict[str, torch.Tensor] = {}
    for parent in parents:
        net.get_submodule(parent).register_forward_hook(lambda _, __, y, p=parent: outputs.__setitem__(p, y.clone()))
    bound = 0.0
    with torch.inference_mode():
        before = net(images)
        plain = before
        for parent, layers in reversed(parents.items()):
            there = outputs[parent]
            for name in layers:
                layer, edit = net.get_submodule(name), edits[name]
                layer.weight.copy_(edit.weight.reshape(layer.weight.shape))
                if layer.bias is None:
                    layer.bias = nn.Parameter(torch.zeros(len(edit.shift)))
                layer.bias.add_(edit.shift.float())
            after = net(images)
            local = (outputs[parent] - there).flatten(1).square().sum(1)
            step = (after - before).square().sum(1)
            bound += float((step / local).max().sqrt() * local.mean().sqrt())
            before = after
    grain = report.grains["block" if up == 1 else "stage"]
    assert grain.steps == len(parents)
    assert grain.bound == pytest.approx(bound, rel=2e-3)
    assert report.measured == pytest.approx(math.sqrt(float((before - plain).square().sum(1).mean())), rel=1e-3)
    assert report.measured <= grain.bound * (1 + 1e-4)


def test_slack_is_a_product(digits_study: Study, digits_model: Model, digits_test: Data) -> None:
    plan = modhifi.prune(digits_study, flops=0.4, compensate="full")
    report = modhifi.bounds.measure(digits_study, plan, digits_test, samples=32, model=digits_model)
    for one in (report, *report.grains.values()):
        assert one.slack_maximum is not None
        assert one.slack_sum is not None
        assert one.slack_maximum >= 1 - 1e-9
        assert one.slack_sum >= 1 - 1e-4
        assert one.tightness == pytest.approx(one.slack_maximum * one.slack_sum)
    typical = sum(row.gain_rms * row.local for row in report.rows)
    assert report.slack_maximum == pytest.approx(report.bound / typical)
    ratios = sorted(row.tightness for row in report.rows if row.tightness is not None)
    assert ratios[0] <= (report.median_tightness or 0) <= ratios[-1]


def test_prediction_before_anything_is_run(digits_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants of the study times the local errors of the plan's own weights on the calibration images."""
    monkeypatch.setattr("modhifi.data._digits.CALIBRATION_SIZE", 160)
    calibration = modhifi.load_data("digits")
    study = modhifi.analyze(digits_model, calibration, samples=160)
    plan = modhifi.prune(study, flops=0.5, compensate="full")
    predicted = modhifi.bounds.predict(study, plan)
    report = modhifi.bounds.measure(study, plan, calibration, samples=160, model=digits_model)
    assert report.held_out is None  # the same images
    assert report.predicted == pytest.approx(sum(predicted.values()))
    for row in report.rows:
        assert row.predicted == predicted[row.layer]
        local = predicted[row.layer] / study.constant(row.layer)
        # Moments are of a part of the positions, and the weights are fitted to just these.
        assert 0.7 * row.local < local < 1.02 * row.local
    assert modhifi.bounds.predict(study, plan, "none")[row.layer] == pytest.approx(local)
    exact = sum(modhifi.bounds.predict(study, plan, "jacobian").values())
    assert exact > report.predicted
    with pytest.raises(UserError, match="no certified constants, only directional, jacobian"):
        modhifi.bounds.predict(study, plan, "certified")


def test_held_out_images_break_as_many_bounds_as_exchangeable_ones(
    digits_study: Study, digits_model: Model, digits_test: Data
) -> None:
    plan = modhifi.prune(digits_study, flops=0.5, compensate="full")
    report = modhifi.bounds.measure(digits_study, plan, digits_test, samples=50, model=digits_model)
    held = report.held_out
    assert held is not None
    assert (held.samples, held.expected) == (50, 1 / 51)
    assert 0 < held.layers < 0.06  # about one in fifty
    assert held.plan <= held.layers
    # Against counting with the measurement on either set of images.
    there = modhifi.bounds.measure(
        digits_study, plan, modhifi.load_data("digits"), samples=50, seed=0, model=digits_model
    )
    assert held.bound == pytest.approx(
        sum(one.gain * row.local for one, row in zip(there.rows, report.rows, strict=True)), rel=0.2
    )
    assert held.tightness == pytest.approx(held.bound / report.measured)
    alone = modhifi.bounds.measure(digits_study, plan, digits_test, samples=50, model=digits_model, held_out=False)
    assert alone.held_out is None
    assert alone.bound == pytest.approx(report.bound)


def test_images_of_the_study_are_left_out_where_there_are_others(chain: Model) -> None:
    leaves = modhifi.load_data("dead-leaves")
    study = modhifi.analyze(chain, leaves, samples=40)
    own = leaves.take(40, 0).order
    others = leaves.where([index < 60 and index not in own for index in leaves.order])
    some = leaves.where([index < 60 or index in own for index in leaves.order])
    assert len(some) == len(others) + 40
    plan = modhifi.prune(study, overrides={"a": 3, "c": 4}, compensate="full")
    report = modhifi.bounds.measure(study, plan, some, samples=500, model=chain)
    assert report.samples == len(others)
    assert report.held_out is not None
    images = torch.cat([batch for batch, _ in others.batches(chain.input)])
    masked = modhifi.apply(plan, chain, masked=True)
    with torch.inference_mode():
        moved = (masked.module(images) - chain.module(images)).square().sum(1)
    assert report.measured == pytest.approx(math.sqrt(float(moved.mean())), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "smaller"),
    [("vit_tiny_patch16_224", {"img_size": 64, "depth": 3}), ("convnext_atto", {"depths": (1, 1, 2, 1)})],
)
def test_no_point_below_the_line_on_other_families(name: str, smaller: dict[str, object]) -> None:
    """Random weights, small pictures, few blocks; every layer alone and the plan."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=10, **smaller).eval().requires_grad_(False)
    spec = InputSpec(size=(64, 64), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = Model(name, net, spec, tuple("0123456789"), None, fingerprint(net))
    data = modhifi.load_data("dead-leaves")
    study = modhifi.analyze(model, data, samples=8, constant_samples=2)
    for ratio in (0.75, 0.5):
        plan = modhifi.prune(study, flops=ratio, compensate="full")
        report = modhifi.bounds.measure(study, plan, modhifi.load_data("noise"), samples=3, model=model, held_out=False)
        assert report.bound >= report.measured > 0
        for row in report.rows:
            assert row.alone_bound >= row.measured * (1 - 1e-4)


def test_no_point_below_the_line_on_a_published_network(shared: Path) -> None:
    model = modhifi.load_model("cifar10-resnet56", shared / "models/resnet56-4bfd9763.th", device="cpu")
    images = modhifi.load_data("cifar10", root=shared / "data/cifar10", split="train")
    study = modhifi.analyze(model, images, samples=64, constant_samples=8)
    plan = modhifi.prune(study, flops=0.5, compensate="full")
    test = modhifi.load_data("cifar10", root=shared / "data/cifar10", split="test")
    report = modhifi.bounds.measure(study, plan, test, samples=12, model=model, held_out=False)
    assert len(report.rows) == 27
    for row in report.rows:
        assert row.alone_bound >= row.measured * (1 - 1e-4)
    for bound in (report.bound, *(grain.bound for grain in report.grains.values())):
        assert bound >= report.measured > 0
    assert report.grains["stage"].bound < report.bound


def test_refusals(chain: Model, pictures: Data, digits_study: Study) -> None:
    study = modhifi.analyze(chain, pictures)
    with pytest.raises(UserError, match="modifies no layer"):
        modhifi.bounds.measure(study, modhifi.prune(study, overrides={}), pictures, model=chain)
    with pytest.raises(UserError, match=r"unknown data .pictures.*--no-held-out"):
        modhifi.bounds.measure(
            study, modhifi.prune(study, overrides={"a": 3}, compensate="full"), pictures, model=chain
        )
    with pytest.raises(UserError, match="different weights"):
        modhifi.bounds.measure(study, modhifi.prune(digits_study, flops=0.5, compensate="full"), pictures, model=chain)


@pytest.mark.parametrize("how", ["cancelled", "fails"])
@pytest.mark.parametrize("late", [1, 3, 7])
def test_a_shared_network_is_restored_after_a_failure(chain: Model, pictures: Data, how: str, late: int) -> None:
    """`measure` replaces forward passes and hooks layers of the caller's own network: whatever stops it, and when, all of that is
    undone.
    """
    study = modhifi.analyze(chain, pictures)
    plan = modhifi.prune(study, overrides={"a": 3, "c": 4}, compensate="full")
    net = chain.module
    images = torch.cat([batch for batch, _ in pictures.batches(chain.input)])
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    state = {name: value.clone() for name, value in net.state_dict().items()}
    plain = net(images)
    steps = 0

    def stop(done: int, total: int, what: str) -> None:
        nonlocal steps
        if "bound" in what:
            steps += 1
            if how == "cancelled" and steps > late:
                raise modhifi.Cancelled
            if how == "fails" and steps == late:
                # From now on the network itself raises, in the middle of a pass.
                net.c.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))

    with pytest.raises(modhifi.Cancelled if how == "cancelled" else RuntimeError):
        modhifi.bounds.measure(
            study, plan, pictures, samples=8, model=chain, held_out=False, batch_size=2, progress=stop
        )
    net.c._forward_pre_hooks.clear()
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before, "no forward pass is replaced"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(net(images), plain)
