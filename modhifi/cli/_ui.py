"""``modhifi ui``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import ipaddress
import os
import socket
import subprocess
import sys
from pathlib import Path

from ..errors import UserError
from ..progress import Progress
from ._table import Answer

HELP = "Open the dashboard in the browser."

_HERE = "127.0.0.1"
_NAMES = ("localhost", _HERE, "[::1]")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, help="the server's port (default: the first free one from 8501)")
    parser.add_argument(
        "--host",
        default=_HERE,
        metavar="ADDRESS",
        help="the address to listen on (default: this machine only). On any other, visitors can name files in the folders of "
        "--models and --data only",
    )
    for what, holds in (("models", "checkpoints and exported networks"), ("data", "images and text")):
        parser.add_argument(
            f"--{what}",
            nargs="+",
            default=[],
            type=Path,
            metavar="FOLDER",
            help=f"folders of {holds} that visitors may name",
        )


def run(asked: argparse.Namespace, progress: Progress) -> Answer:  # noqa: ARG001
    command, environment = server(asked)
    status = subprocess.call(command, env=environment)
    if status > 0:
        raise UserError(f"the server ended with status {status}; its messages are above")
    return {"status": "ended"}, "The dashboard has ended."


def server(asked: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The command that starts the dashboard, and its environment."""
    page = Path(__file__).resolve().parents[2] / "app" / "main.py"
    if not page.is_file() or importlib.util.find_spec("streamlit") is None:
        raise UserError("the dashboard is not installed here; run make app in a copy of the project's repository")
    environment = dict(os.environ)
    for name, folders in (("MODHIFI_MODELS", asked.models), ("MODHIFI_DATA", asked.data)):
        for folder in folders:
            if not folder.expanduser().is_dir():
                raise UserError(f"no folder {folder}; name folders that exist")
        if folders:
            environment[name] = os.pathsep.join(str(folder.expanduser().resolve()) for folder in folders)
    command = [sys.executable, "-m", "streamlit", "run", str(page), f"--server.address={asked.host}"]
    command += ["--server.showEmailPrompt=false", "--browser.gatherUsageStats=false"]
    command += [f"--server.port={asked.port}"] if asked.port else []
    if asked.host not in _NAMES:
        command += [
            "--server.headless=true",
            *(f"--server.allowedHosts={name}" for name in (*_NAMES, *_names(asked.host))),
        ]
    elif os.environ.get("CI"):
        command += ["--server.headless=true"]
    return command, environment


def _names(host: str) -> list[str]:
    """What browsers may call a server that listens on this address: the address, or all of this machine's, and its names."""
    found = {socket.gethostname(), socket.getfqdn()}
    with contextlib.suppress(OSError):
        found |= {str(entry[4][0]).split("%")[0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    with contextlib.suppress(ValueError):
        if not ipaddress.ip_address(host).is_unspecified:
            found = {name for name in found if not _is_address(name)}
    found.add(host)
    return sorted(f"[{name}]" if ":" in name else name for name in found)


def _is_address(name: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a port from 1 to 65535")
    return int(text)
