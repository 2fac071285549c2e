"""Sequential compensation against fits done by hand, layer after layer, in float64."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modhifi
from modhifi import Data, Model, Study
from modhifi._operators import Edit, get_operator
from modhifi.models import InputSpec, fingerprint
from modhifi.pruning import _sequential
from modhifi.pruning._sequential import sequential
from modhifi.surgery import calibration_data


class Residual(nn.Module):
    """Two residual blocks; with ``active`` an activation stands between the last normalisation and the addition."""

    def __init__(self, active: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        for block in "ab":
            self.add_module(f"{block}1", nn.Conv2d(12, 10, 3, padding=1))
            self.add_module(f"{block}2", nn.Conv2d(10, 12, 3, padding=1, bias=False))
            self.add_module(f"{block}n", nn.BatchNorm2d(12))
        self.shortcut = nn.Conv2d(12, 12, 1)
        self.linear = nn.Linear(12, 4)
        self.active = active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in "ab":
            inner = torch.relu(self.get_submodule(f"{block}1")(x))
            inner = self.get_submodule(f"{block}n")(self.get_submodule(f"{block}2")(inner))
            if self.active:
                inner.relu_()
            if block == "a":
                x = torch.relu(inner + x)
            else:
                inner += self.shortcut(x)  # as timm and torchvision add
                x = inner
        return self.linear(x.mean((2, 3)))


def loaded(net: nn.Module) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.3, 1.5)
                module.bias.data.uniform_(-0.5, 0.5)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    net.eval().requires_grad_(False)
    spec = InputSpec(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return Model("residual", net, spec, ("a", "b", "c", "d"), None, fingerprint(net))


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All positions are looked at."""
    monkeypatch.setattr(_sequential, "_ROWS_PER_INPUT", 10**9)


def images_of(data: Data, model: Model) -> torch.Tensor:
    return torch.cat([batch for batch, _ in data.batches(model.input)])


def half(study: Study) -> dict[str, list[int]]:
    return {group.name: list(range(0, group.size, 2)) for group in study.groups}


def changed(model: Model, edits: dict[str, Edit]) -> nn.Module:
    """In float64, with a bias wherever the edit has a constant."""
    net = copy.deepcopy(model.module).double()
    for name, edit in edits.items():
        layer = get_operator(net, name)
        layer.weight.data.copy_(edit.weight.reshape(layer.weight.shape))
        layer.bias = nn.Parameter(edit.shift + (0 if layer.bias is None else layer.bias.data))
    return net


