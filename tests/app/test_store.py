"""The cache on disk: what is written is read again by another process, and damage is left out rather than fatal."""

from pathlib import Path

import pytest
import torch

from app.model_form import source_from
from app.selection import DEFAULT, Choice, LabelledData, Source, distinct
from app.store import BoundPoint, Point, Store
from modhifi.bounds import BoundReport
from modhifi.errors import UserError
from modhifi.plan import GroupPlan, Plan, Settings
from modhifi.specs import DataRef, InputSpec, ModelRef, PruningSpec

EVALUATION = {"accuracy": 0.97, "accuracy_before": 0.99, "flops": 50, "flops_before": 100, "samples": 500}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def plan() -> Plan:
    model = ModelRef(
        spec="digits-resnet20",
        weights=None,
        fingerprint="0" * 64,
        input=InputSpec(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1)),
        classes=("0", "1"),
    )
    data = DataRef(spec="digits", root=None, split="calibration", samples=8, seed=0, fingerprint="1" * 64)
    groups = {"layer1.0.conv1": GroupPlan(total=4, keep=[0, 2])}
    plan = Plan(kind="prune", model=model, calibration=data, settings=Settings(), groups=groups)
    return plan.with_tensors({"weight": torch.arange(6.0).reshape(2, 3)})


def point(name: str = "prune-1", made: float = 1.0) -> Point:
    return Point(
        id=name,
        kind="prune",
        label="half",
        measured_on=LabelledData(),
        evaluation=EVALUATION,
        choice=Choice(),
        made=made,
    )


def test_points_survive_a_restart(store: Store, plan: Plan) -> None:
    study = store.remember(DEFAULT)
    store.add_point(study, point("prune-2", made=2.0), plan)
    store.add_point(study, point("prune-1", made=1.0), plan)
    after = Store(store.root)
    assert [p.id for p in after.points(study)] == ["prune-1", "prune-2"]
    assert after.points(study)[0] == point()
    assert after.points(study, "unlearn") == []
    again = after.plan(study, "prune-1")
    assert again.groups == plan.groups
    assert torch.equal(again.tensors["weight"], plan.tensors["weight"])


def test_a_point_measured_again_replaces_itself_and_what_was_built_from_it(store: Store, plan: Plan) -> None:
    study = store.remember(DEFAULT)
    store.add_point(study, point(made=1.0), plan)
    built = store.point_folder(study, "prune-1") / "safetensors.zip"
    built.write_bytes(b"old")
    store.add_point(study, point(made=3.0), plan)
    assert [p.made for p in store.points(study)] == [3.0]
    assert not built.exists()
    store.note(study, "prune-1", "agreed with Ada")
    store.add_point(study, point(made=4.0), plan)
    assert [(p.made, p.note) for p in store.points(study)] == [(4.0, "agreed with Ada")]
    assert store.plan(study, "prune-1").note == "agreed with Ada"
    store.delete_point(study, "prune-1")
    assert store.points(study) == []


def test_the_oldest_of_two_with_the_same_words_keeps_them() -> None:
    said = distinct([3, 2, 13, 1], lambda value: str(value % 10), lambda value: f"number {value}")
    assert said == {"3 (number 3)": 3, "2": 2, "3": 13, "1": 1}
    assert list(said.values()) == [3, 2, 13, 1]


def test_what_was_written_down_damaged_is_written_again(store: Store) -> None:
    study = store.remember(DEFAULT)
    (store.folder(study) / "source.json").write_text("{")
    assert store.sources() == {}
    store.remember(DEFAULT)
    assert store.sources() == {study: DEFAULT}


@pytest.mark.parametrize("path", ["~nobody-at-all/x", "a" * 5000, "a\0b"])
def test_a_path_that_cannot_be_one_is_not_there(path: str) -> None:
    asked = Source(weights=path)
    assert asked.id
    with pytest.raises(UserError, match="no checkpoint at"):
        asked.checked()
    with pytest.raises(UserError):
        source_from({"model": "digits-resnet20", "data": "digits", "weights": path, "samples": 8, "seed": 0})


def test_bounds_are_kept_from_much_that_remains_to_little(store: Store, plan: Plan) -> None:
    study = store.remember(DEFAULT)
    report = BoundReport(
        data=plan.calibration,
        samples=8,
        rows=[],
        bound=2,
        predicted=3,
        measured=1,
        tightness=2,
        slack_maximum=2,
        slack_sum=1,
        median_tightness=None,
        logits=5,
        grains={},
    )
    for remain in (0.3, 0.8):
        bound = BoundPoint(
            id=f"b{remain}",
            label="half",
            choice=Choice(spec=PruningSpec.of(flops=remain)),
            measured_on=LabelledData(),
            report=report,
        )
        store.add_bound(study, bound)
    again = Store(store.root).bounds(study)
    assert [b.choice.remain for b in again] == [0.8, 0.3]
    assert again[0].report == report


def test_sources_are_remembered_and_damage_is_left_out(store: Store, plan: Plan) -> None:
    study = store.remember(Source(samples=64))
    store.remember(DEFAULT)
    assert store.sources()[study] == Source(samples=64)
    assert not store.has_study(study)
    (store.folder(study) / "source.json").write_text("{")
    assert list(store.sources()) == [DEFAULT.id]
    store.add_point(DEFAULT.id, point(), plan)
    (store.point_folder(DEFAULT.id, "prune-1") / "point.json").write_text('{"id": 1}')
    assert store.points(DEFAULT.id) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 200])
def test_names_from_the_address_stay_inside_the_folder(store: Store, name: str) -> None:
    with pytest.raises(UserError):
        store.folder(name)
    with pytest.raises(UserError):
        store.point_folder("study", name)


def test_the_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODHIFI_HOME", str(tmp_path / "here"))
    assert Store().root == tmp_path / "here"


def test_a_study_has_its_own_name_for_everything_it_depends_on(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    sources = [
        DEFAULT,
        Source(samples=64),
        Source(seed=1),
        Source(data="cifar10", root=str(tmp_path)),
        Source(model="cifar10-resnet20"),
        Source(weights=str(weights)),
    ]
    names = [source.id for source in sources]
    weights.write_bytes(b"another")
    names.append(Source(weights=str(weights)).id)
    assert len(set(names)) == len(names)
    assert Source().id == DEFAULT.id


def test_a_file_that_is_not_there_is_said_before_a_job_is_started(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        Source(weights=str(tmp_path / "none.pth")).checked()
    with pytest.raises(UserError, match="no data at"):
        Source(data="cifar10", root=str(tmp_path / "none")).checked()
    assert DEFAULT.checked() is DEFAULT
