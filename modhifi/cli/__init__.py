"""The command line (contract). It parses, calls the library, and prints; no logic of its own."""

from ._main import main

__all__ = ["main"]
