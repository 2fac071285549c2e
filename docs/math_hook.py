"""Turns LaTeX into MathML when the site is built, so that formulas need no script and nothing from other hosts."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with the HTML of each page."""
    content = _INLINE.sub(lambda found: convert(html.unescape(found[1]).strip()), content)
    return _BLOCK.sub(lambda found: convert(html.unescape(found[1]).strip(), display="block"), content)
