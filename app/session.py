"""What one page run works on: the server's library, and the study that the address names."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

import modhifi
from modhifi.errors import UserError

from .jobs import Job
from .library import Library
from .selection import DEFAULT, Source, distinct
from .store import Point

__all__ = ["Session", "choose_group", "choose_plan", "choose_study", "current", "focus", "library", "studies"]


@dataclass(frozen=True)
class Session:
    """``study`` is None while there is none; then ``problem`` or ``job`` may say why."""

    library: Library
    source: Source
    study: modhifi.Study | None
    problem: str | None = None

    @property
    def job(self) -> Job | None:
        """The analysis, if it was asked for since the server started."""
        return self.library.analysis_job(self.source)

    def points(self) -> list[Point]:
        return self.library.store.points(self.source.id)

    def plans(self) -> dict[str, Point]:
        """The measured plans by the words that stand in the list and in the address, the newest first."""
        return distinct(reversed(self.points()), lambda point: point.label, lambda point: point.id)

    @property
    def plan(self) -> Point | None:
        """The current plan: the one that was chosen, or measured last."""
        plans = self.plans()
        return plans.get(st.session_state.get("plan", ""), next(iter(plans.values()), None))


@st.cache_resource(show_spinner=False)
def library() -> Library:
    """The one of this server; every session shares it, and with it the jobs."""
    return Library()


def choose_study() -> Session:
    """Draws the choice of the study (``?study=`` in the address), and starts the default on a first visit."""
    shelf = library()
    sources = studies(shelf)
    asked = st.query_params.get("study", "")
    if asked and asked not in sources:
        st.toast(f"There is no study {asked!r} here; this is the default one.", icon=":material/link_off:")
    st.selectbox(
        "Study",
        list(sources),
        key="study",
        bind="query-params",
        help="A study is one network and what one pass over unlabelled images told about it. All pages show this one. "
        "New ones are made on the Model page.",
    )
    source = sources.get(st.session_state["study"], DEFAULT)
    if source == DEFAULT and shelf.analysis_job(source) is None and not shelf.store.has_study(source.id):
        shelf.analyse(source)
    session = _opened(shelf, source)
    _settle(session)
    return session


def choose_group(study: modhifi.Study) -> None:
    """Draws the choice of the group that every page speaks of (``?group=`` in the address), the keyboard's equal of a click in a
    figure.
    """
    st.selectbox(
        "Group in focus",
        [group.name for group in study.groups],
        key="group",
        bind="query-params",
        help="Every page speaks of this group. It is named after the layer that makes its channels; a click in a figure chooses "
        "it too.",
    )


def focus(study: modhifi.Study) -> str:
    """The name of the group that was chosen; the first one at first."""
    name: str = st.session_state.get("group") or ""
    # That of another network may still be chosen where its study has come between the header and the page.
    return name if any(group.name == name for group in study.groups) else study.groups[0].name


def current() -> Session:
    """For a page: the study in the address, loaded if it is there."""
    shelf = library()
    return _opened(shelf, studies(shelf).get(st.session_state.get("study", ""), DEFAULT))


def _opened(shelf: Library, source: Source) -> Session:
    """With the study if it is there, or why it is not."""
    try:
        return Session(shelf, source, shelf.study(source))
    except UserError as error:
        return Session(shelf, source, None, str(error))


def choose_plan(session: Session, point: str) -> None:
    """Makes a measured plan the current one, if it is there; before the page draws its choice."""
    for words, plan in session.plans().items():
        if plan.id == point:
            st.session_state["plan"] = words


def _settle(session: Session) -> None:
    """Makes the plan that was just measured the current one, as soon as it is there."""
    awaited = st.session_state.get("awaited")
    if awaited and any(point.id == awaited for point in session.points()):
        choose_plan(session, awaited)
        del st.session_state["awaited"]


def studies(shelf: Library) -> dict[str, Source]:
    """What was ever analysed here, by the words that stand in the list and in the address; the default first."""
    # One entry a choice: a study of another version, or of a file that has changed since, is asked for anew.
    known = {source.id: source for source in shelf.store.sources().values() if source != DEFAULT}
    named = distinct([*known.values(), DEFAULT], lambda source: source.label, lambda source: source.digest)
    return {DEFAULT.label: DEFAULT} | named
