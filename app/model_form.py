"""The form for a new study: network, images, number of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st
from pydantic import ValidationError

from modhifi.data import sources
from modhifi.errors import UserError, first_fault
from modhifi.models import families
from modhifi.shipped import TEXT_MODEL

from . import components as ui
from .library import Library
from .offered import check_data, check_model
from .selection import DEFAULT, Source, stat_of
from .session import studies
from .uploads import LARGEST

__all__ = ["FORM_OPEN", "MODELS", "model_form", "source_from"]

FORM_OPEN = "form-open"
"""Key in the session state: whether the form is expanded."""

MODELS = (*(example for family in families() for example in family.examples), TEXT_MODEL)
DATA = tuple(source.example for source in sources() if source.example is not None)

_PREPROCESSING = (
    (
        "mean",
        "Mean",
        "0.485, 0.456, 0.406",
        "Per colour channel (R, G, B), in [0, 1]. Leave empty to use the network's own values.",
    ),
    (
        "std",
        "Standard deviation",
        "0.229, 0.224, 0.225",
        "Per colour channel. The network's input is (image − mean) / standard deviation.",
    ),
    (
        "classes",
        "Class names",
        "cat, dog, horse",
        "In the order of the logits. Leave empty to use the network's own names.",
    ),
)


def model_form(library: Library) -> None:
    """Draws the form. *Analyse* starts the analysis, makes the study the current one and collapses the form; errors
    appear below the button.
    """
    with st.form("model", border=False):
        first, second = st.columns(2, gap="medium")
        with first:
            st.selectbox(
                "Network",
                MODELS,
                key="form-model",
                persist_state="session",
                accept_new_options=True,
                help="Select a network or type a name: `digits-resnet20`, `cifar10-vgg8`, `digits-vit` (included), "
                "`cifar10-resnetN`, `timm:NAME`, `torchvision:NAME`; language models `text-llama` (included), "
                "`hf:NAME` or `hf:FOLDER`; the path of an exported folder; or `FILE.py:FACTORY`, a network of your own in the "
                "folder that the server was started for (`modhifi ui --models FOLDER`), whose function also returns "
                "example inputs.",
            )
            st.text_input(
                "Checkpoint",
                key="form-weights",
                persist_state="session",
                placeholder="path of a .safetensors, .pt, .pth or .ckpt file; empty: included weights",
                help="A path on the machine that runs the server. Pickles are read with `weights_only`, so no code "
                "in them runs.",
            )
            st.file_uploader(
                "or upload a checkpoint",
                ["safetensors", "pt", "pth", "th", "ckpt", "bin"],
                key="form-checkpoint",
                help=f"Up to {LARGEST} MB. For a larger file, enter its path above.",
            )
            st.number_input(
                "Samples",
                8,
                100_000,
                DEFAULT.samples,
                64,
                key="form-samples",
                persist_state="session",
                help="Number of unlabelled images, or windows of text, to draw. More samples give more accurate "
                "statistics.",
            )
        with second:
            st.selectbox(
                "Images",
                DATA,
                key="form-data",
                persist_state="session",
                accept_new_options=True,
                help="Select a source or type one: `digits`, `cifar10`, the path of a folder of class folders, or "
                "of a .parquet, .npz, .npy or .safetensors file. Without data: `dead-leaves` (overlapping shapes), `noise`, or "
                "`inversion` (images optimised to match the network's BatchNorm statistics). For language models: "
                "`text:kjv` or `text:FILE`.",
            )
            st.text_input(
                "Image folder",
                key="form-root",
                persist_state="session",
                placeholder="path of the data set; empty for digits and generated images",
            )
            st.file_uploader(
                "or upload images",
                ["zip", "parquet"],
                key="form-images",
                help=f"A .zip of images, with or without one folder per class, or a .parquet file; up to {LARGEST} MB.",
            )
            st.number_input(
                "Seed",
                0,
                2**31 - 1,
                DEFAULT.seed,
                1,
                key="form-seed",
                persist_state="session",
                help="Determines which samples are drawn.",
            )
        with st.expander("Preprocessing and class names", icon=":material/tune:"):
            columns = st.columns([1, 1, 2], gap="medium")
            for column, (name, label, example, text) in zip(columns, _PREPROCESSING, strict=True):
                with column:
                    st.text_input(
                        label, key=f"form-{name}", persist_state="session", placeholder=f"e.g. {example}", help=text
                    )
        st.form_submit_button(
            "Analyse",
            type="primary",
            icon=":material/play_arrow:",
            on_click=_begin,
            args=(library,),
        )
    if problem := st.session_state.get("form-problem"):
        ui.fault(problem)
    if sent := st.session_state.get("form-sent"):
        ui.job_card(sent[1])


def _begin(library: Library) -> None:
    # An error stays visible until the form is submitted again.
    st.session_state.pop("form-problem", None)
    names = ("model", "weights", "data", "root", "samples", "seed", "mean", "std", "classes")
    fields = {name: st.session_state[f"form-{name}"] for name in names}
    sent = [st.session_state.get(f"form-{name}") for name in ("checkpoint", "images")]
    if any(sent):
        job = library.tasks.receive(*sent)
        st.session_state["form-sent"] = fields, job
        job.wait(1.0)  # most uploads are kept before anybody could read the progress
    else:
        _analyse(library, fields)


def received(library: Library) -> None:
    """Starts the analysis once the uploads of the form have been kept; to be called before the page is drawn."""
    fields, job = st.session_state.get("form-sent", ({}, None))
    if job is None or job.state == "running":
        return
    del st.session_state["form-sent"]
    if job.state == "done":
        _analyse(library, fields | job.result)
    elif job.error is not None:
        st.session_state["form-problem"] = job.error


def _analyse(library: Library, fields: dict[str, Any]) -> None:
    try:
        source = source_from(fields)
    except UserError as error:
        st.session_state["form-problem"] = str(error)
        return
    library.tasks.analyse(source)
    st.session_state[FORM_OPEN] = False
    st.session_state["study"] = next(label for label, known in studies(library).items() if known == source)


def source_from(fields: dict[str, Any]) -> Source:
    """The `Source` that the form's fields describe. Raises `UserError` for the first invalid field."""
    texts = {name: (str(fields.get(name) or "").strip() or None) for name in ("model", "weights", "data", "root")}
    # Before anything is looked for, since the answer would tell what there is.
    check_model(texts["model"] or "", texts["weights"])
    check_data(texts["data"] or "digits", texts["root"])
    for name in ("weights", "root"):
        texts[name] = _whole_path(str(texts[name])) if texts[name] else None
    if not texts["model"] or not texts["data"]:
        raise UserError("network or images missing; enter both")
    if stat_of(texts["data"]) is not None and texts["data"] not in DATA:
        texts["data"] = _whole_path(texts["data"])
    read_as = {name: _three(label, fields.get(name)) for name, label, _, _ in _PREPROCESSING[:2]}
    others = {"samples": fields["samples"], "seed": fields["seed"], "classes": _listed(fields.get("classes"))}
    try:
        return Source.model_validate({**texts, **read_as, **others}).checked()
    except ValidationError as error:
        raise UserError(first_fault(error)) from error


def _whole_path(text: str) -> str:
    try:
        return str(Path(text).expanduser().absolute())
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"invalid path {text!r} ({error}); enter an absolute path") from error


def _listed(text: object) -> tuple[str, ...] | None:
    """The comma-separated parts of a field; None if it is empty."""
    return tuple(part.strip() for part in str(text or "").split(",") if part.strip()) or None


def _three(label: str, text: object) -> tuple[float, ...] | None:
    """Three comma-separated numbers; None if the field is empty."""
    parts = _listed(text)
    try:
        numbers = None if parts is None else tuple(float(part) for part in parts)
    except ValueError:
        numbers = ()
    if numbers is not None and len(numbers) != 3:
        raise UserError(f"{label}: {text!r} is not valid; enter three numbers (red, green, blue) separated by commas")
    return numbers
