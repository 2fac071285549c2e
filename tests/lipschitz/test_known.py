"""Estimators on networks whose constants are known."""

import pytest
import torch
from torch import Tensor, nn

from modhifi import Model
from modhifi.layers import Edit
from modhifi.lipschitz import Gains, certified, directional, estimators, jacobian, pairs, random

LOWER = [name for name, one in estimators().items() if one.claim == "lower"]


def rotation(size: int, seed: int) -> Tensor:
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].float()


def chain_of(*weights: Tensor, between: type[nn.Module] = nn.Identity) -> nn.Sequential:
    parts: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        parts += [layer, between()]
    return nn.Sequential(*parts[:-1]).eval().requires_grad_(False)


def halved(net: nn.Module) -> dict[str, Edit]:
    """Every linear layer without the second half of its inputs."""
    edits = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach().clone()
            weight[:, weight.shape[1] // 2 :] = 0
            edits[name] = Edit(weight, torch.zeros(len(weight)))
    return edits


def everything(net: nn.Module, x: Tensor) -> dict[str, dict[str, Gains]]:
    edits = halved(net)
    layers = list(edits)
    return {
        "directional": directional(net, edits, x, batch_size=7),
        "jacobian": jacobian(net, layers, x, batch_size=7),
        "random": random(net, layers, x, batch_size=7),
        "pairs": pairs(net, layers, x, batch_size=7),
    }


def images(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(11))


def test_orthogonal_layers_and_scalings() -> None:
    """An error of any direction is rotated and scaled by 3 · 0.5: all estimators see exactly that, at every sample."""
    net = chain_of(rotation(6, 0), 3 * rotation(6, 1), 0.5 * rotation(6, 2))
    x = images(20, 6)
    found = everything(net, x)
    assert set(found) == set(LOWER)
    upper = certified(net, ["0", "2", "4"], x)
    for name, expected in (("0", 1.5), ("2", 0.5), ("4", 1.0)):
        for estimator, gains in found.items():
            one = gains[name]
            assert one.samples == 20
            for value in (one.maximum, one.rms, one.quantile(0.5)):
                assert value == pytest.approx(expected, rel=0.01), estimator
            assert one.maximum <= expected * (1 + 1e-5)
        bound = upper[name].value
        assert bound is not None
        assert expected * (1 - 1e-6) <= bound <= expected * 1.01
        assert not upper[name].ranges


def test_linear_network() -> None:
    """Constants are spectral norms of the product of the later layers; of each layer's norm for the certified bound."""
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(a, b, generator=generator) for a, b in ((9, 5), (7, 9), (4, 7))]
    net, x = chain_of(*weights), images(200, 5)
    found, upper = everything(net, x), certified(net, ["0", "2", "4"], x)
    exact = {"0": weights[2] @ weights[1], "2": weights[2], "4": torch.eye(4)}
    for name, matrix in exact.items():
        truth = float(torch.linalg.matrix_norm(matrix.double(), 2))
        assert found["jacobian"][name].maximum == pytest.approx(truth, rel=1e-5)
        for estimator in LOWER:
            assert 0 < found[estimator][name].maximum <= truth * (1 + 1e-4)
        bound = upper[name].value
        assert bound is not None
        assert bound >= truth * (1 - 1e-9)
    product = float(torch.linalg.matrix_norm(weights[1].double(), 2) * torch.linalg.matrix_norm(weights[2].double(), 2))
    assert upper["0"].value == pytest.approx(product, rel=1e-5)


def test_relu_chain_of_one_dimension() -> None:
    """z ↦ 2·relu(3·relu(z)): slope 6 where z > 0, none elsewhere."""
    net = chain_of(torch.ones(1, 1), torch.full((1, 1), 3.0), torch.full((1, 1), 2.0), between=nn.ReLU)
    x = torch.linspace(-1, 2, 60)[:, None]
    on = int((x > 0).sum())
    gains = jacobian(net, ["0", "2"], x)
    assert gains["0"].maximum == pytest.approx(6.0)
    assert gains["2"].maximum == pytest.approx(2.0)
    assert gains["0"].rms == pytest.approx(6.0 * (on / 60) ** 0.5)
    assert (gains["0"].ratios > 0).sum() == on
    drop = {"0": Edit(torch.zeros(1, 1), torch.zeros(1)), "2": Edit(torch.zeros(1, 1), torch.zeros(1))}
    assert directional(net, drop, x)["0"].maximum == pytest.approx(6.0, rel=1e-5)
    for found in (pairs(net, ["0", "2"], x), random(net, ["0", "2"], x.repeat(4, 1).tile(1, 1))):
        assert found["0"].maximum <= 6.0 * (1 + 1e-5)
    assert pairs(net, ["0"], x)["0"].maximum == pytest.approx(6.0, rel=0.01)
    assert certified(net, ["0", "2"], x)["0"].value == pytest.approx(6.0, rel=1e-5)


