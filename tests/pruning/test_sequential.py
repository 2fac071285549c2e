"""Sequential compensation against fits done by hand, layer after layer, in float64."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modhifi
from modhifi import Data, Model, Study
from modhifi.errors import Cancelled
from modhifi.fidelity import SPREAD, Limit, fit_rows
from modhifi.layers import Edit, get_operator
from modhifi.models import fingerprint
from modhifi.progress import Progress, silent
from modhifi.pruning import _sequential
from modhifi.pruning._fits import Fits
from modhifi.pruning._sequential import sequential
from modhifi.specs import InputSpec
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
    monkeypatch.setattr("modhifi.statistics._in_sequence._ROWS_PER_INPUT", 10**9)


def images_of(data: Data, model: Model) -> torch.Tensor:
    return torch.cat([batch for batch, _ in data.batches(model.input)])


def batched(images: torch.Tensor) -> tuple[Callable[[], tuple[torch.Tensor, ...]], int]:
    return lambda: images.split(16), len(images)


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


def best(x: np.ndarray, y: np.ndarray, own: np.ndarray, least: float, images: int) -> float:
    """The ridge, ``least`` or a larger one, whose fits to the even images are best on the odd ones, and the other way round."""
    mean = x.var(0).mean()
    ridges = [least, *(mean * r for r in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0) if mean * r > least)]
    odd = np.repeat(np.arange(images) % 2 == 1, len(x) // images)
    errors = []
    for ridge in ridges:
        errors.append(0.0)
        for half in (odd, ~odd):
            weight, constant = fitted(x[half], y[half], own, ridge)
            errors[-1] += np.square(y[~half] - x[~half] @ weight.T - constant).sum()
    return ridges[int(np.argmin(errors))]


def followed(
    x: np.ndarray, y: np.ndarray, own: np.ndarray, ridge: float, free: np.ndarray, low: np.ndarray, high: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`fitted`, and three times again: where targets are ``free`` they are what was found, from ``low`` up to ``high``."""
    weight, constant = fitted(x, y, own, ridge)
    for _ in range(3):
        found = np.clip(x @ weight.T + constant, low, high)
        weight, constant = fitted(x, np.where(free, found, y), own, ridge)
    return weight, constant


def rows_of(layer: nn.Module, x: torch.Tensor) -> np.ndarray:
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1]).numpy()
    unfolded = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
    return unfolded.transpose(1, 2).reshape(-1, unfolded.shape[1]).numpy()


def flat(y: torch.Tensor) -> np.ndarray:
    return (y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1]) if y.ndim == 4 else y).numpy()


def test_removing_what_is_dead_changes_nothing(digits_study: Study, digits_model: Model) -> None:
    images = images_of(calibration_data(digits_study.data).take(64, 0), digits_model)
    module, keep = copy.deepcopy(digits_model.module), {g.name: list(range(g.size)) for g in digits_study.groups}
    first = digits_study.structure.readers["layer1.0.conv2"][0][0]
    norm = module.get_submodule(first.name.replace("conv", "bn"))
    norm.weight.data[3], norm.bias.data[3] = 0.0, -1.0  # a ReLU follows
    del keep[first.name][3]
    edits, _ = sequential(digits_study, keep, module, *batched(images))
    assert set(edits) >= {name for name in digits_study.layers if name.startswith(("layer2", "layer3", "linear"))}
    model = dataclasses.replace(digits_model, module=module)
    with torch.no_grad():
        dense, found = (net(images.double()) for net in (copy.deepcopy(module).double(), changed(model, edits)))
    # The fits see float32 rounding, in directions that hardly matter.
    assert float((found - dense).norm()) <= 1e-3 * float(dense.norm())


