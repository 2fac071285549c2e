"""The whole way, from statistics to a smaller network, for layers and structures beyond plain convolutions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

import modhifi
from modhifi import Model
from modhifi.models import fingerprint
from modhifi.specs import InputSpec


class _Between(nn.Module):
    """Something between two convolutions, whose 16 channels are redundant: half of them can be had from the others."""

    def __init__(self, middle: nn.Module, width: int) -> None:
        super().__init__()
        self.a, self.middle, self.b = nn.Conv2d(3, 16, 3, padding=1), middle, nn.Conv2d(width, 8, 3)
        self.f = nn.Linear(8, 5)
        with torch.no_grad():
            self.a.weight[8:] = 1.5 * self.a.weight[:8]
            self.a.bias[8:] = 1.5 * self.a.bias[:8]

    def forward(self, x: Tensor) -> Tensor:
        return self.f(F.relu(self.b(self.middle(F.relu(self.a(x))))).mean((2, 3)))


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.c(F.relu(self.c(x))))


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.f = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.t = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.t(self.e(x).flatten(2).mT).mean(1))


MIDDLES = {
    "transposed": lambda: (nn.ConvTranspose2d(16, 6, 4, 2, 1), 6),
    "weight norm": lambda: (parametrizations.weight_norm(nn.Conv2d(16, 6, 3)), 6),
    "group norm": lambda: (nn.GroupNorm(8, 16), 16),
    "frozen": lambda: (FrozenBatchNorm2d(16), 16),
    "pixel shuffle": lambda: (nn.PixelShuffle(2), 4),
    "twice": lambda: (_Twice(), 16),
}


def _model(net: nn.Module) -> Model:
    net.eval().requires_grad_(False)
    plain = InputSpec(size=(12, 12), mean=(0.5,) * 3, std=(0.25,) * 3)
    found = fingerprint(net)
    return Model(spec="mine", module=net, input=plain, classes=tuple("abcde"), weights=None, fingerprint=found)


@pytest.mark.parametrize("compensate", ["none", "full", "sequential"])
def test_the_mlps_of_an_encoder_that_torch_would_not_run_layer_by_layer(compensate: str) -> None:
    torch.manual_seed(0)
    model = _model(_Encoder())
    fast = torch.backends.mha.get_fastpath_enabled()
    study = modhifi.analyze(model, modhifi.load_data("noise"), samples=64)
    assert [(group.name, group.size) for group in study.groups] == [(f"t.layers.{i}.linear1", 32) for i in range(2)]
    small = modhifi.apply(modhifi.prune(study, params=0.8, model=model, compensate=compensate), model)
    before, after = (sum(value.numel() for value in one.module.parameters()) for one in (model, small))
    assert after <= 0.8 * before + 1
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("compensate", ["none", "full", "sequential"])
@pytest.mark.parametrize("name", MIDDLES)
def test_from_statistics_to_a_smaller_network(name: str, compensate: str) -> None:
    torch.manual_seed(0)
    net = _Between(*MIDDLES[name]())
    model = _model(net)
    study = modhifi.analyze(model, modhifi.load_data("noise"), samples=64)
    assert not study.structure.skipped
    plan = modhifi.prune(study, params=0.8, model=model, compensate=compensate)
    small = modhifi.apply(plan, model)  # compares it with the masked network
    before, after = (sum(value.numel() for value in one.parameters()) for one in (net, small.module))
    assert after <= 0.8 * before + 1
    if name == "transposed" and compensate == "full":
        x = model.example(8)
        none = modhifi.apply(modhifi.prune(study, params=0.8, model=model, compensate="none"), model)
        off = [float((one.module(x) - net(x)).square().sum()) for one in (small, none)]
        assert off[0] < 0.5 * off[1]
