"""Shared by the tests of tools: a server on this machine, a pretended internet that leads to it, a PDF."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3

Page = bytes | Callable[[socket.socket], None]


class WebServer:
    """Answers each path with a whole HTTP answer, or with a function that writes one; keeps what it was asked.

    ``wrap`` is applied to each connection first (TLS).
    """

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.asked: list[str] = []
        self.wrap: Callable[[socket.socket], socket.socket] = lambda connection: connection
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def page(
        self,
        path: str,
        body: bytes | str = b"",
        status: str = "200 OK",
        kind: str = "text/html; charset=utf-8",
        **more: str,
    ) -> None:
        data = body.encode() if isinstance(body, str) else body
        headers = {"Content-Type": kind, "Content-Length": str(len(data)), "Connection": "close"}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        self.pages[path] = f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + data

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=[connection], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), self.wrap(connection) as stream:
            asked = b""
            while b"\r\n\r\n" not in asked:
                if not (piece := stream.recv(65536)):
                    return
                asked += piece
            head, _, body = asked.partition(b"\r\n\r\n")
            length = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            while len(body) < sum(map(int, length)):
                body += stream.recv(65536)
            self.asked.append((head + b"\r\n\r\n" + body).decode("latin-1"))
            path = head.split(b" ")[1].decode("latin-1").partition("?")[0]
            answer = self.pages.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            if callable(answer):
                answer(stream)
            else:
                stream.sendall(answer)


@pytest.fixture
def server() -> Iterator[WebServer]:
    made = WebServer()
    yield made
    made.close()


class Internet:
    """``names`` say what a host name means (several lists: answers in turn); every connection ends at the server.

    ``connected`` are the addresses that were connected to, ``asked`` the names of ``names`` that were resolved.
    """

    def __init__(self, server: WebServer) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.connected: list[tuple[str, int]] = []
        self.asked: list[str] = []
        self._server = server
        self._system: Any = socket.getaddrinfo

    def resolve(self, host: str, port: int, *_: object, **__: object) -> Any:
        if host not in self.names:
            return self._system(host, port, *_, **__)
        self.asked.append(host)
        answers = self.names[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    def connect(self, address: tuple[str, int], timeout: float, *_: object, **__: object) -> socket.socket:
        self.connected.append(address)
        connection = socket.socket()
        connection.settimeout(timeout)
        connection.connect(("127.0.0.1", self._server.port))
        return connection


@pytest.fixture
def internet(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> Internet:
    made = Internet(server)
    monkeypatch.setattr(socket, "getaddrinfo", made.resolve)
    monkeypatch.setattr(urllib3.util.connection, "create_connection", made.connect)
    return made


def make_pdf(*pages: str, title: str = "") -> bytes:
    """A PDF with a line of Helvetica for each line of each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    objects += ["<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"]
    kids = []
    for page in pages:
        lines = "".join(f"({line}) Tj T* " for line in page.split("\n"))
        stream = f"BT /F1 12 Tf 14 TL 72 720 Td {lines}ET" if page else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    objects.append(f"<< /Title ({title}) >>")
    data, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, 1):
        places.append(len(data))
        data += f"{number} 0 obj\n{each}\nendobj\n".encode("latin-1")
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R >>"
    tail = f"trailer\n{trailer}\nstartxref\n{len(data)}\n%%EOF"
    return data + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{tail}".encode()


@pytest.fixture(scope="session")
def pdf() -> Callable[..., bytes]:
    return make_pdf