def test_nothing_removed_leaves_everything(digits_study: Study, digits_model: Model) -> None:
    keep = {group.name: list(range(group.size)) for group in digits_study.groups}
    assert sequential(digits_study, keep, digits_model.module, *batched(torch.rand(8, 3, 32, 32))) == ({}, {})


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("rectified", [True, False])
def test_a_chain_fitted_by_hand(chain: Model, pictures: Data, rectified: bool) -> None:
    study = modhifi.analyze(chain, pictures)
    images, keep = images_of(pictures, chain), half(study)
    edits, ridges = sequential(study, keep, chain.module, *batched(images), tail=0.05, rectified=rectified)
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
        ridge = best(x[:, columns], target, own, tail(x[:, columns], 0.05), len(images))
        assert ridges[name] == pytest.approx(ridge / x[:, columns].var(0).mean(), rel=1e-3)
        if rectified and name != "d":  # the other two go into a ReLU
            bias = np.zeros(target.shape[1]) if layer.bias is None else layer.bias.numpy()
            low = np.full_like(bias, -np.inf)
            weight, constant = followed(x[:, columns], target, own, ridge, target + bias <= 0, low, -bias)
        else:
            weight, constant = fitted(x[:, columns], target, own, ridge)
        np.testing.assert_allclose(edits[name].weight.numpy()[:, columns], weight, rtol=1e-3, atol=2e-4)
        np.testing.assert_allclose(edits[name].shift.numpy(), constant, rtol=1e-3, atol=2e-3)
        others = np.setdiff1d(np.arange(edits[name].weight.shape[1]), columns)
        assert not edits[name].weight.numpy()[:, others].any()


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(("drift", "rectified"), [(True, True), (True, False), (False, False)])
def test_what_a_stream_has_lost_is_made_up_for_at_the_addition(pictures: Data, drift: bool, rectified: bool) -> None:
    """The last layer of a block is fitted to Y + (stream − changed stream) / g, g the scale of the BatchNorm behind it. In the
    first block the sum goes into a ReLU: where it was cut off, Y g + constant + changed stream need only stay below 0.
    """
    model = loaded(Residual())
    with torch.no_grad():
        model.module.an.weight[:4] *= -1  # there, staying below 0 is staying above a threshold
    model = dataclasses.replace(model, fingerprint=fingerprint(model.module))
    study = modhifi.analyze(model, pictures)
    images, keep = images_of(pictures, model), half(study)
    edits, _ = sequential(study, keep, model.module, *batched(images), drift=drift, rectified=rectified)
    dense, net = copy.deepcopy(model.module).double(), changed(model, edits)
    for block in "ab":
        name = f"{block}2"
        layer, norm = dense.get_submodule(name), dense.get_submodule(f"{block}n")
        before = target = flat(seen(dense, name, images.double())[1])
        if drift:
            scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).numpy()
            # The input of the first block's first layer is the stream; in the second one a layer comes between.
            place, side = ("a1", 0) if block == "a" else ("shortcut", 1)
            streams = [flat(seen(one, place, images.double())[side]) for one in (dense, net)]
            target = target + (streams[0] - streams[1]) / scale
        x = rows_of(layer, seen(net, name, images.double())[0])
        columns = (np.array(keep[f"{block}1"])[:, None] * 9 + np.arange(9)).reshape(-1)
        own = layer.weight.flatten(1).numpy()[:, columns]
        ridge = best(x[:, columns], target, own, tail(x[:, columns], _sequential.TAIL), len(images))
        if rectified and block == "a":
            constant = (norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()).numpy()
            bound = -(constant + streams[1]) / scale
            free = before * scale + constant + streams[0] <= 0
            low, high = np.where(scale < 0, bound, -np.inf), np.where(scale > 0, bound, np.inf)
            weight, _ = followed(x[:, columns], target, own, ridge, free, low, high)
        else:
            weight, _ = fitted(x[:, columns], target, own, ridge)
        np.testing.assert_allclose(edits[name].weight.numpy()[:, columns], weight, rtol=2e-3, atol=1e-3)


class Rectified(nn.Module):
    """What goes into ReLUs: the output of ``a`` also elsewhere if ``twice``; the output of ``b`` always there alone."""

    def __init__(self, twice: bool, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.an = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(16, 8, 1)
        self.act = nn.ReLU(inplace=inplace)
        self.linear = nn.Linear(8, 4)
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stem = torch.relu(self.stem(x))
        x = self.an(self.a(stem))
        x = torch.cat([torch.relu(x), torch.relu(-x) if self.twice else stem], 1)
        return self.linear(self.act(self.b(x)).mean((2, 3)))


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_what_is_cut_off_is_free_only_where_nothing_else_uses_it(pictures: Data, twice: bool, inplace: bool) -> None:
    model = loaded(Rectified(twice, inplace))
    study = modhifi.analyze(model, pictures)
    assert {"a", "b"} <= study.layers.keys()
    images, keep = images_of(pictures, model), half(study)
    free, met = (sequential(study, keep, model.module, *batched(images), rectified=each)[0] for each in (True, False))
    assert torch.allclose(free["a"].weight, met["a"].weight) == twice
    assert not torch.allclose(free["b"].weight, met["b"].weight)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.sampled_from([1e-3, 0.1]))
def test_free_targets_never_leave_more_behind_the_relu_than_the_plain_fit(
    seed: int, inputs: int, outputs: int, tail: float
) -> None:
    """Each round lowers what the next one starts from, and error behind the ReLU ≤ that sum: both bound it from above."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((64, inputs)) @ rng.standard_normal((inputs, inputs))
    own = rng.standard_normal((outputs, inputs))
    y = x @ own.T + rng.standard_normal((64, outputs))
    rows, target, weights = (torch.from_numpy(each) for each in (x, y, own))
    threshold = torch.zeros(outputs, dtype=torch.float64)
    limit = Limit(target <= 0, threshold, torch.zeros(outputs, dtype=torch.bool))
    plain, free = (fit_rows(rows, target, weights, tail, True, each) for each in (None, limit))
    pull = free[2] * float(np.var(x, axis=0).mean())

    def left(weight: torch.Tensor, constant: torch.Tensor) -> float:
        """Squared error behind the threshold, and the ridge's part."""
        found = x @ weight.numpy().T + constant.numpy()
        missed = np.where(y > 0, found - y, np.maximum(found, 0))
        return float((missed**2).mean(0).sum() + pull * ((weight.numpy() - own) ** 2).sum())

    assert left(*free[:2]) <= left(*plain[:2]) * (1 + 1e-9) + 1e-12


