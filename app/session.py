"""What one page run works on: the server's library, and the study that the address names."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

import modhifi
from modhifi.errors import UserError

from .jobs import Job
from .library import Library
from .selection import DEFAULT, Source
from .store import Point

__all__ = ["Session", "choose_study", "current", "library"]


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


@st.cache_resource(show_spinner=False)
def library() -> Library:
    """The one of this server; every session shares it, and with it the jobs."""
    return Library()


def choose_study() -> None:
    """Draws the choice of the study (``?study=`` in the address), and starts the default on a first visit."""
    shelf = library()
    sources = _sources(shelf)
    st.selectbox(
        "Study",
        list(sources),
        key="study",
        bind="query-params",
        format_func=lambda name: sources[name].label,
        help="A study is one network and what one pass over unlabelled images told about it. All pages show this one. "
        "New ones are made on the Model page.",
    )
    name = st.session_state["study"]
    source = sources.get(name, DEFAULT)
    if source == DEFAULT and shelf.analysis_job(source) is None and not shelf.store.has_study(source.id):
        shelf.analyse(source)
    settle(shelf, source)


def current() -> Session:
    """For a page: the study in the address, loaded if it is there."""
    shelf = library()
    source = _sources(shelf).get(st.session_state.get("study", ""), DEFAULT)
    try:
        return Session(shelf, source, shelf.study(source))
    except UserError as error:
        return Session(shelf, source, None, str(error))


def settle(shelf: Library, source: Source) -> None:
    """Makes the plan that was just measured the current one, as soon as it is there."""
    awaited = st.session_state.get("awaited")
    if awaited and any(point.id == awaited for point in shelf.store.points(source.id)):
        st.session_state["plan"] = awaited
        del st.session_state["awaited"]


def _sources(shelf: Library) -> dict[str, Source]:
    # A name that no longer follows from its source belongs to another version, or to a file that has changed since.
    known = {name: source for name, source in shelf.store.sources().items() if source.id == name}
    return {DEFAULT.id: DEFAULT} | known
