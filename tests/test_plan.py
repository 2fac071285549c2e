"""A plan on disk: carried, checked, refused."""

import json
import zipfile

import pytest
import torch

import modhifi
from modhifi import Plan, Study, UserError


@pytest.fixture(scope="module")
def plan(digits_study: Study) -> Plan:
    return modhifi.prune(digits_study, flops=0.5, compensate="full")


@pytest.mark.parametrize("name", ["plan.json", "plan.zip"])
def test_carried(plan: Plan, tmp_path, name: str) -> None:
    again = Plan.load(plan.save(tmp_path / name))
    assert again.model_dump(exclude={"tensor_file"}) == plan.model_dump(exclude={"tensor_file"})
    assert again.tensors.keys() == plan.tensors.keys()
    assert all(torch.equal(again.tensors[key], value) for key, value in plan.tensors.items())
    expected = {"plan.zip"} if name == "plan.zip" else {"plan.json", "plan.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == expected


def test_the_json_is_what_the_contract_says(plan: Plan, tmp_path) -> None:
    content = json.loads(plan.save(tmp_path / "plan.json").read_text())
    assert content["schema_version"] == 3
    assert content["model"]["spec"] == "digits-resnet20"
    assert len(content["model"]["fingerprint"]) == 64
    assert set(content["groups"]["layer1.0.conv1"]) == {"total", "keep"}
    assert content["settings"]["compensate"] == "full"
    assert content["tensor_file"]["file"] == "plan.safetensors"


def test_a_plan_without_tensors_is_one_file(digits_study: Study, tmp_path) -> None:
    modhifi.prune(digits_study, flops=0.5, compensate="none").save(tmp_path / "plan.json")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_damage_is_noticed(plan: Plan, tmp_path) -> None:
    path = plan.save(tmp_path / "plan.json")
    tensors = tmp_path / "plan.safetensors"
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
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["plan.json", "plan.safetensors"]
