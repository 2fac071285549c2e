"""The README's Python runs as it stands, and its commands are ones that exist."""

import re
from pathlib import Path

import pytest

from modhifi.cli._parser import build_parser

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    assert "accuracy=0.9" in capsys.readouterr().out
    assert {"model.safetensors", "model.onnx"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_the_commands_parse() -> None:
    commands = re.findall(r"^modhifi (.*)$", README, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        build_parser().parse_args(command.split())


def test_what_it_links_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).resolve().parents[1] / target).exists(), target
