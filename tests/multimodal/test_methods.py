"""Every method against a hand-written loop in float64, and what must not change what is computed."""

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modhifi import UserError
from modhifi.multimodal import AGM, MSES, MSLR, OGMGE, Joint, network

from .test_shapley import by_arrival, toy

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"image": (1, 8, 8), "audio": (1, 8, 8)}


def batches(count: int = 4, seed: int = 0, modalities: int = 2) -> list[tuple[dict[str, Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            {f"m{i}": torch.randn(6, 3, dtype=torch.float64, generator=generator) for i in range(modalities)},
            torch.randint(0, 4, (6,), generator=generator),
        )
        for _ in range(count)
    ]


def cross_entropy(logits: Tensor, targets: Tensor) -> float:
    total = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total += math.log(sum(math.exp(value) for value in row)) - row[target]
    return total / len(targets)


def fusions() -> list[str]:
    return ["late", "early", "hybrid"]


@pytest.mark.parametrize("modalities", [2, 3])
def test_coefficients_and_gradients_by_hand(modalities: int) -> None:
    """Scores, running scores, ratios and κ by the formulas; then the gradient of Σ_m κ_m ⟨g, φ_m⟩ by autograd."""
    alpha = 1.7
    model, _ = toy(modalities)
    method = AGM(alpha)
    running = dict.fromkeys((f"m{i}" for i in range(modalities)), 0.0)
    for count, (inputs, targets) in enumerate(batches(4, modalities=modalities), 1):
        model.zero_grad()
        output = method(model, inputs, targets)
        nn.functional.cross_entropy(output, targets).backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters()}

        # By hand, on a copy: its first pass, in training mode, must not update BatchNorm a second time.
        twin = copy.deepcopy(model)
        twin.norm.momentum = 0.0
        names = list(inputs)

        def value(present: set[str], twin=twin, inputs=inputs) -> Tensor:
            if not present:
                return torch.zeros(6, 4, dtype=torch.float64)
            twin.norm.training = len(present) == modalities  # muted passes see the running statistics
            return twin({k: v if k in present else torch.zeros_like(v) for k, v in inputs.items()})

        whole = {frozenset(names): value(set(names))}
        phi = by_arrival(lambda s: whole.get(frozenset(s)) if len(s) == modalities else value(s), names)  # noqa: B023
        s = {name: cross_entropy(phi[name], targets) for name in names}
        running = {name: running[name] + (s[name] - running[name]) / count for name in names}
        mean, usual = sum(s.values()) / modalities, sum(running.values()) / modalities
        scale = modalities / (modalities - 1)
        kappa = {
            name: math.exp(alpha * (math.exp(scale * (usual - running[name])) - math.exp(scale * (mean - s[name]))))
            for name in names
        }
        assert method.scores == pytest.approx(s, rel=1e-6)
        assert method.running == pytest.approx(running, rel=1e-6)
        assert method.coefficients == pytest.approx(kappa, rel=1e-5)
        assert torch.allclose(output, whole[frozenset(names)], atol=1e-12), "the output is the model's own"

        twin.zero_grad()
        probe = whole[frozenset(names)].detach().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(probe, targets), probe)
        sum(method.coefficients[name] * (g * phi[name]).sum() for name in names).backward()
        for name, parameter in twin.named_parameters():
            assert torch.allclose(found[name], parameter.grad, atol=1e-10), name
        if count == 1:
            assert set(method.coefficients.values()) == {1.0}, "the first batch is its own running mean"
        else:
            assert max(abs(k - 1) for k in kappa.values()) > 1e-3


