"""The Modalities page: its form, its runs, and their summaries.

`modhifi.multimodal.train` runs in a background job and writes to ``$MODHIFI_HOME/multimodal/ID``, like
``modhifi multimodal train --out``. Nothing here depends on the study that the other pages show.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from modhifi.errors import UserError
from modhifi.multimodal import BALANCING_METHODS, TITLES, MeanSpread, Run, Settings, methods_for, rows, train
from modhifi.progress import Progress

from . import components as ui
from . import figures
from .addresses import tell_unfit
from .jobs import Job
from .offered import offered
from .selection import digest, distinct
from .session import library, owner
from .store import Store
from .texts import plain

__all__ = ["accuracy_numbers", "chosen_run", "form", "method_choice", "run_table", "running_jobs", "summary_of"]

EXAMPLE = Path(__file__).resolve().parents[1] / "assets" / "multimodal-example.json"
_FUSIONS = {"late": "Late", "early": "Early", "hybrid": "Hybrid"}
_KEY = "multimodal "


@st.cache_resource(show_spinner=False)
def _snapshots() -> dict[str, Run]:
    """The unfinished run of each job, by job key; written by the worker, read by every session."""
    return {}


def _folder(store: Store, settings: Settings) -> Path:
    return store.root / "multimodal" / digest(settings.model_dump_json())


def start(settings: Settings) -> None:
    """Callback: trains in the background, again if a run with these settings exists."""
    shared, key = library(), _KEY + digest(settings.model_dump_json())
    folder, snapshots = _folder(shared.store, settings), _snapshots()

    def work(progress: Progress) -> None:
        def keep(run: Run) -> None:
            snapshots[key] = run

        try:
            if settings.data != "digits":
                offered(settings.data)
            train(settings, out=folder, watch=keep, progress=progress)
        finally:
            snapshots.pop(key, None)

    shared.jobs.discard(key)
    shared.jobs.submit(key, f"Training, {_title(settings)}", "multimodal", work, owner())
    st.session_state["awaited-run"] = folder.name


def _title(settings: Settings) -> str:
    """The settings in short: the label of a run in the list and in the address."""
    data = "Two views of the digits" if settings.data == "digits" else "Audio-visual digits"
    degraded = "".join(f", {name} {share:.0%}" for name, share in settings.degrade.items())
    methods = ", ".join(TITLES[method] for method in settings.methods)
    return f"{data}{degraded}, {settings.fusion} fusion, {methods}, {settings.seeds} seed{'s' * (settings.seeds != 1)}"


# The form


def form() -> None:
    """Draws the settings, and *Train*."""
    left, right = st.columns([5, 1], gap="medium", vertical_alignment="bottom")
    with left:
        one, two = st.columns([1.1, 2], gap="medium")
        with one:
            text = (
                "Where the modalities are joined. **Late**: their logits are added. **Early**: one network reads "
                "both from its second layer on. **Hybrid**: both."
            )
            fusion = ui.choice("Fusion", _FUSIONS, "fusion", "early", text)
        with two:
            methods = st.pills(
                "Methods",
                methods_for(fusion),
                selection_mode="multi",
                default=["joint", "agm"],
                format_func=TITLES.__getitem__,
                key=f"methods-{fusion == 'late'}",
                persist_state="session",
                help=ui.FORMULAS["balance"],
            )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            data = _data()
            alpha = st.number_input("α of AGM", 0.0, 10.0, 1.0, 0.5, key="alpha", persist_state="session", width=115)
            epochs = st.number_input("Epochs", 1, 500, 20, key="epochs", persist_state="session", width=115)
            seeds = st.number_input("Seeds", 1, 20, 2, key="seeds", persist_state="session", width=115)
            pairs = st.number_input(
                "Training pairs",
                2,
                100_000,
                value=None,
                placeholder="all images",
                key="pairs",
                persist_state="session",
                width=150,
            )
            kept = st.slider(
                f"{'Left half' if data == 'digits' else 'Image'}: energy kept",
                10,
                100,
                100,
                5,
                format="%d%%",
                key="energy",
                persist_state="session",
                width=205,
                help=ui.FORMULAS["degrade"],
            )
    problem, settings = "", None
    degraded = {} if kept == 100 else {"left" if data == "digits" else "image": kept / 100}
    try:
        if data != "digits":
            offered(data)
        settings = Settings.of(
            data=data,
            fusion=fusion,
            methods=tuple(name for name in BALANCING_METHODS if name in methods),
            alpha=alpha,
            epochs=epochs,
            seeds=seeds,
            pairs=pairs,
            degrade=degraded,
        )
    except UserError as error:
        problem = plain(error)
    with right:
        st.button(
            "Train",
            type="primary",
            icon=":material/play_arrow:",
            width="stretch",
            disabled=settings is None,
            on_click=start,
            args=(settings,),
            key="train",
        )
    if problem:
        st.caption(problem)


def _data() -> str:
    """Draws the choice of the data in a popover; the default needs no files."""
    with st.popover("Data", icon=":material/dataset:"):
        st.caption(
            "By default, the two modalities are the left and right half of each handwritten digit. With a folder of "
            "the Free Spoken Digit Dataset (train.parquet, test.parquet), they are handwritten and spoken digits."
        )
        folder = st.text_input("Folder of recordings", "", key="recordings", persist_state="session")
    return folder.strip() or "digits"


# A running job


def running_jobs() -> None:
    """Draws every job that runs or waits, the live curves of the first, and the error of the last one if it failed."""
    jobs = library().jobs
    running, last = jobs.running(_KEY), jobs.latest(_KEY)
    for job in running:
        ui.job_card(job)
    if last is not None and last not in running:
        ui.job_card(last)
    if running:
        with st.container():
            _live(running[0])


@st.fragment(run_every=1.0)
def _live(job: Job) -> None:
    """Draws the training in progress, epoch by epoch. The job's card redraws the page when it ends."""
    run = _snapshots().get(job.key)
    if run is None or job.state != "running":
        st.caption("Curves appear after the first epoch.")
        return
    if not run.outcomes or run.alone[-1].accuracy is None:
        alone = run.alone[-1]
        last = f": validation accuracy {ui.percent(alone.history[-1].accuracy)}" if alone.history else ""
        st.caption(f"{plain(alone.modality)} alone, seed {alone.seed + 1}, epoch {len(alone.history)}{last}")
        return
    now = run.outcomes[-1]
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True):
        st.markdown(f"**{TITLES[now.method]}, epoch {len(now.history)}**", help=ui.FORMULAS["mono"])
        ui.chart(
            figures.training(run, now.method),
            alt=f"Validation accuracy by epoch so far, {TITLES[now.method]}",
            key="live-curves",
        )
    with right, st.container(border=True):
        st.markdown(f"**Gradient coefficients, {TITLES[now.method]}**", help=ui.FORMULAS["agm"])
        ui.chart(
            figures.coefficients(run, now.method),
            alt=f"Gradient coefficients by epoch so far, {TITLES[now.method]}",
            key="live-kappa",
        )


