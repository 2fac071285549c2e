"""The server responds to localhost only: a web page elsewhere cannot reach it under another host name."""

import socket
from urllib.parse import urlsplit

from .conftest import Server


def test_other_hosts_are_refused(server: Server) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    for host in ("127.0.0.1", "localhost"):
        assert _answer(port, f"{host}:{port}").startswith("HTTP/1.1 101 ")
    assert _answer(port, f"elsewhere.example:{port}").startswith("HTTP/1.1 403 ")


def _answer(port: int, host: str) -> str:
    """The first line of what the server says to a browser that opens a page's connection under this name."""
    lines = [
        "GET /_stcore/stream HTTP/1.1",
        f"Host: {host}",
        f"Origin: http://{host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return connection.recv(100).decode(errors="replace").splitlines()[0]
