"""``modhifi ui``: what it starts, and for whom the server answers."""

import argparse
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from modhifi.cli import _ui, main

ROOT = Path(__file__).parents[2]


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    _ui.arguments(parser)
    return parser.parse_args(words)


def test_by_default_for_this_machine_only() -> None:
    command, _ = _ui.server(asked())
    assert command[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(command[4]) == ROOT / "app" / "main.py"
    assert "--server.address=127.0.0.1" in command
    assert not any("port" in word or "allowedHosts" in word for word in command)


def test_folders_travel_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    words = ["--models", "a", "b", "--data", str(tmp_path / "c"), "--port", "8600", "--host", "192.0.2.7"]
    command, environment = _ui.server(asked(*words))
    assert environment["MODHIFI_MODELS"] == os.pathsep.join(str(tmp_path / name) for name in "ab")
    assert environment["MODHIFI_DATA"] == str(tmp_path / "c")
    assert {"--server.port=8600", "--server.address=192.0.2.7"} <= set(command)
    assert "--server.allowedHosts=192.0.2.7" in command


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--models", "nowhere-at-all"], "no folder nowhere-at-all; name folders that exist"),
        (["--port", "0"], "not a port"),
        (["--port", "70000"], "not a port"),
        (["--port", "x"], "not a port"),
    ],
)
def test_mistakes(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", *words]) == 2
    assert line in capsys.readouterr().err


def test_on_other_addresses_it_answers_to_the_names_of_this_machine(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command, environment = _ui.server(asked("--host", "0.0.0.0", "--port", str(port)))
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment | {"MODHIFI_HOME": str(tmp_path)}, stdout=output, stderr=output
        )
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=60).close()
                break
            except OSError:
                time.sleep(0.1)
        for host, status in ((socket.gethostname(), 101), ("127.0.0.1", 101), ("elsewhere.example", 403)):
            assert handshake(port, host).startswith(f"HTTP/1.1 {status} "), host
    finally:
        process.terminate()
        process.wait(60)


def handshake(port: int, host: str) -> str:
    """The first line of the answer to a browser that opens a page's connection under this name."""
    lines = [
        "GET /_stcore/stream HTTP/1.1", f"Host: {host}:{port}", f"Origin: http://{host}:{port}", "Connection: Upgrade",
        "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "", "",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join(lines).encode())
        return connection.recv(100).decode(errors="replace").splitlines()[0]
