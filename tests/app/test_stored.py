"""Studies and uploads are deleted from the Model page, unless a job uses them."""

import io
import threading
from pathlib import Path

import pytest

from app.selection import DEFAULT, Source
from app.session import library
from app.uploads import keep_checkpoint
from modhifi.errors import UserError
from modhifi.progress import Progress

from .paging import OTHER, open_page, press, settled, words


def test_a_study_is_deleted_after_a_confirmation_and_the_default_shown(filled: Path) -> None:
    job = library().tasks.analyse(OTHER)
    assert job.wait(120)
    assert job.state == "done", job.error
    app = open_page("model", study=OTHER.label)
    app.selectbox(key="study-to-delete").set_value(OTHER.label)
    app = settled(app)
    assert library().store.has_study(OTHER.id), "not before it is confirmed"
    app = press(app, "Delete this study")
    assert not library().store.folder(OTHER.id).exists()
    assert library().queries.study(OTHER) is None
    assert app.selectbox(key="study").value == DEFAULT.label
    assert OTHER.label not in app.selectbox(key="study").options
    assert library().queries.study(DEFAULT) is not None


def test_what_a_job_uses_is_kept(filled: Path) -> None:
    shared, gate = library(), threading.Event()
    path = keep_checkpoint(shared.store, "net.pth", io.BytesIO(b"weights"))
    source = Source(weights=str(path))
    folder = shared.store.folder(shared.store.remember(source))

    def work(progress: Progress) -> None:
        assert gate.wait(120)

    job = shared.jobs.submit(f"measure {source.id} something", "A job", "lane", work)
    app = open_page("model", study=source.label)
    app.selectbox(key="study-to-delete").set_value(source.label)
    app = press(settled(app), "Delete this study")
    (error,) = app.error
    assert "a job uses" in error.value
    (name,) = shared.store.uploaded()
    app.selectbox(key="upload-to-delete").set_value(name)
    app = settled(app)
    assert "can then no longer be measured" in words(app)
    app = press(app, "Delete this upload")
    assert "a job uses net.pth" in words(app)
    assert path.is_file()
    gate.set()
    assert job.wait(120)
    press(app, "Delete this upload")
    assert not path.parent.exists()
    assert folder.is_dir(), "the study stays"
    shared.tasks.delete_study(source)
    assert not folder.exists()
    assert shared.jobs.get(job.key) is None, "and its result is not offered again"


def test_what_cannot_be_deleted(filled: Path) -> None:
    with pytest.raises(UserError, match="default study"):
        library().tasks.delete_study(DEFAULT)
    for name in ("../studies", "", "0123/none", "/etc"):
        with pytest.raises(UserError, match="no upload"):
            library().tasks.delete_upload(name)
    assert library().store.has_study(DEFAULT.id)
