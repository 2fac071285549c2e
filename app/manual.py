"""Numbers of components that the user sets for single groups, with undo and redo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import streamlit as st

import modhifi

from .addresses import tell_unfit
from .session import Session, focus

__all__ = ["History", "manual_counts", "manual_popover"]


@dataclass
class History:
    """The steps of setting counts: each holds the fixed and the minimum counts by group; ``at`` is the current step."""

    steps: list[tuple[dict[str, int], dict[str, int]]] = field(default_factory=lambda: [({}, {})])
    at: int = 0

    @property
    def now(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.steps[self.at]

    def add(self, fixed: dict[str, int], minimum: dict[str, int]) -> None:
        """Adds a step and drops the steps that were undone."""
        self.steps[self.at + 1 :] = [(fixed, minimum)]
        self.at += 1

    def undo(self) -> None:
        self.at = max(0, self.at - 1)

    def redo(self) -> None:
        self.at = min(len(self.steps) - 1, self.at + 1)


def manual_counts(session: Session, study: modhifi.Study) -> History:
    """The history of this session for this study. It starts with the counts in the address (``?hand=``), which is kept
    up to date.
    """
    key, mark = f"by-hand-{session.source.id}", f"{session.source.digest}:"
    if key not in st.session_state:
        text = st.query_params.get("hand", "")
        tell_unfit(
            "hand", "By hand", lambda text: text.startswith(mark) and any(_read_counts(text.removeprefix(mark), study))
        )
        first = _read_counts(text.removeprefix(mark), study) if text.startswith(mark) else ({}, {})
        st.session_state[key] = History([({}, {}), first] if any(first) else [({}, {})], int(any(first)))
    found: History = st.session_state[key]
    fixed, minimum = found.now
    parts = [f"{name}={count}" for name, count in fixed.items()]
    parts += [f"{name}>{count}" for name, count in minimum.items()]
    if parts:
        st.query_params["hand"] = mark + ",".join(parts)
    elif "hand" in st.query_params:
        del st.query_params["hand"]
    return found


def _read_counts(text: str, study: modhifi.Study) -> tuple[dict[str, int], dict[str, int]]:
    """Fixed and minimum counts from the address; entries that do not fit the study are omitted."""
    found: tuple[dict[str, int], dict[str, int]] = ({}, {})
    sizes = {group.name: group.size for group in study.groups}
    for name, sign, count in re.findall(r"([^,]+?)([=>])(\d{1,9})(?=,|$)", text):
        if 1 <= int(count) <= sizes.get(name, 0):
            found[sign == ">"][name] = int(count)
    return found


def manual_popover(study: modhifi.Study, planned: Mapping[str, int], history: History) -> None:
    """Draws a popover that fixes the number of components of a group, or sets a minimum. ``planned``: the current
    plan's.
    """
    sizes = {group.name: group.size for group in study.groups}
    fixed, minimum = history.now
    with st.popover("By hand", icon=":material/tune:"):
        st.caption(
            "Fix the number of components of a group, or set a minimum. The budget is spent on the other groups."
        )
        group = focus(study)
        name = st.selectbox(
            "Group", list(sizes), list(sizes).index(group), key=f"hand-group-{group}", persist_state="session"
        )
        if sizes[name] == 1:
            st.caption("This group has a single component, which cannot be removed.")
        else:
            st.slider(
                "Components kept",
                1,
                sizes[name],
                fixed.get(name, minimum.get(name, planned.get(name, sizes[name]))),
                key=f"hand-count-{name}",
            )
        with st.container(horizontal=True):
            single = sizes[name] == 1
            st.button("Fix", type="primary", on_click=_set, args=(history, 0, name), key="hand-set", disabled=single)
            st.button("Set minimum", on_click=_set, args=(history, 1, name), key="hand-floor", disabled=single)
            nothing = not fixed and not minimum
            st.button("Clear all", disabled=nothing, on_click=history.add, args=({}, {}), key="hand-clear")
        with st.container(horizontal=True):
            first, last = history.at == 0, history.at == len(history.steps) - 1
            st.button("Undo", icon=":material/undo:", disabled=first, on_click=history.undo, key="hand-undo")
            st.button("Redo", icon=":material/redo:", disabled=last, on_click=history.redo, key="hand-redo")


def _set(history: History, which: int, name: str) -> None:
    """Callback: adds the slider's count to the fixed (``which`` = 0) or the minimum counts (1)."""
    new = [dict(counts) for counts in history.now]
    new[1 - which].pop(name, None)
    new[which][name] = int(st.session_state[f"hand-count-{name}"])
    history.add(new[0], new[1])
