"""Which groups a network has, and what they cost, against counting."""

import copy
import re

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modhifi import Model
from modhifi.components import Cost, Structure, enumerate_components
from modhifi.specs import Step
from modhifi.surgery import remove, restructure, verified


def counted(net: nn.Module, example: torch.Tensor) -> tuple[int, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(example)
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() // 2


def test_resnet20_has_its_blocks_and_three_streams(digits_model: Model) -> None:
    structure = enumerate_components(digits_model.module, digits_model.example())
    inner = [group for group in structure.groups if group.kind == "channels"]
    assert [(group.name, group.size) for group in inner] == [
        (f"layer{stage}.{block}.conv1", 8 * 2**stage) for stage in (1, 2, 3) for block in (0, 1, 2)
    ]
    for group in inner:
        (consumer,) = group.consumers
        assert consumer.layer == group.name.replace("conv1", "conv2")
        assert consumer.block == 9
        assert consumer.shift == f"{group.name.replace('conv1', 'bn2')}.running_mean"
    # Shortcuts without parameters: 16 channels run through all stages, 16 begin in the second, 32 in the third.
    streams = [group for group in structure.groups if group.kind == "stream"]
    assert [(group.name, group.size) for group in streams] == [
        ("conv1", 16),
        ("layer2.0.conv2", 16),
        ("layer3.0.conv2", 32),
    ]
    first, second, third = ({part.layer: part for part in group.consumers} for group in streams)
    assert set(first) == {f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in (0, 1, 2)} | {"linear"}
    # The old channels lie in the middle: 8 … 23 of 32, then 24 … 39 of 64.
    assert first["layer2.1.conv1"].channels(16)[:, 0].tolist() == list(range(8, 24))
    assert first["linear"].channels(16)[:, 0].tolist() == list(range(24, 40))
    assert second["layer2.1.conv1"].channels(16)[:, 0].tolist() == [*range(8), *range(24, 32)]
    assert third["linear"].channels(32)[:, 0].tolist() == [*range(16), *range(48, 64)]
    assert third["layer3.2.conv1"].columns(32).shape == (32, 9)
    assert structure.skipped == ()


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


def test_resnet50_has_streams_that_reach_from_stage_to_stage() -> None:
    structure = _structure(torchvision.models.resnet50(), 64)
    assert len(structure.groups) == 1 + 2 * 16 + 4
    assert [consumer.layer for consumer in structure.group("conv1").consumers] == [
        "layer1.0.conv1",
        "layer1.0.downsample.0",
    ]
    stream = structure.group("layer3.0.conv3")
    assert (stream.kind, stream.size) == ("stream", 1024)
    assert [part.layer for part in stream.producers] == [
        "layer3.0.conv3",
        "layer3.0.downsample.0",
        *(f"layer3.{block}.conv3" for block in range(1, 6)),
    ]
    assert [consumer.layer for consumer in stream.consumers] == [
        *(f"layer3.{block}.conv1" for block in range(1, 6)),
        "layer4.0.conv1",
        "layer4.0.downsample.0",
    ]


def test_a_wide_layer_is_read_like_any_other() -> None:
    structure = _structure(torchvision.models.vgg11_bn(), 224)
    assert structure.skipped == ()
    (consumer,) = structure.group("features.25").consumers
    assert (consumer.layer, consumer.block) == ("classifier.0", 49)


def test_concatenation_gives_every_reader_its_own_place() -> None:
    structure = _structure(timm.create_model("densenet121"), 64)
    group = structure.group("features.denseblock1.denselayer1.conv2")
    assert group.size == 32
    starts = {consumer.layer: consumer.start for consumer in group.consumers}
    # After the 64 channels that the block reads come the first layer's 32.
    assert starts["features.denseblock1.denselayer2.conv1"] == 64
    assert starts["features.transition1.conv"] == 64
    assert "features.denseblock1.denselayer1.conv1" not in starts
    assert {part.layer for part in group.through} >= {"features.denseblock1.denselayer2.norm1"}
    assert group.consumers[0].shift == "features.denseblock1.denselayer2.norm2.running_mean"


def test_gates_and_depthwise_convolutions_go_with_the_channels_they_belong_to() -> None:
    structure = _structure(timm.create_model("efficientnet_b0"), 64)
    group = structure.group("blocks.1.0.conv_pw")
    assert {part.layer for part in group.producers} == {"blocks.1.0.conv_pw", "blocks.1.0.se.conv_expand"}
    assert "blocks.1.0.conv_dw" in {part.layer for part in group.through}
    assert [consumer.layer for consumer in group.consumers] == ["blocks.1.0.se.conv_reduce", "blocks.1.0.conv_pwl"]
    assert structure.group("blocks.1.0.se.conv_reduce").size == 4


def test_a_grouped_convolution_goes_group_by_group() -> None:
    structure = _structure(timm.create_model("regnety_004"), 64)
    grouped = next(g for g in structure.groups if any(part.layer == "s2.b1.conv2.conv" for part in g.through))
    width = timm.create_model("regnety_004").s2.b1.conv2.conv.weight.shape[1]
    assert {part.width for part in (*grouped.producers, *grouped.through, *grouped.consumers)} == {width}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_heads_are_three_slices_of_the_fused_layer(name: str) -> None:
    net = timm.create_model(name)
    structure = _structure(net, 224)
    heads = [group for group in structure.groups if group.kind == "heads"]
    assert len(heads) == 12
    group = heads[0]
    assert group.name.endswith("attn.qkv")
    attention = net.get_submodule(group.name.removesuffix(".qkv"))
    head = attention.proj.in_features // attention.num_heads
    assert group.size == attention.num_heads
    (producer,) = group.producers
    channels = producer.channels(group.size)
    width = attention.proj.in_features
    expected = [part * width + 1 * head + i for part in range(3) for i in range(head)]
    assert channels[1].tolist() == expected
    assert group.consumers[0].block == head
    tables = [part.layer for part in group.through]
    assert tables == (["layers.0.blocks.0.attn.relative_position_bias_table"] if "swin" in name else [])
    # What is normalised over channels stays whole, and says so.
    assert any("LayerNorm" in skip.reason for skip in structure.skipped)


@pytest.mark.parametrize("shared_by", [1, 2])
def test_heads_of_separate_queries_keys_and_values(shared_by: int) -> None:
    """Also where several heads share one key and value: they can only go together."""
    torch.manual_seed(0)
    net = timm.models.eva.Eva(
        img_size=32, patch_size=8, num_classes=5, embed_dim=48, depth=2, num_heads=6, num_kv_heads=6 // shared_by,
        attn_type="rope", qkv_fused=False, use_rot_pos_emb=True,
    ).eval()  # fmt: skip
    structure = _structure(net, 32)
    group = structure.group("blocks.0.attn.q_proj")
    assert (group.kind, group.size) == ("heads", 6 // shared_by)
    widths = {"q_proj": 8 * shared_by, "k_proj": 8, "v_proj": 8}
    assert {part.layer: part.width for part in group.producers} == {
        f"blocks.0.attn.{name}": width for name, width in widths.items()
    }
    assert [(part.layer, part.width) for part in group.consumers] == [("blocks.0.attn.proj", 8 * shared_by)]
    assert verified(structure, net, torch.randn(2, 3, 32, 32)).groups == structure.groups

    keep = {group.name: range(1, group.size) for group in structure.groups if group.kind == "heads"}
    small, masked = copy.deepcopy(net).double(), copy.deepcopy(net).double()
    remove(small, structure, keep)
    for name in keep:
        masked.get_submodule(name.replace("q_proj", "proj")).weight.data[:, : 8 * shared_by] = 0
    example = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(small(example), masked(example), atol=1e-10, rtol=1e-10)
    predicted = structure.cost({name: len(stays) for name, stays in keep.items()})
    assert (predicted.params, predicted.flops) == counted(small, example[:1])


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t"])
def test_attention_that_does_not_run_its_layers_is_left_whole(name: str) -> None:
    """Following it would take the tracer minutes (ViT) or all memory (Swin)."""
    net = torchvision.models.get_model(name)
    structure = _structure(net, 224)
    assert [(group.kind, group.size) for group in structure.groups][:1] == [
        ("neurons", 3072 if name == "vit_b_16" else 384)
    ]
    assert len(structure.groups) == 12
    attention = [skip for skip in structure.skipped if "attention" in skip.name or ".attn." in skip.name]
    what = {
        "vit_b_16": r"attention that does not run its layers \(MultiheadAttention\), left whole",
        "swin_t": r"its weights are used outside of it, by features\.\d\.\d\.attn \(ShiftedWindowAttention\)",
    }
    assert attention
    assert all(re.fullmatch(what[name], skip.reason) for skip in attention)


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


def test_layers_that_have_their_own_forward_are_left_whole() -> None:
    structure = enumerate_components(_Odd().eval(), torch.randn(1, 3, 8, 8))
    assert structure.groups == ()
    reasons = {skip.name: skip.reason for skip in structure.skipped}
    assert "custom forward pass" in reasons["own"]
    assert reasons["stem"] == reasons["own"]  # it is coupled to the input of that layer


class _Same(nn.Module):
    """Convolutions and pools that pad as TensorFlow does, with odd and even sizes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = timm.layers.Conv2dSame(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.middle = timm.layers.Conv2dSame(8, 10, 4, stride=2)
        self.depth = timm.layers.Conv2dSame(10, 10, 3, dilation=2, groups=10)
        self.pools = nn.Sequential(MaxPool2dSame(3, 1), AvgPool2dSame(2, 2))
        self.last = timm.layers.Conv2dSame(10, 6, 3, stride=2)
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.middle(torch.relu(self.norm(self.stem(x)))))
        return self.head(torch.relu(self.last(self.pools(self.depth(x)))).flatten(1))


def test_padding_that_depends_on_the_size_is_no_reason_to_leave_a_layer_whole() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _Same().eval().requires_grad_(False)
        net.norm.running_mean.normal_()
    example = torch.randn(2, 3, 25, 14)
    structure = enumerate_components(net, example[:1])
    assert [(group.name, group.size) for group in structure.groups] == [("stem", 8), ("middle", 10), ("last", 6)]
    assert [part.layer for part in structure.group("middle").through] == ["depth"]
    assert structure.skipped == ()
    assert verified(structure, net, example).groups == structure.groups
    assert (structure.cost().params, structure.cost().flops) == counted(net, example[:1])
    # Without components 1 and 2 of the stem, and without those of the other groups that are not kept.
    keep = {"stem": [0, 3, 4, 5, 6, 7], "middle": [9, 2, 4], "last": [1, 5]}
    masked, small = copy.deepcopy(net).double(), copy.deepcopy(net).double()
    masked.middle.weight[:, [1, 2]] = 0.0
    masked.last.weight[:, [0, 1, 3, 5, 6, 7, 8]] = 0.0
    masked.head.weight.unflatten(1, (6, 2))[:, [0, 2, 3, 4]] = 0.0
    remove(small, structure, keep)
    assert small.depth.groups == 3
    torch.testing.assert_close(small(example.double()), masked(example.double()), atol=1e-12, rtol=1e-12)
    counts = {name: len(kept) for name, kept in keep.items()}
    assert (structure.cost(counts).params, structure.cost(counts).flops) == counted(small, example[:1].double())


def test_all_multiply_accumulates_of_a_network_from_tensorflow_are_in_groups() -> None:
    structure = _structure(timm.create_model("tf_efficientnet_lite0"), 64)
    assert structure.skipped == ()
    assert structure.other == Cost(params=0, flops=0)


class _Shuffle(nn.Module):
    """Between its convolutions channels change places, and how depends on their number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 4, 3, padding=1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        batch, channels, height, width = x.shape
        x = x.reshape(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        return self.c(torch.relu(self.b(x)))


def test_what_the_trace_does_not_show_is_found_by_trying_it_out() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _Shuffle().eval().requires_grad_(False)
    example = torch.randn(2, 3, 8, 8)
    traced = enumerate_components(net, example[:1])
    assert [group.name for group in traced.groups] == ["a", "b"]
    structure = verified(traced, net, example)
    assert [group.name for group in structure.groups] == ["b"]
    reasons = {skip.name: skip.reason for skip in structure.skipped}
    assert reasons["a"] == "the network's code depends on how many there are: the pruned network fails (RuntimeError)"
    assert "not run as a separate layer" in reasons["unused"]
    assert (structure.cost().params, structure.cost().flops) == counted(net, example[:1])
    small = copy.deepcopy(net)
    remove(small, structure, {"b": [0, 5]})
    assert (structure.cost({"b": 2}).params, structure.cost({"b": 2}).flops) == counted(small, example[:1])
