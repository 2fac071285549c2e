"""Any module as a model: from its example inputs to an exported network, for every kind of input and answer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import modhifi
from modhifi import Model, UserError
from modhifi.models import in_own_form
from modhifi.specs import ArraySpec, InputSpec
from tests.loading.networks import NETWORKS, Images, Own


def wrapped(own: Own) -> tuple[nn.Module, Model]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = own.make()
    return module, modhifi.wrap(module, own.examples, **own.fields)


def called(module: nn.Module, model: Model, rows: Tensor) -> Any:
    """The module in its own way, on the library's batch."""
    if isinstance(model.input, InputSpec):
        return module(rows.to(next(module.parameters()).dtype))
    assert isinstance(model.input, ArraySpec)
    values = model.input.unpack(rows)
    dtype = next(module.parameters()).dtype
    values = [value.to(dtype) if value.is_floating_point() else value for value in values]
    both = list(zip(model.input.inputs, values, strict=True))
    return module(
        *(value for one, value in both if not one.keyword), **{one.name: value for one, value in both if one.keyword}
    )


def flat(answer: Tensor, form: str) -> Tensor:
    """(rows, K) float64: every place that has classes, or every sample, is a row."""
    if form == "map":
        answer = answer.movedim(1, -1)
    if form in ("map", "sequence"):
        return answer.reshape(-1, answer.shape[-1]).double()
    return answer.reshape(len(answer), -1).double()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_whole_path(name: str, tmp_path: Path) -> None:
    own = NETWORKS[name]
    module, model = wrapped(own)
    before = copy.deepcopy(module.state_dict())
    study = modhifi.analyze(model, modhifi.load_data("noise"), samples=48)
    assert [g.name for g in study.groups if "." not in g.name or g.name[0].isdigit()], (
        "groups have the module's own names"
    )
    test = modhifi.load_data("noise", samples=20, seed=3)
    ((rows, _),) = test.batches(model.input)
    with torch.no_grad():
        original = own.answer(called(module, model, rows))
    tolerance = 1e-10 if name.startswith("float64") else 1e-4
    for compensate in ("none", "full", "sequential"):
        plan = modhifi.prune(study, params=0.8, compensate=compensate, model=model)
        smaller, masked = modhifi.apply(plan, model), modhifi.apply(plan, model, masked=True)
        with torch.no_grad():
            changed = own.answer(called(smaller.module, model, rows))
            same = own.answer(called(masked.module, model, rows))
        assert changed.shape == original.shape
        assert float((changed - same).abs().max()) <= tolerance * float(same.abs().max())
        count = sum(value.numel() for value in smaller.module.parameters())
        assert count < sum(value.numel() for value in module.parameters())
        found = modhifi.evaluate(smaller, test, model, latency=False)
        f, g = flat(original, own.form), flat(changed, own.form)
        error = float(((f - g).square().sum() / (f - f.mean(0)).square().sum()).sqrt())
        assert found.relative_error == pytest.approx(error, rel=1e-4)
        if own.form == "values":
            assert found.agreement is None
            assert found.kl is None
        else:
            assert found.agreement == float((f.argmax(1) == g.argmax(1)).double().mean())
    modhifi.export(smaller, tmp_path / "out")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items()), "wrap copies"


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_made_of_it(name: str) -> None:
    own = NETWORKS[name]
    module, model = wrapped(own)
    form = "image" if isinstance(model.input, InputSpec) else model.input.form
    assert form == own.form
    assert bool(model.classes) == (own.form in ("image", "classes"))
    assert isinstance(model.module, type(module))
    assert list(model.module.state_dict()) == list(module.state_dict())
    plain = in_own_form(model.module)
    assert type(plain) is type(module)
    # Called in its own way, the wrapped network answers in its own way.
    rows = model.example(2)
    with torch.no_grad():
        both = [own.answer(called(net, model, rows)) for net in (module, model.module, plain)]
    assert torch.equal(both[0], both[1])
    assert torch.equal(both[0], both[2])


