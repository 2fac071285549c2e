"""Streaming moments against unfold in float64, and the operators they rest on."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from modhifi import Cancelled, Model
from modhifi.fidelity import singleton_from_moments
from modhifi.layers import (
    Edit,
    edited,
    flat_weight,
    get_operator,
    observed,
    operate,
    outputs_at,
    patches,
    position_count,
    shaped_weight,
)
from modhifi.statistics import Moments, Partial, _moments, _positions, collect, collect_singletons, partition

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 3), "padding": (0, 1)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_patches_times_weight_is_the_convolution(options: dict) -> None:
    layer = nn.Conv2d(4, 5, **options).double()
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    expected = layer(x) - layer.bias[:, None, None]
    rows = patches(layer, x)
    assert position_count(layer, x, 2) == expected[0, 0].numel()
    found = (rows @ flat_weight(layer).T).reshape(2, -1, 5).transpose(1, 2).reshape(expected.shape)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(operate(layer, x, flat_weight(layer), layer.bias), layer(x))
    at = torch.tensor([[3, 0], [5, 11]])
    chosen = rows.reshape(2, -1, rows.shape[1])[torch.arange(2)[:, None], at].reshape(4, -1)
    torch.testing.assert_close(patches(layer, x, at), chosen)
    torch.testing.assert_close(outputs_at(layer, layer(x), at), chosen @ flat_weight(layer).T)
    torch.testing.assert_close(outputs_at(layer, layer(x)), rows @ flat_weight(layer).T)
    # The same as two rows of a single sample, as windows are: the positions of the second come after those of the first.
    count = position_count(layer, x, 1)
    assert count == 2 * position_count(layer, x, 2)
    at = torch.tensor([[count - 1, 0, count // 2]])
    torch.testing.assert_close(patches(layer, x, at), rows[at[0]])
    torch.testing.assert_close(outputs_at(layer, layer(x), at), rows[at[0]] @ flat_weight(layer).T)


OTHERS = [
    (nn.Conv1d(4, 5, 3, stride=2, padding=1), (11,)),
    (nn.Conv1d(4, 5, 1, stride=3), (11,)),
    (nn.Conv3d(4, 5, (3, 1, 2), stride=(1, 2, 1), padding=1), (4, 5, 6)),
    (nn.ConvTranspose1d(4, 5, 4, stride=2, padding=1), (7,)),
    (nn.ConvTranspose2d(4, 5, (4, 3), stride=(2, 3), padding=1, output_padding=(0, 1)), (4, 5)),
    (nn.ConvTranspose2d(4, 5, 3, stride=1, dilation=2), (4, 5)),
    (nn.ConvTranspose2d(4, 5, 2, stride=3), (4, 5)),
    (nn.ConvTranspose2d(4, 5, 1, stride=1, padding=1), (4, 5)),
    (nn.ConvTranspose3d(4, 5, 2, stride=2), (2, 3, 2)),
]


@pytest.mark.parametrize(("layer", "size"), OTHERS, ids=str)
def test_patches_of_other_convolutions(layer: Any, size: tuple[int, ...]) -> None:
    layer = copy.deepcopy(layer).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = layer(x)
    rows = patches(layer, x)
    assert position_count(layer, x, 2) == expected[0, 0].numel()
    found = (rows @ flat_weight(layer).T + layer.bias).reshape(2, -1, 5).transpose(1, 2).reshape(expected.shape)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(operate(layer, x, flat_weight(layer), layer.bias), expected)
    assert torch.equal(shaped_weight(layer, flat_weight(layer)), layer.weight)
    # The channels of the input are blocks of columns of the flat weight.
    one = x.clone()
    one[:, [0, 2, 3]] = 0
    block = rows.shape[1] // 4
    columns = slice(block, 2 * block)
    torch.testing.assert_close(patches(layer, one)[:, columns] @ flat_weight(layer)[:, columns].T, patches(layer, one)
                               @ flat_weight(layer).T)  # fmt: skip
    at = torch.tensor([[3, 0], [1, 2]])
    chosen = rows.reshape(2, -1, rows.shape[1])[torch.arange(2)[:, None], at].reshape(4, -1)
    torch.testing.assert_close(patches(layer, x, at), chosen)
    torch.testing.assert_close(outputs_at(layer, expected, at), chosen @ flat_weight(layer).T)


class _Scales(nn.Module):
    """One layer on maps of three sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4) + 1]
        return torch.cat([self.head(one).flatten(2) for one in maps], 2).mean(2)


