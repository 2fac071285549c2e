"""Uploads from the browser: a checkpoint or images, stored in the cache under the digest of their content.

Nothing in an upload is trusted. Of its name only the suffix is used; an archive is unpacked member by member while its
size is counted, and members that are not images are ignored.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from modhifi.data import IMAGE_SUFFIXES
from modhifi.errors import UserError
from modhifi.files import atomic_file

from .store import Store

__all__ = ["LARGEST", "keep_checkpoint", "keep_images"]

LARGEST = 500
"""Megabytes of one file; the server refuses more (``maxUploadSize``)."""
_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".th")
_UNPACKED = 4 << 30
_MEMBERS = 200_000
# Images are compressed already; a member with a higher compression ratio is suspicious.
_RATIO = 100
_CHUNK = 1 << 20


def keep_checkpoint(store: Store, name: str, content: io.BytesIO) -> Path:
    """Stores a checkpoint and returns its path. Raises `UserError` for another suffix."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix not in _CHECKPOINTS:
        raise UserError(f"{name} is not a checkpoint; its name must end in {', '.join(_CHECKPOINTS)}")
    return _keep_file(store, content, f"{_stem(name)}{suffix}")


def keep_images(store: Store, name: str, content: io.BytesIO) -> Path:
    """Stores images and returns their folder (.zip) or file (.parquet).

    Raises `UserError` for another suffix, and for an archive that is damaged, encrypted or too large, has no images,
    or has names that lead out of its folder.
    """
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix == ".parquet":
        return _keep_file(store, content, f"{_stem(name)}.parquet")
    if suffix != ".zip":
        raise UserError(
            f"{name} is not a data set of images; upload a .zip of images (with or without class folders) or a "
            ".parquet file"
        )
    target = store.uploads / _digest(content) / _stem(name)
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            _unpack(name, content, temporary)
            temporary.chmod(0o755)
            temporary.replace(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _root(target)


def _keep_file(store: Store, content: io.BytesIO, name: str) -> Path:
    path = store.uploads / _digest(content) / name
    if not path.is_file():
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(content, file)
    return path


def _digest(content: io.BytesIO) -> str:
    content.seek(0)
    found = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    content.seek(0)
    return found


def _unpack(name: str, content: io.BytesIO, folder: Path) -> None:
    try:
        with zipfile.ZipFile(content) as archive:
            members = archive.infolist()
            if len(members) > _MEMBERS:
                raise UserError(f"{name} contains {len(members):,} files; the limit is {_MEMBERS:,}")
            written = 0
            wanted = [member for member in members if _image_of(name, member)]
            for member in wanted:
                path = folder.joinpath(*_parts(member))
                path.parent.mkdir(parents=True, exist_ok=True)
                size = 0
                with archive.open(member) as source, path.open("wb") as file:
                    # The size that a member declares may be false.
                    while piece := source.read(_CHUNK):
                        size += len(piece)
                        if written + size > _UNPACKED or size > _RATIO * max(member.compress_size, 1024):
                            raise UserError(
                                f"{member.filename} in {name} expands to far more than its compressed size; "
                                "upload images as ordinary files"
                            )
                        file.write(piece)
                written += size
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError) as error:
        raise UserError(f"{name} is damaged or not a readable .zip ({error}); create the archive again") from error
    except RuntimeError as error:  # how zipfile reports an encrypted member
        raise UserError(f"{name} is encrypted; upload it without a password") from error
    if not wanted:
        raise UserError(f"{name} contains no images; supported are {', '.join(sorted(IMAGE_SUFFIXES))}")


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
