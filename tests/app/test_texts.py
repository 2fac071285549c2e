"""Texts from outside: what they become in Markdown and in figures, and pages that show hostile ones."""

import html
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app.selection import DEFAULT, Source
from app.session import library
from app.store import Store
from app.texts import LONGEST, chart_text, chart_value, plain

from .paging import open_page, settled, words

MARKUP = "[x](http://elsewhere.example) ![y](http://elsewhere.example/y.png) :red[z] $a$ `b` **c** <a href=d>"
# Half of the texts are made of what Markdown and Streamlit look for.
ANY = st.one_of(
    st.text(),
    st.lists(
        st.sampled_from([*"\\`*_[]<>()#+-.!|~$&:@/=1ab \n", "http://", "www.", ":material/", ":red["]), max_size=12
    ).map("".join),
)


def literal(text: str) -> str:
    """What a reader sees of a text: one line, with escapes in place of what cannot be seen."""
    line = " ".join(text.split())
    seen = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)
    return seen if len(seen) <= LONGEST else f"{seen[: LONGEST - 1]}…"


@given(ANY)
def test_markdown_reads_it_as_one_plain_text(text: str) -> None:
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    tokens = parser.parse(plain(text))
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} <= {"text", "text_special"}
    assert "".join(child.content for child in inline).replace("\u2060", "") == literal(text).replace("\u2060", "")


@given(ANY)
def test_nothing_is_left_that_streamlit_finds_in_the_finished_text(text: str) -> None:
    source = plain(text)
    assert ":material/" not in source
    assert not re.search(r"(?<!\\)\$", source.replace("\\\\", ""))
    found = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", source)
    for pattern in (r"https?://", r"www\.\S", r":[\w+-]+:", r"(^|\s)(<->|->|<-|--|>=|<=|~=)(\s|$)", r"[\w.+-]@[\w-]"):
        assert not re.search(pattern, found, re.IGNORECASE), pattern


@given(ANY)
def test_a_name_in_a_figure_is_text_and_comes_back(text: str) -> None:
    drawn = chart_text(text)
    assert not re.search(r"[<>]|%\{|&(?!amp;|lt;|gt;|#37;)", drawn)
    if text.isprintable():
        assert chart_value(drawn) == text == html.unescape(drawn)


def test_names_of_every_day_stay_as_they_are() -> None:
    for name in (
        "digits-resnet20 · digits, 512",
        "layer3.0.conv1",
        "timm / resnet18.a1, 50% FLOPs (seed 1)",
        "7",
        "Hund",
    ):
        assert plain(name) == name


@pytest.fixture
def hostile(filled: Path) -> Source:
    """A small study whose classes have hostile names, and one that exists by name only."""
    classes = (MARKUP, "<b>one</b>", ":material/delete:", "# four", *"456789")
    source = Source(samples=64, classes=classes)
    job = library().tasks.analyse(source)
    assert job.wait(120)
    assert job.state == "done", job.error
    return source


def test_pages_of_a_study_with_hostile_classes(hostile: Source) -> None:
    for name in ("model", "importance", "bounds", "prune", "forget"):
        app = open_page(name, study=f"{hostile.label}")
        assert app.selectbox(key="study").value == hostile.label
        inert(words(app))
    (pills,) = [one for one in app.button_group if one.key == "classes"]
    pills.set_value([MARKUP])
    app = settled(app)
    inert(words(app))


def inert(shown: str) -> None:
    assert not re.search(r"(?<!\\)\]\(http|(?<!\\)<a |(?<!\\):red\[", shown)


def test_hostile_names_in_the_address_and_in_failed_jobs(filled: Path) -> None:
    source = Source(model=MARKUP)
    assert library().tasks.analyse(source).wait(60)
    app = open_page("model", study=source.label)
    assert app.selectbox(key="study").value == source.label
    (error,) = app.error
    inert(error.value)
    inert(words(app))
    assert plain(MARKUP)[:20] in words(app)
    app = open_page("model", study=MARKUP)
    assert app.selectbox(key="study").value == DEFAULT.label


def test_a_hostile_name_in_the_address_is_told_as_text(filled: Path) -> None:
    from streamlit.testing.v1 import AppTest

    from .paging import MAIN

    app = AppTest.from_file(str(MAIN), default_timeout=60)
    app.query_params["study"] = MARKUP
    app.run()
    assert Store(filled).has_study(DEFAULT.id)
    (toast,) = app.toast
    inert(toast.value)
    assert "which is not offered here" in toast.value
