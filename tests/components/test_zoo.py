"""Small networks with one structure each: what is removed is what is masked, and what is left whole says why."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modhifi.components import enumerate_components
from modhifi.layers import copied, flat_weight, get_operator, shaped_weight
from modhifi.surgery import remaining_columns, remove, verified

from .zoo import ZOO


def counted(net: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    return sum(parameter.numel() for parameter in net.parameters()), counter.get_total_flops() // 2


@pytest.mark.fast
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", ZOO)
def test_half_of_everything_removed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)  # it runs no layers to count
    make, shape, whole = ZOO[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(shape)
    net(x)  # in training mode: what hooks compute, and running statistics other than 0 and 1
    net.eval()
    before = net(x)
    traced = enumerate_components(net, x[:1])
    structure = verified(traced, net, x)
    assert {skip.name: skip.reason for skip in structure.skipped} == whole
    assert torch.equal(net(x), before)
    plain = copied(net)
    assert (structure.cost().params, structure.cost().flops) == counted(plain, x[:1])
    if not structure.groups:
        return
    keep = {group.name: list(range(0, group.size, 2)) for group in structure.groups}
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        masked, small = copied(net).to(dtype), copied(net).to(dtype)
        for layer in structure.readers:
            operator = get_operator(masked, layer)
            flat = flat_weight(operator).clone()
            flat[:, ~remaining_columns(structure, layer, flat, keep)] = 0
            operator.weight.data = shaped_weight(operator, flat)
        remove(small, structure, keep)
        with torch.no_grad():
            expected, found = masked(x.to(dtype)), small(x.to(dtype))
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        if dtype == torch.float32:
            predicted = structure.cost({group: len(kept) for group, kept in keep.items()})
            assert (predicted.params, predicted.flops) == counted(small, x[:1])
            assert predicted.params < structure.cost().params
            assert float((expected - before.detach()).abs().max()) > 1e-4  # something is really gone


def test_there_are_enough() -> None:
    assert len(ZOO) >= 40
