"""Which files of this machine visitors may name.

A server that answers to this machine only opens whatever its user could open anyway. One that listens on another address
opens, by a path that a visitor typed, only what lies in the folders it was started with (``modhifi ui --models --data``) or
was uploaded.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path, PurePath

import streamlit as st

from modhifi.data import SHIPPED_TEXT, source_of
from modhifi.errors import UserError
from modhifi.models import family_of, restrict_factories
from modhifi.shipped import TEXT_MODEL

from .home import home

__all__ = ["check_data", "check_model", "confined", "offered", "restrict_code"]

FOLDERS = ("MODHIFI_MODELS", "MODHIFI_DATA")
"""Names, in the environment, the folders offered; several are separated like those of PATH."""


def confined() -> bool:
    """Whether the server listens on another address than this machine's own."""
    address = str(st.config.get_option("server.address") or "")
    if address == "localhost":
        return False
    try:
        return not ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return True  # no address stands for all of them


def restrict_code() -> None:
    """From now on this server runs the Python code of networks only in files of the folders it was started with."""
    restrict_factories(*_listed("MODHIFI_MODELS"))


def offered(path: str) -> Path:
    """The path, absolute and without links where the server is `confined`.

    Raises `UserError` for a path outside the folders offered, in the same words whether or not anything is there.
    """
    if not confined():
        return Path(path).expanduser()
    refused = UserError(
        f"{path[:100]} is not in a folder that this server offers; choose a file from there or upload one"
    )
    parts = PurePath(path.replace("\\", "/")).parts
    # A home folder may be meant anywhere: readers expand the last part before they join it to a folder.
    if "\0" in path or any(part == ".." or part.startswith("~") for part in parts):
        raise refused
    try:
        found = Path(path).resolve()
        folders = [Path(folder).resolve() for name in FOLDERS for folder in _listed(name)]
        folders.append((home() / "uploads").resolve())
    except (OSError, RuntimeError, ValueError):  # overlong, or links in a circle
        raise refused from None
    if not any(found.is_relative_to(folder) for folder in folders):
        raise refused
    return found


def check_model(spec: str, weights: str | None) -> None:
    """Raises `UserError` if the network is read from a path that is not `offered`."""
    if not confined():
        return
    path = spec.removeprefix("timm:local-dir:")  # as timm itself reads it
    if path == spec and (family_of(spec) is not None or spec == TEXT_MODEL):
        path = ""
    elif spec.startswith("hf:"):
        # NAME or OWNER/NAME is looked for on the hub, unless a folder of that name lies in the server's own folder.
        path = spec.removeprefix("hf:")
        named = len(PurePath(path).parts) <= 2 and not path.startswith((".", "/", "~")) and ".." not in path
        path = "" if named and not os.path.lexists(path) else path
    for one in (path, weights):
        if one:
            offered(one)


def check_data(spec: str, root: str | None) -> None:
    """Raises `UserError` if the samples are read from a path that is not `offered`."""
    if not confined():
        return
    if root:
        offered(root)
    if spec.startswith("text:") and spec != SHIPPED_TEXT:
        offered(os.path.join(root or "", spec.removeprefix("text:")))  # noqa: PTH118 - as typed, whatever it is
    elif source_of(spec) is None:
        offered(os.path.join(root or "", spec))  # noqa: PTH118


def _listed(name: str) -> list[str]:
    return [folder for folder in os.environ.get(name, "").split(os.pathsep) if folder]
