"""One pass over unlabelled data, then everything that can be derived from it."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .._files import claim_folder
from .._format import by_reason, listed
from .._operators import flat_weight, get_operator
from ..components import Structure, structure_of
from ..data import Data, made_for, windowed
from ..errors import UserError
from ..models import CausalLM, Model
from ..progress import Progress, silent
from ..statistics import Collected, Partial, collect, process_count, process_rank, share
from ..surgery import verified
from ._blocks import derive_blocks
from ._constants import estimate, usual
from ._layer import LayerStats
from ._types import MANIFEST, STUDY_SCHEMA, Study, read_columns

__all__ = ["CLASS_SAMPLES", "analyze"]

RIDGE = 1e-6
# A class that the network answers less often than this has no table.
CLASS_SAMPLES = 8


def analyze(
    model: Model,
    data: Data,
    samples: int = 512,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    ridge: float = RIDGE,
    constants: Sequence[str] | None = None,
    constant_samples: int | None = None,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Study:
    """Collects the statistics of ``model`` on ``samples`` unlabelled images of ``data`` and derives scores and curves. Of a
    language model samples are windows of tokens, and it goes one decoder block at a time (see
    `modhifi.statistics.collect_blocks`).

    With ``out``, a study of the same weights, data and settings that is already there is opened instead, and a run that was
    interrupted goes on where it was; of a language model it leaves nothing and starts anew. Where `torch.distributed` was
    started, its processes share the images, and the first of them writes the study.

    Args:
        model: the network; it is not changed.
        data: images; labels are not looked at. Those of ``inversion`` are made for ``model`` first, with gradients of its input.
        samples: how many images are drawn, without replacement, by ``seed``; all if there are fewer.
        seed: of the draw and of the positions looked at.
        batch_size: images in one forward pass, 128 by default; of text as many windows as have 8,192 tokens.
        ridge: added to the second moments, relative to the mean of their diagonal.
        constants: estimators of the layers' Lipschitz constants, of `modhifi.lipschitz.ESTIMATORS`. ``directional`` is always
            among them: predictions and global allocation go by it. By default ``jacobian`` too, but not for language models.
            ``none``: no constants, where they would take too long; then global allocation must do without as well.
        constant_samples: how many of the images they are estimated on, 64 (of text 8 windows) by default; directional ones
            take half a forward pass of them for each layer.
        out: a folder to save the study in.
        progress: see `modhifi.progress`.

    Raises:
        UserError: if there are no images, an unknown estimator is asked for, or the network has no component that can be removed,
            or its input produces values that are not finite.
    """
    began = time.perf_counter()
    named, many = usual(model.input)
    constants = tuple(dict.fromkeys(("directional", *(named if constants is None else constants))))
    if "none" in constants:
        constants = ()
    constant_samples = many if constant_samples is None else constant_samples
    if batch_size is None:
        batch_size = 128 if model.tokens is None else model.tokens.at_once
    drawn = windowed(data.take(samples, seed), model)
    if not len(drawn):
        raise UserError(f"{data.spec} has no samples in its {data.split} split")
    key = _key(model, drawn, [seed, batch_size, ridge, list(constants), constant_samples])
    target = None if out is None else Path(out)
    known = None if target is None else _known(target, key)
    if known is not None:
        progress(1, 1, "the same study is already there")
        return known
    if target is not None and process_rank() == 0:
        claim_folder(target, MANIFEST)
    progress(0, 1, "tracing the network")
    structure = structure_of(model)
    if not isinstance(model.module, CausalLM):  # whose groups are written down, not traced
        structure = verified(structure, model.module, model.example(2), progress=progress)
    if not structure.groups:
        reasons = "; ".join(f"{listed(names)}: {reason}" for reason, names in by_reason(structure.skipped).items())
        raise UserError(f"{model.spec} has no components that can be removed ({reasons})")
    groups = {name: read_columns(structure, name) for name in structure.readers}
    drawn = _made(drawn, model, progress)
    numbers = share(len(drawn))
    mine = drawn.part(numbers.start, numbers.stop)

    def batches(start: int) -> Iterator[Tensor]:
        for images, _ in mine.part(start, len(mine)).batches(model.input, batch_size):
            yield images

    if isinstance(model.module, CausalLM):
        study = Study(model.ref, drawn.ref, structure, {}, {}, no_classes(structure), ridge, 0.0, key)
        # Blocks that are finished wait here; in memory only where nothing is to be written.
        waiting = None if target is None else target.with_name(f".{target.name}.parts")
        try:
            derive_blocks(study, model, batches(0), len(drawn), numbers, waiting, progress)
            return _finished(study, model, drawn, constants, constant_samples, began, target, progress)
        finally:
            if waiting is not None and process_rank() == 0:
                shutil.rmtree(waiting, ignore_errors=True)
    partial = None
    if target is not None:
        rank = f".{process_rank()}" if process_count() > 1 else ""
        partial = Partial(target.with_name(f".{target.name}{rank}.partial"), f"{key} {numbers}")
    found = collect(
        model.module,
        groups,
        batches,
        len(drawn),
        seed=seed,
        classes=len(model.classes),
        numbers=numbers,
        partial=partial,
        progress=progress,
    )
    derived = None
    if process_rank() == 0 or target is None:
        derived = _derive(model, drawn, structure, groups, found, ridge, key, progress)
    whole = _finished(derived, model, drawn, constants, constant_samples, began, target, progress)
    if partial is not None:
        partial.clear()
    return whole


def _finished(
    study: Study | None,
    model: Model,
    drawn: Data,
    constants: Sequence[str],
    constant_samples: int,
    began: float,
    target: Path | None,
    progress: Progress,
) -> Study:
    """The first process (all, where nothing is written) estimates constants and writes the study; the others read it."""
    first = process_rank() == 0 or target is None
    if first:
        assert study is not None
        estimate(study, model, drawn, constants, samples=constant_samples, progress=progress)
        study.seconds = time.perf_counter() - began
        if target is not None:
            study.save(target)
    if process_count() > 1:
        torch.distributed.barrier()
    if not first:
        assert target is not None
        return Study.load(target)
    assert study is not None
    return study


def _key(model: Model, drawn: Data, settings: list[object]) -> str:
    """sha256 of all that the study depends on."""
    about = {
        "schema": STUDY_SCHEMA,
        "model": model.ref.model_dump(mode="json"),
        "data": drawn.ref.model_dump(mode="json"),
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _made(drawn: Data, model: Model, progress: Progress) -> Data:
    """`made_for`; of several processes the first makes the images, and the others find them."""
    if process_rank() > 0:
        torch.distributed.barrier()
    made = made_for(drawn, model, progress)
    if process_rank() == 0 and process_count() > 1:
        torch.distributed.barrier()
    return made


def _known(folder: Path, key: str) -> Study | None:
    """The study in ``folder`` if it is of this key and whole."""
    try:
        study = Study.load(folder) if folder.is_dir() else None
    except UserError:
        return None  # damaged, of another version or not a study at all: saving says so if it must not be replaced
    return study if study is not None and study.key == key else None


def _derive(
    model: Model,
    drawn: Data,
    structure: Structure,
    groups: dict[str, dict[str, Tensor]],
    found: Collected,
    ridge: float,
    key: str,
    progress: Progress,
) -> Study:
    layers = {}
    for name, columns in groups.items():
        if not bool(torch.isfinite(found.moments[name].second).all()):
            raise UserError(f"the input of {name} is not finite on this data; check the weights, --mean and --std")
        weight = flat_weight(get_operator(model.module, name)).cpu().float().clone()
        layers[name] = LayerStats(weight, found.moments[name], columns)
    tables = _classes(structure, found)
    study = Study(model.ref, drawn.ref, structure, layers, {}, tables, ridge, 0.0, key)
    study.derive(device=model.device, progress=progress)
    return study


def no_classes(structure: Structure) -> dict[str, Tensor]:
    """`Study.class_fidelity` of a network that has no classes."""
    nothing = {f"class/{group.name}": torch.zeros(0, group.size) for group in structure.groups}
    return {"classes": torch.zeros(0, dtype=torch.int64)} | nothing


def _classes(structure: Structure, found: Collected) -> dict[str, Tensor]:
    """For the classes that were seen often enough, `Study.class_fidelity` of every group."""
    seen = torch.nonzero(found.class_counts >= CLASS_SAMPLES)[:, 0]
    tables = {"classes": seen}
    for group in structure.groups:
        energy = torch.zeros(len(seen), 1, dtype=torch.float64)
        explained = torch.zeros(len(seen), group.size, dtype=torch.float64)
        for consumer in group.consumers:
            name = consumer.layer
            inner, own = found.class_inner[name, group.name][seen], found.class_own[name, group.name][seen]
            explained += torch.where(own > 0, inner.square() / own.clamp(min=1e-300), 0.0)
            energy += found.class_energy[name][seen, None]
        tables[f"class/{group.name}"] = (explained / energy.clamp(min=1e-300)).clamp(0.0, 1.0).float()
    return tables
