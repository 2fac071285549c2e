"""What the pages ask for: studies, allocations, measured plans, bounds, downloads.

Everything that runs a network is a job (`app.jobs`) in the lane of that network; everything here that answers at once
reads the study's closed forms or the disk.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import modhifi
from modhifi._files import atomic_file
from modhifi.data import Data
from modhifi.errors import UserError
from modhifi.models import Model
from modhifi.plan import Plan
from modhifi.progress import Progress, prefixed
from modhifi.pruning import LatencyTable, machine_name
from modhifi.study import ORDERS, Level, estimate, usual
from modhifi.surgery import calibration_data

from .jobs import Job, Jobs, Work
from .selection import Choice, Forgetting, LabelledData, Source, digest
from .store import BoundPoint, Point, Store

__all__ = ["Library", "commands", "forget_point", "prune_point"]


class Library:
    """One for the whole server. ``jobs`` and ``store`` are its two halves: what runs and what is kept."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        self.jobs = Jobs()
        self._lock = threading.Lock()
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._studies: OrderedDict[str, modhifi.Study] = OrderedDict()

    # Studies

    def study(self, source: Source) -> modhifi.Study | None:
        """The study of ``source`` if there is one, from memory or from disk. Raises `UserError` if it is damaged."""
        name = source.id
        with self._lock:
            if name in self._studies:
                self._studies.move_to_end(name)
                return self._studies[name]
            if not self.store.has_study(name):
                return None
            study = modhifi.Study.load(self.store.study_path(name))
            self._keep(self._studies, name, study, 3)
            return study

    def analysis_job(self, source: Source) -> Job | None:
        return self.jobs.get(f"analyse {source.id}")

    def analyse(self, source: Source) -> Job:
        """Starts the one pass over the data, or joins the one that runs. A study that is there already is opened, unless its
        images have changed since.
        """
        name = self.store.remember(source)

        def work(progress: Progress) -> str:
            # What is there is opened if weights, images and settings are the same: only the library knows.
            model = self._model(source, progress)
            data = modhifi.load_data(source.data, root=source.root, split=source.split)
            path = self.store.study_path(name)
            study = modhifi.analyze(model, data, samples=source.samples, seed=source.seed, out=path, progress=progress)
            with self._lock:
                self._keep(self._studies, name, study, 3)
            return name

        self._drop_if_damaged(source)
        self.again(f"analyse {name}")
        return self._once(f"analyse {name}", f"Analysis of {source.label}", source, work)

    def _drop_if_damaged(self, source: Source) -> None:
        """Throws a study away that cannot be read."""
        try:
            self.study(source)
        except UserError:
            shutil.rmtree(self.store.study_path(source.id))

    def derive(
        self, source: Source, compensate: Level, group: str | None = None, score: str | None = None
    ) -> Job | None:
        """The job that derives what an analysis leaves out, for one group or all, by the study's own orders or by the one of
        ``score``; None if nothing is missing.
        """
        study = self.study(source)
        orders = ORDERS if score is None else (score,)
        if study is None or not study.missing(compensate, group=group, orders=orders):
            return None

        def work(progress: Progress) -> None:
            if score is not None and not study.has_score(score):
                modhifi.pruning.score(study, score, self._model(source, progress), progress=progress)
            study.derive(compensate, group=group, orders=orders, progress=progress)

        key = f"derive {source.id} {compensate} {group or ''} {score or ''}"
        job = self.jobs.get(key)
        if job is not None and job.state == "done":  # for a study that has left the memory since
            self.jobs.forget(key)
        if job is not None and job.state in ("cancelled", "error"):
            return job
        of = "all groups" if group is None else group
        return self._once(key, f"Deriving {compensate} compensation of {of}", source, work)

    def exemplars(self, source: Source, group: str, component: int) -> Job:
        """What excites a component (`app.exemplars`); the result of the job, which is kept as long as the server."""

        def work(progress: Progress) -> Any:
            from .exemplars import exemplars  # captum takes a second, and only this needs it

            study, model = self._study_and_model(source, progress)
            images = calibration_data(study.data, model, progress)
            return exemplars(study, model, images, group, component, progress)

        key = _exemplars_key(source, group, component)
        self.again(key)
        return self._once(key, f"{group}, component {component}", source, work)

    def exemplars_job(self, source: Source, group: str, component: int) -> Job | None:
        return self.jobs.get(_exemplars_key(source, group, component))

    def sensitivity(self, source: Source, choice: Choice) -> np.ndarray:
        """(groups, `modhifi.pruning.SHARES`): see `modhifi.pruning.sensitivity`; whatever the budget."""
        return _sensitivity(self, source, self._key(source), choice.score, choice.level)

    def _key(self, source: Source) -> str:
        """Of the study as it is now: its own, which says what it was made of."""
        study = self.study(source)
        return f"{source.id} {study.key} {' '.join(study.estimators)}" if study else ""

    def latencies(self, source: Source) -> LatencyTable | None:
        """How long the layers take on this machine, if they were timed; a table of another machine does not count."""
        path = self.store.latency_path(source.id)
        if not path.is_file():
            return None
        try:
            table = _latencies(path, path.stat().st_mtime_ns)
        except UserError:
            return None
        return table if table.machine == machine_name() else None

    def time_layers(self, source: Source) -> Job:
        """Starts timing them."""

        def work(progress: Progress) -> None:
            study, model = self._study_and_model(source, progress)
            table = modhifi.pruning.measure_table(model, study.structure, progress=progress)
            table.save(self.store.latency_path(source.id))

        self.again(f"latency {source.id} ")
        return self._once(f"latency {source.id} ", "Timing the layers", source, work)

    # Pruning

    def allocation(self, source: Source, choice: Choice) -> modhifi.pruning.Allocation:
        """What a plan would keep and cost; milliseconds. Raises `UserError` for a wish that cannot be met."""
        timed = self.store.latency_path(source.id).stat().st_mtime_ns if self.latencies(source) is not None else None
        return _allocation(self, source, self._key(source), choice, timed)

    def measure(self, source: Source, choice: Choice, data: LabelledData) -> Job:
        """Makes the plan, carries it out and measures before and after; the result is the `Point` that was kept."""

        def work(progress: Progress) -> Point:
            return self._measured(source, choice, data, progress)

        return self._once(f"measure {source.id} {prune_point(choice, data)}", f"Measuring {choice.label}", source, work)

    def compare(self, source: Source, choices: Sequence[Choice], data: LabelledData) -> Job:
        """Measures each of ``choices`` that was not measured yet; every one is a `Point` as soon as it is there."""

        def work(progress: Progress) -> int:
            known = {point.id for point in self.store.points(source.id)}
            for number, choice in enumerate(choices):
                if prune_point(choice, data) not in known:
                    report = prefixed(progress, f"{choice.label} ({number + 1} of {len(choices)}): ")
                    self._measured(source, choice, data, report)
            return len(choices)

        key = f"compare {source.id} {digest(list(choices))} {data.digest}"
        self.again(key)
        return self._once(key, f"Comparing {len(choices)} methods", source, work)

    def _measured(self, source: Source, choice: Choice, data: LabelledData, progress: Progress) -> Point:
        """Makes the plan, carries it out, measures it and keeps it."""
        study, model = self._study_and_model(source, progress)
        plan = self._plan(study, model, source, choice, progress)
        changed = modhifi.apply(plan, model)
        evaluation = modhifi.evaluate(changed, _load(data), baseline=model, progress=progress)
        point = Point(
            id=prune_point(choice, data),
            kind="prune",
            label=data.named(choice.label, source.labelled),
            measured_on=data,
            evaluation=evaluation.model_dump(mode="json"),
            choice=choice,
            predicted=plan.predicted,
        )
        plan.measured.append(evaluation.to_json())
        self.store.add_point(source.id, point, plan)
        return point

    def _plan(self, study: modhifi.Study, model: Model, source: Source, choice: Choice, progress: Progress) -> Plan:
        if choice.method is not None:
            method = (modhifi.pruning.METHODS | modhifi.pruning.LANGUAGE_METHODS)[choice.method]
            return method.plan(study, choice.budget, choice.remain, model=model, progress=progress)
        study.derive(choice.level, progress=progress)
        return modhifi.prune(
            study,
            **choice.arguments,
            recalibrate_bn=choice.recalibrate_bn,
            latencies=self.latencies(source) if choice.budget == "latency" else None,
            model=model,
            progress=progress,
        )

    # Bounds

    def estimate(self, source: Source, estimators: Sequence[str]) -> Job:
        """Lipschitz constants that the analysis left out, on its own images; the study keeps them."""

        def work(progress: Progress) -> None:
            study, model = self._study_and_model(source, progress)
            estimate(study, model, calibration_data(study.data, model, progress), estimators, progress=progress)
            study.save(self.store.study_path(source.id))
            with self._lock:  # the pages may hold another copy, read before
                self._keep(self._studies, source.id, study, 3)

        key = f"constants {source.id} {' '.join(estimators)}"
        self.again(key)
        return self._once(key, "Estimating Lipschitz constants", source, work)

    def measure_bounds(self, source: Source, choices: Sequence[Choice], data: LabelledData, samples: int) -> Job:
        """Bound and measured error of a plan for each of ``choices``, each kept as soon as it is there."""

        def work(progress: Progress) -> int:
            study, model = self._study_and_model(source, progress)
            images = _load(data, labels=False)
            for number, choice in enumerate(choices):
                report = prefixed(progress, f"{choice.remain:.0%} remains ({number + 1} of {len(choices)}): ")
                plan = self._plan(study, model, source, choice, report)
                measured = modhifi.bounds.measure(study, plan, images, samples=samples, model=model, progress=report)
                self.store.add_bound(
                    source.id,
                    BoundPoint(
                        id=f"{choice.digest}-{data.digest}",
                        label=data.named(choice.label, source.labelled),
                        choice=choice,
                        measured_on=data,
                        report=measured,
                    ),
                )
            return len(choices)

        key = f"bounds {source.id} {digest(list(choices))} {data.digest}"
        return self._once(key, "Measuring bounds", source, work)

    # Forgetting

    def forget(self, source: Source, wish: Forgetting, data: LabelledData, test: LabelledData) -> Job:
        """Makes the network forget classes, decided on ``data``, measured on ``test``; the result is the `Point`."""
        point_id = forget_point(wish, data, test)

        def work(progress: Progress) -> Point:
            study, model = self._study_and_model(source, progress)
            plan = modhifi.unlearn(
                study,
                list(wish.classes),
                _load(data, labels=not wish.predicted_labels),
                method=wish.method,
                target=wish.target,
                depth=wish.depth,
                towards=wish.towards,
                predicted_labels=wish.predicted_labels,
                model=model,
                progress=progress,
            )
            changed = modhifi.apply(plan, model)
            evaluation = modhifi.evaluate(changed, _load(test), baseline=model, progress=progress)
            point = Point(
                id=point_id,
                kind="unlearn",
                label=test.named(wish.label, source.labelled),
                measured_on=test,
                decided_on=data,
                evaluation=evaluation.model_dump(mode="json"),
                forget=tuple(plan.forget),
                forgetting=wish,
                predicted=plan.predicted,
                strength=plan.settings.strength,
                curve=[one.model_dump() for one in plan.curve],
            )
            plan.measured.append(evaluation.to_json())
            self.store.add_point(source.id, point, plan)
            return point

        return self._once(f"forget {source.id} {point_id}", f"Forgetting {', '.join(wish.classes)}", source, work)

    # Taking away

    def archive(self, source: Source, point: Point, formats: Sequence[str]) -> Path | None:
        """The export folder as a .zip, if it was built."""
        path = self._archive_path(source, point, formats)
        return path if path.is_file() else None

    def build(self, source: Source, point: Point, formats: Sequence[str]) -> Job:
        """Carries the plan out and packs what `modhifi.export` writes; the result is the path of the .zip."""
        target = self._archive_path(source, point, formats)

        def work(progress: Progress) -> Path:
            _, model = self._study_and_model(source, progress)
            progress(0, 0, "changing the network")
            changed = modhifi.apply(self.store.plan(source.id, point.id), model)
            progress(0, 0, f"writing {', '.join(formats)}")
            with tempfile.TemporaryDirectory() as folder, atomic_file(target) as temporary:
                written = modhifi.export(changed, Path(folder) / "model", formats=list(formats))
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                    for path in sorted(Path(written).rglob("*")):
                        if path.is_file():
                            archive.write(path, path.relative_to(folder))
            return target

        key = f"build {source.id} {point.id} {point.made} {target.name}"
        if not target.is_file():  # a note that was written since has taken it away
            self.again(key)
        return self._once(key, f"Building {point.label}", source, work)

    def plan_zip(self, source: Source, point: Point) -> bytes:
        return self.store.plan(source.id, point.id).to_zip()

    # Inside jobs only

    def _model(self, source: Source, progress: Progress) -> Model:
        key = f"{source.lane} {source.stamp}"
        with self._lock:
            model = self._models.get(key)
        if model is None:
            progress(0, 0, "loading the network")
            model = modhifi.load_model(
                source.model, source.weights, mean=source.mean, std=source.std, classes=source.classes
            )
            with self._lock:
                self._keep(self._models, key, model, 2)
        return model

    def _study_and_model(self, source: Source, progress: Progress) -> tuple[modhifi.Study, Model]:
        study = self.study(source)
        if study is None:
            raise UserError("this network has no study yet; run the analysis on the Model page first")
        model = self._model(source, progress)
        if model.fingerprint != study.model.fingerprint:
            raise UserError(f"the weights of {source.model} have changed since its study; run the analysis again")
        return study, model

    def again(self, key: str) -> None:
        """Lets a job that is done be asked for anew."""
        self.jobs.forget(key)

    def _once(self, key: str, title: str, source: Source, work: Work) -> Job:
        def in_words_of_the_user(progress: Progress) -> Any:
            try:
                return work(progress)
            except UserError as error:  # what was sent has the name that it was sent by, not the one in the cache
                raise UserError(re.sub(f"{re.escape(str(self.store.uploads))}/[0-9a-f]+/", "", str(error))) from error

        return self.jobs.submit(key, title, source.lane, in_words_of_the_user)

    @staticmethod
    def _keep(cache: OrderedDict[str, Any], key: str, value: Any, at_most: int) -> None:
        cache[key] = value
        cache.move_to_end(key)
        while len(cache) > at_most:
            cache.popitem(last=False)

    def _archive_path(self, source: Source, point: Point, formats: Sequence[str]) -> Path:
        return self.store.point_folder(source.id, point.id) / f"{'-'.join(formats)}.zip"


