"""An empty cache for each test, and a copy of the one with the default study of few digits."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st

from modhifi.models import _factory
from tests.few import few_digits

st.config.set_option("runner.postScriptGC", False)  # as in .streamlit/config.toml, which tests of a page do not read
st.config.set_option("server.address", "127.0.0.1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a server that has seen nothing yet."""
    monkeypatch.setenv("MODHIFI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    st.cache_resource.clear()
    monkeypatch.setattr(_factory, "_folders", None)  # a server restricts whose code may run: afterwards, as before
    with few_digits():
        yield tmp_path / "home"
    st.cache_resource.clear()


@pytest.fixture
def filled(home: Path, default_home: Path) -> Path:
    """A copy for this test of the cache with the default study."""
    shutil.copytree(default_home, home)
    return home
