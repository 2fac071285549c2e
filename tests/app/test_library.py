"""What stands between the pages and modhifi: plans, archives, command lines; on the real library."""

import io
import json
import os
import shlex
import zipfile
from pathlib import Path

import pytest
from safetensors.torch import save_file

import modhifi
from app.commands import commands
from app.jobs import Job
from app.library import Library
from app.outcome import _classifier_numbers
from app.prune import quality
from app.report import charts, report
from app.selection import DEFAULT, Choice, Forgetting, LabelledData, Source
from app.store import Point, Store
from app.tables import points_table
from app.tasks import prune_point
from app.uploads import keep_checkpoint
from modhifi.cli._parser import build_parser
from modhifi.errors import UserError
from modhifi.specs import PruningSpec

TEST = LabelledData()


@pytest.fixture
def library(filled: Path) -> Library:
    return Library(Store(filled))


def measured(library: Library, choice: Choice) -> Point:
    job = library.tasks.measure(DEFAULT, choice, TEST)
    assert job.wait(120)
    assert job.state == "done", job.error
    point = job.result
    assert isinstance(point, Point)
    return point


def test_the_slider_and_the_plan_agree(library: Library) -> None:
    study = library.queries.study(DEFAULT)
    assert study is not None
    choice = Choice(spec=PruningSpec.of(flops=0.5, compensate="full", overrides={study.groups[0].name: 3}))
    allocation = library.queries.allocation(DEFAULT, choice)
    assert allocation.counts[study.groups[0].name] == 3
    assert allocation is library.queries.allocation(DEFAULT, choice), "asked twice, computed once"
    point = measured(library, choice)
    assert point.id == prune_point(choice, TEST)
    plan = library.store.plan(DEFAULT.id, point.id)
    assert {name: len(group.keep) for name, group in plan.groups.items()} == allocation.counts
    assert plan.settings.overrides == choice.spec.overrides
    assert plan.measured[-1]["accuracy"] == point.evaluation["accuracy"]
    assert point.evaluation["params"] == allocation.cost.params


def test_a_wish_that_cannot_be_met_is_a_mistake_of_the_user(library: Library) -> None:
    with pytest.raises(UserError):
        library.queries.allocation(DEFAULT, Choice(spec=PruningSpec.of(flops=0.001)))
    with pytest.raises(UserError, match="run the analysis"):
        library.queries.allocation(Source(samples=9), Choice())


def test_the_archive_is_read_back_as_the_same_network(library: Library, tmp_path: Path) -> None:
    point = measured(library, Choice(spec=PruningSpec.of(flops=0.4)))
    assert "sequential" in point.label
    assert library.queries.archive(DEFAULT, point, ["safetensors"]) is None
    job = library.tasks.build(DEFAULT, point, ["safetensors"])
    assert job.wait(120)
    assert job.state == "done", job.error
    path = library.queries.archive(DEFAULT, point, ["safetensors"])
    assert path == job.result
    assert path is not None
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    again = modhifi.load_model(str(tmp_path / "model"), device="cpu")
    result = modhifi.evaluate(again, modhifi.load_data("digits", split="test"), latency=False)
    assert result.accuracy == point.evaluation["accuracy"]
    assert result.params == point.evaluation["params"]
    page = report(library, DEFAULT, point)
    assert page.count("Plotly.newPlot") == len(charts(library.store.plan(DEFAULT.id, point.id), point, [point], []))
    assert "modhifi prune study --flops 0.4" in page
    library.store.note(DEFAULT.id, point.id, "agreed")  # which takes the archive away
    assert library.queries.archive(DEFAULT, point, ["safetensors"]) is None
    assert library.tasks.build(DEFAULT, point, ["safetensors"]).wait(120)
    path = library.queries.archive(DEFAULT, point, ["safetensors"])
    assert path is not None
    with zipfile.ZipFile(path) as archive:
        assert b"agreed" in archive.read("model/plan.json")