@pytest.mark.parametrize("batch", [3, 8])
def test_moments_of_a_layer_that_runs_several_times_are_those_of_all_its_calls(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_moments, "draw_size", lambda positions, *_: positions)
    torch.manual_seed(0)
    net, x = _Scales().eval(), torch.randn(8, 3, 8, 8)
    groups = {"g": torch.arange(27).reshape(3, 9)}
    found = collect(net, {"head": groups}, lambda start: x[start:].split(batch), 8, classes=4)
    calls = [x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4) + 1]
    rows = torch.cat([patches(net.head, one) for one in calls]).double()
    moments = found.moments["head"]
    assert moments.positions == 64 + 16 + 4
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.second.double(), rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-5, atol=1e-5)


def test_the_same_share_of_every_call_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_moments, "draw_size", lambda positions, *_: positions // 2)
    torch.manual_seed(0)
    net, x = _Scales().eval(), torch.randn(8, 3, 8, 8)
    found = collect(net, {"head": {"g": torch.arange(27).reshape(3, 9)}}, lambda start: x[start:].split(4), 8)
    assert found.moments["head"].positions == 84
    assert found.moments["head"].count == 8 * 42


@pytest.mark.parametrize("size", [(7, 9), (8, 6), (5, 8)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (3, 2), (4, 1), ((1, 5), 1), (1, 1), (2, 3)])
def test_timm_convolutions_that_pad_by_the_size_of_their_input(
    size: tuple[int, int], stride: int, kernel: int | tuple[int, int], dilation: int
) -> None:
    options = {"stride": stride, "dilation": dilation, "dtype": torch.float64}
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    layer = timm.layers.Conv2dSame(4, 5, kernel, **options)
    expected = layer(x)
    assert expected.shape[2:] == tuple(-(-extent // stride) for extent in size)
    assert position_count(layer, x, 2) == expected[0, 0].numel()
    rows = patches(layer, x)
    found = (rows @ flat_weight(layer).T + layer.bias).reshape(2, -1, 5).transpose(1, 2).reshape(expected.shape)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(operate(layer, x, flat_weight(layer), layer.bias), expected)
    at = torch.randint(expected[0, 0].numel(), (2, 3))
    chosen = rows.reshape(2, -1, rows.shape[1])[torch.arange(2)[:, None], at].flatten(0, 1)
    torch.testing.assert_close(patches(layer, x, at), chosen)
    torch.testing.assert_close(outputs_at(layer, expected, at), chosen @ flat_weight(layer).T)
    # Depthwise: each channel has a weight of its own for its part of the row.
    layer = timm.layers.Conv2dSame(4, 4, kernel, groups=4, **options)
    expected = layer(x)
    weight = flat_weight(layer)
    torch.testing.assert_close(operate(layer, x, weight, layer.bias), expected)
    found = (patches(layer, x).reshape(-1, 4, weight.shape[1]) * weight).sum(2) + layer.bias
    torch.testing.assert_close(found.reshape(2, -1, 4).transpose(1, 2).reshape(expected.shape), expected)


def test_patches_of_tokens() -> None:
    layer = nn.Linear(6, 3)
    x = torch.randn(2, 5, 6)
    assert position_count(layer, x, 2) == 5
    assert position_count(layer, x, 1) == 10
    torch.testing.assert_close(patches(layer, x), x.reshape(10, 6))
    torch.testing.assert_close(patches(layer, x, torch.tensor([[4], [1]])), torch.stack([x[0, 4], x[1, 1]]))
    torch.testing.assert_close(patches(layer, x, torch.tensor([[4, 6]])), torch.stack([x[0, 4], x[1, 1]]))


def reference(net: nn.Module, layer: str, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """E[x xᵀ] and E[x] over all samples and positions in float64, by torch's unfold."""
    seen = []
    target = net.get_submodule(layer)
    handle = target.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    with torch.no_grad():
        net(images)
    handle.remove()
    x = F.unfold(seen[0], target.kernel_size, padding=target.padding, stride=target.stride)  # (N, n, P)
    rows = x.transpose(1, 2).reshape(-1, x.shape[1]).numpy()
    return rows.T @ rows / len(rows), rows.mean(0)


def run(net: nn.Module, layers: list[str], images: torch.Tensor, batch: int = 64, **options) -> dict[str, Moments]:
    named = {layer: {} for layer in layers}
    return collect(net, named, lambda start: images[start:].split(batch), len(images), **options).moments


def test_all_positions_against_float64_on_every_layer_of_resnet18(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_positions, "_ROWS_PER_INPUT", 10**6)  # every position
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("resnet18").eval().requires_grad_(False)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    layers = [name for name, part in net.named_modules() if isinstance(part, nn.Conv2d)]
    moments = run(net, layers, images, 2)
    for layer in layers:
        second, mean = reference(net, layer, images)
        assert moments[layer].count == 3 * moments[layer].positions
        assert float(np.linalg.norm(moments[layer].second.numpy() - second) / np.linalg.norm(second)) < 1e-5, layer
        np.testing.assert_allclose(moments[layer].mean, mean, rtol=1e-5, atol=1e-6)


def test_a_fraction_of_positions_does_not_depend_on_the_batch_size(digits_model: Model) -> None:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    layer = "layer1.1.conv2"
    whole, parts = (run(digits_model.module, [layer], images, batch)[layer] for batch in (64, 7))
    assert whole.count == parts.count < 64 * whole.positions
    torch.testing.assert_close(whole.second, parts.second, rtol=1e-4, atol=1e-5)
    other = run(digits_model.module, [layer], images, seed=1)[layer]
    assert not torch.equal(other.second, whole.second)


def test_the_error_of_subsampling_falls_as_one_over_the_root_of_n(
    digits_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn without replacement, n of N positions: error² ∝ (1/n)(1 − n/N); the slope of log error is fitted with that factor."""
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    layer = "layer1.1.conv2"
    second, _ = reference(digits_model.module, layer, images)
    sizes = [4, 8, 16, 32, 64, 128]
    errors = []
    for size in sizes:
        monkeypatch.setattr(_moments, "draw_size", lambda *_, size=size: size)
        drawn = [run(digits_model.module, [layer], images, seed=seed)[layer] for seed in range(6)]
        assert drawn[0].count == 32 * size
        squared = [np.linalg.norm(one.second.numpy() - second) ** 2 for one in drawn]
        errors.append(np.sqrt(np.mean(squared) / (1 - size / 1024)))
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4
    mean = np.mean([one.second.numpy() for one in drawn], 0)  # unbiased: the mean over seeds is closer
    assert np.linalg.norm(mean - second) < 0.6 * errors[-1]


def test_the_draw_is_of_distinct_positions_and_depends_on_seed_layer_and_sample() -> None:
    drawn = _positions.draw(50, 20, "a", torch.arange(3), 0)
    assert drawn.shape == (3, 20)
    assert all(len(set(row)) == 20 and max(row) < 50 for row in drawn.tolist())
    assert torch.equal(_positions.draw(50, 20, "a", torch.tensor([2]), 0)[0], drawn[2])
    assert not torch.equal(_positions.draw(50, 20, "b", torch.arange(3), 0), drawn)
    assert not torch.equal(_positions.draw(50, 20, "a", torch.arange(3), 1), drawn)
    counts = torch.bincount(_positions.draw(10, 5, "a", torch.arange(4000), 0).flatten(), minlength=10)
    assert bool(((counts - 2000).abs() < 200).all())


@pytest.mark.parametrize("layer", ["layer1.0.conv2", "layer3.0.conv1", "linear"])
def test_singletons_of_the_fast_path_are_those_of_the_moments(
    digits_model: Model, layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_positions, "_ROWS_PER_INPUT", 10**6)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    weight = flat_weight(get_operator(digits_model.module, layer))
    columns = torch.arange(weight.shape[1]).reshape(-1, 9 if layer != "linear" else 4)
    moments = run(digits_model.module, [layer], images)[layer]
    found = collect_singletons(
        digits_model.module, {layer: columns}, images.split(3), len(images), size=lambda positions: positions
    )
    expected = singleton_from_moments(moments.second, weight, columns)
    torch.testing.assert_close(found[layer], expected, rtol=1e-4, atol=1e-6)
    # A part of the positions, drawn in the same way: near.
    part = collect_singletons(
        digits_model.module, {layer: columns}, images.split(3), len(images), size=lambda p: p // 4
    )[layer]
    assert float((part - expected).abs().mean()) < 0.06


def test_class_sums_against_contributions_formed_one_by_one(digits_model: Model) -> None:
    """With all positions looked at, for the classes that the network predicts."""
    net, layer = digits_model.module, "layer3.0.conv1"
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 3
    columns = torch.tensor([3, 5, 9])[:, None] * 9 + torch.arange(9)  # three of the channels
    linear = torch.arange(64)[:, None]
    found = collect(
        net,
        {layer: {"g": columns}, "linear": {"g": linear}},
        lambda start: images[start:].split(5),
        12,
        classes=10,
    )
    with torch.inference_mode():
        labels = net(images).argmax(1)
    assert found.class_counts.tolist() == torch.bincount(labels, minlength=10).tolist()
    rows = []
    with (
        torch.inference_mode(),
        observed(net, ["linear"], lambda *see: rows.append((see[2].double(), see[3].double()))),
    ):
        net(images)
    x, y = rows[0]
    weight, y = net.linear.weight.double(), y - net.linear.bias.double()
    for sample_class in labels.unique().tolist():
        own = labels == sample_class
        contributions = x[own, :, None] * weight.T  # (N, C, O)
        inner = (contributions * y[own, None]).sum((0, 2))
        torch.testing.assert_close(found.class_inner["linear", "g"][sample_class], inner, rtol=1e-4, atol=1e-3)
        squared = contributions.square().sum((0, 2))
        torch.testing.assert_close(found.class_own["linear", "g"][sample_class], squared, rtol=1e-4, atol=1e-3)
        assert float(found.class_energy["linear"][sample_class]) == pytest.approx(
            float(y[own].square().sum()), rel=1e-4
        )
    assert found.class_inner[layer, "g"].shape == (10, 3)
    # Cauchy-Schwarz holds in every class, whatever positions were drawn.
    bound = found.class_own[layer, "g"] * found.class_energy[layer][:, None]
    assert bool((found.class_inner[layer, "g"].square() <= bound * (1 + 1e-4) + 1e-6).all())


def test_a_wide_layer_keeps_the_gram_matrix_of_contributions(chain: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_moments, "MAX_INPUTS", 60)
    monkeypatch.setattr(_positions, "_ROWS_PER_INPUT", 10**6)
    images = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    columns = torch.arange(80).reshape(5, 16)[1:]  # the first channel belongs to no group: the last part
    found = collect(chain.module, {"c": {"b": columns}}, lambda start: images[start:].split(4), 10).moments["c"]
    seen = []
    with torch.inference_mode(), observed(chain.module, ["c"], lambda *see: seen.append(see[2].double())):
        chain.module(images)
    weight = chain.module.c.weight.double()
    order = [1, 2, 3, 4, 0]
    each = [seen[0][:, 16 * i : 16 * i + 16] @ weight[:, 16 * i : 16 * i + 16].T for i in order]
    expected = torch.tensor([[float((a * b).sum()) / 10 for b in each] for a in each])
    torch.testing.assert_close(found.second, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean, seen[0].mean(0), rtol=1e-4, atol=1e-6)
    assert partition(80, {"b": columns}).tolist() == [4] * 16 + [0] * 16 + [1] * 16 + [2] * 16 + [3] * 16


def test_an_interrupted_run_goes_on_bit_by_bit(chain: Model, tmp_path: Path) -> None:
    images = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = {"b": {"a": torch.arange(54).reshape(6, 9)}, "d": {}}
    file = tmp_path / "sums"
    starts: list[int] = []

    def batches(start: int):
        starts.append(start)
        return images[start:].split(4)

    def stop(done: int, total: int, what: str) -> None:
        if done == 12:
            raise Cancelled

    whole = collect(chain.module, layers, batches, 20, classes=4)
    partial = Partial(file, "key")
    with pytest.raises(Cancelled):
        collect(chain.module, layers, batches, 20, classes=4, partial=partial, progress=stop)
    assert file.exists()
    # Sums of another run are not taken up.
    other = collect(chain.module, layers, batches, 20, classes=4, partial=Partial(file, "other"))
    again = collect(chain.module, layers, batches, 20, classes=4, partial=partial)
    assert starts == [0, 0, 0, 12]
    for found in (other, again):
        for name, moments in whole.moments.items():
            assert torch.equal(found.moments[name].second, moments.second)
            assert torch.equal(found.moments[name].mean, moments.mean)
            assert found.moments[name].positions == moments.positions
        assert torch.equal(found.class_inner["b", "a"], whole.class_inner["b", "a"])
        assert torch.equal(found.class_counts, whole.class_counts)
    file.write_bytes(file.read_bytes()[:100])  # cut short: begins anew
    assert torch.equal(
        collect(chain.module, layers, batches, 20, partial=Partial(file, "key")).moments["b"].second,
        whole.moments["b"].second,
    )
    partial.clear()
    assert not file.exists()


def test_shares_of_two_processes_add_up(chain: Model) -> None:
    """What each process sums, added by hand (tests/cli runs real processes)."""
    images = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def part(numbers: range) -> Moments:
        mine = images[numbers.start : numbers.stop]
        options = {"numbers": numbers, "seed": 5}
        return collect(chain.module, {"b": {}}, lambda start: mine[start:].split(4), 11, **options).moments["b"]

    one, first, second = part(range(11)), part(range(5)), part(range(5, 11))
    total = (first.second * first.count + second.second * second.count) / one.count
    assert first.count + second.count == one.count
    torch.testing.assert_close(total, one.second, rtol=1e-6, atol=1e-7)


def _hooks(module: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in module.modules())


def test_no_hook_stays_behind(chain: Model) -> None:
    net, images = chain.module, torch.randn(4, 3, 8, 8)
    run(net, ["b", "c"], images)
    assert _hooks(net) == 0

    def cancel(done: int, total: int, what: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        run(net, ["b"], images, progress=cancel)
    with pytest.raises(Cancelled):
        collect_singletons(net, {"b": torch.arange(54).reshape(6, 9)}, [images], len(images), progress=cancel)
    with pytest.raises(RuntimeError):
        run(net, ["b"], torch.randn(4, 2, 8, 8))
    with pytest.raises(TypeError, match="not a convolution or Linear"):
        run(net, ["b", "norm"], images)
    with pytest.raises(TypeError, match="not a convolution or Linear"), observed(net, ["b", "norm"], lambda *_: None):
        pass
    edit = Edit(torch.zeros(5, 54), torch.zeros(5))
    with pytest.raises(AttributeError), edited(net, {"b": edit, "nothing": edit}):
        pass
    assert _hooks(net) == 0


def test_an_edit_acts_as_new_weights_and_reports_the_difference(chain: Model) -> None:
    net, images = chain.module, torch.randn(4, 3, 8, 8)
    weight, shift = torch.randn(5, 54), torch.randn(5)
    seen = {}
    with torch.no_grad():
        before = net(images)
        with edited(net, {"b": Edit(weight, shift)}, lambda name, difference: seen.update({name: difference})):
            inside = net(images)
        after = net(images)
        x = torch.relu(net.norm(net.a(images)))
        own = net.b(x)
        new = F.conv2d(x, weight.reshape(5, 6, 3, 3), shift, stride=2, padding=1)
        expected = net.d(torch.relu(net.c(torch.relu(new).flatten(1))))
    assert torch.equal(before, after)
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(seen["b"], new - own, atol=1e-4, rtol=1e-4)
