"""`analyze`: one pass over unlabelled data, then scores, curves and Lipschitz constants derived from it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..components import Structure, structure_of
from ..data import Data, in_memory, prepare, windowed
from ..errors import UserError
from ..files import claim_folder, sweep, temporary
from ..layers import flat_weight, get_operator
from ..models import CausalLM, Model
from ..progress import Progress, silent
from ..statistics import FOLDS, Collected, Partial, collect, process_count, process_rank, share
from ..surgery import verified
from ..text import listed
from ._blocks import derive_blocks
from ._constants import estimate, usual
from ._folder import FOLDER, STUDY_SCHEMA, read_columns
from ._layer import LayerStats
from ._study import Study

__all__ = ["CLASS_SAMPLES", "analyze"]

RIDGE = 1e-6
# Classes predicted for fewer samples than this get no table.
CLASS_SAMPLES = 8


def analyze(
    model: Model,
    data: Data | Any,
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
    """Collects the statistics of ``model`` on ``samples`` samples of ``data`` and derives scores and curves.

    A sample is an image or, for a language model, a window of tokens; language models are analysed one decoder block at a time
    (see `modhifi.statistics.collect_blocks`).

    With ``out``, an existing study of the same weights, data and settings is opened instead, and an interrupted analysis
    resumes where it stopped (language models start over). If `torch.distributed` is initialised, its processes share the
    samples and the first one writes the study.

    Args:
        model: the network; it is not modified.
        data: samples, from `modhifi.load_data` or as in `modhifi.data.in_memory` a tensor, a torch ``Dataset`` or a
            ``DataLoader``; labels are ignored. Images of ``inversion`` are first synthesised for ``model``, which takes gradients
            with respect to its input.
        samples: number of samples, drawn without replacement; all if there are fewer.
        seed: seed of the draw of samples and of positions.
        batch_size: samples per forward pass; by default 128 images, or as many windows as hold 8,192 tokens.
        ridge: added to the diagonal of the second moments, relative to its mean.
        constants: estimators of the layers' Lipschitz constants, from `modhifi.lipschitz.estimators`. ``directional`` is always
            included, because predictions and global allocation use it; ``jacobian`` is added by default, except for language
            models. ``none`` skips the constants where they would take too long; pruning then needs constants ``none`` too.
        constant_samples: number of samples for the constants; by default 64 images or 8 windows. Directional constants cost
            half a forward pass of these samples per layer.
        out: the folder to save the study in.
        progress: see `modhifi.progress`.

    Raises:
        UserError: if there are no samples, an estimator is unknown, no component of the network can be removed, or the input of
            a layer is not finite.
    """
    began = time.perf_counter()
    named, many = usual(model.input)
    constants = tuple(dict.fromkeys(("directional", *(named if constants is None else constants))))
    if "none" in constants:
        constants = ()
    constant_samples = many if constant_samples is None else constant_samples
    if constants and constant_samples < 2:
        raise UserError(f"constants need at least 2 samples, not {constant_samples}; constants none skips them")
    if batch_size is None:
        batch_size = 128 if model.tokens is None else model.tokens.at_once
    data = in_memory(data)
    drawn = windowed(data.take(samples, seed), model)
    if not len(drawn):
        raise UserError(f"{data.spec} has no samples in its {data.split} split; choose another split or other data")
    if len(drawn) < FOLDS:
        raise UserError(
            f"an analysis needs at least {FOLDS} samples: what is fitted on one is judged on another; use more"
        )
    key = _key(model, drawn, [seed, batch_size, ridge, list(constants), constant_samples])
    target = None if out is None else Path(out)
    known = None if target is None else _known(target, key)
    if known is not None and target is not None:
        progress(1, 1, "opening the existing study")
        if process_rank() == 0:
            sweep(target)
            for left in target.parent.iterdir():
                if re.fullmatch(rf"\.{re.escape(target.name)}(\.\d+)?\.partial", left.name):
                    left.unlink(missing_ok=True)
        return known
    if target is not None and process_rank() == 0:
        claim_folder(target, FOLDER)
    progress(0, 1, "tracing the network")
    structure = structure_of(model)
    if not isinstance(model.module, CausalLM):  # its groups follow from layer names and need no verification
        structure = verified(structure, model.module, model.example(2), progress=progress)
    if not structure.groups:
        reasons = "; ".join(f"{listed(names)}: {reason}" for reason, names in structure.skipped_by_reason.items())
        raise UserError(f"{model.spec} has no components that can be removed ({reasons}); use another network")
    groups = {name: read_columns(structure, name) for name in structure.readers}
    drawn = _prepared(drawn, model, progress)
    numbers = share(len(drawn))
    mine = drawn.part(numbers.start, numbers.stop)

    def batches(start: int) -> Iterator[Tensor]:
        for images, _ in mine.part(start, len(mine)).batches(model.input, batch_size):
            yield images

    if isinstance(model.module, CausalLM):
        study = Study(model.ref, drawn.ref, structure, {}, {}, no_classes(structure), ridge, 0.0, key)
        # Finished blocks are parked on disk until the study is saved; without an output folder they stay in memory.
        first = process_rank() == 0
        with temporary(target, folder=True) if target is not None and first else nullcontext() as parked:
            keep = first or target is None
            derive_blocks(study, model, batches(0), len(drawn), numbers, parked, keep, progress)
            return _finished(study, model, drawn, constants, constant_samples, began, target, progress)
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
    """Estimates the constants and saves the study in the first process (in all of them if nothing is saved); the others load
    it.
    """
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
    """sha256 over everything the study depends on."""
    about = {
        "schema": STUDY_SCHEMA,
        "model": model.ref.model_dump(mode="json"),
        "data": drawn.ref.model_dump(mode="json"),
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _prepared(drawn: Data, model: Model, progress: Progress) -> Data:
    """`prepare`: with several processes, the first one synthesises the images and the others find them on disk."""
    if process_rank() > 0:
        torch.distributed.barrier()
    made = prepare(drawn, model, progress)
    if process_rank() == 0 and process_count() > 1:
        torch.distributed.barrier()
    return made


def _known(folder: Path, key: str) -> Study | None:
    """The study in ``folder``, if it is intact and has this key."""
    try:
        study = Study.load(folder) if folder.is_dir() else None
    except UserError:
        return None  # damaged, another version or no study: saving raises if the folder must not be replaced
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
        if not bool(torch.isfinite(found.moments[name].seconds).all()):
            raise UserError(f"the input of {name} is not finite on this data; check the weights, --mean and --std")
        weight = flat_weight(get_operator(model.module, name)).cpu().float().clone()
        layers[name] = LayerStats(weight, found.moments[name], columns)
    tables = _classes(structure, found) if model.classes else no_classes(structure)
    study = Study(model.ref, drawn.ref, structure, layers, {}, tables, ridge, 0.0, key)
    study.derive(device=model.device, progress=progress)
    return study


def no_classes(structure: Structure) -> dict[str, Tensor]:
    """The class tables of a network without classes: empty, see `Study.class_fidelity`."""
    nothing = {f"class/{group.name}": torch.zeros(0, group.size) for group in structure.groups}
    return {"classes": torch.zeros(0, dtype=torch.int64)} | nothing


def _classes(structure: Structure, found: Collected) -> dict[str, Tensor]:
    """The class tables of every group, for classes that were predicted often enough; see `Study.class_fidelity`."""
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