def _exemplars_key(source: Source, group: str, component: int) -> str:
    return f"exemplars {source.id} {group} {component}"


def prune_point(choice: Choice, data: LabelledData) -> str:
    """The name of the `Point` that measuring this choice on this data gives."""
    return f"prune-{choice.digest}-{data.digest}"


def forget_point(wish: Forgetting, data: LabelledData, test: LabelledData) -> str:
    """The same for forgetting."""
    return f"forget-{wish.digest}-{data.digest}-{test.digest}"


# The wish is made of names and numbers, and a study does not change under its key: an exact one.
@lru_cache(maxsize=512)
def _allocation(
    library: Library,
    source: Source,
    key: str,  # noqa: ARG001
    choice: Choice,
    timed: int | None,
) -> modhifi.pruning.Allocation:
    study = library.study(source)
    if study is None:
        raise UserError("this network has no study yet; run the analysis on the Model page first")
    # With the table, if there is one, the milliseconds are predicted too.
    return modhifi.pruning.allocate(
        study, **choice.arguments, latencies=None if timed is None else library.latencies(source)
    )


@lru_cache(maxsize=64)
def _sensitivity(library: Library, source: Source, key: str, score: str, level: Level) -> np.ndarray:  # noqa: ARG001
    study = library.study(source)
    assert study is not None, "a page that asks for this has a study"
    return np.array(list(modhifi.pruning.sensitivity(study, score=score, compensate=level).values()))


