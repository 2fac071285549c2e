"""Streaming moments against unfold in float64, and the operators they rest on."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modhifi import Cancelled, Model
from modhifi._operators import Edit, edited, flat_weight, observed, operate, patches, position_count
from modhifi.statistics import collect

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 3), "padding": (0, 1)},
    {"kernel_size": 3, "dilation": 2, "padding": 2},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_patches_times_weight_is_the_convolution(options: dict) -> None:
    layer = nn.Conv2d(4, 5, **options).double()
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    expected = F.conv2d(x, layer.weight) if options == {"kernel_size": 1} else layer(x) - layer.bias[:, None, None]
    rows = patches(layer, x)
    assert position_count(layer, x) == expected[0, 0].numel()
    found = (rows @ flat_weight(layer).T).reshape(2, -1, 5).transpose(1, 2).reshape(expected.shape)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(operate(layer, x, flat_weight(layer), layer.bias), layer(x))
    at = torch.tensor([[3, 0], [5, 5]])
    chosen = rows.reshape(2, -1, rows.shape[1])[torch.arange(2)[:, None], at].reshape(4, -1)
    torch.testing.assert_close(patches(layer, x, at), chosen)


def test_patches_of_tokens() -> None:
    layer = nn.Linear(6, 3)
    x = torch.randn(2, 5, 6)
    assert position_count(layer, x) == 5
    torch.testing.assert_close(patches(layer, x), x.reshape(10, 6))
    torch.testing.assert_close(patches(layer, x, torch.tensor([[4], [1]])), torch.stack([x[0, 4], x[1, 1]]))


def reference(model: Model, layer: str, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """E[x xᵀ] and E[x] over all samples and positions in float64, by torch's unfold."""
    seen = []
    target = model.module.get_submodule(layer)
    handle = target.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    with torch.no_grad():
        model.module(images)
    handle.remove()
    x = F.unfold(seen[0], target.kernel_size, padding=target.padding, stride=target.stride)  # (N, n, P)
    rows = x.transpose(1, 2).reshape(-1, x.shape[1]).numpy()
    return rows.T @ rows / len(rows), rows.mean(0)


@pytest.mark.parametrize("layer", ["layer1.0.conv2", "layer2.0.conv1", "layer3.2.conv2"])
def test_all_positions_against_float64(digits_model: Model, layer: str) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    # Two samples are too few for the subsampling to leave a position out of these layers.
    moments = collect(digits_model.module, [layer], images.split(1), 2)[layer]
    second, mean = reference(digits_model, layer, images)
    assert moments.count == 2 * moments.positions
    assert float(np.linalg.norm(moments.second.numpy() - second) / np.linalg.norm(second)) < 1e-5
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-5, atol=1e-6)


def test_a_fraction_of_positions_is_unbiased_and_independent_of_the_batch_size(digits_model: Model) -> None:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    layer = "layer1.1.conv2"
    whole = collect(digits_model.module, [layer], images.split(64), 64)[layer]
    parts = collect(digits_model.module, [layer], images.split(7), 64)[layer]
    assert whole.count == parts.count < 64 * whole.positions
    torch.testing.assert_close(whole.second, parts.second, rtol=1e-4, atol=1e-5)
    second, _ = reference(digits_model, layer, images)
    assert float(np.linalg.norm(whole.second.numpy() - second) / np.linalg.norm(second)) < 0.05
    other = collect(digits_model.module, [layer], images.split(64), 64, seed=1)[layer]
    assert not torch.equal(other.second, whole.second)


def _hooks(module: nn.Module) -> int:
    return sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in module.modules())


def test_no_hook_stays_behind(chain: Model) -> None:
    net, images = chain.module, torch.randn(4, 3, 8, 8)
    collect(net, ["b", "c"], [images], 4)
    assert _hooks(net) == 0

    def cancel(done: int, total: int, what: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        collect(net, ["b"], [images], 4, progress=cancel)
    with pytest.raises(RuntimeError):
        collect(net, ["b"], [torch.randn(4, 2, 8, 8)], 4)
    with pytest.raises(TypeError, match="not a Conv2d or Linear"), observed(net, ["b", "norm"], lambda *_: None):
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
