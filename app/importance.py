"""What the Importance page says about a group, read from the study and put into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

import modhifi
from modhifi._format import listed
from modhifi.study import CLASS_SAMPLES

from . import components as ui
from .figures import Array, Strip
from .session import Session

if TYPE_CHECKING:
    from .exemplars import Exemplar

__all__ = [
    "KINDS",
    "Classes",
    "GroupView",
    "Overview",
    "about",
    "colour_choice",
    "component_in_focus",
    "read_classes",
    "read_group",
    "read_overview",
    "show_exemplars",
]

KINDS = {
    "channels": "channels",
    "stream": "channels of a residual stream",
    "neurons": "hidden neurons",
    "heads": "attention heads",
}
"""What the components of a group are, in words."""


@dataclass(frozen=True)
class Overview:
    """All groups, and what they say together."""

    strips: list[Strip]
    in_words: str


@dataclass(frozen=True)
class GroupView:
    """``greedy`` and ``naive`` (C+1,) curves, ``singletons`` (C,) sorted, ``chosen`` (C,) those of them in the HiFi
    set, and the sentences that go with them."""

    greedy: Array
    naive: Array
    singletons: Array
    chosen: NDArray[np.bool_]
    hifi: int
    consumer: str
    in_words: str
    singletons_in_words: str


@dataclass(frozen=True)
class Classes:
    """``table`` (K, C): fidelity by class, components sorted by their own fidelity over all images as ``components`` says."""

    table: Array
    names: list[str]
    components: list[int]
    in_words: str


def colour_choice() -> str:
    """Draws the choice of what the overview's colours mean: ``alone`` or ``together``."""
    words = {"alone": "Each alone", "together": "Together so far"}
    text = "The fidelity of each component alone, sorted; or that of all from the bottom up to it, in the greedy order."
    chosen: str = ui.choice("Colour", words, "colour", "alone", text, hide_label=True)
    return chosen


def read_overview(study: modhifi.Study, eta: float, compensate: Any, together: bool) -> Overview:
    """What the picture of all groups shows; ``together`` as in `app.figures.overview`."""
    strips = [
        Strip(
            group.name,
            group.kind,
            study.curve(group.name, "greedy", compensate)[1:] if together else _alone(study, group.name),
            study.hifi_size(group.name, eta, "greedy", compensate),
        )
        for group in study.groups
    ]
    total, kept = sum(len(s.fidelity) for s in strips), sum(s.hifi for s in strips)
    small = sum(s.hifi < 0.2 * len(s.fidelity) for s in strips)
    return Overview(
        strips,
        f"{kept} of {total} components ({kept / total:.0%}) reach η = {eta:.2f} in every group; "
        f"in {small} of {len(strips)} groups fewer than a fifth do.",
    )


def about(study: modhifi.Study, name: str) -> str:
    """What a group is made of and who reads it, one line."""
    group = study.group(name)
    readers = [consumer.layer for consumer in group.consumers]
    return f"{group.size} {KINDS[group.kind]}, read by {listed(readers)}."


def read_group(study: modhifi.Study, name: str, eta: float, compensate: Any) -> GroupView:
    """Everything the page shows of a group but its classes."""
    group = study.group(name)
    greedy = study.curve(name, "greedy", compensate)
    naive = study.curve(name, "fidelity", compensate)
    hifi = study.hifi_size(name, eta, "greedy", compensate)
    naive_size = study.hifi_size(name, eta, "fidelity", compensate)
    ranks = np.argsort(-study.scores(name)["fidelity"], kind="stable")
    singles = study.scores(name)["fidelity"][ranks]
    more = "the naive ranking needs as many" if naive_size == hifi else f"the naive ranking needs {naive_size}"
    if hifi:
        words = (
            f"**{hifi} of {group.size} components** ({hifi / group.size:.0%}) carry {eta:.0%} of the output; {more}."
        )
    else:
        words = (
            f"**None of {group.size} components** is needed for {eta:.0%}: what else the layers read carries as much."
        )
    return GroupView(
        greedy=greedy,
        naive=naive,
        singletons=singles,
        chosen=np.isin(ranks, study.order(name, "greedy")[:hifi]),
        hifi=hifi,
        consumer=group.consumers[0].layer,
        in_words=words,
        singletons_in_words=f"Singleton fidelity of {name}, sorted: the best has {singles[0]:.3f}, the median "
        f"{np.median(singles):.3f}.",
    )


def read_classes(study: modhifi.Study, name: str) -> Classes:
    """What a group says of each class that the network answered often enough."""
    seen, table = study.class_fidelity(name)
    ranks = np.argsort(-study.scores(name)["fidelity"], kind="stable")
    every = study.model.classes
    names = [every[number] for number in seen]
    few = f"fewer than {CLASS_SAMPLES} of the {study.data.samples} images"
    if not names:
        words = f"No class to show: the network took {few} for each of them. Analyse more images to see them."
    elif len(names) < len(every):
        words = f"{len(names)} of {len(every)} classes; the network took {few} for each of the others."
    else:
        words = f"All {len(names)} classes, as the network answered the {study.data.samples} images."
    return Classes(table[:, ranks].astype(np.float64), names, ranks.tolist(), words)


def component_in_focus(ranks: Sequence[int], name: str) -> int:
    """Draws the choice of one component of the group, the one of most fidelity first."""
    place = {component: number for number, component in enumerate(ranks, 1)}
    chosen: int = st.selectbox(
        "Component",
        list(ranks),
        format_func=lambda component: f"{component} (number {place[component]} by fidelity)",
        key=f"component-{name}",
        persist_state="session",
    )
    return chosen


def show_exemplars(session: Session, name: str, component: int) -> None:
    """What excites a component, or the way to find out."""
    job = session.library.exemplars_job(session.source, name, component)
    if job is None or job.state in ("cancelled", "error"):
        if job is not None:
            ui.job_card(job)
        st.button(
            "Show what excites it" if job is None else "Look again",
            icon=":material/image_search:",
            on_click=ui.start,
            args=(session.library.exemplars, session.source, name, component),
            key="exemplars",
        )
        return
    if job.state == "running":
        ui.job_card(job)
        return
    found: list[Exemplar] = job.result
    columns = st.columns(len(found), gap="small")
    for column, one in zip(columns, found, strict=True):
        with column:
            st.image(one.image, width="stretch")
            st.image(one.marked, width="stretch")
            st.caption(f"{one.answer}, {one.energy:.1f}×")
    st.caption(
        f"The {len(found)} of {session.study.data.samples if session.study else 0} images in which the component answers most "
        "strongly, what the network takes them for, and its energy as a multiple of the mean. Below, in orange, where that comes "
        "from (integrated gradients)."
    )


def _alone(study: modhifi.Study, name: str) -> Array:
    return np.sort(study.scores(name)["fidelity"])[::-1]
