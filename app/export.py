"""The three downloads of a plan."""

from __future__ import annotations

import streamlit as st

from . import components as ui
from .report import report
from .session import Session
from .store import Point

__all__ = ["downloads"]

_FORMATS = {"safetensors": "safetensors", "onnx": "ONNX", "pt2": "torch.export"}


def downloads(session: Session, point: Point) -> None:
    """Draws plan, changed network and report side by side."""
    cards = st.columns(3, gap="medium", border=True)
    for card, draw in zip(cards, (_plan_download, _model_download, _report_download), strict=True):
        with card, st.container(height="stretch"):
            draw(session, point)


def _plan_download(session: Session, point: Point) -> None:
    st.markdown("**Plan**")
    st.caption("What stays, the new weights and the settings: `plan.zip` with a JSON and a safetensors file.")
    st.space("stretch")
    st.download_button(
        "Download the plan",
        lambda: session.library.plan_zip(session.source, point),
        "plan.zip",
        "application/zip",
        icon=":material/download:",
        on_click="ignore",
        width="stretch",
        key="download-plan",
    )


def _model_download(session: Session, point: Point) -> None:
    st.markdown("**Changed network**")
    text = point.evaluation.get("perplexity") is not None  # a language model is written as safetensors alone
    extra = (
        []
        if text
        else st.pills(
            "Formats besides safetensors",
            ["onnx", "pt2"],
            selection_mode="multi",
            format_func=_FORMATS.__getitem__,
            key="formats",
            persist_state="session",
            help="The folder always holds safetensors and a manifest, so that the network can be loaded again by its path.",
        )
    )
    formats = ["safetensors", *extra]
    archive = session.library.archive(session.source, point, formats)
    if archive is None:
        st.button(
            "Build the network",
            icon=":material/build:",
            on_click=ui.start,
            args=(session.library.build, session.source, point, formats),
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
        "One page that stands alone: what was done, what it cost, with the charts. Opens in any browser, without a server."
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
