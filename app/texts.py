"""Texts from outside (names, notes, messages), made inert for the two places that would interpret them.

`plain` for everything Streamlit renders as Markdown, `chart_text` for everything in a Plotly figure.
"""

from __future__ import annotations

import html
import re

from modhifi.text import visible

__all__ = ["chart_text", "chart_value", "plain"]

LONGEST = 500
# Invisible, and part of no word: what Streamlit finds in the finished text, after escapes are resolved, it no longer finds.
_JOINER = "\u2060"
_PUNCTUATION = re.compile(r"[\\`*_\[\]{}<>|~$&!]")
# Links without markup; ``:name:`` as an emoji or icon; arrows that Streamlit replaces by symbols.
_FOUND_IN_TEXT = (
    (re.compile(r"(?<=:)(?=//)"), _JOINER),
    (re.compile(r"(?<=www)(?=\.)", re.IGNORECASE), _JOINER),
    (re.compile(r"(?<=mailto)(?=:)|(?<=xmpp)(?=:)", re.IGNORECASE), _JOINER),
    (re.compile(r"(?=@)"), _JOINER),
    (re.compile(r"(?<=:)(?=[\w+-]+:)"), _JOINER),
    (re.compile(r"(?<!\S)([<>~-])([=>-]{1,2})(?!\S)"), rf"\1{_JOINER}\2"),
)


def plain(value: object, longest: int = LONGEST) -> str:
    """The text as Markdown that shows it literally: one line, no link, image, formatting, formula, icon or directive.

    Only for what Streamlit renders as Markdown (also labels and help); options of a selectbox are plain text already. Characters
    that cannot be seen, which could reverse or hide parts of a text, are shown as escapes.
    """
    text = visible(" ".join(str(value).split()))
    if len(text) > longest:
        text = f"{text[: longest - 1]}…"
    for pattern, parted in _FOUND_IN_TEXT:
        text = pattern.sub(parted, text)
    text = _PUNCTUATION.sub(r"\\\g<0>", text)
    # Directives (``:red[…]``), and icons, whose slash Streamlit replaces before anything else.
    text = re.sub(r":(?=[\w:])", r"\:", text).replace(":material/", r":material\/")
    # Headings, lists and rules begin a line.
    return re.sub(r"^([#+=-])|^(\d{1,9})([.)])", lambda m: f"\\{m[1]}" if m[1] else f"{m[2]}\\{m[3]}", text)


def chart_text(value: object) -> str:
    """The text for a Plotly figure, which would interpret tags, entities and ``%{…}``; different texts stay different."""
    return html.escape(visible(str(value)), quote=False).replace("%{", "&#37;{")


def chart_value(text: str) -> str:
    """What `chart_text` was given."""
    return html.unescape(text)
