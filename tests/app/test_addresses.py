"""Addresses that do not fit: every parameter that a page binds, with values that nothing offers."""

import re
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.library import Library
from app.selection import DEFAULT, Choice, LabelledData
from app.store import Store
from tests.few import few_digits

from .paging import MAIN, settled

EVERYWHERE = ["study", "group"]
BOUND = {
    "model": ["map-colour"],
    "importance": ["eta", "compensation", "colour", "outputs"],
    "bounds": ["estimators", "settled-by", "statistic", "bound-compensation"],
    "prune": [
        "budget", "score", "multiple", "weighed-by", "remain", "bn", "compensate", "allocation", "against", "hand", "plan",
    ],
    "forget": ["classes", "method", "target", "predicted"],
    "export": ["plan"],
    "modalities": ["fusion", "shown-4-early", "run"],
}  # fmt: skip
UNFIT = {
    "empty": "",
    "unknown": "nonsense",
    "long": "x" * 5000,
    "markup": "<script>alert(1)</script>[x](http://elsewhere.example)",
    "repeated": ["nonsense", ""],
    "number": "-1e999",
    "nul": "\x00",
}


@pytest.fixture(scope="module")
def planned_home(default_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a measured plan, so that the choice of a plan is drawn."""
    root = tmp_path_factory.mktemp("planned") / "home"
    shutil.copytree(default_home, root)
    with few_digits():
        job = Library(Store(root)).tasks.measure(DEFAULT, Choice(), LabelledData(samples=16))
        assert job.wait(300)
    assert job.state == "done", job.error
    return root


@pytest.mark.parametrize("name", BOUND)
def test_the_default_is_shown_and_the_page_says_so(home: Path, planned_home: Path, name: str) -> None:
    shutil.copytree(planned_home, home)
    usual = opened(name, {})
    assert not usual.toast
    for value in UNFIT:
        unfit(name, value, shown(usual))


def unfit(name: str, value: str, usual: list[object]) -> None:
    # Any number may be chosen of these, also none.
    keys = [key for key in (*EVERYWHERE, *BOUND[name]) if value != "empty" or key not in ("estimators", "classes")]
    app = opened(name, dict.fromkeys(keys, UNFIT[value]))
    told = [toast.value for toast in app.toast]
    assert len(told) == len(keys), told
    assert all("which is not offered here; showing the default." in text and len(text) < 250 for text in told)
    assert not any(re.search(r"(?<!\\)(\]\(|<)", text) for text in told)
    assert shown(app) == usual
    if value == "unknown":
        assert not settled(app).toast, "said once"


def opened(name: str, address: dict[str, str | list[str]]) -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    for key, value in address.items():
        app.query_params[key] = value
    app.switch_page(f"../pages/{name}.py")
    app.run()
    assert not app.exception, app.exception
    assert not app.error, app.error
    return app


def shown(app: AppTest) -> list[object]:
    """The values of the page's numbers and controls; of the segmented ones, what follows from them."""
    controls = (*app.selectbox, *app.slider, *app.toggle)
    return [(one.label, one.value) for one in (*controls, *app.metric)] + [caption.value for caption in app.caption]
