"""What the Importance page says about a group, read from the study and put into words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

import modhifi

from . import components as ui
from .figures import Array, Strip

__all__ = ["GroupView", "colour_choice", "focus_from_click", "group_in_focus", "read_group"]


@dataclass(frozen=True)
class GroupView:
    """``greedy`` and ``naive`` (C+1,) curves, ``singletons`` (C,) sorted, ``chosen`` (C,) those of them in the HiFi
    set, and the sentences that go with them."""

    strips: list[Strip]
    greedy: Array
    naive: Array
    singletons: Array
    chosen: NDArray[np.bool_]
    hifi: int
    consumer: str
    in_words: str
    overview_in_words: str
    singletons_in_words: str


def group_in_focus(study: modhifi.Study) -> str:
    """Draws the choice of the group, the keyboard's equal of a click in the overview; gives its name."""
    chosen: str = st.selectbox(
        "Group in focus",
        [group.name for group in study.groups],
        key="group",
        bind="query-params",
        help="A group is named after the layer that makes its channels. A click in the figure does the same.",
    )
    return chosen


def colour_choice() -> str:
    """Draws the choice of what the overview's colours mean: ``alone`` or ``together``."""
    words = {"alone": "Each alone", "together": "Together so far"}
    text = "The fidelity of each component alone, sorted; or that of all from the bottom up to it, in the greedy order."
    chosen: str = ui.choice("Colour", words, "colour", "alone", text, hide_label=True)
    return chosen


def focus_from_click() -> None:
    """The overview's callback: the clicked column becomes the group in focus."""
    clicked = clicked_group(st.session_state.get("overview"))
    if clicked is not None:
        st.session_state["group"] = clicked


def clicked_group(event: Any) -> str | None:
    """The group's name out of a selection event, None for one that selects nothing."""
    points = event["selection"]["points"] if event else []
    return str(points[0]["customdata"][0]) if points else None


def read_group(study: modhifi.Study, name: str, eta: float, compensate: Any, together: bool) -> GroupView:
    """Everything the page shows of a group; ``together`` as in `app.figures.overview`."""
    strips = [
        Strip(
            group.name,
            study.curve(group.name, "greedy", compensate)[1:] if together else _alone(study, group.name),
            study.hifi_size(group.name, eta, "greedy", compensate),
        )
        for group in study.groups
    ]
    group = next(g for g in study.groups if g.name == name)
    greedy = study.curve(name, "greedy", compensate)
    naive = study.curve(name, "naive", compensate)
    hifi = study.hifi_size(name, eta, "greedy", compensate)
    naive_size = study.hifi_size(name, eta, "naive", compensate)
    ranks = np.argsort(-study.scores(name)["fidelity"], kind="stable")
    singles = study.scores(name)["fidelity"][ranks]
    total, kept = sum(len(s.fidelity) for s in strips), sum(s.hifi for s in strips)
    small = sum(s.hifi < 0.2 * len(s.fidelity) for s in strips)
    more = "the naive ranking needs as many" if naive_size == hifi else f"the naive ranking needs {naive_size}"
    return GroupView(
        strips=strips,
        greedy=greedy,
        naive=naive,
        singletons=singles,
        chosen=np.isin(ranks, study.order(name, "greedy")[:hifi]),
        hifi=hifi,
        consumer=group.consumers[0].layer,
        in_words=f"**{hifi} of {group.size} components** ({hifi / group.size:.0%}) carry {eta:.0%} of the output of "
        f"{', '.join(c.layer for c in group.consumers)}; {more}.",
        overview_in_words=f"{kept} of {total} components ({kept / total:.0%}) reach η = {eta:.2f} in every group; "
        f"in {small} of {len(strips)} groups fewer than a fifth do.",
        singletons_in_words=f"Singleton fidelity of {name}, sorted: the best has {singles[0]:.3f}, the median "
        f"{np.median(singles):.3f}.",
    )


def _alone(study: modhifi.Study, name: str) -> Array:
    return np.sort(study.scores(name)["fidelity"])[::-1]
