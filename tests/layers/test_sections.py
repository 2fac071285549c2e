"""Running a network from one call to another."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import modhifi
from modhifi.errors import UserError
from modhifi.layers import INPUT, Reached, Sections


class Writes(nn.Module):
    """In-place activations and additions, an identity, and the input used again at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.a(x)))
        z = self.b(self.drop(y))
        z += y
        return self.c(torch.relu_(z)) + x


class Pair(nn.Module):
    """Returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.two(x).sigmoid()


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.last = Pair(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.pair(x)
        return self.last(torch.cat([first * second, first], 1))


class Hidden(nn.Module):
    """What ``inner`` computes in one call is used after another one, past its output."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.secret = self.conv(x)
            return self.other(self.secret)

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mid, self.last = Hidden.Inner(), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mid(self.inner(x))
        return self.last(y + self.inner.secret)


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if name in ("writes", "gated", "hidden"):
        return {"writes": Writes, "gated": Gated, "hidden": Hidden}[name]().eval(), torch.randn(4, 3, 8, 8)
    model = modhifi.load_model(f"timm:{name}")
    return model.module, torch.randn(2, *model.input.shape)


NAMES = [
    "writes",
    "gated",
    "resnet10t",
    "densenet121",
    "test_vit",
    "swin_s3_tiny_224",
    "tf_efficientnet_lite0",
    "convnext_atto",
]


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_a_run_in_two_parts_gives_what_a_whole_one_gives(name: str) -> None:
    module, x = network(name)
    expected = module(x.clone())
    sections = Sections(module, x)
    cuts = [cut for cut in range(1, sections.end) if sections.live(cut) is not None]
    assert len(cuts) > sections.end / 4
    for cut in cuts[:: max(1, len(cuts) // 12)]:
        assert sections.works(cut, x)
        live, answer = sections.run(len(x), 0, cut, {INPUT: x.clone()})
        assert answer is None
        assert live.keys() == sections.live(cut)
        _, found = sections.run(len(x), cut, sections.end, live)
        torch.testing.assert_close(found, expected)


@torch.inference_mode()
def test_a_chain_of_parts_for_another_batch_size() -> None:
    module, _ = network("resnet10t")
    sections = Sections(module, torch.randn(2, 3, 96, 96))
    x = torch.randn(5, 3, 96, 96)
    cuts = [cut for cut in range(1, sections.end) if sections.live(cut) is not None][::7]
    live = {INPUT: x.clone()}
    for start, stop in itertools.pairwise([0, *cuts]):
        live, _ = sections.run(5, start, stop, live)
    assert sum(value.nbytes for value in live.values()) == pytest.approx(5 * sections.nbytes(cuts[-1]))
    _, found = sections.run(5, cuts[-1], sections.end, live)
    torch.testing.assert_close(found, module(x))


@torch.inference_mode()
def test_only_what_is_needed_later_is_kept() -> None:
    sections = Sections(*network("writes"))
    (a,), (act,), (b,), (c,) = (sections.number(name) for name in ("a", "act", "b", "c"))
    assert sections.live(a) == {INPUT}
    assert sections.live(act + 1) == {INPUT, act}
    assert sections.live(b) == {INPUT, act, b - 1}  # dropout returns its input
    assert sections.live(c) == {INPUT, act, b}


@torch.inference_mode()
def test_nothing_begins_where_something_was_passed_by_another_way() -> None:
    module, x = network("hidden")
    sections = Sections(module, x)
    (mid,), (last,), (other,) = (sections.number(name) for name in ("mid", "last", "inner.other"))
    assert sections.live(mid) is None
    assert sections.live(last) is None
    assert sections.works(other, x)


@torch.inference_mode()
def test_a_cut_that_would_miss_something_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = network("writes")
    sections = Sections(module, x)
    (c,) = sections.number("c")
    assert sections.works(c, x)
    monkeypatch.setattr(sections, "_live", [frozenset({INPUT})] * sections.end)
    assert not sections.works(c, x)


@torch.inference_mode()
def test_other_modules_for_one_sample_are_refused() -> None:
    class Forks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if len(x) == 1 else self.b(x)

    with pytest.raises(UserError, match="depends on its input"):
        Sections(Forks(), torch.randn(3, 2))


@torch.inference_mode()
def test_a_hook_ends_a_run_and_may_call_modules_aside() -> None:
    module, x = network("writes")
    sections, seen = Sections(module, x), []

    def hook(*_: object) -> None:
        with sections.aside():
            seen.append(module.get_submodule("norm")(x))
        raise Reached

    handle = module.get_submodule("b").register_forward_hook(hook)
    live, answer = sections.run(len(x), 0, sections.end, {INPUT: x.clone()})
    handle.remove()
    assert (live, answer, len(seen)) == ({}, None, 1)
    assert sections.position == sections.number("b")[0] + 1


@pytest.mark.parametrize("streams", [1, 2])
@torch.inference_mode()
def test_the_cheapest_sections_against_every_choice(streams: int) -> None:
    module, x = network("writes")
    sections = Sections(module, x)
    stops = sorted((number, number) for name in "abc" for number in sections.number(name))
    barred = [2]

    def cost(cuts: tuple[int, ...]) -> float:
        total = 0.0
        for start, stop in itertools.pairwise(cuts):
            whole = sections.storing(start) + sections.seconds(start, stop) + sections.storing(stop)
            inside = [
                sections.storing(start) + sections.seconds(start, at) for call, at in stops if start <= call < stop
            ]
            total += streams * whole + sum(inside)
        return total

    inner = [cut for cut in range(1, sections.end) if cut not in barred and sections.live(cut) is not None]
    every = [
        (0, *chosen, sections.end) for count in range(len(inner) + 1) for chosen in itertools.combinations(inner, count)
    ]
    found = sections.cheapest(barred, stops, streams)
    assert math.isclose(cost(tuple(found)), min(map(cost, every)), rel_tol=1e-9)
    assert not set(barred) & set(found)
