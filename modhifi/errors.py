"""The two exceptions that are part of the interface."""

__all__ = ["Cancelled", "UserError"]


class UserError(ValueError):
    """A mistake of the caller's. The message is one line: what is wrong, and how to mend it.

    The command line prints the message alone and exits with status 2; the dashboard shows it in place.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Cancelled(Exception):  # noqa: N818 - a request that was granted, not an error
    """Raised by a ``progress`` callable to stop the work that called it; see `modhifi.progress`."""
