"""A study on real activations: its tables against direct fits, its folder, and what it refuses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import modhifi
from modhifi import Cancelled, Data, Model, Study, UserError
from modhifi.fidelity import crossfitted_error, inverse, subset_fidelity
from modhifi.files import file_sha256
from modhifi.layers import observed, patches
from modhifi.lipschitz import Upper, directional
from modhifi.statistics import Moments, _moments
from modhifi.study import LayerStats, estimate


@pytest.fixture(scope="module")
def rows(digits_model: Model) -> dict[str, np.ndarray]:
    """What two consumers read on the 512 calibration images, all positions, float64."""
    found: dict[str, list[np.ndarray]] = {"layer1.1.conv2": [], "layer3.2.conv2": []}

    def see(name, layer, x, _):
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
    order = digits_study.order(group, "greedy", centred=False)
    keep = order[: size // 4]
    parts = np.stack([x[:, i * 9 : i * 9 + 9] @ w[:, i * 9 : i * 9 + 9].T for i in keep], 2)  # (N, O, k)
    y = x @ w.T
    error = energy = 0.0
    for o in range(len(w)):
        delta, *_ = np.linalg.lstsq(parts[:, o], y[:, o], rcond=None)
        error += ((y[:, o] - parts[:, o] @ delta) ** 2).sum()
        energy += (y[:, o] ** 2).sum()
    assert digits_study.curve(group, "greedy", "scalar", centred=False)[len(keep)] == pytest.approx(
        1 - error / energy, abs=0.02
    )

    columns = np.concatenate([np.arange(i * 9, i * 9 + 9) for i in keep])
    fitted, *_ = np.linalg.lstsq(x[:, columns], y, rcond=None)
    full = 1 - ((y - x[:, columns] @ fitted) ** 2).sum() / (y**2).sum()
    assert digits_study.curve(group, "greedy", "full", centred=False, unseen=False)[len(keep)] == pytest.approx(
        full, abs=0.02
    )

    gram = np.einsum("noi,noj->oij", parts, parts) / len(x)
    assert subset_fidelity(torch.from_numpy(gram), list(range(len(keep)))).shape == (len(w),)


def test_curves_begin_at_zero_end_at_one_and_rise(digits_study: Study) -> None:
    for group in digits_study.groups:
        for order in ("greedy", "fidelity"):
            for centred in (False, True):
                scalar, full, none = (
                    digits_study.curve(group.name, order, level, centred, unseen=False)
                    for level in ("scalar", "full", "none")
                )
                # A group that is all its consumers read starts from nothing.
                if all(len(digits_study.structure.readers[c.layer]) == 1 for c in group.consumers):
                    assert scalar[0] == pytest.approx(0, abs=1e-9)
                    assert full[0] == pytest.approx(0, abs=1e-9)
                else:
                    assert full[0] > 0
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
    with pytest.raises(UserError, match="no group 'nothing'; groups are "):
        digits_study.curve("nothing")
    with pytest.raises(UserError, match=r"did you mean layer1\.0\.conv1"):
        digits_study.curve("layer1.0.conv")


def test_an_edit_makes_the_error_that_the_curve_says(digits_study: Study) -> None:
    group = digits_study.groups[3]
    keep = digits_study.order(group.name, "greedy", centred=True)[:10].tolist()
    for consumer in group.consumers:
        for level in ("scalar", "full"):
            stats = digits_study.layers[consumer.layer]
            edit = stats.edit({group.name: torch.tensor(keep)}, level, True, digits_study.ridge)
            expected = digits_study.errors(group.name, consumer.layer, "greedy", level, True, unseen=False)[10]
            assert stats.error(edit) == pytest.approx(expected, rel=1e-3)


def test_saved_and_loaded_is_the_same(digits_study: Study, tmp_path) -> None:
    folder = digits_study.save(tmp_path / "study")
    again = Study.load(folder)
    assert again.model == digits_study.model
    assert again.data == digits_study.data
    assert again.structure == digits_study.structure
    for estimator, by_layer in digits_study.gains.items():
        for layer, gains in by_layer.items():
            assert torch.equal(again.gains[estimator][layer].stacked(), gains.stacked())
    assert again.tables.keys() == digits_study.tables.keys()
    assert all(torch.equal(again.tables[name], table) for name, table in digits_study.tables.items())
    for name, stats in digits_study.layers.items():
        assert torch.equal(again.layers[name].moments.second, stats.moments.second)
    digits_study.save(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]
    one, other = (modhifi.prune(study, flops=0.5, compensate="full") for study in (again, digits_study))
    assert one.groups == other.groups


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
    tensors, manifest = folder / "study.safetensors", json.loads((folder / "study.json").read_text())
    whole = safetensors.torch.load_file(tensors)
    gains = next(name for name in whole if name.startswith("gain/"))
    for name, value in [
        ("mean/linear", whole["mean/linear"].bfloat16()),
        (gains, -whole[gains]),
        (gains, whole[gains] * math.inf),
        (gains, torch.cat([whole[gains][:1] * 1e-300, whole[gains][1:]])),
        (gains, whole[gains].to(torch.complex64)),
    ]:
        safetensors.torch.save_file(whole | {name: value}, tensors)
        about = manifest["tensors"] | {"sha256": file_sha256(tensors)}
        (folder / "study.json").write_text(json.dumps(manifest | {"tensors": about}))
        with pytest.raises(UserError, match="damaged"):
            Study.load(folder)
    safetensors.torch.save_file(whole, tensors)
    for change in ({"pixels": 1 << 63}, None):
        broken = json.loads(json.dumps(manifest))
        of = broken["structure"]["groups"][0]["consumers"]
        of[:] = [] if change is None else [one | change for one in of]
        (folder / "study.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="damaged"):
            Study.load(folder)
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged"):
        Study.load(folder)
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
    keep = study.order("c", "greedy", centred=True)[:4].tolist()
    edit = study.edit("d", {"c": keep}, "full")
    assert study.constant("d") == pytest.approx(1.0, abs=1e-3)  # d gives the logits: what goes in comes out
    assert study.constant("d", typical=True) == pytest.approx(1.0, abs=1e-3)
    assert float(edit.weight.abs().sum()) > 0
    assert study.constant("b", typical=True) <= study.constant("b")


def test_constants_of_every_kind(chain: Model, pictures: Data, tmp_path: Path) -> None:
    """Asked for, kept, saved, read and named; refused where they are not there."""
    some = modhifi.analyze(chain, pictures, constants=("directional",), constant_samples=20)
    assert {one.samples for one in some.gains["directional"].values()} == {20}
    # Drawn from all of the study's images, in whose order classes may follow each other.
    drawn = torch.cat([batch for batch, _ in pictures.take(20, 0).batches(chain.input)])
    keep = {group.name: some.order(group.name)[: (group.size + 1) // 2].tolist() for group in some.groups}
    edits = {layer: some.edit(layer, keep, "full") for layer in some.layers}
    by_hand = directional(chain.module, edits, drawn)
    assert torch.allclose(some.gains["directional"]["b"].reached, by_hand["b"].reached, rtol=1e-4)
    with pytest.raises(UserError, match="no pairs constants, only directional; analyze with --constants pairs too"):
        some.constant("b", "pairs")
    with pytest.raises(UserError, match="unknown constants 'most'; choose one of directional, jacobian"):
        some.constant("b", "most")
    with pytest.raises(UserError, match="unknown estimator 'most'"):
        modhifi.analyze(chain, pictures, constants=("most",))
    with pytest.raises(UserError, match="at least 2 samples, not 1"):
        modhifi.analyze(chain, pictures, constant_samples=1)
    estimate(some, chain, pictures.take(96, 0), ("jacobian", "random", "pairs", "certified"), samples=20)
    again = Study.load(some.save(tmp_path / "study"))
    assert again.certified == some.certified
    for layer in some.layers:
        exact, upper = again.constant(layer, "jacobian"), again.constant(layer, "certified")
        for name in ("directional", "random", "pairs", "jacobian"):
            assert 0 < again.constant(layer, name, typical=True) <= again.constant(layer, name)
        assert again.constant(layer, "directional") <= upper * (1 + 1e-4)
        assert exact <= upper * (1 + 1e-4)
        assert again.constant(layer, "none") == 1.0
    again.certified["b"] = Upper(value=None, reason="no constant is known for that")
    with pytest.raises(UserError, match="b has no certified constant: no constant is known for that"):
        again.constant("b", "certified")


def test_cancelled_constants_leave_the_study_as_it_was(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)

    def stop(done: int, total: int, what: str) -> None:
        if what.startswith("pairs"):
            raise Cancelled

    with pytest.raises(Cancelled):
        estimate(study, chain, pictures, ("random", "pairs"), progress=stop)
    assert set(study.gains) == {"directional", "jacobian"}


def test_a_layer_that_reads_two_groups_is_refitted_on_what_stays_of_both(
    digits_study: Study, digits_model: Model
) -> None:
    """Against least squares on the covariance, with the lost mean put back."""
    layer = "layer2.1.conv1"
    assert [group.name for group, _ in digits_study.structure.readers[layer]] == ["conv1", "layer2.0.conv2"]
    keep = {"conv1": [0, 3, 4, 9], "layer2.0.conv2": [1, 2, 15], "layer3.0.conv1": [0]}
    edit = digits_study.edit(layer, keep, "full")
    stats = digits_study.layers[layer]
    channels = sorted([8 + i for i in keep["conv1"]] + [[*range(8), *range(24, 32)][i] for i in keep["layer2.0.conv2"]])
    columns = np.concatenate([np.arange(c * 9, c * 9 + 9) for c in channels])
    w, mean = stats.weight.double().numpy(), stats.moments.mean.numpy()
    covariance = stats.moments.second.double().numpy() - np.outer(mean, mean)
    floor = 4 * np.finfo(np.float32).eps * np.linalg.norm(stats.moments.second.double().numpy())
    ridge = digits_study.ridge_of(layer, True)
    covariance += np.eye(len(mean)) * max(ridge * np.trace(covariance) / len(mean), floor)
    fitted = np.linalg.solve(covariance[np.ix_(columns, columns)], (w @ covariance[:, columns]).T).T
    np.testing.assert_allclose(edit.weight[:, columns], fitted, rtol=1e-4, atol=1e-6)
    assert not edit.weight[:, np.setdiff1d(np.arange(288), columns)].any()
    np.testing.assert_allclose(edit.shift, (w - edit.weight.numpy()) @ mean, rtol=1e-6, atol=1e-8)
    # One group alone: its error is the one of the table, in which the other stays whole.
    alone = {"conv1": digits_study.order("conv1")[:7].tolist()}
    expected = digits_study.errors("conv1", layer, "greedy", "full", True, unseen=False)[7]
    refitted = stats.edit({"conv1": torch.tensor(alone["conv1"])}, "full", True, digits_study.ridge)
    assert stats.error(refitted) == pytest.approx(expected, rel=1e-2)
    # On unseen samples, by a fit of its own on each half.
    total = 0.0
    halves = [(stats.moments.seconds[f].double().numpy(), stats.moments.means[f].numpy()) for f in (0, 1)]
    gone = np.concatenate([np.arange((8 + c) * 9, (8 + c) * 9 + 9) for c in range(16) if c not in alone["conv1"]])
    stays = np.setdiff1d(np.arange(288), gone)
    for (second, own), (other, about) in (halves, halves[::-1]):
        train = other - np.outer(about, about)
        train = train + np.eye(288) * max(ridge * np.trace(train) / 288, floor)
        new = np.linalg.solve(train[np.ix_(stays, stays)], (w @ train[:, stays]).T).T
        delta = w.copy()
        delta[:, stays] -= new
        judge = second - np.outer(own, own) + np.outer(own - about, own - about)
        total += np.trace(delta @ judge @ delta.T) / 2 * stats.moments.positions
    assert digits_study.errors("conv1", layer, "greedy", "full", True)[7] == pytest.approx(total, rel=1e-6)
    scalar = digits_study.edit(layer, keep, "scalar").weight
    ratio = (scalar / stats.weight).reshape(32, 32, 9)[:, channels]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-4, atol=1e-6)


def test_a_wide_layer_gets_one_scalar_a_component(
    chain: Model, pictures: Data, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """80 inputs are too many here: what the study says of them is fitted on the contributions themselves."""
    monkeypatch.setattr(_moments, "MAX_INPUTS", 60)
    study = modhifi.analyze(chain, pictures, out=tmp_path / "study")
    stats = study.layers["c"]
    assert stats.wide
    assert stats.moments.second.shape == (5, 5)
    seen = []
    with torch.inference_mode(), observed(chain.module, ["c"], lambda *see: seen.append(see[2].double())):
        for images, _ in pictures.batches(chain.input):
            chain.module(images)
    x, w = torch.cat(seen), chain.module.c.weight.double()
    each = torch.stack([x[:, i * 16 : i * 16 + 16] @ w[:, i * 16 : i * 16 + 16].T for i in range(5)], 2)  # (N, O, C)
    raw, each = each, each - each.mean(0)
    flat, target = each.reshape(-1, 5).numpy(), each.sum(2).reshape(-1).numpy()
    order = study.order("b").tolist()
    for size in (1, 2, 4):
        keep = order[:size]
        delta, *_ = np.linalg.lstsq(flat[:, keep], target, rcond=None)
        error = ((target - flat[:, keep] @ delta) ** 2).sum() / len(x)
        assert study.errors("b", "c", "greedy", "full", True, unseen=False)[size] == pytest.approx(error, rel=1e-3)
        edit = stats.edit({"b": torch.tensor(keep)}, "full", True, study.ridge)
        np.testing.assert_allclose(
            (edit.weight / w).reshape(7, 5, 16)[:, keep].numpy(),
            np.broadcast_to(delta[None, :, None], (7, size, 16)),
            rtol=1e-2,
        )
        assert stats.error(edit) == pytest.approx(error, rel=1e-2)
        with torch.no_grad():
            lost = x @ (edit.weight - w).T + edit.shift
        assert float(lost.square().sum(1).mean()) == pytest.approx(error, rel=1e-2)
        # On unseen samples: the scalars of one half, on the other.
        halves, unseen = [x[0::2], x[1::2]], 0.0
        for one, other in (halves, halves[::-1]):
            parts = [
                torch.stack([half[:, i * 16 : i * 16 + 16] @ w[:, i * 16 : i * 16 + 16].T for i in range(5)], 2)
                - (other.mean(0).reshape(5, 16)[None] * w.reshape(7, 5, 16)).sum(2)
                for half in (other, one)
            ]
            fitted, judged = (part.reshape(-1, 5).numpy() for part in parts)
            delta, *_ = np.linalg.lstsq(fitted[:, keep], fitted.sum(1), rcond=None)
            unseen += np.square(judged.sum(1) - judged[:, keep] @ delta).sum() / len(x)
        found = crossfitted_error(stats.folds(True, study.ridge), torch.ones(1, 5), stats.blocks("b"), keep)
        assert found * stats.moments.positions == pytest.approx(unseen, rel=0.01)
    again = Study.load(tmp_path / "study")
    assert again.layers["c"].wide
    plan = modhifi.prune(again, overrides={"b": 3}, compensate="full")
    example = chain.example(4)
    torch.testing.assert_close(
        modhifi.apply(plan, chain).module(example), modhifi.apply(plan, chain, masked=True).module(example)
    )
    none = study.errors("b", "c", "greedy", "none", True)
    assert none[5] == 0.0
    assert none[3] == pytest.approx(float(raw[:, :, order[3:]].sum(2).square().sum(1).mean()), rel=1e-3)


def test_the_same_analysis_is_not_done_twice(chain: Model, pictures: Data, tmp_path) -> None:
    folder = tmp_path / "study"
    first = modhifi.analyze(chain, pictures, out=folder)
    seen: list[str] = []
    again = modhifi.analyze(chain, pictures, out=folder, progress=lambda *told: seen.append(told[2]))
    assert seen == ["opening the existing study"]
    assert again.key == first.key
    assert torch.equal(again.layers["b"].moments.second, first.layers["b"].moments.second)
    for changes in ({"seed": 1}, {"samples": 50}, {"ridge": 1e-3}):
        other = modhifi.analyze(chain, pictures, out=folder, **changes)
        assert other.key != first.key
    chain.module.d.bias += 1
    chain.fingerprint = modhifi.models.fingerprint(chain.module)
    assert modhifi.analyze(chain, pictures, out=folder).key != first.key
    # What is damaged is made anew.
    (folder / "study.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged"):
        Study.load(folder)
    assert modhifi.analyze(chain, pictures, out=folder).key == Study.load(folder).key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]


def test_cancelled_while_collecting_and_taken_up_again(chain: Model, pictures: Data, tmp_path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what == "collecting statistics" and done == 64:
            raise Cancelled

    folder = tmp_path / "study"
    with pytest.raises(Cancelled):
        modhifi.analyze(chain, pictures, out=folder, batch_size=16, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == [".study.partial"]
    seen: list[int] = []

    def note(done: int, total: int, what: str) -> None:
        if what == "collecting statistics":
            seen.append(done)

    again = modhifi.analyze(chain, pictures, out=folder, batch_size=16, progress=note)
    assert seen[0] == 64
    whole = modhifi.analyze(chain, pictures, batch_size=16)
    for name, stats in whole.layers.items():
        assert torch.equal(again.layers[name].moments.second, stats.moments.second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]


def test_class_tables_of_the_default(digits_study: Study) -> None:
    for group in digits_study.groups:
        classes, table = digits_study.class_fidelity(group.name)
        assert classes.tolist() == list(range(10))
        assert table.shape == (10, group.size)
        assert ((table >= 0) & (table <= 1)).all()
        assert table.std() > 0.001


def test_class_fidelity_is_that_of_the_samples_taken_for_the_class(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)
    classes, table = study.class_fidelity("c")  # read by d alone, at its only position
    seen = []
    with (
        torch.inference_mode(),
        observed(chain.module, ["d"], lambda *see: seen.append((see[2].double(), see[3].double()))),
    ):
        for images, _ in pictures.batches(chain.input):
            chain.module(images)
    x = torch.cat([part for part, _ in seen])
    answers = torch.cat([part for _, part in seen]).argmax(1)
    weight = chain.module.d.weight.double()
    assert classes.tolist() == [k for k in range(4) if int((answers == k).sum()) >= 8]
    for row, k in enumerate(classes.tolist()):
        y = x[answers == k] @ weight.T
        each = x[answers == k][:, :, None] * weight.T
        expected = (
            (each * y[:, None]).sum((0, 2)).square() / each.square().sum((0, 2)).clamp(min=1e-300) / y.square().sum()
        )
        np.testing.assert_allclose(table[row], expected, rtol=1e-4, atol=1e-6)


def test_a_large_constant_in_the_input_leaves_the_covariance_positive() -> None:
    """Float32 sums lose what is small beside the mean; the ridge must cover that."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        rows = 200 + torch.randn(960, 96, generator=generator) * 10 ** torch.linspace(-4, 0, 96)
        second = torch.zeros(96, 96)
        for batch in rows.split(60):
            second.addmm_(batch.T, batch)
        moments = Moments((second / 960)[None], rows.double().mean(0)[None], (960,), 10)
        stats = LayerStats(torch.randn(8, 96, generator=generator), moments, {})
        assert bool(torch.isfinite(inverse(stats.moment_and_weight(True, 1e-6)[0])).all())


def test_opening_a_study_again_sweeps_what_its_analysis_left_and_nothing_else(
    chain: Model, pictures: Data, tmp_path: Path
) -> None:
    """A process that died between saving the study and removing its sums."""
    modhifi.analyze(chain, pictures, 16, constants=["none"], out=tmp_path / "st")
    for name in (".st.partial", ".st.1.partial", ".study.partial", ".st.0123456789abcdef.tmp"):
        (tmp_path / name).write_text("")
    modhifi.analyze(chain, pictures, 16, constants=["none"], out=tmp_path / "st")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".study.partial", "st"]
