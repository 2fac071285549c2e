"""The certified bound: never below a Jacobian, whatever the operations; none where none is known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

import modhifi
from modhifi import Model
from modhifi.lipschitz import certified, jacobian


class Net(nn.Module):
    """A convolution, and something behind it."""

    def __init__(self, *behind: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.behind = nn.Sequential(*behind)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.first(x)).flatten(1)


def norm(channels: int) -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(channels)
    made.running_var.uniform_(0.2, 3)
    made.weight.data.uniform_(-2, 2)
    return made


@pytest.mark.parametrize(
    "behind",
    [
        lambda: [norm(4), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3, stride=2)],
        lambda: [nn.MaxPool2d(3, 2, 1)],
        lambda: [nn.AvgPool2d(3, 1), nn.GELU()],
        lambda: [nn.SiLU(), nn.AdaptiveAvgPool2d(3)],
        lambda: [nn.Hardswish(), nn.Upsample(scale_factor=2)],
        lambda: [nn.LeakyReLU(1.7), nn.Sigmoid()],
        lambda: [nn.Softmax(1), nn.ZeroPad2d(2)],
        lambda: [nn.Mish(), nn.Flatten(2), nn.LayerNorm(36, elementwise_affine=False)],
        lambda: [nn.Conv2d(4, 4, 3, groups=2, dilation=2), nn.Hardsigmoid(), nn.ReLU6()],
        lambda: [Conv2dSame(4, 4, 3, stride=2), nn.ReLU(), Conv2dSame(4, 4, 2, groups=4), AvgPool2dSame(3, 2)],
        lambda: [MaxPool2dSame(3, 2), Conv2dSame(4, 3, 3, dilation=2)],
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_jacobian_is_above_it(behind: object, seed: int) -> None:
    torch.manual_seed(seed)
    net = Net(*behind()).eval().requires_grad_(False)  # type: ignore[operator]
    x = 2 * torch.randn(8, 2, 6, 6)
    upper = certified(net, ["first"], x)["first"]
    assert upper.value is not None, upper.reason
    seen = jacobian(net, ["first"], x, block=200)["first"].maximum
    assert seen <= upper.value * (1 + 1e-5)
    assert upper.value < 1e4


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(2, 5), st.floats(0.1, 4.0))
def test_attention(seed: int, heads: int, tokens: int, size: float) -> None:
    """All of it, queries, keys and values from one input, as large as they come."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 9 * heads)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, heads, 3)).permute(2, 0, 3, 1, 4)
            return nn.functional.scaled_dot_product_attention(q, k, v).flatten(1)

    torch.manual_seed(seed)
    net = Attention().eval().requires_grad_(False)
    x = size * torch.randn(3, tokens, 6)
    upper = certified(net, ["qkv"], x)["qkv"]
    assert upper.ranges
    assert upper.value is not None
    assert jacobian(net, ["qkv"], x, block=200)["qkv"].maximum <= upper.value * (1 + 1e-5)


def test_layer_norm_holds_where_norms_are_not_smaller() -> None:
    """max|γ| / r, with r by hand."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(5, 5), nn.LayerNorm(5)
            self.norm.weight.data = torch.tensor([1.0, -4.0, 2.0, 0.5, 0.1])

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x))

    torch.manual_seed(0)
    net, x = Normed().eval().requires_grad_(False), torch.randn(9, 5)
    y = net.linear(x)
    least = ((y - y.mean(1, keepdim=True)).square().mean(1) + 1e-5).sqrt().min()
    upper = certified(net, ["linear"], x)["linear"]
    assert upper.ranges
    assert upper.value == pytest.approx(float(4.0 / least), rel=1e-5)


def test_in_place_operations_and_shared_inputs() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.a.weight.data, self.b.weight.data = 2 * torch.eye(3), 5 * torch.eye(3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = self.b(y)
            z.mul_(0.1)
            z += y  # 0.5 y + y
            z.relu_()
            return z - 0.25 * y

    net = Net().eval().requires_grad_(False)
    upper = certified(net, ["a", "b"], torch.randn(2, 3))
    assert upper["b"].value == pytest.approx(0.1, rel=1e-5)
    assert upper["a"].value == pytest.approx(0.5 + 1 + 0.25, rel=1e-5)


def test_what_has_no_constant_says_why() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y * torch.sigmoid(y))

    net = Gate().eval().requires_grad_(False)
    upper = certified(net, ["a", "b", "gone"], torch.randn(2, 3))
    assert upper["a"].value is None
    assert "product of two activations" in upper["a"].reason
    assert upper["b"].value == pytest.approx(1.0)
    assert "not found in the exported graph" in upper["gone"].reason
    assert certified(Net(nn.InstanceNorm2d(4)).eval(), ["first"], torch.randn(1, 2, 6, 6))["first"].reason.startswith(
        "no constant is known for instance_norm"
    )


@pytest.mark.parametrize("spec", ["digits-resnet20", "digits-vit", "timm:convnext_atto"])
def test_networks(spec: str) -> None:
    model: Model = modhifi.load_model(spec, device="cpu")
    x = torch.randn(4, *model.example(1).shape[1:]) if "timm" not in spec else torch.randn(2, 3, 64, 64)
    layers = [n for n, m in model.module.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-12:]
    # Of fused attention the outer projection runs, not the inner function.
    upper = certified(model.module, layers, x)
    seen = jacobian(model.module, layers, x)
    for layer in layers:
        value = upper[layer].value
        assert value is not None, upper[layer].reason
        assert seen[layer].maximum <= value * (1 + 1e-4)
