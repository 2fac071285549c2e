"""Statistics: what one pass over unlabelled data leaves, the second moment of every consumer's input."""

from ._moments import Moments, collect

__all__ = ["Moments", "collect"]
