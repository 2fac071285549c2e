"""What the server keeps: the studies and uploads, and how to delete them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from modhifi.errors import UserError

from . import components as ui
from .selection import DEFAULT, Source
from .session import Session, studies
from .texts import plain

__all__ = ["stored"]


def stored(session: Session) -> None:
    """Draws the studies and uploads to delete; each is deleted after a confirmation."""
    library = session.library
    found = {label: source for label, source in studies(library).items() if source != DEFAULT}
    uploads = library.store.uploaded()
    with st.expander("Stored studies and uploads", icon=":material/delete:"):
        if problem := st.session_state.pop("stored-problem", None):
            ui.fault(problem)
        left, right = st.columns(2, gap="medium", vertical_alignment="bottom")
        with left:
            if found:
                label = st.selectbox("Study to delete", list(found), key="study-to-delete", index=None)
                if label is not None:
                    text = "The study is deleted with its statistics, plans, bounds and exports."
                    _confirm(f"{label}. {text}", "study", _delete_study, session, found[label])
            else:
                st.caption("No studies besides the default one, which cannot be deleted.")
        with right:
            if uploads:
                name = st.selectbox(
                    "Upload to delete",
                    list(uploads),
                    key="upload-to-delete",
                    index=None,
                    format_func=lambda name: f"{name.split('/')[1]} ({uploads[name] / 1e6:,.1f} MB, {name[:6]})",
                )
                if name is not None:
                    users = [label for label, source in found.items() if library.store.uses(source, name)]
                    text = f" Studies that can then no longer be measured: {', '.join(users)}." if users else ""
                    _confirm(f"{name.split('/')[1]}.{text}", "upload", _delete_upload, session, name)
            else:
                st.caption("No uploads.")


def _confirm(text: str, what: str, delete: Callable[..., None], *arguments: object) -> None:
    with st.popover("Delete…", key=f"popover-{what}"):
        st.markdown(plain(text))
        st.button(
            f"Delete this {what}",
            type="primary",
            icon=":material/delete:",
            on_click=delete,
            args=arguments,
            key=f"delete-{what}",
        )


def _delete_study(session: Session, source: Source) -> None:
    if _deleted(session.library.tasks.delete_study, source, "study-to-delete") and session.source == source:
        st.session_state["study"] = DEFAULT.label


def _delete_upload(session: Session, name: str) -> None:
    _deleted(session.library.tasks.delete_upload, name, "upload-to-delete")


def _deleted(delete: Callable[[Any], object], what: Source | str, choice: str) -> bool:
    """Deletes, and clears the choice; false, with the reason on the page, if that is not possible now."""
    try:
        delete(what)
    except UserError as error:
        st.session_state["stored-problem"] = str(error)
        return False
    st.session_state[choice] = None
    return True
