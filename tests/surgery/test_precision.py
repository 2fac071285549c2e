"""Networks whose weights are stored in another precision than float32: nothing takes their rounding for a misreading, and
nothing hides a misreading behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import modhifi
from modhifi import Data, Model, Plan, UserError
from modhifi.components import Structure, enumerate_components, structure_of
from modhifi.layers import flat_weight, get_operator, observed, patches, widened
from modhifi.models import fingerprint
from modhifi.models.language import FAMILIES
from modhifi.plan import GroupPlan, Settings
from modhifi.surgery import verified

Make = Callable[..., Model]
HALF = (torch.bfloat16, torch.float16)


def stored_as(model: Model, dtype: torch.dtype) -> Model:
    net = copy.deepcopy(model.module).to(dtype)
    return Model(model.spec, net, model.input, model.classes, None, fingerprint(net))


def plan_for(model: Model, keep: dict[str, list[int]]) -> Plan:
    groups = {g.name: GroupPlan(total=g.size, keep=keep.get(g.name, range(g.size))) for g in structure_of(model).groups}
    settings = Settings(budget="manual", compensate="none")
    return Plan(
        kind="prune",
        model=model.ref,
        calibration=modhifi.load_data("digits").ref,
        settings=settings,
        groups=groups,
    )


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_language_models_from_analysis_to_export(
    family: str, dtype: torch.dtype, language: Make, prose: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # sequential compensation reads the text again
    Path("prose").write_text(prose.text or "")
    folder = modhifi.export(language(family, dtype=dtype), tmp_path / "in")
    model = modhifi.load_model(f"hf:{folder}", device="cpu", context=16)
    study = modhifi.analyze(model, prose, 24, constants=["none"])
    plan = modhifi.prune(study, params=0.93, constants="none", model=model)
    small = modhifi.apply(plan, model)
    result = modhifi.evaluate(small, prose.take(4), baseline=model, latency=False)
    assert result.params_before is not None
    assert result.params < result.params_before
    again = modhifi.load_model(str(modhifi.export(small, tmp_path / "out")), device="cpu")
    assert {value.dtype for value in again.module.parameters()} == {dtype}
    assert again.fingerprint == small.fingerprint
    ids = small.example(2)
    with torch.no_grad():
        assert torch.equal(again.module(ids), small.module(ids))


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
def test_images_from_analysis_to_export(
    dtype: torch.dtype, digits_model: Model, digits_test: Data, tmp_path: Path
) -> None:
    model = stored_as(digits_model, dtype)
    study = modhifi.analyze(model, modhifi.load_data("digits"), 32, constants=["none"])
    assert study.structure == structure_of(digits_model)
    plan = modhifi.prune(study, flops=0.7, constants="none", model=model)
    small = modhifi.apply(plan, model)
    result = modhifi.evaluate(small, digits_test.take(30), baseline=model, latency=False)
    assert result.accuracy > 0.8
    out = modhifi.export(small, tmp_path / "out")
    again = modhifi.load_model(str(out), device="cpu")
    assert again.fingerprint == small.fingerprint
    example = small.example(2)
    with torch.no_grad():
        assert again.module(example).dtype == dtype
        assert torch.equal(again.module(example), small.module(example))
    if dtype == torch.float64:
        with pytest.raises(UserError, match="omit onnx"):
            modhifi.export(small, tmp_path / "wide", ["safetensors", "onnx"])
    elif dtype == torch.bfloat16:
        assert (modhifi.export(small, tmp_path / "both", ["safetensors", "onnx"]) / "model.onnx").exists()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_wrong_coupling_is_refused_in_any_precision(family: str, dtype: torch.dtype, language: Make) -> None:
    model = language(family, dtype=dtype)
    groups = {group.name: group for group in structure_of(model).groups}
    victim = next(group for group in groups.values() if group.kind == "neurons")
    plan = plan_for(model, {victim.name: [i for i in range(victim.size) if i not in (3, 7)]})
    modhifi.apply(plan, model)
    # The last layer that writes them is read as if two of its neurons had changed places with two others.
    *others, last = victim.producers
    order = list(range(victim.size))
    order[3], order[7], order[0], order[1] = 0, 1, 3, 7
    wrong = victim.model_copy(update={"producers": (*others, last.model_copy(update={"index": tuple(order)}))})
    structure = structure_of(model)
    swapped = tuple(wrong if group.name == victim.name else group for group in structure.groups)
    for key in list(model.derived):
        model.derived[key] = Structure(
            groups=swapped, skipped=structure.skipped, layers=structure.layers, other=structure.other
        )
    with pytest.raises(RuntimeError, match="the tracer misread"):
        modhifi.apply(plan, model)


class _Shuffle(nn.Module):
    """Between its first two convolutions channels change places in a way that no tracer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x)).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.c(torch.relu(self.b(x)))


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
def test_trial_removal_finds_what_was_misread_and_nothing_else(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = _Shuffle().eval().requires_grad_(False).to(dtype)
    example = torch.randn(2, 3, 8, 8).to(dtype)
    traced = enumerate_components(net, example[:1])
    assert [group.name for group in traced.groups] == ["a", "b"]
    assert [group.name for group in verified(traced, net, example).groups] == ["b"]


@pytest.mark.parametrize("which", ["digits-resnet20", "digits-vit", *FAMILIES])
def test_widened_is_the_network_in_single_precision(which: str, language: Make) -> None:
    for dtype in HALF:
        model = (
            language(which, dtype=dtype)
            if which in FAMILIES
            else stored_as(modhifi.load_model(which, device="cpu"), dtype)
        )
        before = fingerprint(model.module)
        example = model.example(2)
        single = copy.deepcopy(model.module).float()
        single._forward_pre_hooks.clear()
        with torch.no_grad():
            rounded = example.to(dtype).float() if example.is_floating_point() else example
            expected = single(rounded)
            with widened(model.module):
                found = model.module(example)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        assert fingerprint(model.module) == before
        assert not any("forward" in part.__dict__ for part in model.module.modules())


def test_widened_leaves_single_and_double_precision_alone(chain: Model) -> None:
    for dtype in (torch.float32, torch.float64):
        net = copy.deepcopy(chain.module).to(dtype)
        with widened(net), torch.no_grad():
            assert not any("forward" in part.__dict__ for part in net.modules())
            assert net(chain.example(2).to(dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_double_precision_solved_is_rounded_to_the_stored_dtype(
    dtype: torch.dtype, chain: Model, pictures: Data
) -> None:
    model = stored_as(chain, dtype)
    study = modhifi.analyze(model, pictures, constants=["none"])
    plan = modhifi.prune(study, overrides={"a": 4, "b": 3, "c": 4}, compensate="full", constants="none")
    masked = modhifi.apply(plan, model, masked=True).module
    half_a_digit = torch.finfo(dtype).eps / 2
    for layer, group in (("b", "a"), ("c", "b"), ("d", "c")):
        edit = study.edit(layer, {group: plan.groups[group].keep}, "full")
        weight = flat_weight(get_operator(masked, layer)).double()
        bias = get_operator(masked, layer).bias.double()  # type: ignore[union-attr]
        old = get_operator(model.module, layer).bias
        wanted = edit.shift.double() + (0.0 if old is None else old.double())
        assert edit.weight.dtype == torch.float64
        for found, exact in ((weight, edit.weight), (bias, wanted)):
            # Rounded once; the plan's own float32 adds 2⁻²⁴, and float16 has subnormal numbers below 2⁻¹⁴.
            allowed = (
                exact.abs() * half_a_digit * (1 + 1e-3) + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            )
            assert bool(((found - exact).abs() <= allowed + exact.abs() * 2.0**-23).all())


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_statistics_add_up_in_single_precision(dtype: torch.dtype, chain: Model, pictures: Data) -> None:
    model = stored_as(chain, dtype)
    study = modhifi.analyze(model, pictures, constants=["none"])
    names = list(study.structure.readers)
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    with torch.no_grad(), observed(model.module, names, lambda name, layer, x, _: seen[name].append(patches(layer, x))):
        for images, _ in pictures.batches(model.input):
            model.module(images)
    for name in names:
        rows = torch.cat(seen[name]).double()
        moments = study.layers[name].moments
        assert moments.second.dtype == torch.float32
        expected = rows.T @ rows / len(rows)
        if moments.count == len(rows):  # every position was used
            torch.testing.assert_close(moments.second.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
            torch.testing.assert_close(moments.mean.double(), rows.mean(0), rtol=1e-5, atol=1e-6)
    assert any(study.layers[name].moments.count == len(torch.cat(seen[name])) for name in names)
