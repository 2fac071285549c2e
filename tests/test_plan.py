"""A plan on disk: carried, checked, refused."""

import hashlib
import json
import threading
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

import modhifi
from modhifi import Plan, Study, UserError


@pytest.fixture(scope="module")
def plan(digits_study: Study) -> Plan:
    return modhifi.prune(digits_study, flops=0.5, compensate="full")


def tensors_of(folder: Path) -> Path:
    (file,) = folder.glob("plan.*.safetensors")
    return file


@pytest.mark.parametrize("name", ["plan.json", "plan.zip"])
def test_carried(plan: Plan, tmp_path, name: str) -> None:
    again = Plan.load(plan.save(tmp_path / name))
    assert again.model_dump(exclude={"tensor_file"}) == plan.model_dump(exclude={"tensor_file"})
    assert again.tensors.keys() == plan.tensors.keys()
    assert all(torch.equal(again.tensors[key], value) for key, value in plan.tensors.items())
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == (["plan.zip"] if name == "plan.zip" else [tensors_of(tmp_path).name, "plan.json"])


def test_the_json_is_what_the_contract_says(plan: Plan, tmp_path) -> None:
    content = json.loads(plan.save(tmp_path / "plan.json").read_text())
    assert content["schema_version"] == 3
    assert content["model"]["spec"] == "digits-resnet20"
    assert len(content["model"]["fingerprint"]) == 64
    assert set(content["groups"]["layer1.0.conv1"]) == {"total", "keep"}
    assert content["settings"]["compensate"] == "full"
    digest = hashlib.sha256(tensors_of(tmp_path).read_bytes()).hexdigest()
    assert content["tensor_file"] == {"file": f"plan.{digest[:12]}.safetensors", "sha256": digest}


def test_a_plan_without_tensors_is_one_file(digits_study: Study, tmp_path) -> None:
    modhifi.prune(digits_study, flops=0.5, compensate="none").save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_damage_is_noticed(plan: Plan, tmp_path) -> None:
    path = plan.save(tmp_path / "plan.json")
    tensors = tensors_of(tmp_path)
    content = json.loads(path.read_text())
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="sha256 differs"):
        Plan.load(path)
    tensors.unlink()
    with pytest.raises(UserError, match="keep both files together"):
        Plan.load(path)
    for change, message in [
        ({"schema_version": 7}, "schema 7"),
        ({"kind": "magic"}, "kind"),
        ({"groups": {"a": {"total": 3, "keep": []}}}, "keep"),
        ({"extra": 1}, "extra"),
    ]:
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message):
            Plan.load(path)
    for text, message in [("[]", "no schema_version"), ("{", "does not parse"), ("\xff", "does not parse")]:
        path.write_bytes(text.encode("latin1"))
        with pytest.raises(UserError, match=message):
            Plan.load(path)
    with pytest.raises(UserError, match="does not exist"):
        Plan.load(tmp_path / "nothing.json")
    with pytest.raises(UserError, match="is a folder"):
        Plan.load(tmp_path)
    with pytest.raises(UserError, match=r"\.json or \.zip"):
        plan.save(tmp_path / "plan.txt")


def test_zips_that_are_not_plans(plan: Plan, tmp_path) -> None:
    path = tmp_path / "plan.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(UserError, match="damaged or not a plan"):
        Plan.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../plan.json", "{}")
    with pytest.raises(UserError, match="0 JSON files"):
        Plan.load(path)
    with pytest.raises(UserError, match="does not exist"):
        Plan.load(tmp_path / "nothing.zip")


def test_nothing_is_left_of_a_write_that_failed(plan: Plan, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plan.save(tmp_path / "plan.json")
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        plan.save(path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [tensors_of(tmp_path).name, "plan.json"]


def test_a_file_of_somebody_else_is_never_replaced(plan: Plan, tmp_path: Path) -> None:
    """Neither the checkpoint that has the plan's name, nor a JSON that is no plan."""
    theirs = {"mynet.safetensors": b"precious", "mynet.0123456789ab.safetensors": b"too", "notes.json": b'{"a": 1}'}
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
    plan.save(tmp_path / "mynet.json")
    plan.save(tmp_path / "mynet.json")
    with pytest.raises(UserError, match="not a plan and was not replaced"):
        plan.save(tmp_path / "notes.json")
    assert {name: (tmp_path / name).read_bytes() for name in theirs} == theirs
    assert len(list(tmp_path.iterdir())) == 5


def test_the_tensors_of_a_plan_leave_with_it(plan: Plan, tmp_path: Path) -> None:
    path = plan.save(tmp_path / "plan.json")
    first = tensors_of(tmp_path)
    changed = plan.with_tensors({name: value + 1 for name, value in plan.tensors.items()})
    changed.save(path)
    assert tensors_of(tmp_path) != first
    plan.with_tensors({}).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    # As an earlier version named it.
    blob = safetensors.torch.save(plan.tensors)
    content = json.loads(path.read_text())
    content["tensor_file"] = {"file": "plan.safetensors", "sha256": hashlib.sha256(blob).hexdigest()}
    path.write_text(json.dumps(content))
    (tmp_path / "plan.safetensors").write_bytes(blob)
    assert Plan.load(path).tensors.keys() == plan.tensors.keys()
    plan.save(path)
    assert not (tmp_path / "plan.safetensors").exists()


def test_a_reader_beside_a_writer_never_sees_a_torn_plan(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    kinds = [plan.with_tensors({"x": torch.full((1000,), float(number))}) for number in range(2)]
    for number, kind in enumerate(kinds):
        kind.note = str(number)
    kinds[0].save(path)
    done = threading.Event()

    def write() -> None:
        for number in range(60):
            kinds[number % 2].save(path)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        found = Plan.load(path)
        assert found.tensors["x"].tolist() == [float(found.note)] * 1000
        seen.add(found.note)
    writer.join()
    assert seen
