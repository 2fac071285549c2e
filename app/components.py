"""Pieces that several pages draw: a job's progress, numbers with their meaning, choices that recur."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go
import streamlit as st

import modhifi
from modhifi.study import Level

from .formulas import FORMULAS
from .jobs import Job
from .selection import WORDS, LabelledData
from .session import Session, current
from .store import Point

__all__ = [
    "FORMULAS",
    "Number",
    "analysed",
    "chart",
    "choice",
    "clicked",
    "compact",
    "compensation",
    "current_plan",
    "derived",
    "focus_from_click",
    "job_card",
    "labelled_data",
    "latest_job",
    "numbers",
    "percent",
    "start",
]


@dataclass(frozen=True)
class Number:
    """A number with what it means. ``delta`` is how it changed, ``good`` which way is better; a ``note`` is neutral."""

    label: str
    value: str
    help: str
    delta: str | None = None
    good: Literal["up", "down"] = "up"
    note: str | None = None


def numbers(row: Sequence[Number]) -> None:
    """A row of numbers in equal cards."""
    with st.grid(len(row), min_column_width=130, gap="small"):
        for number in row:
            st.metric(
                number.label,
                number.value,
                number.delta or number.note,
                delta_color="gray" if number.delta is None else ("normal" if number.good == "up" else "inverse"),
                delta_arrow="off" if number.delta is None else "auto",
                help=number.help,
                border=True,
                height="stretch",
            )


def chart(figure: go.Figure, alt: str, key: str, **options: Any) -> Any:
    """The figure, without Plotly's row of buttons."""
    return st.plotly_chart(figure, key=key, alt=alt, config={"displayModeBar": False, "scrollZoom": False}, **options)


def clicked(chart: str) -> str | None:
    """What the selected mark of the chart with this key says it is (``customdata[0]``); None if none is selected."""
    event = st.session_state.get(chart)
    points = [point for point in event["selection"]["points"] if point.get("customdata")] if event else []
    return str(points[0]["customdata"][0]) if points else None


def focus_from_click(chart: str) -> None:
    """A chart's callback: the clicked group becomes the one in focus."""
    group = clicked(chart)
    if group is not None:
        st.session_state["group"] = group


def percent(value: float | None, digits: int = 1) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}%"


def compact(value: float) -> str:
    """1234567 as 1.23 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


# Jobs


def start(ask: Callable[..., Job], *arguments: Any) -> None:
    """A button's callback: asks for a job and leaves it to itself."""
    ask(*arguments)


def job_card(job: Job) -> None:
    """Progress and a way to stop it while it runs; its one line if it failed; nothing once it is done."""
    if job.state == "running":
        # The container belongs to the page, not to the fragment: when a slow server has not yet sent the page as the
        # fragment runs again, Streamlit drops what the fragment drew first, and the browser would miss its place.
        with st.container():
            _poll(job)
    elif job.state == "error":
        st.error(job.error, icon=":material/error:")
    elif job.state == "cancelled":
        st.info(f"{job.title}: cancelled.", icon=":material/cancel:")


def latest_job(session: Session, kind: str) -> Job | None:
    """Draws and gives the last job of this kind for the study; a reloaded page finds it again."""
    job = session.library.jobs.latest(f"{kind} {session.source.id} ")
    if job is not None:
        job_card(job)
    return job


def derived(session: Session, compensate: Level, group: str | None = None, score: str | None = None) -> bool:
    """Whether the curves of this compensation are there, of one group or all (and in the order of one score); if not, draws the
    job that derives them.
    """
    job = session.library.derive(session.source, compensate, group, score)
    # A small study is through before a person would see the progress.
    if job is None or (job.wait(0.5) and job.state == "done"):
        return True
    job_card(job)
    if job.state != "running":
        st.button("Derive again", on_click=session.library.again, args=(job.key,), key=f"again {job.key}")
    return False


@st.fragment(run_every=1.0)
def _poll(job: Job) -> None:
    if job.state != "running":
        st.rerun()
    left = "" if job.remaining is None else f", about {max(1, round(job.remaining))} s left in this step"
    share = f" {job.fraction:.0%}" if job.total else ""
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.progress(job.fraction, text=f"**{job.title}** · {job.step}{share}{left}")
        st.button(
            "Stopping" if job.stopping else "Cancel",
            key=f"cancel {job.key}",
            icon=":material/stop_circle:",
            on_click=job.cancel,
            disabled=job.stopping,
        )


def analysed() -> tuple[Session, modhifi.Study]:
    """The study of this page; while there is none, says in one line what to do and ends the page."""
    session = current()
    if session.study is None:
        _say_what_is_missing(session)
        st.stop()
    return session, session.study


def _say_what_is_missing(session: Session) -> None:
    job = session.job
    if session.problem:
        st.error(session.problem, icon=":material/error:")
    if job is not None:
        job_card(job)
    if job is not None and job.state == "running":
        st.caption("This page fills as soon as the analysis is through; you may look around meanwhile.")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{session.source.label}** is not analysed yet: run the analysis, or choose another on *Model*.")
        st.button(
            "Run the analysis",
            type="primary",
            icon=":material/play_arrow:",
            on_click=start,
            args=(session.library.analyse, session.source),
        )


# Choices


def choice(label: str, words: Mapping[str, str], key: str, default: str, help_: str, hide_label: bool = False) -> Any:
    """One of a few named values, all in sight; the address carries it under ``key``."""
    return st.segmented_control(
        label,
        list(words),
        default=default,
        key=key,
        bind="query-params",
        required=True,
        format_func=words.__getitem__,
        label_visibility="collapsed" if hide_label else "visible",
        help=help_,
    )


def compensation(key: str, levels: Sequence[str] = ("scalar", "full"), default: str = "full") -> Any:
    words = {"none": "None"} | {level: WORDS[level] for level in levels}
    return choice("Compensation", words, key, default, FORMULAS["compensation"])


def labelled_data(session: Session, key: str, label: str, split: str) -> LabelledData:
    """Which samples, images with their labels or text; folded away, because the default is the source of the study."""
    default = session.source.labelled
    key = f"{key}-{session.source.digest}"  # another study has other data
    with st.popover(label, icon=":material/label:"):
        st.caption("Images with labels, or a text; those of the study's own source if nothing is changed.")
        data = st.text_input("Data", default.data, key=f"{key}-data", persist_state="session")
        root = st.text_input("Folder or file", default.root or "", key=f"{key}-root", persist_state="session")
        part = st.text_input("Split", split, key=f"{key}-split", persist_state="session")
    return LabelledData(data=data.strip() or default.data, root=root.strip() or None, split=part.strip() or split)


def current_plan(session: Session, label: str = "Current plan") -> Point | None:
    """The measured plan that the address names as ``?plan=``, the newest at first; None if nothing was measured yet."""
    plans = session.plans()
    if not plans:
        return None
    chosen = st.selectbox(
        label,
        list(plans),
        key="plan",
        bind="query-params",
        help="The plan that Export hands over. A new measurement becomes the current plan.",
    )
    return plans.get(chosen)
