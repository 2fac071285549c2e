"""The state of one page run: the server's library and the study that the address names."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

import streamlit as st

import modhifi
from modhifi.errors import user_error

from .addresses import tell_unfit
from .jobs import Job
from .library import Library
from .selection import DEFAULT, Source, distinct
from .store import Point

__all__ = ["Session", "choose_group", "choose_plan", "choose_study", "current", "focus", "library", "owner", "studies"]


@dataclass(frozen=True)
class Session:
    """``study`` is None if it does not exist yet; then ``problem`` or ``job`` may give the reason."""

    library: Library
    source: Source
    study: modhifi.Study | None
    problem: str | None = None

    @property
    def job(self) -> Job | None:
        """The analysis, if it was started since the server started."""
        return self.library.queries.analysis_job(self.source)

    def points(self) -> list[Point]:
        return self.library.store.points(self.source.id)

    def plans(self) -> dict[str, Point]:
        """The measured plans by their unique labels, newest first."""
        return distinct(reversed(self.points()), lambda point: point.label, lambda point: point.id)

    @property
    def plan(self) -> Point | None:
        """The current plan: the chosen one, or else the newest."""
        plans = self.plans()
        return plans.get(st.session_state.get("plan", ""), next(iter(plans.values()), None))


@st.cache_resource(show_spinner=False)
def library() -> Library:
    """The library of this server, which all sessions share, including its jobs."""
    return Library()


def owner() -> str:
    """Who asks for jobs in this session, and may cancel them (`app.jobs`): this browser.

    A reloaded page is a new session, which must be able to cancel what it started. Its browser still sends the cookie against
    forged requests: random, known to this browser alone, and never in an address. Without cookies each session is on its own, and
    what it started can only be cancelled until the page is reloaded.
    """
    if "owner" not in st.session_state:
        st.session_state["owner"] = _browser(st.context.cookies.get("_streamlit_xsrf", "")) or uuid.uuid4().hex
    return str(st.session_state["owner"])


def _browser(cookie: str) -> str | None:
    """A digest of the token in Streamlit's cookie ``2|MASK|MASKED|TIME``; the mask changes with every answer."""
    try:
        version, *parts = cookie.strip("\"'").split("|")
        mask, masked = (bytes.fromhex(part) for part in parts[:2])
    except ValueError:
        return None
    if version != "2" or len(mask) != 4 or len(masked) < 16:
        return None
    token = bytes(byte ^ mask[place % 4] for place, byte in enumerate(masked))
    return hashlib.sha256(token).hexdigest()[:32]


def choose_study() -> Session:
    """Draws the choice of the study (``?study=`` in the address), and analyses the default one on a first visit."""
    shared = library().of(owner())
    sources = studies(shared)
    tell_unfit("study", "Study", sources)
    st.selectbox(
        "Study",
        list(sources),
        key="study",
        bind="query-params",
        help="A study is a network and the statistics from one pass over unlabelled samples. All pages show this "
        "study. *Model* creates others.",
    )
    source = sources.get(st.session_state["study"], DEFAULT)
    if source == DEFAULT and shared.queries.analysis_job(source) is None and not shared.store.has_study(source.id):
        shared.tasks.analyse(source)
    session = _open(shared, source)
    _select_awaited_plan(session)
    return session


def choose_group(study: modhifi.Study) -> None:
    """Draws the choice of the group in focus (``?group=`` in the address), the keyboard's equivalent of a click in a
    figure.
    """
    names = [group.name for group in study.groups]
    tell_unfit("group", "Group in focus", names)
    st.selectbox(
        "Group in focus",
        names,
        key="group",
        bind="query-params",
        help="The group that every page shows in detail, named after the layer that writes its components. A click "
        "in a figure selects it too.",
    )


def focus(study: modhifi.Study) -> str:
    """The name of the group in focus, by default the first one."""
    name: str = st.session_state.get("group") or ""
    # A group of another network may still be selected if the study was loaded after the header was drawn.
    return name if any(group.name == name for group in study.groups) else study.groups[0].name


def current() -> Session:
    """For a page: the study in the address, loaded if it exists."""
    shared = library().of(owner())
    return _open(shared, studies(shared).get(st.session_state.get("study", ""), DEFAULT))


def _open(shared: Library, source: Source) -> Session:
    """A session with the study if it exists, or with the reason why it cannot be read."""
    try:
        return Session(shared, source, shared.queries.study(source))
    except Exception as error:
        known = user_error(error)
        if known is None:
            raise
        return Session(shared, source, None, str(known))


def choose_plan(session: Session, point: str) -> None:
    """Makes a measured plan the current one, if it exists; to be called before the page draws the choice."""
    for label, plan in session.plans().items():
        if plan.id == point:
            st.session_state["plan"] = label


def _select_awaited_plan(session: Session) -> None:
    """Makes the plan that is being measured the current one as soon as it exists."""
    awaited = st.session_state.get("awaited")
    if awaited and any(point.id == awaited for point in session.points()):
        choose_plan(session, awaited)
        del st.session_state["awaited"]


def studies(shared: Library) -> dict[str, Source]:
    """All sources that were ever analysed on this server, by their unique labels; the default first."""
    # One entry per source: a study of another version, or of a file that has changed since, has to be made again.
    known = {source.id: source for source in shared.store.sources().values() if source != DEFAULT}
    named = distinct([*known.values(), DEFAULT], lambda source: source.label, lambda source: source.digest)
    return {DEFAULT.label: DEFAULT} | named
