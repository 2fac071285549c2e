"""From what a user types to a path."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

__all__ = ["resolved"]


def resolved(given: str, root: Path | None) -> Path:
    """The absolute path, with ``~`` expanded; a relative one is below ``root``. Raises `UserError` if no file can have it."""
    try:
        path = Path(given).expanduser()
        path = (root / path if root is not None else path).resolve()
        str(path).encode()  # it will stand in JSON
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, no Unicode, no home folder
        reason = getattr(error, "strerror", None) or ("not Unicode" if isinstance(error, UnicodeError) else error)
        raise UserError(f"the path {given:.120} cannot be opened ({reason}); rename it, or check the path") from error
    return path
