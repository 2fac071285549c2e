import pytest
import torch

from modhifi.models.cifar_resnet import DEPTHS, cifar_resnet


# Table 6 of the paper, in millions.
@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameters_are_those_of_the_paper(depth: int, millions: float) -> None:
    count = sum(p.numel() for p in cifar_resnet(depth).parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.03)
    assert depth in DEPTHS


def test_shapes_and_number_of_classes() -> None:
    model = cifar_resnet(20, num_classes=7).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_unknown_depth() -> None:
    with pytest.raises(ValueError, match="21"):
        cifar_resnet(21)


def test_shortcut_subsamples_and_pads_with_zeros_on_both_sides() -> None:
    block = cifar_resnet(20).eval().layer2[0]
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()