@lru_cache(maxsize=8)
def _latencies(path: Path, changed: int) -> LatencyTable:  # noqa: ARG001 - ``changed`` is in the key
    return LatencyTable.load(path)


def _load(data: LabelledData, labels: bool = True) -> Data:
    loaded = modhifi.load_data(data.data, root=data.root, split=data.split, samples=data.samples)
    if labels and loaded.labels is None and loaded.text is None:
        raise UserError(f"{data.data} has no labels; choose labelled images to measure on")
    return loaded


def commands(source: Source, plan: Plan, point: Point) -> str:
    """The command lines that do the same without the dashboard."""
    data = ["--data", source.data, *_options({"--data-root": source.root, "--split": source.split})]
    analyze = ["analyze", source.model, *_options({"--weights": source.weights}), *data]
    for option, numbers in (("--mean", source.mean), ("--std", source.std)):
        analyze += [f"{option}={','.join(map(str, numbers))}"] if numbers else []
    analyze += ["--classes", "classes.txt"] if source.classes else []
    settings = plan.settings
    by_default, _ = usual(plan.model.input)
    if settings.constants not in (*by_default, "none"):
        analyze += ["--constants", ",".join([*by_default, settings.constants])]
    analyze += ["--samples", str(source.samples), "--seed", str(source.seed), "--out", "study"]
    if plan.kind == "unlearn":
        make = ["unlearn", "study", "--forget", ",".join(plan.forget), *_where(point.decided_on or source.labelled)]
        wish = point.forgetting or Forgetting(classes=point.forget)
        make += ["--method", wish.method, "--target", str(wish.target)]
        make += [] if wish.depth is None else ["--depth", str(wish.depth)]
        make += ["--towards", wish.towards] if wish.method == "ridge" else []
        make += ["--predicted-labels"] if wish.predicted_labels else []
    else:
        make = ["prune", "study", f"--{settings.budget}", str(settings.remain)]
        if settings.method is not None:
            make += ["--published"]
        else:
            make += [
                "--score",
                settings.score,
                "--allocation",
                settings.allocation,
                "--constants",
                settings.constants,
                "--compensate",
                settings.compensate,
            ]
            make += [*(["--recalibrate-bn"] if settings.recalibrate_bn else [])]
            make += ["--multiple", str(settings.multiple)] if settings.multiple > 1 else []
            make += [word for name, count in settings.overrides.items() for word in ("--keep", f"{name}={count}")]
            make += [word for name, count in settings.floors.items() for word in ("--floor", f"{name}={count}")]
    make += ["--out", "plan.json"]
    evaluate = ["evaluate", "plan.json", *_where(point.measured_on)]
    export = ["export", "plan.json", "--out", "model"]
    lines = [shlex.join(["python", "-m", "modhifi", *line]) for line in (analyze, make, evaluate, export)]
    if source.classes:
        lines.insert(0, f"printf '%s\\n' {shlex.join(source.classes)} > classes.txt")
    return "\n".join(lines)


def _where(data: LabelledData) -> list[str]:
    return ["--data", data.data, *_options({"--data-root": data.root, "--split": data.split})]


def _options(pairs: dict[str, str | None]) -> list[str]:
    return [word for option, value in pairs.items() if value for word in (option, value)]
