"""Paths that visitors type, on a server that others reach: inside the folders offered, or the same answer whatever is there."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st

from app.model_form import source_from
from app.offered import check_data, check_model, confined, offered
from app.selection import LabelledData, Source
from app.session import library
from modhifi.errors import UserError

from .paging import open_page, press

REFUSED = "is not in a folder that this server offers; choose a file from there or upload one"


@pytest.fixture
def public(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server on all addresses that offers ``models`` and ``data``; returns the folder that holds both, and a secret."""
    for name in ("models", "data"):
        (tmp_path / name / "inner").mkdir(parents=True)
    (tmp_path / "models" / "net.pth").write_bytes(b"weights")
    (tmp_path / "data" / "some.txt").write_text("words")
    (tmp_path / "secret.pth").write_bytes(b"secret")
    (tmp_path / "models" / "out.pth").symlink_to(tmp_path / "secret.pth")
    (tmp_path / "models" / "up").symlink_to(tmp_path)
    (tmp_path / "models" / "in.pth").symlink_to(tmp_path / "models" / "net.pth")
    (tmp_path / "models" / "circle").symlink_to(tmp_path / "models" / "circle")
    monkeypatch.setenv("MODHIFI_MODELS", f"{tmp_path / 'models'}{os.pathsep}{tmp_path / 'nowhere'}")
    monkeypatch.setenv("MODHIFI_DATA", str(tmp_path / "data"))
    st.config.set_option("server.address", "0.0.0.0")
    yield tmp_path
    st.config.set_option("server.address", "127.0.0.1")


OUTSIDE = [
    "/etc/shadow", "/etc/no-such-file", "/", ".", "app/main.py", "~root", "~/x", "~no-such-user/x", "/etc/\0", "x" * 70_000,
    "{public}", "{public}/secret.pth", "{public}/missing.pth", "{public}/models/out.pth", "{public}/models/up/secret.pth",
    "{public}/models/up/missing.pth", "{public}/models/../secret.pth", "{public}/models/../models/net.pth",
    "{public}/models/..\\secret.pth", "{public}/models-and-more/net.pth", "{public}/models/circle", "{public}/data/~root/x",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=range(len(OUTSIDE)))
@pytest.mark.parametrize(
    "take",
    [
        offered,
        lambda path: check_model("digits-resnet20", path),
        lambda path: check_model(path, None),
        lambda path: check_model(f"timm:local-dir:{path}", None),
        lambda path: check_data(path, None),
        lambda path: check_data(f"text:{path}", None),
        lambda path: check_data("cifar10", path),
        lambda path: LabelledData(data="cifar10", root=path).permitted(),
        lambda path: source_from(
            {"model": "digits-resnet20", "weights": path, "data": "digits", "samples": 8, "seed": 0}
        ),
        lambda path: source_from({"model": path, "data": "digits", "samples": 8, "seed": 0}),
        lambda path: source_from({"model": "digits-resnet20", "data": path, "samples": 8, "seed": 0}),
    ],
)
def test_outside_the_answer_is_always_the_same(public: Path, path: str, take: Callable[[str], object]) -> None:
    typed = path.format(public=public)
    with pytest.raises(UserError) as caught:
        take(typed)
    assert str(caught.value).endswith(REFUSED)
    assert str(caught.value) == str(UserError(f"{typed.strip()[:100]} {REFUSED}"))


@pytest.mark.parametrize("spec", ["hf:/etc", "hf:../x", "hf:~root/x", "hf:./app", "hf:app/figures", "hf:a/b/c"])
def test_folders_of_language_models_outside(public: Path, spec: str) -> None:
    with pytest.raises(UserError, match=REFUSED):
        check_model(spec, None)


def test_what_is_offered_is_taken(public: Path) -> None:
    models, data = public / "models", public / "data"
    assert offered(str(models / "net.pth")) == models / "net.pth"
    assert offered(str(models / "in.pth")) == models / "net.pth"
    assert offered(str(models / "missing.pth")) == models / "missing.pth"
    upload = library().store.uploads / "0123" / "net.pth"
    assert offered(str(upload)) == upload
    for spec in ("digits-resnet20", "timm:resnet18", "torchvision:resnet18", "text-llama", "hf:gpt2", "hf:owner/name"):
        check_model(spec, None)
    check_model(f"hf:{models / 'inner'}", None)
    check_model(str(models), None)
    for spec, root in (
        ("digits", None),
        ("text:kjv", None),
        ("dead-leaves", None),
        ("cifar10", str(data)),
        ("inner", str(data)),
    ):
        check_data(spec, root)
    check_data(f"text:{data / 'some.txt'}", None)
    check_data("text:some.txt", str(data))
    with pytest.raises(UserError, match="no checkpoint at"):  # inside, a missing file is told
        Source(weights=str(models / "missing.pth")).checked()


def test_a_stored_study_of_other_files_is_not_read(public: Path) -> None:
    outside = Source(weights=str(public / "secret.pth"), samples=8)
    library().store.remember(outside)
    for job in (
        library().tasks.analyse(outside),
        library().tasks.analyse(Source(data=str(public), samples=8)),
    ):
        assert job.wait(120)
        assert job.state == "error"
        assert job.error is not None
        assert job.error.endswith(REFUSED)


def test_the_form_says_so(filled: Path, public: Path) -> None:
    app = open_page("model")
    app.text_input(key="form-weights").set_value("/etc/shadow")
    press(app, "Analyse")
    (error,) = app.error
    assert error.value == f"/etc/shadow {REFUSED}"
    assert library().jobs.latest("analyse") is None
    app = open_page("modalities")
    app.text_input(key="recordings").set_value("/etc").run()
    assert any(f"/etc {REFUSED}" in caption.value for caption in app.caption)


def test_on_this_machine_every_path_is_taken(home: Path) -> None:
    for address in ("127.0.0.1", "localhost", "::1", "127.0.0.5"):
        st.config.set_option("server.address", address)
        assert not confined()
        assert offered("~/x") == Path.home() / "x"
        check_data("/etc", "/etc")
    for address in (None, "", "0.0.0.0", "::", "192.0.2.7", "elsewhere.example"):
        st.config.set_option("server.address", address)
        assert confined()
    st.config.set_option("server.address", "127.0.0.1")
