"""Which groups a network has, and what they cost, against counting."""

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modhifi import Model
from modhifi.components import Structure, enumerate_components
from modhifi.models import Step
from modhifi.surgery import restructure


def counted(net: nn.Module, example: torch.Tensor) -> tuple[int, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(example)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2


def test_resnet20_has_one_group_in_each_block(digits_model: Model) -> None:
    structure = enumerate_components(digits_model.module, digits_model.example())
    assert [(group.name, group.size) for group in structure.groups] == [
        (f"layer{stage}.{block}.conv1", 8 * 2**stage) for stage in (1, 2, 3) for block in (0, 1, 2)
    ]
    for group in structure.groups:
        (consumer,) = group.consumers
        assert consumer.layer == group.name.replace("conv1", "conv2")
        assert consumer.block == 9
        assert consumer.shift == f"{group.name.replace('conv1', 'bn2')}.running_mean"
    (stream,) = structure.skipped
    assert stream.name == "conv1"
    assert "several layers" in stream.reason


def test_a_chain_with_a_flattening(chain: Model) -> None:
    structure = enumerate_components(chain.module, chain.example())
    assert [(g.name, g.size, g.consumers[0].layer, g.consumers[0].block) for g in structure.groups] == [
        ("a", 6, "b", 9),
        ("b", 5, "c", 16),
        ("c", 7, "d", 1),
    ]
    assert structure.group("a").consumers[0].shift is None
    assert structure.group("b").consumers[0].shift == "c.bias"
    with pytest.raises(KeyError):
        structure.group("nothing")


def test_the_module_is_left_as_it_was(chain: Model) -> None:
    before = {name: value.clone() for name, value in chain.module.state_dict().items()}
    enumerate_components(chain.module, chain.example())
    assert all(torch.equal(before[name], value) for name, value in chain.module.state_dict().items())
    assert not any(parameter.requires_grad for parameter in chain.module.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in chain.module.modules())


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_predicted_cost_is_the_counted_one_for_any_widths(data) -> None:
    net = _plain_vgg()
    example = torch.randn(1, 3, 16, 16)
    structure = enumerate_components(net, example)
    assert (structure.cost().params, structure.cost().flops) == counted(net, example)
    counts = {group.name: data.draw(st.integers(1, group.size), label=group.name) for group in structure.groups}
    restructure(net, example, Step(keep={name: tuple(range(count)) for name, count in counts.items()}))
    predicted = structure.cost(counts)
    assert (predicted.params, predicted.flops) == counted(net, example)


def _plain_vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 10, 1),
        nn.BatchNorm2d(10, affine=False),
        nn.Flatten(),
        nn.Linear(640, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    ).eval()


def _structure(net: nn.Module, size: int) -> Structure:
    example = torch.randn(1, 3, size, size)
    structure = enumerate_components(net, example)
    assert (structure.cost().params, structure.cost().flops) == counted(net, example)
    return structure


def test_resnet50_reads_its_stem_in_two_places() -> None:
    structure = _structure(torchvision.models.resnet50(), 64)
    assert len(structure.groups) == 1 + 2 * 16
    assert [consumer.layer for consumer in structure.group("conv1").consumers] == [
        "layer1.0.conv1",
        "layer1.0.downsample.0",
    ]


def test_vgg_leaves_a_layer_whole_that_is_too_wide() -> None:
    structure = _structure(torchvision.models.vgg11_bn(), 224)
    assert [skip.name for skip in structure.skipped] == ["features.25"]
    assert "25,088" in structure.skipped[0].reason
    assert [group.name for group in structure.groups][-2:] == ["classifier.0", "classifier.3"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("mobilenetv2_100", "grouped"), ("densenet121", "Concat"), ("vit_tiny_patch16_224", "Unbind")],
)
def test_what_cannot_be_pruned_is_listed_with_its_reason(name: str, reason: str) -> None:
    net = timm.create_model(name).eval()
    structure = enumerate_components(net, torch.randn(1, 3, 224, 224))
    assert any(reason in skip.reason for skip in structure.skipped)
    assert structure.groups


class _Odd(nn.Module):
    """Runs one convolution twice, and has another with a forward pass of its own."""

    class Scaled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.own = self.Scaled(4, 6, 1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(torch.relu(self.twice(torch.relu(self.stem(x)))))
        return self.last(torch.relu(self.own(x)))


def test_layers_that_run_twice_or_have_their_own_forward_are_left_whole() -> None:
    structure = enumerate_components(_Odd().eval(), torch.randn(1, 3, 8, 8))
    assert structure.groups == ()
    reasons = {skip.name: skip.reason for skip in structure.skipped}
    assert "forward pass of its own" in reasons["own"]
    assert "stem" in reasons or "twice" in reasons
