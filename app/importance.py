"""The Importance page: data of its figures, their summaries, and its controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

import modhifi
from modhifi.study import CLASS_SAMPLES
from modhifi.text import listed

from . import components as ui
from .figures import Array, Strip
from .session import Session
from .texts import plain

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
"""What the components of each kind of group are called."""


@dataclass(frozen=True)
class Overview:
    """All groups, with a one-sentence summary."""

    strips: list[Strip]
    summary: str


@dataclass(frozen=True)
class GroupView:
    """One group: ``greedy`` and ``naive`` (C+1,) curves, ``singletons`` (C,) sorted, ``chosen`` (C,) which of these
    are in the HiFi set, and a summary for each figure.
    """

    greedy: Array
    naive: Array
    singletons: Array
    chosen: NDArray[np.bool_]
    hifi: int
    consumer: str
    summary: str
    singletons_summary: str


@dataclass(frozen=True)
class Classes:
    """``table`` (K, C): fidelity by predicted class; columns are ``components``, sorted by singleton fidelity."""

    table: Array
    names: list[str]
    components: list[int]
    summary: str


def colour_choice() -> str:
    """Draws the choice of what colours the overview: ``alone`` (individual) or ``together`` (cumulative)."""
    options = {"alone": "Individual", "together": "Cumulative"}
    text = (
        "Higher means more important. **Individual**: fidelity of each component alone, sorted. **Cumulative**: "
        "fidelity of all components from the bottom up to this one, in greedy order."
    )
    chosen: str = ui.choice("Colour", options, "colour", "alone", text, hide_label=True)
    return chosen


def read_overview(study: modhifi.Study, eta: float, compensate: Any, cumulative: bool) -> Overview:
    """Data of the overview; ``cumulative`` as in `app.figures.overview`."""
    strips = [
        Strip(
            group.name,
            group.kind,
            study.curve(group.name, "greedy", compensate)[1:] if cumulative else _individual(study, group.name),
            study.hifi_size(group.name, eta, "greedy", compensate),
        )
        for group in study.groups
    ]
    total, kept = sum(len(s.fidelity) for s in strips), sum(s.hifi for s in strips)
    small = sum(s.hifi < 0.2 * len(s.fidelity) for s in strips)
    return Overview(
        strips,
        f"{kept} of {total} components ({kept / total:.0%}) are enough for η = {eta:.2f} in every group; "
        f"in {small} of {len(strips)} groups, fewer than a fifth are enough.",
    )


def about(study: modhifi.Study, name: str) -> str:
    """The components of a group and the layers that read it, in one line."""
    group = study.group(name)
    readers = [consumer.layer for consumer in group.consumers]
    return f"{group.size} {KINDS[group.kind]}, read by {plain(listed(readers))}."


def read_group(study: modhifi.Study, name: str, eta: float, compensate: Any) -> GroupView:
    """Everything the page shows about a group, except its classes."""
    group = study.group(name)
    greedy = study.curve(name, "greedy", compensate)
    naive = study.curve(name, "fidelity", compensate)
    hifi = study.hifi_size(name, eta, "greedy", compensate)
    naive_size = study.hifi_size(name, eta, "fidelity", compensate)
    ranks = np.argsort(-study.scores(name)["fidelity"], kind="stable")
    singles = study.scores(name)["fidelity"][ranks]
    naive_needs = "the same number" if naive_size == hifi else naive_size
    if hifi:
        summary = (
            f"**{hifi} of {group.size} components** ({hifi / group.size:.0%}) carry {eta:.0%} of the output energy; "
            f"the naive order needs {naive_needs}."
        )
    else:
        summary = (
            f"**0 of {group.size} components** are needed for {eta:.0%}: the other inputs of the layers that read "
            "the group carry that much."
        )
    return GroupView(
        greedy=greedy,
        naive=naive,
        singletons=singles,
        chosen=np.isin(ranks, study.order(name, "greedy")[:hifi]),
        hifi=hifi,
        consumer=group.consumers[0].layer,
        summary=summary,
        singletons_summary=f"Singleton fidelity of {name}, sorted: the highest is {singles[0]:.3f}, the median "
        f"{np.median(singles):.3f}.",
    )


def read_classes(study: modhifi.Study, name: str) -> Classes:
    """Fidelity of a group by class, for the classes that the network predicted often enough."""
    seen, table = study.class_fidelity(name)
    ranks = np.argsort(-study.scores(name)["fidelity"], kind="stable")
    every = study.model.classes
    names = [every[number] for number in seen]
    images = f"{study.data.samples} calibration images"
    rare = f"were predicted for fewer than {CLASS_SAMPLES} of the {images}"
    if not names:
        summary = f"No class to show: all classes {rare}. Analyse more images."
    elif len(names) < len(every):
        summary = f"{len(names)} of {len(every)} classes; the others {rare}."
    else:
        summary = f"All {len(names)} classes, as predicted for the {images}."
    return Classes(table[:, ranks].astype(np.float64), names, ranks.tolist(), summary)


def component_in_focus(ranks: Sequence[int], name: str) -> int:
    """Draws the choice of one component of the group, sorted by fidelity."""
    place = {component: number for number, component in enumerate(ranks, 1)}
    chosen: int = st.selectbox(
        "Component",
        list(ranks),
        format_func=lambda component: f"{component} (rank {place[component]} by fidelity)",
        key=f"component-{name}",
        persist_state="session",
    )
    return chosen


def show_exemplars(session: Session, name: str, component: int) -> None:
    """Draws the top-activating images of a component, or the button that finds them."""
    job = session.library.queries.exemplars_job(session.source, name, component)
    if job is None or job.state in ("cancelled", "error"):
        if job is not None:
            ui.job_card(job)
        st.button(
            "Show top-activating images" if job is None else "Try again",
            icon=":material/image_search:",
            on_click=ui.start,
            args=(session.library.tasks.exemplars, session.source, name, component),
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
            st.caption(f"{plain(one.predicted)}, {one.energy:.1f}×")
    st.caption(
        f"The {len(found)} of {session.study.data.samples if session.study else 0} images that activate the "
        "component most, with the predicted class and the mean squared activation as a multiple of its mean over "
        "all images. Orange marks the pixels responsible (integrated gradients)."
    )


def _individual(study: modhifi.Study, name: str) -> Array:
    return np.sort(study.scores(name)["fidelity"])[::-1]
