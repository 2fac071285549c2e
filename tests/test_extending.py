"""Adding one of the six things that people add: one new file (here: one test) that registers it, and everybody knows its name.

Each test registers a dummy and uses it through the library, the command line and the dashboard's lists; nothing else is
touched. What was registered is forgotten afterwards.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import modhifi
from modhifi import Data, Model, Study
from modhifi.cli import main
from modhifi.data import DataSource, register_source
from modhifi.export import Format, formats, register_format
from modhifi.lipschitz import Estimator, Gains, Sample, estimators, register_estimator
from modhifi.loading import list_models
from modhifi.models import Family, register_family
from modhifi.pruning import Score, ScoreInputs, pruning_methods, register_score, scores
from modhifi.registry import Registry
from modhifi.specs import InputSpec
from modhifi.unlearning import Method, register_method, unlearning_methods


@pytest.fixture(autouse=True)
def forgotten_afterwards() -> Iterator[None]:
    """The registries as they were."""
    from modhifi.data import _sources
    from modhifi.export import _formats
    from modhifi.lipschitz import _estimators
    from modhifi.models import _families
    from modhifi.pruning import _scores
    from modhifi.unlearning import _unlearn

    registries: list[Registry[Any]] = [
        _scores._SCORES,
        _estimators._ESTIMATORS,
        _unlearn._METHODS,
        _formats._FORMATS,
        _sources._SOURCES,
        _families._FAMILIES,
    ]
    before = [dict(registry) for registry in registries]
    yield
    for registry, old in zip(registries, before, strict=True):
        registry.clear()
        registry.update(old)


@pytest.fixture
def saved(digits_study: Study, tmp_path: Path) -> str:
    digits_study.save(tmp_path / "study")
    return str(tmp_path / "study")


def test_a_score(digits_model: Model, saved: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def last_first(given: ScoreInputs) -> dict[str, torch.Tensor]:
        return {group.name: torch.arange(group.size).double() for group in given.study.groups}

    register_score(Score("dummy", "Dummy", last_first, baseline=True))
    plan = modhifi.prune(Study.load(saved), flops=0.6, score="dummy", compensate="none", model=digits_model)
    for group in plan.groups.values():
        assert group.keep == list(range(group.total - len(group.keep), group.total))
    call = [
        "prune",
        saved,
        "--flops",
        "0.6",
        "--score",
        "dummy",
        "--compensate",
        "none",
        "--out",
        str(tmp_path / "p.json"),
    ]
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == {name: len(group.keep) for name, group in plan.groups.items()}
    assert {"dummy", "dummy+bn", "dummy+full"} <= set(pruning_methods()), "a method to compare with"
    assert "dummy" in [score.name for score in scores()], "which the Prune page offers"
    with pytest.raises(ValueError, match="registered already"):
        register_score(Score("dummy", "Again", last_first))


def test_an_estimator(chain: Model, pictures: Data, tmp_path: Path) -> None:
    def twice(sample: Sample, progress: modhifi.progress.Progress) -> dict[str, Gains]:
        progress(1, 1, "dummy")
        count = len(sample.inputs)
        return {name: Gains(torch.ones(count), torch.full((count,), 4.0)) for name in sample.layers}

    register_estimator(Estimator("dummy", "dummy", "lower", "Lower bound: made up.", twice))
    study = modhifi.analyze(chain, pictures, 32, constants=["dummy"], constant_samples=4, out=tmp_path / "study")
    assert {study.constant(layer, "dummy") for layer in study.layers} == {2.0}
    assert Study.load(tmp_path / "study").estimators == study.estimators
    assert modhifi.allocate(study, flops=0.7, constants="dummy").settings.constants == "dummy"
    assert main(["show", str(tmp_path / "study"), "--constants"]) == 0
    assert "dummy" in estimators()


def test_an_unlearning_method(digits_model: Model, digits_study: Study, saved: str, tmp_path: Path, capsys) -> None:
    from modhifi.unlearning._mask import mask

    register_method("dummy", Method("Dummy", "A mask by another name.", "nothing", lambda task, _, __: mask(task)))
    data = modhifi.load_data("digits")
    plan = modhifi.unlearn(digits_study, ["3"], data, method="dummy", samples=200, model=digits_model)
    assert plan.settings.strength_unit == "nothing"
    out = str(tmp_path / "p.json")
    assert (
        main(
            [
                "unlearn",
                saved,
                "--forget",
                "3",
                "--data",
                "digits",
                "--method",
                "dummy",
                "--samples",
                "200",
                "--out",
                out,
            ]
        )
        == 0
    )
    assert "without 3" in modhifi.export_report(modhifi.Plan.load(out))
    assert "dummy" in unlearning_methods(), "which the Forget page offers"


def test_a_data_source(digits_model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    def open_(spec: str, root: Path | None, split: str) -> Data:
        pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8)
        read = lambda i: Image.fromarray(pixels[i])  # noqa: E731
        return Data(spec, None, split, read, tuple(range(48)), None, None, "dummy")

    register_source(DataSource("dummy:N", "noise", lambda spec: spec.startswith("dummy:"), open_, example="dummy:1"))
    study = modhifi.analyze(digits_model, modhifi.load_data("dummy:1"), samples=48, constants=["none"])
    assert study.data.spec == "dummy:1"
    with pytest.raises(modhifi.UserError, match="dummy:N"):
        modhifi.load_data("nowhere")
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    assert "dummy:N" in capsys.readouterr().out


def test_an_export_format(
    digits_model: Model, digits_study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(net: nn.Module, model: Model, target: Path) -> None:
        target.write_text(f"{model.spec} {sum(p.numel() for p in net.parameters())}")

    register_format(Format("dummy", "Dummy", write, suffix="txt"))
    plan = modhifi.prune(digits_study, flops=0.6, compensate="none")
    changed = modhifi.apply(plan, digits_model)
    folder = modhifi.export(changed, tmp_path / "out", ["dummy"])
    assert (folder / "model.txt").read_text().startswith("digits-resnet20 ")
    assert modhifi.load_model(str(folder), device="cpu").fingerprint == changed.fingerprint
    plan.save(tmp_path / "plan.json")
    assert main(["export", str(tmp_path / "plan.json"), "--out", str(tmp_path / "again"), "--format", "dummy"]) == 0
    assert "model.txt" in capsys.readouterr().out
    assert "dummy" in formats(), "which the Export page offers"


def test_a_network_family(chain: Model, pictures: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build(spec: str, state: object) -> tuple[nn.Module, InputSpec, tuple[str, ...]]:
        net = type(chain.module)()
        if state is None:
            net.load_state_dict(chain.module.state_dict())
        assert isinstance(chain.input, InputSpec)
        return net, chain.input, chain.classes

    register_family(Family("dummy:chain", "a chain", lambda spec: spec == "dummy:chain", build, ("dummy:chain",)))
    model = modhifi.load_model("dummy:chain", device="cpu")
    study = modhifi.analyze(model, pictures, 48, constants=["none"])
    changed = modhifi.apply(modhifi.prune(study, flops=0.7, constants="none", compensate="full"), model)
    folder = modhifi.export(changed, tmp_path / "out")
    assert modhifi.load_model(str(folder), device="cpu").fingerprint == changed.fingerprint, "an export opens again"
    assert ("dummy:chain", "a chain") in list_models()
    assert main(["models"]) == 0
    assert "dummy:chain" in capsys.readouterr().out
