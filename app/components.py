"""Elements that several pages share: progress of jobs, numbers with help texts, and recurring controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go
import streamlit as st

import modhifi
from modhifi.study import Level
from modhifi.text import duration

from .addresses import tell_unfit
from .formulas import FORMULAS
from .jobs import Job
from .selection import LABELS, LabelledData
from .session import Session, current, owner
from .store import Point
from .texts import chart_value, plain

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
    "fault",
    "focus_from_click",
    "job_card",
    "labelled_data",
    "latest_job",
    "numbers",
    "percent",
    "rounded",
    "start",
]


@dataclass(frozen=True)
class Number:
    """A number with its help text. ``delta`` is its change, ``good`` the direction that is better; a ``note`` is
    neutral.
    """

    label: str
    value: str
    help: str
    delta: str | None = None
    good: Literal["up", "down"] = "up"
    note: str | None = None


def numbers(row: Sequence[Number]) -> None:
    """Draws a row of numbers in cards of equal size."""
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
    """Draws a figure without Plotly's toolbar."""
    return st.plotly_chart(figure, key=key, alt=alt, config={"displayModeBar": False, "scrollZoom": False}, **options)


def clicked(chart: str) -> str | None:
    """``customdata[0]`` of the selected mark in the chart with this key; None if nothing is selected."""
    event = st.session_state.get(chart)
    points = [point for point in event["selection"]["points"] if point.get("customdata")] if event else []
    return chart_value(str(points[0]["customdata"][0])) if points else None


def focus_from_click(chart: str) -> None:
    """Callback of a chart: puts the clicked group into focus."""
    group = clicked(chart)
    if group is not None:
        st.session_state["group"] = group


def fault(error: object) -> None:
    """Draws a message that may quote what the user typed, or a file."""
    st.error(plain(error), icon=":material/error:")


def percent(value: float | None, digits: int = 1) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}%"


def rounded(value: float) -> str:
    """Three significant digits, without an exponent for large values."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def compact(value: float) -> str:
    """Formats 1234567 as 1.23 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


# Jobs


def start(task: Callable[..., Job], *arguments: Any) -> None:
    """Callback of a button: starts a job in the background."""
    task(*arguments)


def job_card(job: Job) -> None:
    """Draws progress and *Cancel* while a job runs, its error if it failed, and nothing once it is done."""
    if job.state == "running":
        # The container belongs to the page and not to the fragment: if the fragment reruns before a slow server has
        # sent the page, Streamlit drops the fragment's first output, and the browser could not place the next one.
        with st.container():
            _poll(job)
    elif job.state == "error":
        fault(job.error)
    elif job.state == "cancelled":
        st.info(f"{plain(job.title)} · cancelled.", icon=":material/cancel:")


def latest_job(session: Session, kind: str) -> Job | None:
    """Draws and returns the latest job of this kind for the study, also after the page was reloaded."""
    job = session.library.jobs.latest(f"{kind} {session.source.id} ")
    if job is not None:
        job_card(job)
    return job


def derived(session: Session, compensate: Level, group: str | None = None, score: str | None = None) -> bool:
    """Whether the study has the curves for this compensation, of one group or all, in its own orders or that of one
    score. If not, draws the job that derives them.
    """
    job = session.library.tasks.derive(session.source, compensate, group, score)
    # A small study is done before anybody could read the progress.
    if job is None or (job.wait(0.5) and job.state == "done"):
        return True
    job_card(job)
    if job.state != "running":
        st.button("Derive again", on_click=session.library.tasks.discard, args=(job.key,), key=f"again {job.key}")
    return False


@st.fragment(run_every=1.0)
def _poll(job: Job) -> None:
    if job.state != "running":
        st.rerun()
    left = "" if job.remaining is None else f", about {duration(job.remaining)} left in this step"
    share = f" {job.fraction:.0%}" if job.total else ""
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.progress(job.fraction, text=f"**{plain(job.title)}** · {plain(job.step)}{share}{left}")
        if not job.stopping and not job.asked_by(owner()):
            st.caption("Another session has asked for this.")
            return
        st.button(
            "Stopping" if job.stopping else "Cancel",
            key=f"cancel {job.key}",
            icon=":material/stop_circle:",
            on_click=job.cancel,
            args=(owner(),),
            disabled=job.stopping,
        )


def analysed() -> tuple[Session, modhifi.Study]:
    """The session and its study. Without a study, shows how to get one and ends the page."""
    session = current()
    if session.study is None:
        _show_missing_study(session)
        st.stop()
    return session, session.study


def _show_missing_study(session: Session) -> None:
    job = session.job
    if session.problem:
        fault(session.problem)
    if job is not None:
        job_card(job)
    if job is not None and job.state == "running":
        st.caption("This page fills when the analysis is done. You can visit other pages meanwhile.")
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            f"**{plain(session.source.label)}** is not analysed yet. Run the analysis, or choose another study."
        )
        st.button(
            "Run the analysis",
            type="primary",
            icon=":material/play_arrow:",
            on_click=start,
            args=(session.library.tasks.analyse, session.source),
        )


# Choices


def choice(label: str, options: Mapping[str, str], key: str, default: str, help_: str, hide_label: bool = False) -> Any:
    """Draws a segmented control, ``options`` from value to label; the address carries the choice under ``key``."""
    tell_unfit(key, label, options.values())
    chosen = st.segmented_control(
        label,
        list(options),
        default=default,
        key=key,
        bind="query-params",
        required=True,
        format_func=options.__getitem__,
        label_visibility="collapsed" if hide_label else "visible",
        help=help_,
    )
    return default if chosen is None else chosen  # None if the address has the key without a value


def compensation(key: str, levels: Sequence[str] = ("scalar", "full"), default: str = "full") -> Any:
    """Draws the choice of the compensation level."""
    options = {"none": "None"} | {level: LABELS[level] for level in levels}
    return choice("Compensation", options, key, default, FORMULAS["compensation"])


def labelled_data(session: Session, key: str, label: str, split: str, needed: bool = True) -> LabelledData:
    """Draws the choice of images or text in a popover; the default is the study's own source. ``needed``: whether images
    need labels.
    """
    default = session.source.labelled
    key = f"{key}-{session.source.digest}"  # every study has data of its own
    with st.popover(label, icon=":material/label:"):
        what = "Labelled images" if needed else "Images, with labels or without"
        st.caption(f"{what}, or text for a language model. The default is the study's own source.")
        data = st.text_input("Data", default.data, key=f"{key}-data", persist_state="session")
        root = st.text_input("Folder or file", default.root or "", key=f"{key}-root", persist_state="session")
        part = st.text_input("Split", split, key=f"{key}-split", persist_state="session")
    return LabelledData(data=data.strip() or default.data, root=root.strip() or None, split=part.strip() or split)


def current_plan(session: Session, label: str = "Current plan") -> Point | None:
    """Draws the choice of a measured plan (``?plan=`` in the address), by default the newest; None if there is none."""
    plans = session.plans()
    if not plans:
        return None
    tell_unfit("plan", label, plans)
    chosen = st.selectbox(
        label,
        list(plans),
        key="plan",
        bind="query-params",
        help="*Export* uses this plan. A new measurement becomes the current plan.",
    )
    return plans.get(chosen)