def train(
    method: Joint, model: nn.Module, steps: int = 6, clip: float | None = None, tuples: bool = False
) -> nn.Module:
    """A user's own loop, on images and sounds of noise."""
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(method.parameter_groups(model, 0.05), momentum=0.9)
    model.train()
    for _ in range(steps):
        inputs = {name: torch.randn(8, *shape, generator=generator) for name, shape in SHAPES.items()}
        targets = torch.randint(0, 4, (8,), generator=generator)
        optimizer.zero_grad()
        output = method(model, tuple(inputs.values()) if tuples else inputs, targets)
        nn.functional.cross_entropy(output, targets).backward()
        method.adjust(model)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def fresh(fusion: str, dropout: bool = False) -> nn.Module:
    torch.manual_seed(1)
    net = network(fusion, SHAPES, 4, norm=True)
    if dropout:
        net.encoders["image"].append(nn.Dropout(0.3))
    return net


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("fusion", fusions())
def test_alpha_zero_is_joint_training_bit_by_bit(fusion: str) -> None:
    trained = {}
    for name, method in {"joint": Joint(), "zero": AGM(0.0), "one": AGM(1.0)}.items():
        net = fresh(fusion, dropout=fusion != "early")
        torch.manual_seed(2)  # dropout's
        trained[name] = train(method, net)
        trained[f"{name} draws"] = torch.rand(1)
    assert same(trained["zero"], trained["joint"])
    assert not same(trained["one"], trained["joint"])
    assert torch.equal(trained["joint draws"], trained["one draws"]), "the muted passes draw nothing of their own"


def test_muted_passes_see_the_dropout_of_the_whole() -> None:
    """With an input that cannot be muted to anything else, all passes must be the same."""
    seen: list[Tensor] = []

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.last = nn.Dropout(0.5), nn.Linear(5, 3)

        def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
            seen.append(self.drop(torch.ones(len(inputs[0]), 5)))
            return self.last(seen[-1])

    AGM(1.0)(Dropped(), (torch.ones(4, 2), torch.ones(4, 2)), torch.zeros(4, dtype=torch.long))
    assert len(seen) == 3
    assert all(torch.equal(seen[0], one) for one in seen)
    assert 0 < float(seen[0].count_nonzero()) < 20


@pytest.mark.parametrize("fusion", fusions())
def test_what_is_clipped_is_the_modulated_gradient(fusion: str) -> None:
    """Clipping comes after, and changes the length of the gradient only; coefficients are those of the same weights."""
    found = {}
    for clip in (None, 0.1):
        net, method = train(AGM(2.0), fresh(fusion), 4), AGM(2.0)
        method.running, method.batches = {"image": 2.0, "audio": 1.0}, 50
        generator = torch.Generator().manual_seed(9)
        inputs = {name: torch.randn(8, *shape, generator=generator) for name, shape in SHAPES.items()}
        net.zero_grad()
        nn.functional.cross_entropy(method(net, inputs, torch.arange(8) % 4), torch.arange(8) % 4).backward()
        method.adjust(net)
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        found[clip] = (
            method.coefficients,
            torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]),
        )
    (plain_kappa, plain), (kappa, clipped) = found.values()
    assert kappa == plain_kappa
    assert max(abs(one - 1) for one in kappa.values()) > 0.1
    assert float(plain.norm()) > 0.2
    assert torch.allclose(clipped, plain * 0.1 / plain.norm(), rtol=1e-4, atol=1e-8)


def test_a_baseline_is_what_muted_inputs_are() -> None:
    inputs = {name: torch.randn(5, *shape) for name, shape in SHAPES.items()}
    targets = torch.arange(5) % 4
    zeros = {name: torch.zeros(1, *shape) for name, shape in SHAPES.items()}
    found = []
    for baseline in (None, zeros, {name: one + 3 for name, one in zeros.items()}):
        method = AGM(1.0, baseline)
        method(fresh("early"), inputs, targets)
        found.append(method.scores)
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_baseline_of_a_tuple_is_a_tuple() -> None:
    inputs, targets = tuple(torch.randn(5, *shape) for shape in SHAPES.values()), torch.arange(5) % 4
    net = nn.Sequential()
    net.forward = lambda pair: fresh_late(dict(zip(SHAPES, pair, strict=True)))  # type: ignore[method-assign]
    fresh_late = fresh("late").eval()
    away = tuple(torch.full(shape, 3.0) for shape in SHAPES.values())
    methods = [AGM(1.0, baseline) for baseline in (None, away, {"0": away[0], "1": away[1]})]
    for method in methods:
        method(net, inputs, targets)
    assert methods[0].scores != methods[1].scores == methods[2].scores


