"""The layout: rooms import one way only, no file holds too much, and the library stands without the dashboard."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("modhifi", "app", "pages", "tests", "benchmarks", "assets", "docs")
    for path in (ROOT / folder).rglob("*.py")
]


def test_rooms_import_one_way_only() -> None:
    """The layers written down in pyproject.toml, lazy imports and imports for types included."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_room_has_a_place_in_the_layers() -> None:
    """`exhaustive` in the contract would pass for a folder without ``__init__``."""
    for folder in (ROOT / "modhifi").iterdir():
        if folder.is_dir() and folder.name not in ("__pycache__", "assets"):
            assert (folder / "__init__.py").exists(), f"{folder.name} is no package"


def test_no_file_is_longer_than_500_lines() -> None:
    assert len(SOURCES) > 250
    long = {
        path.relative_to(ROOT).as_posix(): lines
        for path in SOURCES
        if (lines := len(path.read_text().splitlines())) > 500
    }
    assert not long


def test_the_library_stands_without_the_dashboard() -> None:
    foreign = {"streamlit", "plotly", "pandas", "captum", "app"}
    code = f"import sys, modhifi, modhifi.cli; sys.exit(bool({foreign} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