def test_drift_is_left_alone_where_the_way_to_the_stream_is_not_affine(pictures: Data) -> None:
    model = loaded(Residual(active=True))
    study = modhifi.analyze(model, pictures)
    images, keep = images_of(pictures, model), half(study)
    corrected, plain = (
        sequential(study, keep, model.module, *batched(images), drift=drift)[0] for drift in (True, False)
    )
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
    cut = [name for name, group in plan.groups.items() if len(group.keep) < group.total]
    readers = list(digits_study.structure.readers)
    first = min(readers.index(c.layer) for name in cut for c in digits_study.structure.group(name).consumers)
    assert list(plan.settings.ridges) == readers[first:]
    smaller = modhifi.apply(plan, digits_model)
    found = modhifi.evaluate(smaller, digits_test, baseline=digits_model, latency=False)
    assert found.params == plan.predicted["params"]
    assert found.flops <= 0.25 * found.flops_before
    assert found.accuracy >= 0.95


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]))
def test_spread_is_given_back_in_part(seed: int, inputs: int, outputs: int, spread: float) -> None:
    """The outputs of a fit have less variance than the target; the factor's power is given back, and the mean is kept."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((96, inputs)) + rng.standard_normal(inputs)
    y = x @ rng.standard_normal((inputs, outputs)) + rng.standard_normal(outputs) + rng.standard_normal((96, outputs))
    rows, target = torch.from_numpy(x), torch.from_numpy(y)
    own = torch.zeros(outputs, inputs, dtype=torch.float64)
    weight, constant, ridge = fit_rows(rows, target, own, 1e-12, True, spread=spread)
    assert ridge < 1e-9
    found = x @ weight.numpy().T + constant.numpy()
    plain = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0]
    less = ((x - x.mean(0)) @ plain).std(0)
    factor = np.minimum(y.std(0) / less, 3.0) ** spread
    np.testing.assert_allclose(found.mean(0), y.mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.std(0), factor * less, rtol=1e-4)


def test_how_much_spread_is_given_back_is_judged_on_samples_that_the_fits_have_not_seen(
    digits_study: Study, digits_model: Model
) -> None:
    images = images_of(calibration_data(digits_study.data).take(31, 0), digits_model)
    keep = {group.name: list(range(0, group.size, 3)) for group in digits_study.groups}
    net, errors = digits_model.module, {}
    for spread in (0.0, SPREAD):
        edits, _ = sequential(digits_study, keep, net, *batched(images[::2]), spread=spread)
        small = changed(digits_model, edits)
        with torch.no_grad():
            errors[spread] = float((small(images[1::2].double()) - net(images[1::2])).square().sum())
    better = min(errors, key=errors.get)
    fits = Fits()
    found, _ = sequential(digits_study, keep, net, *batched(images), spread=None, fits=fits)
    expected, _ = sequential(digits_study, keep, net, *batched(images), spread=better)
    assert fits.spread == better
    assert errors[0.0] != errors[SPREAD]
    for name, edit in expected.items():
        torch.testing.assert_close(found[name].weight, edit.weight)


def test_a_trial_that_was_stopped_goes_on(
    digits_study: Study, digits_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = images_of(calibration_data(digits_study.data).take(16, 0), digits_model)
    plain, fitted = _sequential.fit_rows, []
    monkeypatch.setattr(_sequential, "fit_rows", lambda *args, **kwargs: fitted.append(1) or plain(*args, **kwargs))
    steps: list[str] = []

    def until_second(done: int, total: int, what: str) -> None:
        steps.append(what)
        if "trial 0.5" in what and done > 500:
            raise Cancelled

    def run(progress: Progress) -> Fits:
        fits = Fits(tmp_path / "partial", "this")
        sequential(
            digits_study, half(digits_study), digits_model.module, *batched(images),
            spread=None, fits=fits, progress=progress,
        )  # fmt: skip
        return fits

    with pytest.raises(Cancelled):
        run(until_second)
    before, layers = len(fitted), len(list((tmp_path / "partial" / "spread-0").iterdir()))
    assert layers < before < 2 * layers
    run(silent).delete()
    assert len(fitted) == 3 * layers
    assert not (tmp_path / "partial").exists()
