"""Files and folders that are either complete or absent: written under a temporary name, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import UserError

__all__ = [
    "atomic_file",
    "atomic_folder",
    "claim_folder",
    "claim_parent",
    "file_sha256",
    "read_json",
    "write_json",
]


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``. On success it replaces ``path``; on any exception it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def claim_folder(path: Path, marker: str) -> None:
    """Raises whatever `atomic_folder` would raise, so that long work can fail before it begins."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder to write to")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).exists():
        raise UserError(f"{path} contains other files (no {marker}); name an empty or new folder")
    claim_parent(path)


def claim_parent(path: Path) -> None:
    """Creates the parent folder of ``path``; raises `UserError` if it cannot be created or is not writable."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be created ({error.strerror}); name another folder") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} is not writable; name another folder")


@contextlib.contextmanager
def atomic_folder(path: Path, marker: str) -> Iterator[Path]:
    """`atomic_file` for a folder. An existing folder is replaced only if it contains ``marker``, the file that identifies it.

    Raises `UserError` instead of overwriting a file or a folder with other contents.
    """
    claim_folder(path, marker)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        # mkdtemp and safetensors create private files; the result gets the permissions that the umask gives new files.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for file in temporary.iterdir():
            file.chmod(0o666 & ~umask)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.replace(old / "x")
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """The parsed file. Raises `UserError`, which calls it ``what``, if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{what} {path} does not exist") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder, not {what}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or not {what}: it does not parse as JSON") from error


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
