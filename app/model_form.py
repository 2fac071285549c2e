"""The form that asks for a study: which network, which images, how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st
from pydantic import ValidationError

from modhifi.data import SHIPPED_TEXT, SYNTHETIC
from modhifi.errors import UserError

from .library import Library
from .selection import DEFAULT, Source, stat_of
from .session import studies
from .uploads import LARGEST, keep_checkpoint, keep_images

__all__ = ["FORM_OPEN", "MODELS", "model_form", "source_from"]

FORM_OPEN = "form-open"
"""Whether the form is unfolded, in the session's state."""

MODELS = (
    "digits-resnet20",
    "cifar10-vgg8",
    "digits-vit",
    "text-llama",
    "cifar10-resnet20",
    "cifar10-resnet56",
    "torchvision:vgg16_bn",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "timm:resnet18",
    "timm:resnet50",
)
DATA = ("digits", "cifar10", SHIPPED_TEXT, *SYNTHETIC)

_EXPECTED = (
    (
        "mean",
        "Mean",
        "0.485, 0.456, 0.406",
        "Of each colour (R, G, B) in [0, 1]; empty for what the network says itself.",
    ),
    ("std", "Standard deviation", "0.229, 0.224, 0.225", "Likewise. The network sees (image - mean) / deviation."),
    (
        "classes",
        "Class names",
        "cat, dog, horse",
        "In the order of the logits; empty for those that the network knows.",
    ),
)


def model_form(library: Library) -> None:
    """Draws the form. *Analyse* makes the study the current one, starts its analysis and folds the form; a mistake is said in
    place.
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
                help="`digits-resnet20`, `cifar10-vgg8`, `digits-vit` (part of the project), `cifar10-resnetN`, `timm:NAME`, "
                "`torchvision:NAME`, language models `text-llama`, `hf:NAME` or `hf:FOLDER`, or a folder that Export wrote. Type "
                "your own.",
            )
            st.text_input(
                "Checkpoint",
                key="form-weights",
                persist_state="session",
                placeholder="path of a .safetensors, .pt, .pth or .th file; empty for the weights that come with it",
                help="Read on the machine that runs this server. Pickles are opened with weights_only: no code runs.",
            )
            st.file_uploader(
                "or send a checkpoint",
                ["safetensors", "pt", "pth", "th"],
                key="form-checkpoint",
                help=f"Up to {LARGEST} MB; a larger one is named by its path above.",
            )
            st.number_input(
                "Samples",
                8,
                100_000,
                DEFAULT.samples,
                64,
                key="form-samples",
                persist_state="session",
                help="Unlabelled images to look at.",
            )
        with second:
            st.selectbox(
                "Images",
                DATA,
                key="form-data",
                persist_state="session",
                accept_new_options=True,
                help="`digits`, `cifar10`, a folder of class folders, or a .parquet file or folder. Type your own. Without any "
                "data: `dead-leaves` (overlapping shapes), `noise`, or `inversion`, images made from what the network's "
                "BatchNorm remembers, with gradients of its input. For language models `text:kjv` or `text:FILE`.",
            )
            st.text_input(
                "Folder of the images",
                key="form-root",
                persist_state="session",
                placeholder="where they lie; empty for digits and made images",
            )
            st.file_uploader(
                "or send images",
                ["zip", "parquet"],
                key="form-images",
                help=f"A .zip of images, in a folder for each class or not, or a .parquet; up to {LARGEST} MB.",
            )
            st.number_input(
                "Seed",
                0,
                2**31 - 1,
                DEFAULT.seed,
                1,
                key="form-seed",
                persist_state="session",
                help="Which images are drawn.",
            )
        with st.expander("What the network expects", icon=":material/tune:"):
            columns = st.columns([1, 1, 2], gap="medium")
            for column, (name, label, example, text) in zip(columns, _EXPECTED, strict=True):
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
        st.error(problem, icon=":material/error:")


def _begin(library: Library) -> None:
    # What was wrong stays in sight beside the fields until the form is sent again.
    st.session_state.pop("form-problem", None)
    try:
        names = ("model", "weights", "data", "root", "samples", "seed", "mean", "std", "classes")
        fields = {name: st.session_state[f"form-{name}"] for name in names}
        checkpoint, images = (st.session_state.get(f"form-{name}") for name in ("checkpoint", "images"))
        if checkpoint is not None:
            fields["weights"] = str(keep_checkpoint(library.store, checkpoint.name, checkpoint))
        if images is not None:
            fields |= {"data": str(keep_images(library.store, images.name, images)), "root": None}
        source = source_from(fields)
    except UserError as error:
        st.session_state["form-problem"] = str(error)
        return
    library.analyse(source)
    st.session_state[FORM_OPEN] = False
    st.session_state["study"] = next(words for words, known in studies(library).items() if known == source)


def source_from(fields: dict[str, Any]) -> Source:
    """The `Source` of a filled-in form; `UserError` with one line for what is not right."""
    texts = {name: (str(fields.get(name) or "").strip() or None) for name in ("model", "weights", "data", "root")}
    for name in ("weights", "root"):
        texts[name] = _whole_path(str(texts[name])) if texts[name] else None
    if not texts["model"] or not texts["data"]:
        raise UserError("name a network and the images to analyse it with")
    if stat_of(texts["data"]) is not None and texts["data"] not in DATA:
        texts["data"] = _whole_path(texts["data"])
    read_as = {name: _three(label, fields.get(name)) for name, label, _, _ in _EXPECTED[:2]}
    others = {"samples": fields["samples"], "seed": fields["seed"], "classes": _listed(fields.get("classes"))}
    try:
        return Source.model_validate({**texts, **read_as, **others}).checked()
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error


def _whole_path(text: str) -> str:
    try:
        return str(Path(text).expanduser().absolute())
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{text} is no path here ({error}); give one from the root of the disk") from error


def _listed(text: object) -> tuple[str, ...] | None:
    """What stands between commas; None for nothing."""
    return tuple(part.strip() for part in str(text or "").split(",") if part.strip()) or None


def _three(label: str, text: object) -> tuple[float, ...] | None:
    """Three numbers between commas; None for nothing."""
    parts = _listed(text)
    try:
        numbers = None if parts is None else tuple(float(part) for part in parts)
    except ValueError:
        numbers = ()
    if numbers is not None and len(numbers) != 3:
        raise UserError(
            f"{label}: three numbers, one a colour (red, green, blue), with commas between them, not {text!r}"
        )
    return numbers
