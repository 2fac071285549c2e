"""What the Modalities page says, its form, and the runs it starts and keeps.

A run is made by `modhifi.multimodal.train` in a background job and lies in ``$MODHIFI_HOME/multimodal/ID``, as
``modhifi multimodal train --out`` writes it. Nothing here depends on the study that the other pages show.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import streamlit as st

from modhifi.errors import UserError
from modhifi.multimodal import METHODS, TITLES, Run, Settings, Spread, rows, train
from modhifi.progress import Progress

from . import components as ui
from . import modality_figures as figures
from .jobs import Job
from .selection import digest, distinct
from .session import library
from .store import Store

__all__ = ["chosen_run", "form", "in_words", "numbers_of", "table_of", "watch", "with_and_without"]

EXAMPLE = Path(__file__).resolve().parents[1] / "assets" / "multimodal-example.json"
_FUSIONS = {"late": "Late", "early": "Early", "hybrid": "Hybrid"}
_KEY = "multimodal "


@st.cache_resource(show_spinner=False)
def _snapshots() -> dict[str, Run]:
    """Job key → how far its run is; written by the worker, read by every session."""
    return {}


def _folder(store: Store, settings: Settings) -> Path:
    return store.root / "multimodal" / digest(settings.model_dump_json())


def start(settings: Settings) -> None:
    """A callback: trains in the background, anew if that was done before."""
    shelf, key = library(), _KEY + digest(settings.model_dump_json())
    folder, snapshots = _folder(shelf.store, settings), _snapshots()

    def work(progress: Progress) -> None:
        def keep(run: Run) -> None:
            snapshots[key] = run

        try:
            train(settings, out=folder, watch=keep, progress=progress)
        finally:
            snapshots.pop(key, None)

    shelf.jobs.forget(key)
    shelf.jobs.submit(key, f"Training, {_title(settings)}", "multimodal", work)
    st.session_state["awaited-run"] = folder.name


def _title(settings: Settings) -> str:
    """What was asked for, short: how runs are called in the list and in the address."""
    data = "Two views of the digits" if settings.data == "digits" else "Audio-visual digits"
    degraded = "".join(f", {name} {share:.0%}" for name, share in settings.degrade.items())
    methods = ", ".join(TITLES[method] for method in settings.methods)
    return f"{data}{degraded}, {settings.fusion} fusion, {methods}, {settings.seeds} seed{'s' * (settings.seeds != 1)}"


# The form


def form() -> None:
    """Draws what to train, and the button that starts it."""
    left, right = st.columns([5, 1], gap="medium", vertical_alignment="bottom")
    with left:
        one, two = st.columns([1.1, 2], gap="medium")
        with one:
            text = "Where the modalities meet: their logits add up (late), one network reads both from its second layer on "
            fusion = ui.choice("Fusion", _FUSIONS, "fusion", "early", f"{text}(early), or both (hybrid).")
        with two:
            methods = st.pills(
                "Methods",
                [name for name in METHODS if name != "ogm-ge" or fusion == "late"],
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
                f"Energy kept of the {'left half' if data == 'digits' else 'image'}",
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
        settings = Settings.of(
            data=data,
            fusion=fusion,
            methods=tuple(name for name in METHODS if name in methods),
            alpha=alpha,
            epochs=epochs,
            seeds=seeds,
            pairs=pairs,
            degrade=degraded,
        )
    except UserError as error:
        problem = str(error)
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
    """Draws the choice of the data, folded away: the embedded ones need nothing."""
    with st.popover("Data", icon=":material/dataset:"):
        st.caption(
            "Without recordings the two modalities are the left and the right half of each handwritten digit: two real views. "
            "With a folder of the Free Spoken Digit Dataset (train.parquet, test.parquet): handwritten and spoken digits."
        )
        folder = st.text_input("Folder of recordings", "", key="recordings", persist_state="session")
    return folder.strip() or "digits"


# A run that trains


def watch() -> None:
    """Draws every job that runs or waits, with the curves of the first, and of the last one a line if it failed."""
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
    """The training that goes on, epoch by epoch. What ends it is the card beside it, which draws the page again."""
    run = _snapshots().get(job.key)
    if run is None or job.state != "running":
        st.caption("The curves appear with the first epoch.")
        return
    if not run.outcomes or run.alone[-1].accuracy is None:
        alone = run.alone[-1]
        last = f"{ui.percent(alone.history[-1].accuracy)} of validation" if alone.history else ""
        st.caption(f"{alone.modality} alone, seed {alone.seed + 1}, epoch {len(alone.history)}: {last}")
        return
    now = run.outcomes[-1]
    left, right = st.columns(2, gap="medium")
    with left, st.container(border=True):
        st.markdown(f"**{TITLES[now.method]}, epoch {len(now.history)}**", help=ui.FORMULAS["mono"])
        ui.chart(
            figures.training(run, now.method), alt=f"Accuracy by epoch so far, {TITLES[now.method]}", key="live-curves"
        )
    with right, st.container(border=True):
        st.markdown(f"**Coefficients, {TITLES[now.method]}**", help=ui.FORMULAS["agm"])
        ui.chart(
            figures.coefficients(run, now.method),
            alt=f"Coefficients by epoch so far, {TITLES[now.method]}",
            key="live-kappa",
        )


# A finished run


def chosen_run() -> Run | None:
    """Draws the choice of a run (``?run=`` in the address): trained here, the newest first, then the one that ships."""
    found = _runs(library().store)
    awaited = st.session_state.get("awaited-run")
    for words, (name, _) in found.items():
        if name == awaited:
            st.session_state["run"] = words
            del st.session_state["awaited-run"]
    if not found:
        return None
    text = "Runs that were trained here, and the one that ships with the project."
    words = st.selectbox("Run", list(found), key="run", bind="query-params", help=text)
    return found[words][1]


def _runs(store: Store) -> dict[str, tuple[str, Run]]:
    """Words → name and run; damaged ones are left out."""
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

    def words(one: tuple[str, Run]) -> str:
        return ("Example: " if one[0] == "example" else "") + _title(one[1].settings)

    return distinct(found, words, lambda one: one[0])


@st.cache_resource(max_entries=32, show_spinner=False)
def _load(path: str, changed: int) -> Run:  # noqa: ARG001
    return Run.load(path)


def with_and_without(run: Run) -> str:
    """Draws the choice of the method whose training is shown: AGM where it is there."""
    words = {method: TITLES[method] for method in run.summary()}
    default = "agm" if "agm" in words else next(iter(words))
    return str(ui.choice("Method", words, f"shown-{len(words)}-{run.settings.fusion}", default, "", hide_label=True))


def numbers_of(run: Run) -> list[ui.Number]:
    """Each modality alone, then every method, with its difference to joint training."""
    row = []
    for name in run.modalities:
        alone = run.reference(name)
        if alone is not None:
            row.append(
                ui.Number(
                    f"{name.capitalize()} alone", ui.percent(alone.mean), ui.FORMULAS["alone"], note=_spread(alone)
                )
            )
    summary = run.summary()
    joint = summary.get("joint")
    for method, told in summary.items():
        found: Spread = told["accuracy"]
        change = (
            None if joint is None or method == "joint" else f"{100 * (found.mean - joint['accuracy'].mean):+.1f} points"
        )
        if change is not None and float(change.split()[0]) == 0:
            change = None
        row.append(
            ui.Number(TITLES[method], ui.percent(found.mean), ui.FORMULAS["balance"], change, note=_spread(found))
        )
    return row


def _spread(value: Spread) -> str:
    return "one seed" if value.spread is None else f"± {100 * value.spread:.1f} points"


def in_words(run: Run) -> str:
    """What the numbers say of competition: who the joint model leans on, and what modulation changed."""
    summary = run.summary()
    if "joint" not in summary:
        return "Train *Joint* beside it to see what the modulation changes."
    mono, strength = summary["joint"]["mono"], summary["joint"]["competition"]
    strong = max(run.modalities, key=lambda name: mono[name].mean)
    weak = min((name for name in run.modalities if name != strong), key=lambda name: mono[name].mean)
    best = max((run.reference(name) for name in run.modalities), key=lambda one: one.mean if one else 0.0)
    leans = "on no modality more" if mono[strong].mean == mono[weak].mean else f"on **{strong}**"
    said = (
        f"Trained jointly, the model leans {leans}: the part of the output that is {strong}'s answers "
        f"{ui.percent(mono[strong].mean)} correctly, that of {weak} {ui.percent(mono[weak].mean)}."
    )
    if best is not None and best.mean > summary["joint"]["accuracy"].mean:
        said += " It is worse than the better modality alone: the modalities compete."
    if "agm" in summary:
        after, d, modulated = (
            summary["agm"]["mono"][weak].mean,
            strength[weak].mean,
            summary["agm"]["competition"][weak].mean,
        )
        said += f" With AGM {weak} reaches {ui.percent(after)}, its competition strength goes from {d:.2f} to {modulated:.2f}."
    return said


def table_of(run: Run) -> pd.DataFrame:
    head, found = rows(run)
    return pd.DataFrame(found, columns=["Trained", *head[1:]])
