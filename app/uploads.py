"""What a user sends from the browser: a checkpoint, or images. It is kept in the cache, under the digest of its content.

Nothing of it is trusted: a name is only looked at for its ending, an archive is unpacked member by member with its size counted
as it is read, and what is no image in it is left where it is.
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

from modhifi._files import atomic_file
from modhifi.data import IMAGE_SUFFIXES
from modhifi.errors import UserError

from .store import Store

__all__ = ["LARGEST", "keep_checkpoint", "keep_images"]

LARGEST = 500
"""Megabytes of one file; the server refuses more (``maxUploadSize``)."""
_CHECKPOINTS = (".safetensors", ".pt", ".pth", ".th")
_UNPACKED = 4 << 30
_MEMBERS = 200_000
# Photographs do not shrink when they are zipped; what does by more than this is not what it says.
_RATIO = 100
_CHUNK = 1 << 20


def keep_checkpoint(store: Store, name: str, content: io.BytesIO) -> Path:
    """Where the checkpoint lies now. Raises `UserError` if it is none by its name."""
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix not in _CHECKPOINTS:
        raise UserError(f"{name} is not a checkpoint by its name; it must end in {', '.join(_CHECKPOINTS)}")
    return _kept(store, content, f"{_stem(name)}{suffix}")


def keep_images(store: Store, name: str, content: io.BytesIO) -> Path:
    """The folder (of a .zip) or the file (a .parquet) that holds the images now. Raises `UserError` if the file is neither, is
    damaged or encrypted, holds no image, more than it should, or names that lead out of the folder.
    """
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    if suffix == ".parquet":
        return _kept(store, content, f"{_stem(name)}.parquet")
    if suffix != ".zip":
        raise UserError(
            f"{name} does not hold images by its name; send a .zip of images (in class folders or not) or a .parquet"
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


def _kept(store: Store, content: io.BytesIO, name: str) -> Path:
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
                raise UserError(f"{name} holds {len(members):,} files; more than {_MEMBERS:,} are not unpacked")
            written = 0
            wanted = [member for member in members if _image_of(name, member)]
            for member in wanted:
                path = folder.joinpath(*_parts(member))
                path.parent.mkdir(parents=True, exist_ok=True)
                size = 0
                with archive.open(member) as source, path.open("wb") as file:
                    # What a member says of its size is not to be believed.
                    while piece := source.read(_CHUNK):
                        size += len(piece)
                        if written + size > _UNPACKED or size > _RATIO * max(member.compress_size, 1024):
                            raise UserError(
                                f"{name} would unpack to far more than it is ({member.filename}); images are sent as they are"
                            )
                        file.write(piece)
                written += size
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError) as error:
        raise UserError(f"{name} is damaged or not a .zip that can be read ({error}); pack it again") from error
    except RuntimeError as error:  # zipfile's word for an encrypted member
        raise UserError(f"{name} is encrypted; send it without a password") from error
    if not wanted:
        raise UserError(f"{name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")


def _parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    return PurePosixPath(member.filename).parts


def _image_of(name: str, member: zipfile.ZipInfo) -> bool:
    """Whether the member is an image to unpack; `UserError` for a name that leads out of the folder, or a link."""
    parts = _parts(member)
    leaves = "\\" in member.filename or ":" in member.filename or "\0" in member.filename
    if leaves or member.filename.startswith("/") or ".." in parts:
        raise UserError(f"{name} holds {member.filename!r}, a name that leads out of the folder; it was not unpacked")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UserError(f"{name} holds a link ({member.filename}); send the files themselves")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not member.is_dir() and not hidden and PurePosixPath(member.filename).suffix.lower() in IMAGE_SUFFIXES


def _root(folder: Path) -> Path:
    """The folder itself, or the one inside it that holds everything."""
    while len(children := list(folder.iterdir())) == 1 and children[0].is_dir():
        folder = children[0]
    return folder


def _stem(name: str) -> str:
    """A name for the file that is safe in any folder, close to the one that it had."""
    stem = PurePosixPath(name.replace("\\", "/")).stem.lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:40] or "upload"
