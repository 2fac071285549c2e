"""The command line: parses arguments, calls the library and prints the result."""

from ._main import main

__all__ = ["main"]
