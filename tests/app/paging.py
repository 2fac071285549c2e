"""Helpers that run the dashboard's pages in-process, without a browser."""

from pathlib import Path

from streamlit.testing.v1 import AppTest

from app.selection import Source
from app.session import library

MAIN = Path(__file__).parents[2] / "app" / "main.py"
PAGES = ["model", "importance", "bounds", "prune", "forget", "export"]
OTHER = Source(samples=64)


def open_page(name: str, **address: str) -> AppTest:
    app = AppTest.from_file(str(MAIN), default_timeout=60)
    for key, value in address.items():
        app.query_params[key] = value
    app.run()
    app.switch_page(f"../pages/{name}.py")
    return settled(app)


def settled(app: AppTest) -> AppTest:
    app.run()
    assert not app.exception, app.exception
    return app


def words(app: AppTest) -> str:
    parts = [*app.markdown, *app.caption, *app.info, *app.error, *app.header, *app.subheader, *app.success]
    return "\n".join(str(part.value) for part in parts)


def press(app: AppTest, label: str) -> AppTest:
    (button,) = [b for b in app.button if b.label == label]
    button.click()
    return settled(app)


def finish(app: AppTest, kind: str) -> AppTest:
    """Waits for the page's job, then draws the page again."""
    job = library().jobs.latest(kind)
    assert job is not None
    assert job.wait(120)
    assert job.state == "done", job.error
    return settled(app)


def metric(app: AppTest, label: str) -> str:
    return next(str(m.value) for m in app.metric if m.label == label)