@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("float64")])
def test_onnx_in_its_own_form(name: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    own = NETWORKS[name]
    _, model = wrapped(own)
    out = tmp_path / "out"
    modhifi.export(model, out, ["onnx"])
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        rows = model.example(batch)
        values = model.input.unpack(rows) if isinstance(model.input, ArraySpec) else [rows]
        names = [one.name for one in model.input.inputs] if isinstance(model.input, ArraySpec) else ["images"]
        assert [one.name for one in session.get_inputs()] == names
        found = session.run(None, {name: value.numpy() for name, value in zip(names, values, strict=True)})
        with torch.no_grad():
            expected = own.answer(called(model.module, model, rows))
        assert any(
            one.shape == expected.shape and np.allclose(one, expected.numpy(), rtol=1e-4, atol=1e-5) for one in found
        )


class Odd(nn.Module):
    """``how(net, x)`` is what it returns for (B, 6)."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(self, self.b(torch.relu(self.a(x))))


class AlwaysTraining(Odd):
    def train(self, mode: bool = True) -> AlwaysTraining:
        return super().train(True)


def meta() -> nn.Module:
    with torch.device("meta"):
        return Images()


_X = torch.randn(2, 6)
_ODD: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no module": (lambda: {"a": 1}, _X, {}, "the module is a dict, not a torch.nn.Module"),
    "meta": (meta, torch.randn(2, 3, 8, 8), {}, "has shapes but no weights"),
    "lazy": (lambda: nn.LazyLinear(3), _X, {}, "has lazy layers"),
    "no weights": (nn.ReLU, _X, {}, "has no parameters"),
    "TorchScript": (lambda: torch.jit.script(nn.Linear(6, 3)), _X, {}, "is TorchScript"),
    "training": (lambda: AlwaysTraining(lambda _, y: y), _X, {}, r"stays in training mode after eval\(\)"),
    "NaN": (lambda: Odd(lambda _, y: y / 0 * 0), _X, {}, "is not finite"),
    "whole numbers": (lambda: Odd(lambda _, y: y.argmax(1)), _X, {}, "is int64, whose errors mean nothing"),
    "nothing": (lambda: Odd(lambda *_: None), _X, {}, "the network gives no tensor"),
    "several": (lambda: Odd(lambda _, y: {"a": y, "b": (y, y)}), _X, {}, r"several tensors \(a: 2×3; b\.0: 2×3; b\.1"),
    "unknown output": (lambda: Odd(lambda _, y: {"a": y}), _X, {"output": "c"}, "has no output 'c'; it gives a: 2×3"),
    "a loss": (lambda: Odd(lambda _, y: y.sum()), _X, {}, "is a single number; its first dimension must be"),
    "random": (lambda: Odd(lambda _, y: nn.functional.dropout(y, 0.5)), _X, {}, "different answers to the same input"),
    "batch": (lambda: Odd(lambda _, y: y - y.mean(0)), _X, {}, "depends on the others of its batch"),
    "another shape": (
        lambda: Odd(lambda _, y: y),
        torch.randn(2, 5),
        {},
        r"fails on the example inputs \(x 5 float32\)",
    ),
    "no examples": (lambda: Odd(lambda _, y: y), None, {}, "needs example inputs"),
    "no batch": (lambda: Odd(lambda _, y: y), torch.tensor(1.0), {}, "its first dimension is the batch"),
    "text": (lambda: Odd(lambda _, y: y), ("text",), {}, "is a str; give a tensor"),
    "infinite": (lambda: Odd(lambda _, y: y), _X / 0, {}, "is not finite; give ordinary numbers"),
    "names": (lambda: Odd(lambda _, y: y), _X, {"classes": ("a", "b")}, "3 outputs and 2 class names"),
    "mean": (lambda: Odd(lambda _, y: y), _X, {"mean": (0.5,)}, "does not take images"),
    "complex": (lambda: Odd(lambda _, y: y), _X + 1j, {}, "the input x of the module cannot be used|cannot be used"),
    "unequal": (Images, (torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8)), {}, "have 2 and 3 samples"),
}


@pytest.mark.parametrize("name", _ODD)
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:Lazy modules:UserWarning")
def test_what_cannot_be_used(name: str) -> None:
    make, examples, fields, message = _ODD[name]
    with pytest.raises(UserError, match=message) as caught:
        modhifi.wrap(make(), examples, **fields)
    assert "\n" not in str(caught.value)


def test_classes_are_needed_to_forget() -> None:
    _, model = wrapped(NETWORKS["map"])
    study = modhifi.analyze(model, modhifi.load_data("noise"), samples=16)
    with pytest.raises(UserError, match="has no classes to forget"):
        modhifi.unlearn(study, forget=["1"], data=modhifi.load_data("noise"), model=model)


def test_a_wrapped_network_cannot_be_loaded_again(tmp_path: Path) -> None:
    _, model = wrapped(NETWORKS["table"])
    study = modhifi.analyze(model, modhifi.load_data("noise"), samples=16, out=tmp_path / "study")
    study = modhifi.Study.load(tmp_path / "study")
    with pytest.raises(UserError, match="Table was wrapped in another program"):
        modhifi.prune(study, params=0.5)
    modhifi.export(modhifi.apply(modhifi.prune(study, params=0.5, model=model), model), tmp_path / "out")
    with pytest.raises(UserError, match="written for Table, wrapped in a program"):
        modhifi.load_model(str(tmp_path / "out"))
