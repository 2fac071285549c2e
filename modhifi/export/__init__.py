"""Export: what the user takes away, and reading it back."""

from ._folder import FORMATS, export, read_export
from ._report import report_html

__all__ = ["FORMATS", "export", "read_export", "report_html"]