def test_test_images_that_lack_most_classes(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    data = modhifi.load_data("digits", split="test")
    assert data.targets is not None
    for number in range(60):
        label = int(data.targets[number])
        if label in (1, 3, 8):
            (folder / str(label)).mkdir(parents=True, exist_ok=True)
            data.read(data.order[number]).save(folder / str(label) / f"{number}.png")
    few = LabelledData(data=str(folder), split=None)
    job = library.tasks.measure(DEFAULT, Choice(spec=PruningSpec.of(flops=0.5, compensate="none")), few)
    assert job.wait(120)
    assert job.state == "done", job.error
    point = job.result
    drawn = charts(library.store.plan(DEFAULT.id, point.id), point, [point], [])
    assert list(drawn["Confusion matrix, modified network"].data[0].x) == list("0123456789")
    assert set(point.evaluation["per_class"]) == {"1", "3", "8"}
    assert point.label.endswith(" · on scans"), "the label names unusual test data"
    assert "Confusion matrix, modified network" in report(library, DEFAULT, point)


def done(job: Job) -> object:
    assert job.wait(120)
    assert job.state == "done", job.error
    return job.result


def test_an_overwritten_checkpoint_and_a_folder_that_has_changed_are_analysed_anew(home: Path, tmp_path: Path) -> None:
    library = Library(Store(home))
    images = tmp_path / "images"
    images.mkdir()
    data = modhifi.load_data("digits", split="test")

    def add(numbers: range) -> None:
        for number in numbers:
            data.read(data.order[number]).save(images / f"{number}.png")

    def write(scale: float) -> None:
        state = modhifi.load_model("digits-resnet20", device="cpu").module.state_dict()
        save_file({name: scale * value for name, value in state.items()}, tmp_path / "net.safetensors")

    add(range(20))
    write(1.0)
    asked = Source(weights=str(tmp_path / "net.safetensors"), data=str(images), samples=100)
    done(library.tasks.analyse(asked))
    first, same = library.queries.study(asked), asked.id
    assert first is not None
    assert library.queries.allocation(asked, Choice()) is library.queries.allocation(asked, Choice())
    add(range(20, 50))
    done(library.tasks.analyse(asked))
    second = library.queries.study(asked)
    assert second is not None
    assert asked.id == same
    assert (first.data.samples, second.data.samples) == (20, 50)
    write(2.0)
    done(library.tasks.analyse(asked))
    third = library.queries.study(asked)
    assert third is not None
    assert asked.id != same
    assert third.model.fingerprint != second.model.fingerprint
    done(library.tasks.measure(asked, Choice(spec=PruningSpec.of(flops=0.5, compensate="none")), TEST))


def test_times_that_are_taken_again_are_used(library: Library) -> None:
    done(library.tasks.time_layers(DEFAULT))
    table = library.queries.latencies(DEFAULT)
    assert table is not None
    before = library.queries.allocation(DEFAULT, Choice()).milliseconds
    assert before is not None
    path = library.store.latency_path(DEFAULT.id)
    content = json.loads(path.read_text())
    slower = {
        key: _times_ten(value) if key not in ("batch", "schema_version") else value for key, value in content.items()
    }
    path.write_text(json.dumps(slower))
    os.utime(path, ns=(1, 1))
    after = library.queries.allocation(DEFAULT, Choice()).milliseconds
    assert after == pytest.approx(10 * before, rel=0.2)


def _times_ten(value: object) -> object:
    if isinstance(value, float):
        return 10 * value
    if isinstance(value, dict):
        return {key: _times_ten(one) for key, one in value.items()}
    return [_times_ten(one) for one in value] if isinstance(value, list) else value


def test_constants_are_kept_even_where_another_copy_of_the_study_was_opened(library: Library) -> None:
    for name in ("random", "pairs"):
        job = library.tasks.estimate(DEFAULT, [name])
        library.queries._caches._studies.clear()
        library.queries.study(DEFAULT)
        done(job)
        study = library.queries.study(DEFAULT)
        assert study is not None
        assert name in study.estimators
    assert {"random", "pairs"} <= {*modhifi.Study.load(library.store.study_path(DEFAULT.id)).estimators}


def test_the_command_lines_are_understood_by_the_command_line(library: Library) -> None:
    choice = Choice(
        spec=PruningSpec.of(
            flops=0.6,
            score="removal-cost",
            compensate="scalar",
            allocation="uniform",
            multiple=2,
            overrides={"layer1.0.conv1": 5},
            floors={"layer1.1.conv1": 4},
        )
    )
    point = measured(library, choice)
    lines = commands(DEFAULT, library.store.plan(DEFAULT.id, point.id), point).splitlines()
    parsed = [build_parser().parse_args(shlex.split(line)[3:]) for line in lines]
    assert len(parsed) == 4
    assert (parsed[1].flops, parsed[1].compensate, parsed[1].allocation) == (0.6, "scalar", "uniform")
    assert (parsed[1].score, parsed[1].multiple) == ("removal-cost", 2)
    assert "--keep layer1.0.conv1=5" in lines[1]
    assert "--floor layer1.1.conv1=4" in lines[1]
    assert (parsed[2].data, parsed[2].split) == ("digits", "test")
    plan = library.store.plan(DEFAULT.id, point.id)
    plan = plan.model_copy(update={"settings": plan.settings.model_copy(update={"constants": "pairs"})})
    first, second = commands(DEFAULT, plan, point).splitlines()[:2]
    assert "--constants directional,jacobian,pairs" in first  # which an analysis leaves out
    assert "--constants pairs" in second


def test_what_the_user_says_of_the_network_is_carried_to_it_and_to_the_command_lines(library: Library) -> None:
    names = tuple(f"digit {number}" for number in range(10))
    source = Source(samples=16, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), classes=names)
    assert source.lane != DEFAULT.lane, "another network in memory"
    assert library.tasks.analyse(source).wait(60)
    study = library.queries.study(source)
    assert study is not None
    assert study.model.classes == names
    assert (study.model.input.mean, study.model.input.std) == (source.mean, source.std)
    job = library.tasks.measure(source, Choice(), TEST)
    assert job.wait(60)
    assert job.state == "done", job.error
    first, second, *_ = commands(source, library.store.plan(source.id, job.result.id), job.result).splitlines()
    assert shlex.split(first) == ["printf", "%s\\n", *names, ">", "classes.txt"]
    parsed = build_parser().parse_args(shlex.split(second)[3:])
    assert (tuple(parsed.mean), tuple(parsed.std), parsed.classes) == (source.mean, source.std, "classes.txt")


