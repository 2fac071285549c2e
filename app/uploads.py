"""Uploads from the browser: a checkpoint or images, stored in the cache under the digest of their content.

Nothing in an upload is trusted. Of its name only the suffix is used; an archive is unpacked member by member while its
size is counted, and members that are not images are ignored. Until everything was checked, an upload has a temporary
name: what is refused or cancelled is removed, and what a killed process left is removed by the next upload.
"""

from __future__ import annotations

import errno
import hashlib
import io
import re
import stat
import zipfile
from pathlib import Path, PurePosixPath

from modhifi.data import IMAGE_SUFFIXES, check_parquet
from modhifi.errors import Cancelled, UserError
from modhifi.files import sync, temporary
from modhifi.progress import Progress, silent

from .store import Store

__all__ = ["LARGEST", "BinaryUpload", "keep_checkpoint", "keep_images"]

LARGEST = 500
"""Megabytes of one file; the server refuses more (``maxUploadSize``)."""
_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin")
_UNPACKED = 4 << 30
_MEMBERS = 200_000
# Images are compressed already; a member with a higher compression ratio is suspicious.
_RATIO = 100
_CHUNK = 1 << 20
# Faults of the disk, not of the archive.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class BinaryUpload(io.BytesIO):
    """What Streamlit hands over: the content, and the name that the sender gave it."""

    name: str


def keep_checkpoint(store: Store, name: str, content: io.BytesIO, progress: Progress = silent) -> Path:
    """Stores a checkpoint and returns its path. Raises `UserError` for another suffix."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix not in _CHECKPOINTS:
        raise UserError(f"{name} is not a checkpoint; its name must end in {', '.join(_CHECKPOINTS)}")
    path = store.uploads / _digest(content) / f"{_stem(name)}{suffix}"
    if not path.is_file():
        with temporary(_incoming(store), folder=False) as made:
            _write(name, content, made, progress)
            _commit(made, path)
    return path


def keep_images(store: Store, name: str, content: io.BytesIO, progress: Progress = silent) -> Path:
    """Stores images and returns their folder (.zip) or file (.parquet). ``progress`` may raise `Cancelled`.

    Raises `UserError` for another suffix, for a parquet file that `load_data` would refuse, and for an archive that is damaged,
    encrypted or too large, has no images, or has names that lead out of its folder. Nothing is then kept.
    """
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix not in (".zip", ".parquet"):
        raise UserError(
            f"{name} is not a data set of images; upload a .zip of images (with or without class folders) or a "
            ".parquet file"
        )
    archive = suffix == ".zip"
    target = store.uploads / _digest(content) / (_stem(name) if archive else f"{_stem(name)}.parquet")
    if not target.exists():
        with temporary(_incoming(store), folder=archive) as made:
            if archive:
                _unpack(name, content, made, progress)
                made.chmod(0o755)
            else:
                _write(name, content, made, progress)
                check_parquet(made, name)
            _commit(made, target)
    return _root(target) if archive else target


def _incoming(store: Store) -> Path:
    """The name of every upload until it is kept, whatever its own, so that the next one finds what was left."""
    store.uploads.mkdir(parents=True, exist_ok=True)
    return store.uploads / "incoming"


def _write(name: str, content: io.BytesIO, path: Path, progress: Progress) -> None:
    total = content.getbuffer().nbytes
    with path.open("wb") as file:
        while piece := content.read(_CHUNK):
            file.write(piece)
            progress(content.tell(), total, f"storing {name}")


def _commit(made: Path, target: Path) -> None:
    """One rename keeps the upload."""
    sync(made)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.replace(target)
    except OSError:
        if not target.is_dir():  # else another session kept the same archive meanwhile
            raise


def _digest(content: io.BytesIO) -> str:
    content.seek(0)
    found = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    content.seek(0)
    return found


def _unpack(name: str, content: io.BytesIO, folder: Path, progress: Progress) -> None:
    what = f"unpacking {name}"
    try:
        with zipfile.ZipFile(content) as archive:
            members = archive.infolist()
            if len(members) > _MEMBERS:
                raise UserError(f"{name} contains {len(members):,} files; the limit is {_MEMBERS:,}")
            wanted = [member for member in members if _image_of(name, member)]
            if not wanted:
                raise UserError(f"{name} contains no images; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")
            written = 0
            for done, member in enumerate(wanted):
                progress(done, len(wanted), what)
                written += _unpack_member(name, archive, member, folder, _UNPACKED - written)
            progress(len(wanted), len(wanted), what)
    except (UserError, Cancelled, MemoryError):
        raise
    except Exception as error:  # the archive is untrusted: zipfile and the decompressors raise almost anything
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        if "encrypted" in str(error) or "password" in str(error):
            raise UserError(f"{name} is encrypted; upload it without a password") from error
        raise UserError(f"{name} is damaged or not a readable .zip ({error}); create the archive again") from error


def _unpack_member(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, room: int) -> int:
    """Writes one image of at most ``room`` bytes; returns its size."""
    path = folder.joinpath(*_parts(member))
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(member) as source, path.open("xb") as file:
        # The size that a member declares may be false.
        while piece := source.read(_CHUNK):
            size += len(piece)
            if size > min(room, _RATIO * max(member.compress_size, 1024)):
                raise UserError(
                    f"{member.filename} in {name} expands to far more than its compressed size; "
                    "upload images as ordinary files"
                )
            file.write(piece)
    return size


def _parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    return PurePosixPath(member.filename).parts


def _image_of(name: str, member: zipfile.ZipInfo) -> bool:
    """Whether to unpack this member. Raises `UserError` for a link or a name that leads out of the folder."""
    parts = _parts(member)
    leaves = "\\" in member.filename or ":" in member.filename or "\0" in member.filename
    if leaves or member.filename.startswith("/") or ".." in parts:
        raise UserError(f"{name} contains {member.filename!r}, a name that leads out of the folder; remove it")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{name} contains a link ({member.filename}); replace it by the file")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not member.is_dir() and not hidden and PurePosixPath(member.filename).suffix.lower() in IMAGE_SUFFIXES


def _root(folder: Path) -> Path:
    """The folder, or the innermost folder inside it that contains everything."""
    while len(children := list(folder.iterdir())) == 1 and children[0].is_dir():
        folder = children[0]
    return folder


def _stem(name: str) -> str:
    """A file name that is safe in any folder and resembles the original one."""
    stem = PurePosixPath(name.replace("\\", "/")).stem.lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40] or "upload"