def seen(net: nn.Module, name: str, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a layer."""
    found = []
    handle = net.get_submodule(name).register_forward_hook(lambda _, args, out: found.append((args[0], out)))
    with torch.no_grad():
        net(images)
    handle.remove()
    return found[0]


def tail(x: np.ndarray, share: float) -> float:
    """The eigenvalue of the covariance below which, itself included, at most ``share`` of the variance lies."""
    values = np.linalg.eigvalsh(np.cov(x.T, bias=True).reshape(x.shape[1], x.shape[1]))
    below = [value for value in values if values[values <= value].sum() <= share * values.sum()]
    return max(below, default=0.0)


def fitted(x: np.ndarray, y: np.ndarray, own: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression towards ``own`` as an ordinary one with rows added; (O, n) and (O,)."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    pull = np.sqrt(ridge * len(x)) * np.eye(x.shape[1])
    weight = np.linalg.lstsq(np.vstack([xc, pull]), np.vstack([yc, pull @ own.T]), rcond=None)[0].T
    return weight, y.mean(0) - weight @ x.mean(0)


def rows_of(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).numpy()
    unfolded = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1]).numpy()


def flat(y: torch.Tensor) -> np.ndarray:
    return (y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1]) if y.ndim == 4 else y).numpy()


def test_nothing_removed_changes_nothing(digits_study: Study, digits_model: Model) -> None:
    images = images_of(calibration_data(digits_study.data).take(64, 0), digits_model)
    everything = {group.name: list(range(group.size)) for group in digits_study.groups}
    edits, _ = sequential(digits_study, everything, digits_model.module, images)
    assert edits.keys() == digits_study.layers.keys()
    with torch.no_grad():
        dense, found = (
            net(images.double()) for net in (copy.deepcopy(digits_model.module).double(), changed(digits_model, edits))
        )
    # The fits see float32 rounding, in directions that hardly matter.
    assert float((found - dense).norm()) <= 1e-3 * float(dense.norm())


@pytest.mark.usefixtures("everywhere")
def test_a_chain_fitted_by_hand(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)
    images, keep = images_of(pictures, chain), half(study)
    edits, ridges = sequential(study, keep, chain.module, images, tail=0.05)
    assert list(edits) == ["b", "c", "d"]
    dense, net = copy.deepcopy(chain.module).double(), changed(chain, edits)
    for group, name, block in (("a", "b", 9), ("b", "c", 16), ("c", "d", 1)):
        layer = dense.get_submodule(name)
        target = flat(seen(dense, name, images.double())[1])
        if layer.bias is not None:
            target = target - layer.bias.numpy()
        x = rows_of(layer, seen(net, name, images.double())[0])
        columns = (np.array(keep[group])[:, None] * block + np.arange(block)).reshape(-1)
        own = layer.weight.flatten(1).numpy()[:, columns]
        ridge = tail(x[:, columns], 0.05)
        assert ridges[name] == pytest.approx(ridge / x[:, columns].var(0).mean(), rel=1e-3)
        weight, constant = fitted(x[:, columns], target, own, ridge)
        np.testing.assert_allclose(edits[name].weight.numpy()[:, columns], weight, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(edits[name].shift.numpy(), constant, rtol=1e-3, atol=2e-3)
        others = np.setdiff1d(np.arange(edits[name].weight.shape[1]), columns)
        assert not edits[name].weight.numpy()[:, others].any()


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("drift", [True, False])
def test_what_a_stream_has_lost_is_made_up_for_at_the_addition(pictures: Data, drift: bool) -> None:
    """The last layer of a block is fitted to Y + (stream − changed stream) / g, g the scale of the BatchNorm behind it."""
    model = loaded(Residual())
    study = modhifi.analyze(model, pictures)
    images, keep = images_of(pictures, model), half(study)
    edits, _ = sequential(study, keep, model.module, images, drift=drift)
    dense, net = copy.deepcopy(model.module).double(), changed(model, edits)
    for block in "ab":
        name = f"{block}2"
        layer, norm = dense.get_submodule(name), dense.get_submodule(f"{block}n")
        target = flat(seen(dense, name, images.double())[1])
        if drift:
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).numpy()
            # The input of the first block's first layer is the stream; in the second one a layer comes between.
            place, side = ("a1", 0) if block == "a" else ("shortcut", 1)
            streams = [flat(seen(one, place, images.double())[side]) for one in (dense, net)]
            target = target + (streams[0] - streams[1]) / scale
        x = rows_of(layer, seen(net, name, images.double())[0])
        columns = (np.array(keep[f"{block}1"])[:, None] * 9 + np.arange(9)).reshape(-1)
        ridge = tail(x[:, columns], _sequential.TAIL)
        weight, _ = fitted(x[:, columns], target, layer.weight.flatten(1).numpy()[:, columns], ridge)
        np.testing.assert_allclose(edits[name].weight.numpy()[:, columns], weight, rtol=2e-3, atol=1e-3)


def test_drift_is_left_alone_where_the_way_to_the_stream_is_not_affine(pictures: Data) -> None:
    model = loaded(Residual(active=True))
    study = modhifi.analyze(model, pictures)
    images, keep = images_of(pictures, model), half(study)
    corrected, plain = (sequential(study, keep, model.module, images, drift=drift)[0] for drift in (True, False))
    for name in ("a1", "a2", "b1", "b2"):
        torch.testing.assert_close(corrected[name].weight, plain[name].weight)
    # What it is added to is a layer that does reach the sum unbent: that one takes up the drift.
    assert not torch.allclose(corrected["shortcut"].weight, plain["shortcut"].weight)


def test_a_sequential_plan_keeps_more_than_a_one_shot_one(
    digits_study: Study, digits_model: Model, digits_test: Data
) -> None:
    """95% at a quarter of the FLOPs; removed = masked is checked by `modhifi.apply`."""
    plan = modhifi.prune(digits_study, flops=0.25, model=digits_model)
    assert (plan.settings.compensate, plan.settings.drift) == ("sequential", True)
    assert plan.settings.ridges.keys() == digits_study.layers.keys()
    smaller = modhifi.apply(plan, digits_model)
    found = modhifi.evaluate(smaller, digits_test, baseline=digits_model, latency=False)
    assert found.params == plan.predicted["params"]
    assert found.flops <= 0.25 * found.flops_before
    assert found.accuracy >= 0.95