def test_what_was_sent_is_called_by_its_own_name(library: Library) -> None:
    path = keep_checkpoint(library.store, "Holiday photo.pth", io.BytesIO(b"no checkpoint at all"))
    job = library.tasks.analyse(Source(weights=str(path)))
    assert job.wait(60)
    assert job.state == "error"
    assert job.error is not None
    assert job.error.startswith("holiday-photo.pth"), job.error
    assert str(library.store.root) not in job.error


def test_weights_that_changed_since_the_study_are_refused(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    load = modhifi.load_model

    def changed(*arguments: object, **options: object) -> modhifi.Model:
        model = load("digits-resnet20", device="cpu")
        model.fingerprint = "0" * 64
        return model

    monkeypatch.setattr(modhifi, "load_model", changed)
    job = library.tasks.measure(DEFAULT, Choice(), TEST)
    assert job.wait(60)
    assert job.state == "error"
    assert job.error is not None
    assert "have changed since its study" in job.error


def test_images_without_labels_are_measured_by_agreement(library: Library, tmp_path: Path) -> None:
    data = modhifi.load_data("digits", split="test")
    for number in range(8):
        data.read(data.order[number]).save(tmp_path / f"{number}.png")
    unlabelled = LabelledData(data=str(tmp_path))
    spec = PruningSpec.of(flops=0.5, compensate="none")
    point = done(library.tasks.measure(DEFAULT, Choice(spec=spec), unlabelled))
    assert isinstance(point, Point)
    assert point.evaluation["accuracy"] is None
    assert 0 <= point.evaluation["agreement"] <= 1
    table, columns = points_table([point])
    assert table["Agreement"].tolist() == [100 * point.evaluation["agreement"], 100.0]
    assert table["Accuracy"].isna().all()
    assert all(name in table and "is better" in columns[name]["help"] for name in ("Agreement", "Relative error", "KL"))
    assert quality([point], text=False).name == "agreement"
    assert quality([measured(library, Choice(spec=spec))], text=False).name == "accuracy"
    shown = {number.label: number.value for number in _classifier_numbers("prune", point.evaluation)}
    assert shown["Agreement"] == f"{100 * point.evaluation['agreement']:.2f}%"
    assert {"Relative error", "KL divergence"} <= shown.keys()
    assert "Accuracy" not in shown
    html = report(library, DEFAULT, point)
    assert "Same answer as the original network" in html
    assert "Confusion matrix" not in html
    # A class to forget is named, and judged, by labels.
    job = library.tasks.forget(DEFAULT, Forgetting(classes=("3",)), TEST, unlabelled)
    assert job.wait(120)
    assert job.state == "error"
    assert job.error is not None
    assert "no labels" in job.error


def test_plans_measured_by_earlier_versions_are_shown(library: Library) -> None:
    point = measured(library, Choice(spec=PruningSpec.of(flops=0.5, compensate="none")))
    names = ("agreement", "relative_error", "kl", "calibration_samples")
    old = point.model_copy(update={"evaluation": {k: v for k, v in point.evaluation.items() if k not in names}})
    table, _ = points_table([old])
    assert table["Agreement"].isna().tolist() == [True, False]
    assert [number.label for number in _classifier_numbers("prune", old.evaluation)][:2] == ["Accuracy", "FLOPs"]
    assert "Same answer" not in report(library, DEFAULT, old)
