"""The three downloads of a plan: the plan itself, the modified network, and a report."""

from __future__ import annotations

import streamlit as st

from modhifi.export import formats

from . import components as ui
from .report import report
from .session import Session
from .store import Point

__all__ = ["downloads"]


def downloads(session: Session, point: Point) -> None:
    """Draws the three downloads side by side."""
    cards = st.columns(3, gap="medium", border=True)
    for card, draw in zip(cards, (_plan_download, _model_download, _report_download), strict=True):
        with card, st.container(height="stretch"):
            draw(session, point)


def _plan_download(session: Session, point: Point) -> None:
    st.markdown("**Plan**")
    st.caption("Components kept, new weights and settings: `plan.zip` with a JSON and a safetensors file.")
    st.space("stretch")
    st.download_button(
        "Download the plan",
        lambda: session.library.queries.plan_zip(session.source, point),
        "plan.zip",
        "application/zip",
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
        key="download-plan",
    )


def _model_download(session: Session, point: Point) -> None:
    st.markdown("**Pruned network**" if point.kind == "prune" else "**Edited network**")
    text = point.evaluation.get("perplexity") is not None  # language models are exported as safetensors only
    extra = (
        []
        if text
        else st.pills(
            "Additional formats",
            [name for name in formats() if name != "safetensors"],
            selection_mode="multi",
            format_func=lambda name: formats()[name].title,
            key="formats",
            persist_state="session",
            help="The folder always contains safetensors and a manifest, so the network can be loaded again by its "
            "path.",
        )
    )
    chosen = ["safetensors", *extra]
    archive = session.library.queries.archive(session.source, point, chosen)
    if archive is None:
        st.button(
            "Build the network",
            icon=":material/build:",
            on_click=ui.start,
            args=(session.library.tasks.build, session.source, point, chosen),
            width="stretch",
            key="build",
        )
        ui.latest_job(session, "build")
    else:
        st.download_button(
            "Download the network",
            archive.read_bytes,
            f"{session.source.id}-{point.id}.zip",
            "application/zip",
            icon=":material/download:",
            on_click="ignore",
            width="stretch",
            key="download-model",
        )


def _report_download(session: Session, point: Point) -> None:
    st.markdown("**Report**")
    st.caption(
        "One self-contained HTML page with settings, results and charts. Opens in any browser, without a server."
    )
    st.space("stretch")
    st.download_button(
        "Download the report",
        lambda: report(session.library, session.source, point),
        f"{session.source.id}-{point.id}.html",
        "text/html",
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
        key="download-report",
    )
