"""ModHiFi-U: a study, classes to forget and labelled samples in, a plan out (theory, section 6)."""

from ._unlearn import choose_classes, unlearn

__all__ = ["choose_classes", "unlearn"]
