"""What is said of the gains seen on samples, against counting."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modhifi.lipschitz import Gains, estimators, smallest_norms

positive = st.lists(st.tuples(st.floats(0.01, 100), st.floats(0, 100)), min_size=1, max_size=9)


@given(positive)
@settings(deadline=None)
def test_summaries(pairs: list[tuple[float, float]]) -> None:
    local, reached = np.array(pairs).T
    gains = Gains(torch.tensor(local), torch.tensor(reached))
    ratios = np.sqrt(reached / local)
    assert gains.samples == len(pairs)
    assert gains.maximum == pytest.approx(ratios.max())
    assert gains.rms == pytest.approx(math.sqrt(reached.sum() / local.sum()))
    assert gains.rms <= gains.maximum * (1 + 1e-12)
    assert gains.quantile(0.5) <= gains.quantile(0.9) <= gains.maximum * (1 + 1e-12)
    again = Gains.of(gains.stacked())
    assert again.maximum == gains.maximum


def test_growth_is_what_every_subset_says() -> None:
    """The largest among n of the samples, over all ways to draw them."""
    values = np.array([0.3, 2.0, 1.1, 5.0, 0.7, 1.9, 4.2])
    growth = Gains(torch.ones(7), torch.tensor(values**2)).growth(points=50)
    assert growth.sizes.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for index, size in enumerate(growth.sizes):
        largest = np.sort([max(chosen) for chosen in itertools.combinations(values, int(size))])
        assert growth.maximum[index] == pytest.approx(largest.mean())
        # The smallest value that at least so many of the subsets do not exceed.
        for share, found in ((0.05, growth.low[index]), (0.95, growth.high[index])):
            assert found == pytest.approx(largest[math.ceil(share * len(largest) - 1e-9) - 1])
    assert growth.low[-1] == growth.high[-1] == growth.maximum[-1] == 5.0
    half = np.interp(3.5, growth.sizes, growth.maximum)
    assert growth.last_doubling == pytest.approx(5.0 / half - 1)


def test_the_band_of_the_rms_holds_the_truth_nine_times_in_ten() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        local = generator.uniform(0.5, 2, 80)
        reached = local * generator.uniform(0, 2, 80)  # E reached / E local = 1
        growth = Gains(torch.tensor(local), torch.tensor(reached)).growth()
        inside += growth.rms_low[-1] <= 1.0 <= growth.rms_high[-1]
    assert 0.85 < inside / 400 < 0.95


def test_many_samples_stay_finite() -> None:
    growth = Gains(torch.ones(5000), torch.arange(5000.0)).growth()
    assert np.isfinite(growth.maximum).all()
    assert (np.diff(growth.maximum) > 0).all()
    assert (growth.low <= growth.maximum).all()
    assert (growth.maximum <= growth.high + 1e-9).all()


def test_samples_without_an_error_are_left_out() -> None:
    gains = Gains(torch.tensor([0.0, 4.0]), torch.tensor([9.0, 16.0]))
    assert (gains.maximum, gains.rms, gains.samples) == (2.0, 2.0, 1)
    nothing = Gains(torch.zeros(3), torch.zeros(3))
    assert (nothing.maximum, nothing.rms, nothing.samples, nothing.quantile()) == (0.0, 0.0, 0, 0.0)
    assert nothing.growth().last_doubling == 0.0


def test_every_estimator_says_what_it_is() -> None:
    for one in estimators().values():
        assert one.says.startswith("Upper bound" if one.claim == "upper" else "Lower bound")
    assert [name for name, one in estimators().items() if one.claim == "upper"] == ["certified"]


def test_smallest_norms() -> None:
    from timm.layers import LayerNorm2d

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.tokens, self.rms = LayerNorm2d(4), torch.nn.LayerNorm(4), torch.nn.RMSNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rms(self.tokens(self.maps(x).flatten(2).transpose(1, 2)))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(5, 4, 3, 3)
    found = smallest_norms(net, x, batch_size=2)
    assert set(found) == {"maps", "tokens", "rms"}
    expected = (x.double().var(1, unbiased=False) + net.maps.eps).sqrt().flatten(1).amin(1)
    assert torch.allclose(found["maps"].double(), expected, rtol=1e-5)
    tokens = net.tokens(net.maps(x).flatten(2).transpose(1, 2)).double()
    root = (tokens.square().mean(-1) + torch.finfo(torch.float32).eps).sqrt().amin(1)
    assert torch.allclose(found["rms"].double(), root, rtol=1e-5)
    assert smallest_norms(torch.nn.Linear(2, 2), torch.randn(3, 2)) == {}
