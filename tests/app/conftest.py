"""An empty cache for each test, and one with the default study of few digits, which the tests of a run share and copy."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from app.library import Library
from app.selection import DEFAULT
from app.store import Store
from tests.few import few_digits

st.config.set_option("runner.postScriptGC", False)  # as in .streamlit/config.toml, which tests of a page do not read
st.config.set_option("server.address", "127.0.0.1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a server that has seen nothing yet."""
    monkeypatch.setenv("MODHIFI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    st.cache_resource.clear()
    with few_digits():
        yield tmp_path / "home"
    st.cache_resource.clear()


@pytest.fixture(scope="session")
def analysed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the default study."""
    root = tmp_path_factory.mktemp("analysed_home")
    library = Library(Store(root))
    with few_digits():
        job = library.tasks.analyse(DEFAULT)
        assert job.wait(300)
    assert job.state == "done", job.error
    return root


@pytest.fixture
def filled(home: Path, analysed_home: Path) -> Path:
    """A copy for this test of the cache with the default study."""
    shutil.copytree(analysed_home, home)
    return home
