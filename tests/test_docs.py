"""The documentation: every code block runs as it stands, the notebook runs, and the site builds without a warning."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modhifi import Study
from modhifi.cli import main
from modhifi.cli._parser import build_parser
from tests.few import few_digits

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LANGUAGES = {"python", "sh", "console", "text", "json", "mermaid"}


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block, in order."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(text: str) -> list[str]:
    """The commands of a block, comments and prompts taken off, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder of a reader, whose computer has few digits: what the pages say is run, not what it gives."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODHIFI_HOME", str(tmp_path / "home"))
    with few_digits():
        yield tmp_path


@pytest.fixture(scope="module")
def first_study(default_home: Path) -> Study:
    """The study that most pages begin with; `analyze` opens one of the same key instead of making it again."""
    (path,) = default_home.glob("studies/*/study")
    return Study.load(path)


def photographs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``photos``, ``mine.safetensors`` and ``names.txt``; the reader's network is a quarter as wide as timm's."""
    import timm
    import torch
    from safetensors.torch import save_file

    create = timm.create_model
    narrow = {"resnet10t": {"channels": (16, 32, 64, 128)}}
    monkeypatch.setattr(timm, "create_model", lambda name, **given: create(name, **narrow.get(name, {}), **given))
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label in ("cat", "dog"):
            target = folder / "photos" / split / label
            target.mkdir(parents=True)
            for number in range(count):
                coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(target / f"{number}.jpg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("resnet10t", num_classes=2).state_dict(), folder / "mine.safetensors")
    (folder / "names.txt").write_text("cat\ndog\n")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_code_block_runs(
    page: Path,
    users_folder: Path,
    first_study: Study,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first_study.save(users_folder / "study")
    if "mine.safetensors" in page.read_text(encoding="utf-8"):
        photographs(users_folder, monkeypatch)
    namespace: dict[str, object] = {"__name__": "documentation"}
    for language, text in blocks(page):
        assert language in LANGUAGES, f"{name(page)} has a block of {language}"
        if language == "python":
            if file := re.match(r"# (\w+\.py)\n", text):
                (users_folder / file[1]).write_text(text)
            exec(compile(text, name(page), "exec"), namespace)
        elif language == "sh":
            for command in commands(text):
                words = shlex.split(command, comments=True)
                assert words[0] == "modhifi", f"{name(page)}: {command} belongs into a console block"
                assert main(words[1:]) == 0, f"{name(page)}: {command}\n{capsys.readouterr().err}"
    capsys.readouterr()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_that_cannot_run_here_exist(page: Path) -> None:
    """Console blocks: a call of ours parses, a target of make is one, a script is there."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for language, text in blocks(page):
        for command in commands(text) if language == "console" else ():
            words = shlex.split(command, comments=True)
            while words and "=" in words[0] and not words[0].startswith("-"):
                words = words[1:]
            if "modhifi" in words and words[0] in ("modhifi", "python", "torchrun"):
                build_parser().parse_args(words[words.index("modhifi") + 1 :])
            elif words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets, command
            elif words[0] in ("python", "python3"):
                assert (ROOT / words[1]).exists() or words[1] == "-m", command
            else:
                assert words[0] in ("pip", "streamlit", "git", "cd", "export", "docker", "curl", "ls", "cat", "ssh"), (
                    command
                )


def test_the_notebook_runs(users_folder: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("from tests.few import few_digits\nfew_digits().__enter__()"))
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    os.environ |= environment
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(users_folder)}}).execute()
    said = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "forget accuracy" in said
    assert said.rstrip().endswith("True"), "the export opens again with the same weights"


def test_what_the_readme_links_to_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    for target in re.findall(r"\]\((?!http|mailto)([^)#]+)[^)]*\)", readme):
        assert (ROOT / target).exists(), target


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: a broken link or anchor, a page that no menu names, and a warning of any kind fail the build."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"(https?://[^\"]+)", text)
        assert not loaded, f"{page.name} loads {loaded[0]}"