class Residual(nn.Module):
    """z ↦ z + 0.5·Qz twice over: constants (1 + 0.5 λ) with λ of Q, here Q = I, so 2.25 and 1.5."""

    def __init__(self) -> None:
        super().__init__()
        self.begin, self.one, self.two = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.begin.weight.data = rotation(4, 7)
        self.one.weight.data = 0.5 * torch.eye(4)
        self.two.weight.data = 0.5 * torch.eye(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.begin(x)
        x = x + self.one(x)
        return x + self.two(x)


def test_what_runs_beside_a_layer_is_held() -> None:
    """Of a branch only what comes after its addition counts: 1.5 for the first, 1 for the second."""
    net, x = Residual().eval().requires_grad_(False), images(30, 4)
    upper = certified(net, ["begin", "one", "two"], x)
    for estimator, gains in everything(net, x).items():
        for name, expected in (("begin", 2.25), ("one", 1.5), ("two", 1.0)):
            assert gains[name].maximum == pytest.approx(expected, rel=0.01), estimator
            assert upper[name].value == pytest.approx(expected, rel=1e-5)


def test_jacobian_against_the_whole_matrix(chain: Model) -> None:
    """Every sample of a network with ReLU and BatchNorm, exactly, and independently of the batches."""
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = jacobian(chain.module, ["a", "b", "c", "d"], x, batch_size=2)
    assert torch.allclose(found["a"].reached, jacobian(chain.module, ["a"], x, batch_size=5)["a"].reached, rtol=1e-4)
    net = chain.module.double()
    for index, image in enumerate(x.double()):
        at_b = net.b(torch.relu(net.norm(net.a(image[None]))))

        def rest(z: Tensor) -> Tensor:
            return net.d(torch.relu(net.c(torch.relu(z).flatten(1))))

        matrix = torch.autograd.functional.jacobian(rest, at_b).reshape(4, -1)
        assert found["b"].ratios[index] == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-4)


@pytest.mark.parametrize(("rounds", "share"), [(1, 0.4), (5, 0.97)])
def test_blocks_come_close_from_below_where_outputs_are_many(rounds: int, share: float) -> None:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 60)).eval().requires_grad_(False)
    x = images(6, 10)
    found = jacobian(net, ["0"], x, rounds=rounds)["0"].ratios
    for index, row in enumerate(x):
        slope = 1 - torch.tanh(net[0](row)) ** 2
        truth = float(torch.linalg.matrix_norm(net[2].weight * slope, 2))
        assert share * truth <= found[index] <= truth * (1 + 1e-4)
    # What is known to arrive is a better beginning than chance.
    start = {"0": net(x) - net(x + 0.1)}
    assert jacobian(net, ["0"], x, rounds=1, start=start)["0"].maximum <= float(found.max()) * 1.5


def test_a_network_that_writes_over_what_its_gradient_needs() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.sigmoid(self.a(x))
            z = self.b(y)
            y.mul_(3.0)  # the slope of the sigmoid is taken from its value
            return z + y[:, :4]

    torch.manual_seed(0)
    net, x = Writes().eval().requires_grad_(False), images(5, 5)
    found = jacobian(net, ["a"], x, batch_size=2)["a"].ratios
    for index, row in enumerate(x):
        y = torch.sigmoid(net.a(row))
        matrix = (net.b.weight + 3 * torch.eye(4, 6)) * (y * (1 - y))
        assert found[index] == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-5)


def test_a_layer_that_is_not_used_has_no_gain() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            self.idle(x)
            return self.used(x)

    net = Idle().eval().requires_grad_(False)
    x = images(4, 3)
    for estimator, gains in everything(net, x).items():
        assert gains["idle"].maximum == 0.0, estimator
    assert certified(net, ["idle"], x)["idle"].value == 0.0


def test_no_hooks_and_no_patches_stay(chain: Model) -> None:
    x = torch.rand(3, 3, 8, 8)
    net = chain.module
    before = {name: set(vars(module)) for name, module in net.named_modules()}
    edits = {"d": Edit(net.d.weight.detach() * 0.5, torch.zeros(4))}
    directional(net, edits, x)
    jacobian(net, ["a"], x)

    def stop(done: int, total: int, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        random(net, ["a", "b"], x, progress=stop)
    assert {name: set(vars(module)) for name, module in net.named_modules()} == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_random_errors_do_not_depend_on_anything_but_the_seed(chain: Model) -> None:
    x = torch.rand(4, 3, 8, 8)
    one, two, other = (random(chain.module, ["a"], x, seed=seed)["a"] for seed in (1, 1, 2))
    assert torch.equal(one.reached, two.reached)
    assert not torch.equal(one.reached, other.reached)
    smaller = random(chain.module, ["a"], x, seed=1, scale=0.5)["a"]
    assert torch.allclose(smaller.local, one.local / 4)


def test_samples_in_several_rows() -> None:
    """Swin's windows: a layer sees each sample twice, and the error of a sample is that of both rows."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(2, 2, bias=False), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(self.inner(x.reshape(-1, 2)).reshape(len(x), 4))

    torch.manual_seed(0)
    net, x = Windows().eval().requires_grad_(False), images(5, 4)
    truth = float(torch.linalg.matrix_norm(net.outer.weight, 2))
    for estimator, gains in everything(net, x).items():
        assert gains["inner"].samples == 5
        assert gains["inner"].maximum <= truth * (1 + 1e-5), estimator
    assert jacobian(net, ["inner"], x)["inner"].maximum == pytest.approx(truth, rel=1e-5)