# A finished run


def chosen_run() -> Run | None:
    """Draws the choice of a run (``?run=`` in the address): runs trained here, newest first, then the included
    example.
    """
    found = _runs(library().store)
    awaited = st.session_state.get("awaited-run")
    for label, (name, _) in found.items():
        if name == awaited:
            st.session_state["run"] = label
            del st.session_state["awaited-run"]
    if not found:
        return None
    text = "Runs trained on this server, and an example that is included."
    tell_unfit("run", "Run", found)
    label = st.selectbox("Run", list(found), key="run", bind="query-params", help=text)
    return found[label][1]


def _runs(store: Store) -> dict[str, tuple[str, Run]]:
    """Name and run by label; damaged runs are omitted."""
    folders = sorted(
        (store.root / "multimodal").glob("*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    found: list[tuple[str, Run]] = []
    for path in (*folders, EXAMPLE):
        try:
            found.append(
                (path.parent.name if path != EXAMPLE else "example", _load(str(path), path.stat().st_mtime_ns))
            )
        except (UserError, OSError):
            continue

    def label(one: tuple[str, Run]) -> str:
        return ("Example: " if one[0] == "example" else "") + _title(one[1].settings)

    return distinct(found, label, lambda one: one[0])


@st.cache_resource(max_entries=32, show_spinner=False)
def _load(path: str, changed: int) -> Run:  # noqa: ARG001
    return Run.load(path)


def method_choice(run: Run) -> str:
    """Draws the choice of the method whose training is shown, by default AGM."""
    options = {method: TITLES[method] for method in run.summary()}
    default = "agm" if "agm" in options else next(iter(options))
    return str(
        ui.choice("Method", options, f"shown-{len(options)}-{run.settings.fusion}", default, "", hide_label=True)
    )


def accuracy_numbers(run: Run) -> list[ui.Number]:
    """Test accuracy of each modality alone, then of every method with its change against joint training."""
    row = []
    for name in run.modalities:
        alone = run.reference(name)
        if alone is not None:
            row.append(
                ui.Number(
                    f"{plain(name.capitalize())} alone",
                    ui.percent(alone.mean),
                    ui.FORMULAS["alone"],
                    note=_spread(alone),
                )
            )
    summary = run.summary()
    joint = summary.get("joint")
    for method, values in summary.items():
        found: MeanSpread = values["accuracy"]
        change = (
            None if joint is None or method == "joint" else f"{100 * (found.mean - joint['accuracy'].mean):+.1f} points"
        )
        if change is not None and float(change.split()[0]) == 0:
            change = None
        row.append(
            ui.Number(TITLES[method], ui.percent(found.mean), ui.FORMULAS["balance"], change, note=_spread(found))
        )
    return row


def _spread(value: MeanSpread) -> str:
    return "one seed" if value.spread is None else f"± {100 * value.spread:.1f} points"


def summary_of(run: Run) -> str:
    """How the modalities compete: which one the joint model relies on, and what AGM changes."""
    summary = run.summary()
    if "joint" not in summary:
        return "Train *Joint* as well to see what modulation changes."
    mono, strength = summary["joint"]["mono"], summary["joint"]["competition"]
    strong = max(run.modalities, key=lambda name: mono[name].mean)
    weak = min((name for name in run.modalities if name != strong), key=lambda name: mono[name].mean)
    best = max((run.reference(name) for name in run.modalities), key=lambda one: one.mean if one else 0.0)
    relies = "equally on both modalities" if mono[strong].mean == mono[weak].mean else f"mainly on **{plain(strong)}**"
    sentences = [
        f"Trained jointly, the model relies {relies}: the {plain(strong)} output alone reaches "
        f"{ui.percent(mono[strong].mean)} accuracy, the {plain(weak)} output {ui.percent(mono[weak].mean)}."
    ]
    if best is not None and best.mean > summary["joint"]["accuracy"].mean:
        sentences.append("It is worse than the better modality alone: the modalities compete.")
    if "agm" in summary:
        after, d, modulated = (
            summary["agm"]["mono"][weak].mean,
            strength[weak].mean,
            summary["agm"]["competition"][weak].mean,
        )
        sentences.append(
            f"With AGM the {plain(weak)} output reaches {ui.percent(after)}, and its competition strength changes from "
            f"{d:.2f} to {modulated:.2f} (lower is better)."
        )
    return " ".join(sentences)


def run_table(run: Run) -> pd.DataFrame:
    """Every method and each modality alone, mean ± standard deviation over seeds."""
    head, found = rows(run)
    return pd.DataFrame(found, columns=["Trained", *head[1:]])
