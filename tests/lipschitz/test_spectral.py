"""Spectral norms against a dense singular value decomposition of the same operator."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from modhifi.lipschitz import convolution_norm, operator_norm


def dense_norm(forward: object, shape: tuple[int, ...]) -> float:
    """Column by column, in float64."""
    count = int(torch.tensor(shape).prod())
    basis = torch.eye(count, dtype=torch.float64).reshape(count, *shape)
    matrix = forward(basis).flatten(1)  # type: ignore[operator]
    return float(torch.linalg.svdvals(matrix)[0])


CASES = [
    ((5, 4, 3, 3), (7, 6), {}),
    ((5, 4, 3, 3), (7, 6), {"padding": (1, 1)}),
    ((6, 3, 3, 3), (9, 9), {"padding": (1, 1), "stride": (2, 2)}),
    ((4, 3, 5, 3), (9, 8), {"padding": (2, 0), "stride": (1, 2)}),
    ((6, 2, 3, 3), (6, 6), {"padding": (1, 1), "groups": 3}),
    ((8, 1, 3, 3), (6, 6), {"padding": (1, 1), "groups": 8}),
    ((4, 3, 3, 3), (9, 9), {"padding": (2, 2), "dilation": (2, 2)}),
    ((6, 5, 1, 1), (4, 4), {}),
    ((6, 5, 1, 1), (5, 5), {"stride": (2, 2)}),
    ((7, 3, 2, 2), (8, 8), {"stride": (2, 2)}),
    ((7, 3, 2, 2), (7, 7), {"stride": (3, 2)}),
    ((4, 2, 1, 1), (3, 3), {"groups": 2, "padding": (1, 1)}),
    ((1, 1, 3, 3), (1, 1), {"padding": (1, 1)}),
    ((1, 1, 1, 3), (1, 2), {"padding": (0, 1)}),
]


@pytest.mark.parametrize(("shape", "size", "settings"), CASES)
def test_convolutions(shape: tuple[int, ...], size: tuple[int, int], settings: dict[str, tuple[int, int]]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = convolution_norm(weight, size, **settings)  # type: ignore[arg-type]

    def forward(x: Tensor) -> Tensor:
        return F.conv2d(x, weight.double(), None, **settings)  # type: ignore[arg-type]

    truth = dense_norm(forward, (shape[1] * int(settings.get("groups", 1)), *size))  # type: ignore[arg-type]
    assert found == pytest.approx(truth, rel=1e-4)
    assert found >= truth * (1 - 1e-7)  # it is used as an upper bound


def test_other_operators() -> None:
    def pool(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 2, 1)

    assert operator_norm(pool, (1, 1, 9, 9), torch.device("cpu")) == pytest.approx(
        dense_norm(pool, (1, 9, 9)), rel=1e-4
    )
    assert operator_norm(lambda x: 0 * x, (4,), torch.device("cpu")) == 0.0
    assert operator_norm(lambda x: -3 * x, (1,), torch.device("cpu")) == pytest.approx(3.0, rel=1e-5)