def test_gradient_scaling_changes_nothing() -> None:
    """A loss times 2¹⁶, gradients divided by it again: powers of two are exact, so the weights are the same bit by bit."""
    trained = []
    for enabled in (False, True):
        net, method = fresh("early"), AGM(1.0)
        scaler = torch.amp.GradScaler("cpu", enabled=enabled, init_scale=2.0**16)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        generator = torch.Generator().manual_seed(5)
        for _ in range(5):
            inputs = {name: torch.randn(8, *shape, generator=generator) for name, shape in SHAPES.items()}
            targets = torch.randint(0, 4, (8,), generator=generator)
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(method(net, inputs, targets), targets)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1e6)
            scaler.step(optimizer)
            scaler.update()
        trained.append((net, method.coefficients))
    assert same(trained[0][0], trained[1][0])
    assert trained[0][1] == trained[1][1]
    assert set(trained[0][1].values()) != {1.0}


def test_autocast_computes_the_same_up_to_its_precision() -> None:
    found = []
    for enabled in (False, True):
        net, method = fresh("late"), AGM(1.0)
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            inputs = {name: torch.randn(32, *shape, generator=generator) for name, shape in SHAPES.items()}
            targets = torch.randint(0, 4, (32,), generator=generator)
            net.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                output = method(net, inputs, targets)
                assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
                loss = nn.functional.cross_entropy(output, targets)
            loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters()])
        assert gradients.dtype == torch.float32
        found.append((method.scores, method.coefficients, gradients))
    (scores, kappa, gradients), (half_scores, half_kappa, half_gradients) = found
    assert half_scores == pytest.approx(scores, rel=0.02)
    assert half_kappa == pytest.approx(kappa, rel=0.02)
    assert torch.nn.functional.cosine_similarity(gradients, half_gradients, dim=0) > 0.99


