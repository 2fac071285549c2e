"""Files and folders that are either complete or absent: written under a temporary name, then renamed.

One rename commits. Until then an earlier result stays in place, whatever ends the process; what a dead process left beside the
result is removed by the next writer of the same name. A folder is replaced only if its manifest is ours and it holds nothing
but what that manifest lists.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "FolderKind",
    "atomic_file",
    "atomic_folder",
    "check_regular",
    "claim_folder",
    "claim_parent",
    "file_sha256",
    "locked",
    "read_json",
    "recover",
    "sweep",
    "sync",
    "temporary",
    "write_json",
]

_LARGEST_JSON = 256 << 20
# Linux's renameat2 and macOS's renamex_np take this flag to exchange two names in one step.
_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True)
class FolderKind:
    """A kind of folder that this project writes."""

    what: str
    """How messages call it: ``a study``."""
    manifest: str
    """The file that identifies it."""
    listed: Callable[[Any], Collection[str]]
    """Manifest, parsed → the names of the other files of the folder. Raises `KeyError`, `TypeError`, `ValueError` or
    `AttributeError` for JSON that is something else.
    """
    extra: Collection[str] = ()
    """Files that are written into the folder later, which the manifest does not list."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to ``path``. On success it replaces ``path``; on any exception it is deleted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary(path, folder=False) as made:
        yield made
        sync(made)
        made.replace(path)
        sync(path.parent)


def claim_folder(path: Path, kind: FolderKind) -> None:
    """Raises whatever `atomic_folder` would raise, so that long work can fail before it begins."""
    _check_name(path)
    recover(path)
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder to write to")
    if path.is_dir():
        _check_ours(path, kind)
    claim_parent(path)


def _check_ours(path: Path, kind: FolderKind) -> None:
    """Raises `UserError` unless the folder is empty, or one of this kind that holds nothing else."""
    present = {entry.name for entry in path.iterdir()}
    if not present:
        return
    if kind.manifest not in present:
        raise UserError(f"{path} contains other files (no {kind.manifest}); name an empty or new folder")
    try:
        listed = set(kind.listed(read_json(path / kind.manifest, kind.what)))
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} contains other files: its {kind.manifest} is not that of {kind.what}; name an empty or new folder"
        ) from error
    foreign = sorted(present - listed - {kind.manifest, *kind.extra})
    if foreign:
        raise UserError(
            f"{path} is {kind.what} but also contains {foreign[0]!r}; move that file, or name an empty or new folder"
        )


def claim_parent(path: Path) -> None:
    """Creates the parent folder of ``path``; raises `UserError` if it cannot be created or is not writable, or if ``path`` has
    no name of its own.
    """
    _check_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be created ({error.strerror}); name another folder") from error
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} is not writable; name another folder")


def _check_name(path: Path) -> None:
    if path.name in ("", ".."):
        raise UserError(f"{str(path)!r} does not name a new file or folder; name one to write to")


@contextlib.contextmanager
def atomic_folder(path: Path, kind: FolderKind) -> Iterator[Path]:
    """`atomic_file` for a folder. An existing folder is replaced only if it is of this kind, see `FolderKind`.

    Raises `UserError` instead of overwriting a file or a folder with other contents.
    """
    claim_folder(path, kind)
    with temporary(path, folder=True) as made:
        yield made
        # mkdtemp and safetensors create private files; the result gets the permissions that the umask gives new files.
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)
        for file in made.iterdir():
            file.chmod(0o666 & ~umask)
            sync(file)
        sync(made)
        if path.is_dir():
            _check_ours(path, kind)  # again: the work may have taken hours
            _swap(made, path)
        else:
            made.replace(path)
        sync(path.parent)


def recover(path: Path) -> None:
    """Puts back a folder that a killed process had moved away, where the system could not exchange two folders in one step."""
    if os.path.lexists(path):
        return
    for old in _beside(path, "old"):
        with locked(old) as free, contextlib.suppress(OSError):
            if free:
                old.replace(path)
                return


def sweep(path: Path) -> None:
    """Removes what processes that no longer exist left beside ``path`` while writing it."""
    recover(path)
    for left in (*_beside(path, "tmp"), *_beside(path, "old")):
        with locked(left) as free:
            if free:
                _remove(left)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Holds the lock of a file or folder, which ends with its process; false if another process holds it, or the path does
    not exist. Where there are no such locks (Windows) always false.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        yield False
        return
    try:
        try:
            if fcntl is None:
                raise OSError
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.path.samestat(os.fstat(handle), path.lstat())
        except OSError:
            free = False
        yield free
    finally:
        os.close(handle)


@contextlib.contextmanager
def temporary(path: Path, folder: bool) -> Iterator[Path]:
    """A new file or folder beside ``path``, locked while it is in use; removed at the end if it is still there."""
    sweep(path)
    while True:
        made = path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.tmp")
        try:
            if folder:
                made.mkdir(mode=0o700)
            else:
                made.touch(mode=0o666, exist_ok=False)
            with locked(made):
                if not made.exists():
                    continue  # swept between creation and lock
                yield made
                return
        finally:
            _remove(made)


def _beside(path: Path, suffix: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.{suffix}")
    try:
        with os.scandir(path.parent) as entries:
            return [path.parent / entry.name for entry in entries if pattern.fullmatch(entry.name)]
    except OSError:
        return []


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _swap(new: Path, path: Path) -> None:
    """Replaces the folder ``path`` by ``new``; the old one ends up under the name of the new one, or is removed."""
    if _exchange(new, path):
        return
    old = new.with_suffix(".old")
    with locked(path):
        path.replace(old)
        new.replace(path)
        _remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names in one step; false if the system or the file system cannot."""
    library = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(library, "renameat2"):
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE)  # type: ignore[union-attr]
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, _EXCHANGE)
    else:
        return False
    return not failed


def sync(path: Path) -> None:
    """Asks the system to write a file's content, or a folder's names, to the disk itself."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open folders
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    with atomic_file(path) as made:
        made.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, what: str) -> Any:
    """The parsed file. Raises `UserError`, which calls it ``what``, if it is missing, damaged, larger than 256 MiB or anything
    but a regular file.
    """
    check_regular(path, what, _LARGEST_JSON)
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:  # JSON, UTF-8, too many digits, too deep
        raise UserError(f"{path} is damaged or not {what}: it does not parse as JSON; make it again") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def check_regular(path: Path, what: str, limit: int | None = None) -> None:
    """Raises `UserError` unless ``path`` is a regular file of at most ``limit`` bytes: reading a pipe or a device might never
    end.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{what} {path} does not exist; check the path") from error
    except (OSError, ValueError) as error:  # no permission, too long, a null byte
        detail = getattr(error, "strerror", None) or error
        raise UserError(f"{what} {path} cannot be read ({detail}); check the path") from error
    if stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a folder, not {what}; name a file")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path} is not a regular file; copy its content into one and name that")
    if limit is not None and found.st_size > limit:
        raise UserError(
            f"{path} is too large for {what}: {found.st_size >> 20} MiB, the limit is {limit >> 20} MiB; use a smaller one"
        )


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
