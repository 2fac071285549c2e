"""Export: model folders, file formats and the HTML report, and reading exported folders back."""

from ._folder import claim_export, export, read_export
from ._formats import Format, formats, register_format
from ._report import report_html

__all__ = ["Format", "claim_export", "export", "formats", "read_export", "register_format", "report_html"]
