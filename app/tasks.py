"""Tasks that pages start. Everything that runs a network is a job (`app.jobs`) in the lane of that network."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import modhifi
from modhifi.data import Data
from modhifi.errors import UserError, user_error
from modhifi.files import atomic_file
from modhifi.models import Model
from modhifi.plan import Plan
from modhifi.progress import Progress, prefixed
from modhifi.pruning import add_score, latency_table, pruning_methods
from modhifi.specs import Level
from modhifi.study import ORDERS, estimate
from modhifi.surgery import calibration_data

from .caches import Caches
from .jobs import Job, Jobs, Work
from .queries import NO_STUDY, Queries, archive_path, exemplars_key
from .selection import DEFAULT, Choice, Forgetting, LabelledData, Source, digest
from .store import BoundPoint, Point, Store
from .uploads import BinaryUpload, keep_checkpoint, keep_images

__all__ = ["Tasks", "forget_point", "prune_point"]


class Tasks:
    """Every method starts a job, or returns the one that already runs; ``owner`` is who asks for them (`app.jobs`)."""

    def __init__(self, store: Store, jobs: Jobs, caches: Caches, queries: Queries, owner: str = "") -> None:
        self._store, self._jobs, self._caches, self._queries, self._owner = store, jobs, caches, queries, owner

    def analyse(self, source: Source) -> Job:
        """Analyses the network in one pass over the data. An existing study is opened instead, unless weights or
        images have changed.
        """
        name = self._store.remember(source)

        def work(progress: Progress) -> str:
            # The library decides whether an existing study has the same weights, images and settings.
            model = self._caches.model(source, progress)
            data = modhifi.load_data(source.data, root=source.root, split=source.split)
            path = self._store.study_path(name)
            study = modhifi.analyze(model, data, samples=source.samples, seed=source.seed, out=path, progress=progress)
            self._caches.keep_study(source, study)
            return name

        self._drop_if_damaged(source)
        self.discard(f"analyse {name}")
        return self._submit(f"analyse {name}", f"Analysis of {source.label}", source, work)

    def _drop_if_damaged(self, source: Source) -> None:
        """Deletes a study that cannot be read."""
        try:
            self._queries.study(source)
        except UserError:
            shutil.rmtree(self._store.study_path(source.id))

    def receive(self, checkpoint: BinaryUpload | None, images: BinaryUpload | None) -> Job:
        """Keeps what was sent from the browser; the job's result are the fields of a `Source` that name it."""

        def work(progress: Progress) -> dict[str, str | None]:
            fields: dict[str, str | None] = {}
            if checkpoint is not None:
                fields["weights"] = str(keep_checkpoint(self._store, checkpoint.name, checkpoint, progress))
            if images is not None:
                fields |= {"data": str(keep_images(self._store, images.name, images, progress)), "root": None}
            return fields

        names = ", ".join(one.name for one in (checkpoint, images) if one is not None)
        return self._jobs.submit(f"receive {uuid.uuid4().hex}", f"Receiving {names}", "uploads", work, self._owner)

    def derive(
        self, source: Source, compensate: Level, group: str | None = None, score: str | None = None
    ) -> Job | None:
        """The job that derives curves which an analysis omits, for one group or all, in the study's own orders or that
        of ``score``; None if nothing is missing.
        """
        study = self._queries.study(source)
        orders = ORDERS if score is None else (score,)
        if study is None or not study.missing(compensate, group=group, orders=orders):
            return None

        def work(progress: Progress) -> None:
            if score is not None and not study.has_score(score):
                add_score(study, score, self._caches.model(source, progress), progress=progress)
            study.derive(compensate, group=group, orders=orders, progress=progress)

        key = f"derive {source.id} {compensate} {group or ''} {score or ''}"
        job = self._jobs.get(key)
        if job is not None and job.state == "done":  # its study has been dropped from memory since
            self._jobs.discard(key)
        # A page asks for this by itself: not again after *Cancel*, also if the job goes on for another session.
        if job is not None and (job.state in ("cancelled", "error") or job.left_by(self._owner)):
            return job
        what = "all groups" if group is None else group
        return self._submit(key, f"Deriving {compensate} compensation for {what}", source, work)

    def exemplars(self, source: Source, group: str, component: int) -> Job:
        """Finds the top-activating images of a component (`app.exemplars`); the job's result is kept in memory."""

        def work(progress: Progress) -> Any:
            from .exemplars import exemplars  # importing captum takes a second, and nothing else needs it

            study, model = self._study_and_model(source, progress)
            images = calibration_data(study.data, model, progress)
            return exemplars(study, model, images, group, component, progress)

        key = exemplars_key(source, group, component)
        self.discard(key)
        return self._submit(key, f"Top-activating images of {group}, component {component}", source, work)

    def time_layers(self, source: Source) -> Job:
        """Times the layers at several widths."""

        def work(progress: Progress) -> None:
            study, model = self._study_and_model(source, progress)
            path = self._store.latency_path(source.id)
            path.unlink(missing_ok=True)  # an old table must not be reused
            latency_table(path, model, study.structure, progress=progress)

        self.discard(f"latency {source.id} ")
        return self._submit(f"latency {source.id} ", "Timing the layers", source, work)

    def measure(self, source: Source, choice: Choice, data: LabelledData) -> Job:
        """Makes a plan, applies it and measures both networks; the job's result is the stored `Point`."""

        def work(progress: Progress) -> Point:
            return self._measured(source, choice, data, progress)

        return self._submit(
            f"measure {source.id} {prune_point(choice, data)}", f"Measuring {choice.label}", source, work
        )

    def compare(self, source: Source, choices: Sequence[Choice], data: LabelledData) -> Job:
        """Measures each of ``choices`` that has not been measured; each becomes a `Point` at once."""

        def work(progress: Progress) -> int:
            known = {point.id for point in self._store.points(source.id)}
            for number, choice in enumerate(choices):
                if prune_point(choice, data) not in known:
                    report = prefixed(progress, f"{choice.label} ({number + 1} of {len(choices)}): ")
                    self._measured(source, choice, data, report)
            return len(choices)

        key = f"compare {source.id} {digest(list(choices))} {data.digest}"
        self.discard(key)
        return self._submit(key, f"Comparing {len(choices)} methods", source, work)

    def _measured(self, source: Source, choice: Choice, data: LabelledData, progress: Progress) -> Point:
        """Makes, applies, measures and stores a plan."""
        study, model = self._study_and_model(source, progress)
        plan = self._plan(study, model, source, choice, progress)
        return self._judged(
            source, model, plan, data, choice.label, progress, id=prune_point(choice, data), choice=choice
        )

    def _judged(
        self,
        source: Source,
        model: Model,
        plan: Plan,
        test: LabelledData,
        label: str,
        progress: Progress,
        **request: Any,
    ) -> Point:
        """Applies a plan, measures it on ``test`` and stores both; ``request``: what asked for the plan."""
        changed = modhifi.apply(plan, model)
        images = _load(test, labels=plan.kind == "unlearn")
        evaluation = modhifi.evaluate(changed, images, baseline=model, progress=progress)
        point = Point(
            kind=plan.kind,
            label=test.named(label, source.labelled),
            measured_on=test,
            evaluation=evaluation.model_dump(mode="json"),
            predicted=plan.predicted,
            **request,
        )
        plan.measured.append(evaluation.to_json())
        self._store.add_point(source.id, point, plan)
        return point

    def _plan(self, study: modhifi.Study, model: Model, source: Source, choice: Choice, progress: Progress) -> Plan:
        if choice.method is not None:
            method = pruning_methods(language=model.tokens is not None)[choice.method]
            return method.planner(study, choice.spec, model, progress)
        study.derive(choice.spec.level, progress=progress)
        table = self._queries.latencies(source) if choice.spec.budget == "latency" else None
        partial = self._store.folder(source.id) / "partial"  # of a plan whose process was killed
        return modhifi.prune(study, choice.spec, latencies=table, model=model, partial=partial, progress=progress)

    def estimate(self, source: Source, estimators: Sequence[str]) -> Job:
        """Estimates Lipschitz constants that the analysis omitted, on its own samples; the study keeps them."""

        def work(progress: Progress) -> None:
            study, model = self._study_and_model(source, progress)
            estimate(study, model, calibration_data(study.data, model, progress), estimators, progress=progress)
            study.save(self._store.study_path(source.id))
            self._caches.keep_study(source, study)

        key = f"constants {source.id} {' '.join(estimators)}"
        self.discard(key)
        return self._submit(key, "Estimating Lipschitz constants", source, work)

    def measure_bounds(self, source: Source, choices: Sequence[Choice], data: LabelledData, samples: int) -> Job:
        """Measures bound and error of a plan for each of ``choices``; each is stored at once."""

        def work(progress: Progress) -> int:
            study, model = self._study_and_model(source, progress)
            images = _load(data, labels=False)
            for number, choice in enumerate(choices):
                report = prefixed(progress, f"{choice.remain:.0%} of the FLOPs ({number + 1} of {len(choices)}): ")
                plan = self._plan(study, model, source, choice, report)
                measured = modhifi.bounds.measure(study, plan, images, samples=samples, model=model, progress=report)
                self._store.add_bound(
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
        return self._submit(key, "Measuring bounds", source, work)

    def forget(self, source: Source, request: Forgetting, data: LabelledData, test: LabelledData) -> Job:
        """Makes an unlearning plan from the calibration data ``data`` and measures it on ``test``; the result is the
        `Point`.
        """
        point_id = forget_point(request, data, test)

        def work(progress: Progress) -> Point:
            study, model = self._study_and_model(source, progress)
            plan = modhifi.unlearn(
                study,
                list(request.classes),
                _load(data, labels=not request.predicted_labels),
                method=request.method,
                target=request.target,
                depth=request.depth,
                towards=request.towards,
                predicted_labels=request.predicted_labels,
                model=model,
                progress=progress,
            )
            return self._judged(
                source,
                model,
                plan,
                test,
                request.label,
                progress,
                id=point_id,
                decided_on=data,
                forget=tuple(plan.forget),
                forgetting=request,
                strength=plan.settings.strength,
                curve=[one.model_dump() for one in plan.curve],
            )

        return self._submit(f"forget {source.id} {point_id}", f"Forgetting {', '.join(request.classes)}", source, work)

    def build(self, source: Source, point: Point, formats: Sequence[str]) -> Job:
        """Applies the plan and packs the folder that `modhifi.export` writes; the result is the path of the .zip."""
        target = archive_path(self._store, source, point, formats)

        def work(progress: Progress) -> Path:
            _, model = self._study_and_model(source, progress)
            progress(0, 0, "applying the plan")
            changed = modhifi.apply(self._store.plan(source.id, point.id), model)
            progress(0, 0, f"writing {', '.join(formats)}")
            with tempfile.TemporaryDirectory() as folder, atomic_file(target) as temporary:
                written = modhifi.export(changed, Path(folder) / "model", formats=list(formats))
                with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                    for path in sorted(Path(written).rglob("*")):
                        if path.is_file():
                            archive.write(path, path.relative_to(folder))
            return target

        key = f"build {source.id} {point.id} {point.made} {target.name}"
        if not target.is_file():  # a new note has deleted it
            self.discard(key)
        return self._submit(key, f"Exporting {point.label}", source, work)

    def delete_study(self, source: Source) -> None:
        """Deletes a study. Raises `UserError` while a job uses it, and for the default one."""
        if source == DEFAULT:
            raise UserError("the default study cannot be deleted; delete others")

        # Also what was made of it before its checkpoint was overwritten or deleted, which nothing shows any more.
        names = {source.id, *(name for name, known in self._store.sources().items() if known == source)}

        def delete() -> None:
            for name in names:
                self._store.delete_study(name)
            self._caches.forget(source)

        if not self._jobs.while_idle(names, delete):
            raise UserError(f"a job uses {source.label}; cancel it or wait until it is done")

    def delete_upload(self, upload: str) -> None:
        """Deletes an upload. Raises `UserError` while a job uses a study that was made from it."""
        users = [name for name, source in self._store.sources().items() if self._store.uses(source, upload)]
        if not self._jobs.while_idle(users, lambda: self._store.delete_upload(upload)):
            raise UserError(f"a job uses {upload.split('/')[-1]}; cancel it or wait until it is done")

    # For jobs only

    def _study_and_model(self, source: Source, progress: Progress) -> tuple[modhifi.Study, Model]:
        study = self._queries.study(source)
        if study is None:
            raise UserError(NO_STUDY)
        model = self._caches.model(source, progress)
        if model.fingerprint != study.model.fingerprint:
            raise UserError(f"the weights of {source.model} have changed since its study; run the analysis again")
        return study, model

    def discard(self, key: str) -> None:
        """Drops a finished job, so that it can be started again."""
        self._jobs.discard(key)

    def _submit(self, key: str, title: str, source: Source, work: Work) -> Job:
        def without_upload_paths(progress: Progress) -> Any:
            try:
                return work(progress)
            except Exception as error:
                known = user_error(error)
                if known is None:
                    raise
                # Name an upload as the user does, without its folder in the cache.
                raise UserError(re.sub(f"{re.escape(str(self._store.uploads))}/[0-9a-f]+/", "", str(known))) from error

        return self._jobs.submit(key, title, source.lane, without_upload_paths, self._owner)


def prune_point(choice: Choice, data: LabelledData) -> str:
    """The name of the `Point` for this choice and test data."""
    return f"prune-{choice.digest}-{data.digest}"


def forget_point(request: Forgetting, data: LabelledData, test: LabelledData) -> str:
    """The name of the `Point` for this request, calibration and test data."""
    return f"forget-{request.digest}-{data.digest}-{test.digest}"


def _load(data: LabelledData, labels: bool = True) -> Data:
    data.permitted()
    loaded = modhifi.load_data(data.data, root=data.root, split=data.split, samples=data.samples)
    if labels and loaded.labels is None and loaded.text is None:
        raise UserError(f"{data.data} has no labels; choose labelled images")
    return loaded
