"""Whatever happens to a file, it is loaded or refused in one line; nothing else, and nothing that loads fails later.

A few mutants of every kind of file are part of the tests; `make fuzz` goes on for ten minutes (``MODHIFI_FUZZ_SECONDS``). A
failure prints the mutant's name, and ``MODHIFI_FUZZ=study:17`` tries that one alone.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

import modhifi
from app.store import Store
from app.uploads import keep_checkpoint, keep_images
from modhifi import Model, Plan, Study, UserError
from modhifi.models import Family
from modhifi.models._families import _FAMILIES
from modhifi.multimodal import Alone, Epoch, Outcome, Run, Settings, network
from modhifi.pruning import LatencyKey, LatencyTable
from modhifi.specs import InputSpec

from .mutate import Files, mutant

pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS = float(os.environ.get("MODHIFI_FUZZ_SECONDS", "0"))
ONE = os.environ.get("MODHIFI_FUZZ", "")
# `make fuzz` stops a mutant that takes this long; in the tests nothing depends on the machine's speed.
_LONGEST = 60
_SPEC = "fuzz:net"


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Linear(4, 5)
        self.head = nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.a(x))).mean((2, 3))
        return self.head(torch.relu(self.b(x)))


def _build(spec: str, state: Mapping[str, Tensor] | None) -> tuple[nn.Module, InputSpec, tuple[str, ...]]:
    from modhifi.models.checkpoints import rows_of

    count = (None if state is None else rows_of(state, "head.weight")) or 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(count)
    given = InputSpec(size=(6, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return net, given, tuple(map(str, range(count)))


@dataclass
class Target:
    """Files that are mutated, and what is done with those in a folder."""

    files: Files
    use: Callable[[Path], object]
    count: int
    spared: tuple[str, ...] = ()


def read(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def encoded(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), (grey, grey, 9 * grey % 256)).save(buffer, "PNG")
    return buffer.getvalue()


def _pictures() -> Files:
    return {f"{name}/{i}.png": encoded(40 * i + 7 * j) for j, name in enumerate(("cat", "dog")) for i in range(4)}


def _zipped(files: Files) -> bytes:
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    _FAMILIES.register(_SPEC, Family(_SPEC, "a tiny network", lambda spec: spec == _SPEC, _build))
    yield modhifi.load_model(_SPEC, device="cpu")
    del _FAMILIES[_SPEC]


@pytest.fixture(scope="module")
def targets(model: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    made = tmp_path_factory.mktemp("made")
    write(_pictures(), made / "pictures")
    study = modhifi.analyze(model, modhifi.load_data(str(made / "pictures")), constants=["directional"])
    plan = modhifi.prune(study, params=0.7, compensate="full")
    study.save(made / "study")
    for suffix in ("json", "zip"):
        (made / suffix).mkdir()
        plan.save(made / suffix / f"plan.{suffix}")
    small = modhifi.apply(plan, model)
    modhifi.export(small, made / "export")
    (made / "weights").mkdir()
    torch.save(model.module.state_dict(), made / "weights" / "net.pt")
    safetensors.torch.save_file(model.module.state_dict(), made / "weights" / "net.safetensors")
    _table(study, model).save(made / "latency" / "latency.json")
    _run(made / "run")
    found = {
        "plan": Target(read(made / "json"), lambda at: _apply(Plan.load(at / "plan.json"), model), 60),
        "plan-zip": Target(read(made / "zip"), lambda at: _apply(Plan.load(at / "plan.zip"), model), 30),
        "study": Target(read(made / "study"), lambda at: _prune(Study.load(at)), 60),
        "export": Target(read(made / "export"), lambda at: _classify(modhifi.load_model(str(at), device="cpu")), 40),
        "latency": Target(read(made / "latency"), lambda at: _times(LatencyTable.load(at / "latency.json"), study), 60),
        "run": Target(read(made / "run"), _report, 60),
        "checkpoint": Target(read(made / "weights"), _weigh, 60),
        "folder": Target(_pictures(), lambda at: _look(str(at)), 40),
        "parquet": Target(_parquet(), lambda at: _look(str(at / "data.parquet")), 60),
        "npz": Target(_saved(made, "npz"), _feed, 60),
        "npy": Target(_saved(made, "npy"), _feed, 40),
        "arrays": Target(_saved(made, "safetensors"), _feed, 40),
        "arrow": Target(_arrow(), lambda at: _look(str(at)), 60),
        "classes": Target(
            {"names.txt": b"ant\nbee\ncat\n"},
            lambda at: modhifi.load_model(_SPEC, classes=at / "names.txt", device="cpu"),
            40,
        ),
        "text": Target(
            {"text.txt": b"In the beginning\n" * 9}, lambda at: modhifi.load_data(f"text:{at}/text.txt"), 20
        ),
        "upload": Target({"images.zip": _zipped(_pictures())}, _upload, 60),
        "upload-parquet": Target(_parquet(), _upload, 20),
    }
    found["hf"] = Target(_language(made / "hf"), lambda at: modhifi.load_model(f"hf:{at}", device="cpu"), 25)
    return found


def _language(folder: Path) -> Files:
    from transformers import AutoConfig

    from assets.text_llama import byte_tokenizer
    from modhifi.models.language import as_transformers, of_config

    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    free = {"vocab_size": 256, "bos_token_id": None, "eos_token_id": None, "intermediate_size": 8}
    as_transformers(of_config(AutoConfig.for_model("llama", **shape, **free))).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return read(folder)


def _table(study: Study, model: Model) -> LatencyTable:
    counts = [{group.name: max(1, int(group.size * share)) for group in study.groups} for share in (0.5, 1.0)]
    times = {name: [0.5, 1.0] for name in ("", *(layer.name for layer in study.structure.layers))}
    key = LatencyKey(machine="it", device="cpu", threads=1, batch=1, fingerprint=model.fingerprint)
    kinds = ("aligned", "odd")
    return LatencyTable(key=key, counts=dict.fromkeys(kinds, counts), times=dict.fromkeys(kinds, times))


def _run(folder: Path) -> None:
    names, shapes = ("image", "sound"), {"image": (1, 8, 8), "sound": (1, 8, 8)}
    each = dict.fromkeys(names, 0.5)
    history = [Epoch(loss=1.0, accuracy=0.5, mono=each, coefficients=each)]
    run = Run(
        settings=Settings(methods=("joint",), seeds=1, epochs=1),
        about="digits",
        modalities=names,
        classes=tuple("0123456789"),
        shapes=shapes,
        samples={"train": 8, "val": 4, "test": 4},
        alone=[Alone(modality=name, seed=0, history=history, accuracy=0.5) for name in names],
        outcomes=[
            Outcome(method="joint", seed=0, history=history, accuracy=0.5, mono=each, competition=each, seconds=1.0)
        ],
        finished=True,
    )
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run.model_dump(mode="json")))
    net = network("late", shapes, 10, False)
    safetensors.torch.save_file(net.state_dict(), folder / "joint-0.safetensors")


def _parquet() -> Files:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    images = [{"bytes": encoded(30 * i), "path": f"{i}.png"} for i in range(6)]
    table = pa.table({"image": images, "label": [0, 1, 0, 1, 1, 0]})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), buffer)
    return {"data.parquet": buffer.getvalue()}


def _saved(made: Path, suffix: str) -> Files:
    folder = made / suffix
    folder.mkdir()
    x, labels = np.linspace(-1, 1, 8 * 3 * 6 * 6).reshape(8, 3, 6, 6).astype(np.float32), np.arange(8) % 3
    if suffix == "npz":
        np.savez(folder / "a.npz", x=x, labels=labels)
        np.savez_compressed(folder / "b.npz", x=x, labels=labels)
    elif suffix == "npy":
        np.save(folder / "a.npy", x)
    else:
        safetensors.torch.save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(labels)}, folder / "a.safetensors")
    return read(folder)


def _arrow() -> Files:
    (content,) = _parquet().values()
    table = pq.read_table(io.BytesIO(content))
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}
    parts = {"state.json": json.dumps(state).encode(), "data-00000-of-00001.arrow": buffer.getvalue()}
    return {f"train/{name}": part for name, part in parts.items()} | {"dataset_dict.json": b'{"splits": ["train"]}'}


# What is done with a mutant -----------------------------------------------------------------------------------------


def _apply(plan: Plan, model: Model) -> None:
    out = modhifi.apply(plan, model).module(model.example(2))
    assert out.shape == (2, len(model.classes))


def _prune(study: Study) -> None:
    for group in study.groups:
        assert sorted(study.order(group.name)) == list(range(group.size))
        assert all(np.isfinite(values).all() for values in study.scores(group.name).values())
        study.class_fidelity(group.name)
        study.output_fidelity(group.name)
        study.curve(group.name)
    for layer in study.layers:
        assert all(study.constant(layer, estimator) >= 0 for estimator in study.estimators)
        assert study.energy(layer, study.centred) >= 0
    plan = modhifi.prune(study, params=0.8, compensate="full")
    assert plan.groups


def _classify(loaded: Model) -> None:
    out = loaded.module(loaded.example(2))
    assert out.shape == (2, len(loaded.classes))
    assert out.isfinite().all()


def _weigh(at: Path) -> None:
    for name in ("net.pt", "net.safetensors"):
        if (at / name).exists():
            _classify(modhifi.load_model(_SPEC, at / name, device="cpu"))


def _times(table: LatencyTable, study: Study) -> None:
    assert table.dense >= 0
    if table.covers(study.structure):
        assert np.isfinite(table.milliseconds(study.structure, {group.name: 1 for group in study.groups}))


def _report(at: Path) -> None:
    run = Run.load(at)
    run.summary()
    for modality in run.modalities:
        run.reference(modality)
    for one in run.outcomes:
        net = run.network(at, one.method, one.seed)
        net({name: torch.zeros(2, *shape) for name, shape in run.shapes.items()})


def _look(spec: str) -> None:
    data = modhifi.load_data(spec)
    given = InputSpec(size=(6, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    for images, labels in data.batches(given, 4):
        assert images.isfinite().all()
        if labels is not None and labels.ndim == 1:  # of arrays they may be one for each place
            assert data.classes is not None
            assert 0 <= int(labels.min()) <= int(labels.max()) < len(data.classes)


def _feed(at: Path) -> None:
    for path in sorted(at.iterdir()):
        _look(str(path))


def _upload(at: Path) -> None:
    store = Store(at / "home")
    for path in [path for path in at.iterdir() if path.is_file()]:
        content = path.read_bytes()
        keep_checkpoint(store, "net.pt", io.BytesIO(content))
        shutil.rmtree(store.uploads)
        try:
            kept = keep_images(store, path.name, io.BytesIO(content))
        except UserError:
            assert not list(store.uploads.rglob("*")), "a refused upload left something"
            raise
        _look(str(kept))


# Trying -------------------------------------------------------------------------------------------------------------


class _TooLong(BaseException):
    """A mutant that was not done in time; no handler of exceptions may swallow it."""


def _late(*_: Any) -> None:
    raise _TooLong


def attempt(name: str, target: Target, seed: int, folder: Path) -> None:
    """Loads and uses one mutant; fails unless that succeeds or raises a `UserError` of one short printable line."""
    rng = random.Random(f"{name} {seed}")
    files, what = mutant(target.files, rng, target.spared)
    shutil.rmtree(folder, ignore_errors=True)
    write(files, folder)
    what = f"MODHIFI_FUZZ={name}:{seed} ({what:.300})"
    if SECONDS:
        signal.signal(signal.SIGALRM, _late)
        signal.alarm(_LONGEST)
    try:
        target.use(folder)
    except UserError as error:
        text = str(error)
        assert len(text) <= 300, what
        assert text.isprintable(), f"{what}: {text!r}"
        assert text, what
    except (Exception, _TooLong) as error:
        raise AssertionError(f"{what} raised {type(error).__name__}: {error}") from error
    finally:
        if SECONDS:
            signal.alarm(0)


# Mutants that failed once, beyond the first ones; that of parquet ended the process.
KNOWN = {"study": (1070, 1080, 1202), "run": (1074,), "parquet": (1730,)}
NAMES = (
    *("plan", "plan-zip", "study", "export", "latency", "run", "checkpoint", "folder", "parquet", "classes", "text"),
    *("npz", "npy", "arrays", "arrow", "upload", "upload-parquet", "hf"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_loaded_or_refused(name: str, targets: dict[str, Target], tmp_path: Path) -> None:
    if ONE:
        wanted, _, number = ONE.partition(":")
        if wanted == name:
            attempt(name, targets[name], int(number), tmp_path / "it")
        return
    for seed in (*range(targets[name].count), *KNOWN.get(name, ())):
        attempt(name, targets[name], seed, tmp_path / "it")


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_changed_is_loaded(name: str, targets: dict[str, Target], tmp_path: Path) -> None:
    write(targets[name].files, tmp_path / "it")
    targets[name].use(tmp_path / "it")


def test_mutants_depend_on_their_seed_alone(targets: dict[str, Target]) -> None:
    for name, target in targets.items():
        one, other = (mutant(target.files, random.Random(f"{name} 5")) for _ in range(2))
        assert one[1] == other[1]
        assert one[0].keys() == other[0].keys()
    changed = [mutant(targets["study"].files, random.Random(i))[0] != targets["study"].files for i in range(50)]
    assert sum(changed) > 45


@pytest.mark.timeout(0)
@pytest.mark.skipif(not SECONDS, reason="make fuzz goes on for MODHIFI_FUZZ_SECONDS")
def test_for_a_while(targets: dict[str, Target], tmp_path: Path) -> None:
    end, failed = time.monotonic() + SECONDS, []
    for seed, name in ((seed, name) for seed in itertools.count(1000) for name in NAMES):
        if time.monotonic() > end:
            break
        print(f"{name}:{seed}", flush=True)  # noqa: T201 - the last line names a mutant that killed the process
        try:
            attempt(name, targets[name], seed, tmp_path / "it")
        except AssertionError as error:
            failed.append(str(error)[:500])
    assert not failed, f"{len(failed)} of the mutants up to seed {seed} failed:\n" + "\n".join(failed)
