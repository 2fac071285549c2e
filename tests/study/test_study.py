"""A study on real activations: its tables against direct fits, its folder, and what it refuses."""

import json

import numpy as np
import pytest
import torch

import modhifi
from modhifi import Cancelled, Data, Model, Study, UserError
from modhifi._operators import observed, patches
from modhifi.fidelity import subset_fidelity


@pytest.fixture(scope="module")
def rows(digits_model: Model) -> dict[str, np.ndarray]:
    """What two consumers read on the 512 calibration images, all positions, float64."""
    found: dict[str, list[np.ndarray]] = {"layer1.1.conv2": [], "layer3.2.conv2": []}

    def see(name, layer, x):
        found[name].append(patches(layer, x).double().numpy())

    with torch.inference_mode(), observed(digits_model.module, found, see):
        for images, _ in modhifi.load_data("digits").batches(digits_model.input):
            digits_model.module(images)
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("layer", ["layer1.1.conv2", "layer3.2.conv2"])
def test_fidelity_on_real_activations_against_a_least_squares_fit(
    digits_study: Study, rows: dict[str, np.ndarray], layer: str
) -> None:
    """Def. 3.1 fitted on the activations themselves; the study saw a part of the positions."""
    group = layer.replace("conv2", "conv1")
    x, w = rows[layer], digits_study.layers[layer].weight.double().numpy()
    size = digits_study.group(group).size
    order = digits_study.order(group, "greedy")
    keep = order[: size // 4]
    parts = np.stack([x[:, i * 9 : i * 9 + 9] @ w[:, i * 9 : i * 9 + 9].T for i in keep], 2)  # (N, O, k)
    y = x @ w.T
    error = energy = 0.0
    for o in range(len(w)):
        delta, *_ = np.linalg.lstsq(parts[:, o], y[:, o], rcond=None)
        error += ((y[:, o] - parts[:, o] @ delta) ** 2).sum()
        energy += (y[:, o] ** 2).sum()
    assert digits_study.curve(group, "greedy", "scalar")[len(keep)] == pytest.approx(1 - error / energy, abs=0.02)

    columns = np.concatenate([np.arange(i * 9, i * 9 + 9) for i in keep])
    fitted, *_ = np.linalg.lstsq(x[:, columns], y, rcond=None)
    full = 1 - ((y - x[:, columns] @ fitted) ** 2).sum() / (y**2).sum()
    assert digits_study.curve(group, "greedy", "full")[len(keep)] == pytest.approx(full, abs=0.02)

    gram = np.einsum("noi,noj->oij", parts, parts) / len(x)
    assert subset_fidelity(torch.from_numpy(gram), list(range(len(keep)))).shape == (len(w),)


def test_curves_begin_at_zero_end_at_one_and_rise(digits_study: Study) -> None:
    for group in digits_study.groups:
        for order in ("greedy", "naive"):
            for centred in (False, True):
                scalar = digits_study.curve(group.name, order, "scalar", centred)
                full = digits_study.curve(group.name, order, "full", centred)
                none = digits_study.curve(group.name, order, "none", centred)
                assert scalar[0] == pytest.approx(0, abs=1e-9)
                assert full[0] == pytest.approx(0, abs=1e-9)
                assert none[-1] == scalar[-1] == full[-1] == 1.0
                assert (np.diff(scalar) >= -1e-9).all()
                assert (np.diff(full) >= -1e-9).all()
                assert (full >= scalar - 1e-6).all()
                assert (scalar >= none - 1e-6).all()


def test_hifi_size_is_where_the_curve_crosses(digits_study: Study) -> None:
    name = digits_study.groups[4].name
    curve = digits_study.curve(name)
    size = digits_study.hifi_size(name, 0.8)
    assert curve[size] >= 0.8 > curve[size - 1]
    assert digits_study.hifi_size(name, 1.0) == digits_study.group(name).size
    for eta in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="eta"):
            digits_study.hifi_size(name, eta)
    with pytest.raises(UserError, match="no group 'nothing'"):
        digits_study.curve("nothing")


def test_an_edit_makes_the_error_that_the_curve_says(digits_study: Study) -> None:
    group = digits_study.groups[3]
    (consumer,) = group.consumers
    stats = digits_study.layers[consumer.layer]
    keep = digits_study.order(group.name, "greedy", centred=True)[:10].tolist()
    for level in ("scalar", "full"):
        edit = digits_study.edit(consumer, keep, level)
        expected = digits_study.errors(consumer.layer, "greedy", level, True)[10]
        assert stats.error(edit) == pytest.approx(expected, rel=1e-3)


def test_saved_and_loaded_is_the_same(digits_study: Study, tmp_path) -> None:
    folder = digits_study.save(tmp_path / "study")
    again = Study.load(folder)
    assert again.model == digits_study.model
    assert again.data == digits_study.data
    assert again.structure == digits_study.structure
    assert again.gains == digits_study.gains
    assert again.tables.keys() == digits_study.tables.keys()
    assert all(torch.equal(again.tables[name], table) for name, table in digits_study.tables.items())
    for name, stats in digits_study.layers.items():
        assert torch.equal(again.layers[name].moments.second, stats.moments.second)
    digits_study.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]
    assert modhifi.prune(again, flops=0.5).groups == modhifi.prune(digits_study, flops=0.5).groups


def test_a_damaged_or_foreign_folder_is_refused(digits_study: Study, tmp_path) -> None:
    folder = digits_study.save(tmp_path / "study")
    with pytest.raises(UserError, match="modhifi analyze"):
        Study.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no study\.json"):
        Study.load(tmp_path / "empty")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other files"):
        digits_study.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    tensors = folder / "study.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        Study.load(folder)
    manifest = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema 99"):
        Study.load(folder)
    (folder / "study.json").write_text("{")
    with pytest.raises(UserError, match="does not parse"):
        Study.load(folder)


def test_cancelled_half_way_leaves_nothing(chain: Model, pictures: Data, tmp_path) -> None:
    seen: list[str] = []

    def progress(done: int, total: int, what: str) -> None:
        seen.append(what)
        if what.startswith("deriving"):
            raise Cancelled

    with pytest.raises(Cancelled):
        modhifi.analyze(chain, pictures, out=tmp_path / "study", progress=progress)
    assert not list(tmp_path.iterdir())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in chain.module.modules())
    assert "collecting statistics" in seen


def test_what_cannot_be_analysed(chain: Model, pictures: Data) -> None:
    with pytest.raises(UserError, match="at least 1"):
        modhifi.analyze(chain, pictures, samples=0)
    chain.module.a.weight[0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        modhifi.analyze(chain, pictures)


def test_gains_are_what_running_the_network_gives(chain: Model, pictures: Data) -> None:
    """The directional constant of the last layer of a chain, against two plain forward passes."""
    study = modhifi.analyze(chain, pictures)
    group = study.group("c")
    (consumer,) = group.consumers
    keep = study.order("c", "greedy", centred=True)[:4].tolist()
    edit = study.edit(consumer, keep, "full")
    assert study.gains["d"].maximum == pytest.approx(1.0, abs=1e-3)  # d gives the logits: what goes in comes out
    assert study.gains["d"].rms == pytest.approx(1.0, abs=1e-3)
    assert float(edit.weight.abs().sum()) > 0
    assert study.gains["b"].rms <= study.gains["b"].maximum
