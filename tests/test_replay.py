"""A pass that begins in the middle gives what a whole one gives."""

import pytest
import torch
from torch import Tensor, nn

import modhifi
from modhifi.layers import Edit, Replay, edited


class Awkward(nn.Module):
    """Writes over outputs, calls a module twice, ends a block with a layer, adds without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 25, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        y = self.block(x)
        y += x
        y = self.act(y)
        y = y * 2
        return self.head(y)


def an_edit(layer: nn.Module) -> Edit:
    weight = layer.weight.detach().flatten(1)  # type: ignore[operator, union-attr]
    return Edit(weight * (torch.rand_like(weight) > 0.5), torch.randn(len(weight)))


@pytest.mark.parametrize("which", ["awkward", "digits-resnet20", "digits-vit", "cifar10-vgg8"])
def test_equals_a_whole_pass(which: str) -> None:
    torch.manual_seed(0)
    if which == "awkward":
        net, x = Awkward().eval().requires_grad_(False), torch.randn(2, 3, 5, 5)
    else:
        model = modhifi.load_model(which, device="cpu")
        net, x = model.module, torch.randn(model.example(2).shape)
    layers = [name for name, layer in net.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        replay = Replay(net, x)
        assert torch.equal(replay.output, net(x))
        for name in layers:
            edit = an_edit(net.get_submodule(name))
            with edited(net, {name: edit}):
                whole = net(x)
            for _ in range(2):  # nothing of the first pass may leak into the memory
                with replay.at(name), edited(net, {name: edit}):
                    assert torch.equal(net(x), whole), name
        assert torch.equal(replay.output, net(x))


def test_what_lies_before_does_not_run() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Linear(3, 3), nn.Linear(3, 2)).eval()
    replay = Replay(net, torch.randn(4, 3))
    ran: list[str] = []
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            original = layer.forward

            def counted(x: Tensor, name: str = name, original: object = original) -> Tensor:
                ran.append(name)
                return original(x)  # type: ignore[operator, no-any-return]

            layer.forward = counted  # type: ignore[method-assign]
    with torch.no_grad(), replay.at("1"):
        net(replay.x)
    assert ran == ["2"]
    assert replay.nbytes == 4 * (3 * 3 + 2) * 4
    assert replay.given("0") is not None
    net(replay.x)
    assert len(ran) == 5  # a forward of somebody else's is put back


def test_another_order_is_noticed() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.turn = nn.Linear(2, 2), nn.Linear(2, 2), False

        def forward(self, x: Tensor) -> Tensor:
            self.turn = not self.turn
            return self.b(self.a(x)) if self.turn else self.a(self.b(x))

    net = Moody()
    replay = Replay(net, torch.randn(1, 2))
    with torch.no_grad(), replay.at("b"), pytest.raises(RuntimeError, match="order"):
        net(replay.x)