PROCESS = """
import sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from modhifi.multimodal import AGM, MSES, OGMGE, network

rank = int(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}-store", rank=rank, world_size=2)
SHAPES = {"image": (1, 8, 8), "audio": (1, 8, 8)}
told = {}
for name, method in {"agm": AGM(1.0), "ogm-ge": OGMGE(), "mses": MSES(1)}.items():
    torch.manual_seed(1)
    net = DistributedDataParallel(network("late", SHAPES, 4, norm=True))
    for module in net.modules():  # statistics of a batch are of each process alone
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    generator = torch.Generator().manual_seed(5)
    torch.manual_seed(rank)
    for _ in range(4):
        inputs = {name: torch.randn(8, *shape, generator=generator)[rank::2] for name, shape in SHAPES.items()}
        targets = torch.randint(0, 4, (8,), generator=generator)[rank::2]
        optimizer.zero_grad()
        nn.functional.cross_entropy(method(net, inputs, targets), targets).backward()
        method.adjust(net)
        optimizer.step()
        method.end_epoch(net, {"image": 1.0, "audio": 0.5})
    told[name] = {"kappa": method.coefficients, "weights": torch.cat([p.flatten() for p in net.parameters()]).tolist()}
torch.save(told, sys.argv[1] + str(rank))
torch.distributed.destroy_process_group()
"""


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path / "rank"), str(rank)], env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=True) for rank in (0, 1))
    assert first == second, "every process has the same coefficients and, noise included, the same weights"
    for name, method in {"agm": AGM(1.0), "ogm-ge": OGMGE(), "mses": MSES(1)}.items():
        net = fresh("late").eval()
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        generator = torch.Generator().manual_seed(5)
        for _ in range(4):
            inputs = {name: torch.randn(8, *shape, generator=generator) for name, shape in SHAPES.items()}
            targets = torch.randint(0, 4, (8,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(method(net, inputs, targets), targets).backward()
            method.adjust(net)
            optimizer.step()
            method.end_epoch(net, {"image": 1.0, "audio": 0.5})
        assert first[name]["kappa"] == pytest.approx(method.coefficients, rel=1e-5)
        alone = torch.cat([p.flatten() for p in net.parameters()])
        assert torch.allclose(torch.tensor(first[name]["weights"]), alone, atol=1e-5), name
    assert set(first["agm"]["kappa"].values()) != {1.0}


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 20), st.integers(0, 10_000), st.floats(0, 200))
def test_coefficients_stay_finite_and_ordered(alpha: float, seed: int, spread: float) -> None:
    """However far apart the scores are; and where the scores are what they usually are, nothing is modulated."""
    generator = torch.Generator().manual_seed(seed)
    method = AGM(alpha)
    targets = torch.zeros(3, dtype=torch.long)
    for _ in range(3):
        method._observe({m: spread * torch.randn(3, 4, generator=generator) for m in "abc"}, targets)
        assert all(math.exp(-7) <= k * 1.0000001 and k <= math.exp(7) * 1.0000001 for k in method.coefficients.values())
    steady = AGM(alpha)
    logits = {m: torch.randn(3, 4, generator=generator) for m in "abc"}
    for _ in range(3):
        steady._observe(logits, targets)
        assert steady.coefficients == pytest.approx(dict.fromkeys("abc", 1.0))


# The methods to compare with


def test_ogm_ge_by_hand() -> None:
    net = fresh("late")
    inputs = {name: torch.randn(8, *shape) for name, shape in SHAPES.items()}
    targets = torch.arange(8) % 4
    parts = {}
    for name in SHAPES:
        hidden = net.encoders[name].eval()(inputs[name])
        parts[name] = net.heads[name](hidden).detach().double()
    net.eval()
    s = {name: sum(float(torch.softmax(z, 1)[i, y]) for i, y in enumerate(targets)) for name, z in parts.items()}
    ratio = s["image"] / s["audio"]
    expected = {
        "image": 1 - math.tanh(0.5 * ratio) if ratio > 1 else 1.0,
        "audio": 1 - math.tanh(0.5 / ratio) if ratio < 1 else 1.0,
    }
    assert min(expected.values()) < 1
    method = OGMGE(alpha=0.5, noise=False)
    nn.functional.cross_entropy(method(net, inputs, targets), targets).backward()
    assert method.coefficients == pytest.approx(expected, rel=1e-5)
    before = {name: p.grad.clone() for name, p in net.named_parameters()}
    method.adjust(net)
    for name, parameter in net.named_parameters():
        _, modality, *_ = name.split(".")
        factor = expected[modality] if name.startswith("encoders") else 1.0
        assert torch.allclose(parameter.grad, factor * before[name], rtol=1e-5), name
    # The noise has mean 0 and the deviation of the gradient before it was scaled.
    weight = net.encoders["image"][-2].weight
    weight.grad = before["encoders.image." + str(len(net.encoders["image"]) - 2) + ".weight"].clone()
    plain = weight.grad.clone()
    noisy = OGMGE(alpha=0.5)
    noisy.coefficients = method.coefficients
    noisy.adjust(net)
    noise = weight.grad - expected["image"] * plain
    assert abs(float(noise.mean())) < 4 * float(plain.std()) / math.sqrt(noise.numel())
    assert float(noise.std()) == pytest.approx(float(plain.std()), rel=0.05)
    assert not any(module._forward_hooks for module in net.modules()), "no hook is left behind"


