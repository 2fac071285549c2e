"""The bound against the telescoping sum done by hand, and on networks whose constants are known."""

import copy
import math

import pytest
import torch
from torch import nn

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi._operators import Edit
from modhifi.lipschitz import directional, gain_of


def test_every_point_lies_above_the_line(digits_study: Study, digits_model: Model, digits_test: Data) -> None:
    for ratio in (0.75, 0.5, 0.3):
        plan = modhifi.prune(digits_study, flops=ratio, compensate="full")
        report = modhifi.bounds.measure(digits_study, plan, digits_test, samples=64, model=digits_model)
        assert report.bound >= report.measured > 0
        assert report.tightness == pytest.approx(report.bound / report.measured)
        assert report.bound == pytest.approx(sum(row.gain * row.local for row in report.rows))
        assert report.predicted == plan.predicted["bound"]
        for row in report.rows:
            assert row.alone_bound >= row.measured > 0
            assert row.gain >= row.gain_rms > 0


def test_against_two_networks_run_by_hand(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)
    plan = modhifi.prune(study, overrides={"a": 3, "c": 4}, compensate="full")
    report = modhifi.bounds.measure(study, plan, pictures, samples=96, model=chain)
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


def test_known_gains() -> None:
    """A linear network: the error of the first layer reaches the output multiplied by 3 and rotated."""
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(3 * rotation)
        net[2].weight.copy_(rotation)
    x = torch.randn(32, 4)
    edits = {name: Edit(torch.zeros(4, 4), torch.zeros(4)) for name in ("0", "1", "2")}
    gains = directional(net.requires_grad_(False), edits, x, batch_size=10)
    for name, expected in (("0", 3.0), ("1", 1.0), ("2", 1.0)):
        assert gains[name].maximum == pytest.approx(expected, rel=1e-4)
        assert gains[name].rms == pytest.approx(expected, rel=1e-4)
        assert gains[name].samples == 32


def test_gain_without_a_local_error() -> None:
    gain = gain_of(torch.tensor([0.0, 4.0]), torch.tensor([9.0, 16.0]))
    assert (gain.maximum, gain.rms, gain.samples) == (2.0, 2.0, 1)
    assert gain_of(torch.zeros(3), torch.zeros(3)).samples == 0


def test_refusals(chain: Model, pictures: Data, digits_study: Study) -> None:
    study = modhifi.analyze(chain, pictures)
    with pytest.raises(UserError, match="changes no layer"):
        modhifi.bounds.measure(study, modhifi.prune(study, overrides={}), pictures, model=chain)
    with pytest.raises(UserError, match="different weights"):
        modhifi.bounds.measure(study, modhifi.prune(digits_study, flops=0.5, compensate="full"), pictures, model=chain)
