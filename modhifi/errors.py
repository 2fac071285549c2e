"""The two exceptions of the public interface, and the one place where other exceptions become the first of them."""

from __future__ import annotations

import errno
from typing import Any

from .text import visible

__all__ = ["Cancelled", "UserError", "first_fault", "user_error"]

_LONGEST = 300
# What to do about the usual faults of files.
_REMEDIES = {
    errno.ENOSPC: "free space or write elsewhere",
    errno.EDQUOT: "free space or write elsewhere",
    errno.EFBIG: "write elsewhere; the file system takes no file of this size",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "name a folder that can be written to",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another one",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ELOOP: "replace the link by what it should lead to",
    errno.EMFILE: "close other programs, or raise the limit of open files (ulimit -n)",
    errno.EIO: "check the disk",
}


class UserError(ValueError):
    """A mistake in the caller's input. The message is one line of at most 300 characters: what is wrong; how to fix it.

    The command line prints only the message and exits with status 2; the dashboard shows it where the mistake was made.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_line(message))


class Cancelled(Exception):  # noqa: N818 - a granted request, not an error
    """Raised by a ``progress`` callable to stop the computation that called it; see `modhifi.progress`."""


def user_error(error: BaseException) -> UserError | None:
    """``error`` as a `UserError`, if its cause lies outside the program: files, memory, or values that no network has.

    None for every other exception: that is a fault of ours. The command line and the dashboard call this at their boundary, so
    that code between them need not foresee every way in which a disk can fail.
    """
    if isinstance(error, UserError):
        return error
    kind = type(error).__name__
    # safetensors reports a full disk as an exception of its own, torch as a RuntimeError.
    if isinstance(error, OSError) or kind == "SafetensorError" or "inline_container" in str(error):
        return UserError(_file_fault(error))
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error):
        return UserError("not enough memory; use fewer samples, a smaller batch or a smaller network")
    if isinstance(error, UnicodeError):
        return UserError(
            f"a name or text is not valid Unicode ({_short(error, 120)}); rename the file or save it as UTF-8"
        )
    if isinstance(error, RecursionError):
        return UserError("the input is nested too deeply; use a file or a network with fewer levels")
    if isinstance(error, OverflowError):
        return UserError(f"a number is too large ({_short(error, 120)}); use a smaller one")
    if kind in ("LinAlgError", "_LinAlgError"):
        return UserError(
            f"a matrix of this network has no decomposition ({_short(error, 120)}); check that weights and samples are finite"
            " and not all zero"
        )
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib's expanduser
        return UserError(f"{_short(error, 120)} for a path that begins with ~; write the path in full")
    return None


def first_fault(error: Any) -> str:
    """``field: what is wrong`` of a pydantic ``ValidationError``'s first entry, shortened; the message of other exceptions."""
    if not hasattr(error, "errors"):
        return _short(error, 120)
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return _cut(f"{where}: {first['msg']}" if where else first["msg"], 160)


def _file_fault(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    full = "No space left" in str(error) or "os error 28" in str(error)
    remedy = (
        _REMEDIES[errno.ENOSPC] if full else _REMEDIES.get(code or 0, "check the path, its permissions and the disk")
    )
    name = getattr(error, "filename", None)
    named = name if isinstance(name, str) else None if name is None else repr(name)
    fault = "no space left on the disk" if full else (getattr(error, "strerror", None) or _short(error, 160))
    return f"{named}: {fault[0].lower()}{fault[1:]}; {remedy}" if named else f"{fault[0].lower()}{fault[1:]}; {remedy}"


def _short(error: BaseException, length: int) -> str:
    return _cut(" ".join(str(error).split()), length)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _line(message: str) -> str:
    """One printable line; of a longer one the middle is left out, because the end says what to do."""
    text = visible(" ".join(message.split()))
    if len(text) <= _LONGEST:
        return text
    head = _LONGEST * 3 // 5
    return f"{text[:head]} … {text[-(_LONGEST - head - 3) :]}"