def test_mslr_gives_each_encoder_its_rate() -> None:
    net = fresh("hybrid")
    groups = MSLR({"image": 0.3, "audio": 3.0}).parameter_groups(net, 0.1)
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rate) == sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        expected = 0.03 if "encoders.image" in name else 0.3 if "encoders.audio" in name else 0.1
        assert rate[id(parameter)] == pytest.approx(expected), name


def test_mses_stops_what_no_longer_improves() -> None:
    net, method = fresh("late"), MSES(patience=2)
    train(method, net, 1)
    for losses in ([1.0, 1.0], [0.9, 1.1], [0.8, 1.2]):
        assert method.coefficients == {"image": 1.0, "audio": 1.0}
        method.end_epoch(net, dict(zip(SHAPES, losses, strict=True)))
    assert method.coefficients == {"image": 1.0, "audio": 0.0}
    before = {name: value.clone() for name, value in net.state_dict().items()}  # BatchNorm's statistics too
    train(method, net, 2)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {name for name in before if not name.startswith("encoders.audio")}


# Mistakes


class Normalised(nn.Module):
    """Divides one input by its norm, which zeros do not have."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        image = inputs["image"].flatten(1)
        return (image / image.norm(dim=1, keepdim=True) + inputs["audio"].flatten(1))[:, :4]


def mistake(change: Callable[[dict[str, Tensor], Tensor], tuple[dict[str, Tensor], Tensor]], method: Joint) -> str:
    inputs, targets = {name: torch.randn(4, *shape) for name, shape in SHAPES.items()}, torch.arange(4)
    method(fresh("late"), inputs, targets)
    with pytest.raises(UserError) as caught:
        method(fresh("late"), *change(inputs, targets))
    return str(caught.value)


@pytest.mark.parametrize("make", [Joint, AGM, OGMGE, MSES])
def test_a_bad_batch_is_one_clear_line(make: type[Joint]) -> None:
    nan = torch.full((4, 1, 8, 8), float("nan"))
    assert "modality audio has NaN or infinite values" in mistake(lambda x, y: (x | {"audio": nan}, y), make())
    assert "is missing audio" in mistake(lambda x, y: ({"image": x["image"]}, y), make())
    assert "also has depth" in mistake(lambda x, y: (x | {"depth": x["image"]}, y), make())
    assert "3 of audio, 4 targets" in mistake(lambda x, y: (x | {"audio": x["audio"][:3]}, y), make())
    assert "5 targets" in mistake(lambda x, y: (x, torch.cat([y, y[:1]])), make())
    assert "empty" in mistake(lambda x, y: ({k: v[:0] for k, v in x.items()}, y[:0]), make())


def test_other_mistakes_of_the_caller() -> None:
    inputs, targets = {name: torch.randn(4, *shape) for name, shape in SHAPES.items()}, torch.arange(4)
    with pytest.raises(UserError, match="at least two"):
        AGM()(fresh("late"), {"image": inputs["image"]}, targets)
    for method in (AGM(), OGMGE()):
        with pytest.raises(UserError, match="from 0 to 3"):
            method(fresh("late"), inputs, targets + 1)
    with pytest.raises(UserError, match="baseline names imgae; the modalities are image, audio"):
        AGM(1.0, {"imgae": torch.ones(1, 8, 8)})(fresh("late"), inputs, targets)
    with pytest.raises(UserError, match="not finite with image muted; give AGM a baseline"):
        AGM()(Normalised(), inputs, targets)
    AGM(1.0, {"image": torch.ones(1, 8, 8)})(Normalised(), inputs, targets)
    with pytest.raises(UserError, match="0 or more"):
        AGM(-1.0)
    with pytest.raises(UserError, match="OGM-GE needs late fusion"):
        OGMGE()(fresh("early"), inputs, targets)
    net = fresh("late")
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="diverged"):
        AGM()(net, inputs, targets)
    with pytest.raises(UserError, match="one tensor of logits"):
        Joint()(nn.Identity(), inputs, targets)
