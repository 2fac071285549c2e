"""The two exceptions of the public interface."""

__all__ = ["Cancelled", "UserError"]


class UserError(ValueError):
    """A mistake in the caller's input. The message is one line: what is wrong; how to fix it.

    The command line prints only the message and exits with status 2; the dashboard shows it where the mistake was made.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class Cancelled(Exception):  # noqa: N818 - a granted request, not an error
    """Raised by a ``progress`` callable to stop the computation that called it; see `modhifi.progress`."""
