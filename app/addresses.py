"""Addresses that do not fit, such as old links: the page shows its default and says so."""

from __future__ import annotations

from collections.abc import Callable, Collection

import streamlit as st

from .texts import plain

__all__ = ["is_number", "is_switch", "tell_unfit"]

_SEEN = "seen-parameters"
_ICON = ":material/link_off:"


def tell_unfit(key: str, label: str, fits: Collection[str] | Callable[[str], bool]) -> None:
    """Says in a toast that the address has a value which the control does not offer; to be called before a control that is bound
    to the address is drawn. ``fits``: the values offered, or whether one is.

    Streamlit takes the default then. Only the address that a session was opened with counts: later values are the control's own,
    which may be those of another network.
    """
    seen: set[str] = st.session_state.setdefault(_SEEN, set())
    if key in seen:
        return
    seen.add(key)
    unfit = [value for value in st.query_params.get_all(key) if not (fits(value) if callable(fits) else value in fits)]
    if unfit:
        text = f"“{plain(unfit[0], 60)}”" if unfit[0].strip() else "nothing"
        st.toast(f"{label}: the address asks for {text}, which is not offered here; showing the default.", icon=_ICON)


def is_switch(value: str) -> bool:
    return value.lower() in ("true", "false")


def is_number(low: float, high: float) -> Callable[[str], bool]:
    """Whether a value is a number in this range."""

    def fits(value: str) -> bool:
        try:
            return low <= float(value) <= high
        except ValueError:
            return False

    return fits
