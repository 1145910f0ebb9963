"""Abuse, as real requests over a real socket: a clear 4xx each, and the server goes on."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from qwen_agent.errors import InputError
from qwen_agent.server.errors import ApiError
from qwen_agent.server.security import Credentials, check_json, hosts_of
from qwen_agent.server.settings import Settings

CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
KEY = "a-long-secret-key"


@pytest.fixture(autouse=True)
def alive(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each of these, the server answers as before."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        assert server.ask("GET", "/health").json == {"status": "ok"}
        assert server.idle()


def test_a_body_of_20_mb_is_refused_whether_it_says_its_size_or_not(server) -> None:  # type: ignore[no-untyped-def]
    huge = b'{"model": "' + b"x" * (20 << 20) + b'"}'
    refused = server.post(CHAT, huge)
    assert (refused.status, refused.error["code"]) == (413, "too_large")
    assert "1048576 bytes" in refused.error["message"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        piece = b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"
        for _ in range(320):
            raw.sendall(piece)
        raw.sendall(b"0\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_who_asks_before_sending_is_told_before(server) -> None:  # type: ignore[no-untyped-def]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
            "Content-Length: 20000000\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_ten_thousand_stops_are_refused(server) -> None:  # type: ignore[no-untyped-def]
    for path, asked in ((CHAT, ASKED), ("/v1/completions", {"model": "tiny", "prompt": "x"})):
        refused = server.post(path, asked | {"stop": [f"stop {i}" for i in range(10_000)]})
        assert refused.status == 400
        assert "stop" in refused.error["param"]
        assert "at most 4" in refused.error["message"]


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100 + b"]" * 100])
def test_deep_json_is_refused_before_it_is_parsed(server, deep: bytes) -> None:  # type: ignore[no-untyped-def]
    refused = server.post(CHAT, deep)
    assert (refused.status, refused.error["code"]) == (400, "too_deep")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model": "\xff\xfe"}', "not_utf8"),
        (b'{"model": "tiny", "messages": [', "json_invalid"),
        (b"", "missing"),
        (b"[]", "dict_type"),
        (b"null", "missing"),
        (b'{"model": ' + b"9" * 10_000 + b"}", None),
    ],
)
def test_what_is_no_request_is_refused(server, body: bytes, code: str | None) -> None:  # type: ignore[no-untyped-def]
    refused = server.post(CHAT, body)
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    assert code is None or refused.error["code"] in (code, "model_attributes_type")


def test_only_json_is_taken(server) -> None:  # type: ignore[no-untyped-def]
    body = json.dumps(ASKED).encode()
    assert server.ask("POST", CHAT, body, Content_Type="text/plain").status == 415
    assert server.ask("POST", CHAT, body, Content_Type="application/json; charset=utf-8").status == 200


def test_half_characters_are_survived(server) -> None:  # type: ignore[no-untyped-def]
    broken = b'{"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "\\ud800 hi"}]}'
    assert server.post(CHAT, broken).status in (200, 400)
    assert server.post("/tokenize", b'{"prompt": "\\ud800"}').status in (200, 400)


@pytest.mark.parametrize(
    "host", ["evil.example.com", "evil.example.com:80", "127.0.0.1.evil.com", "localhost.evil", ""]
)
def test_another_host_is_refused(server, host: str) -> None:  # type: ignore[no-untyped-def]
    refused = server.ask("GET", "/v1/models", Host=host)
    assert (refused.status, refused.error["code"]) == (421, "wrong_host")


def test_our_names_are_served(server) -> None:  # type: ignore[no-untyped-def]
    for host in ("127.0.0.1", f"localhost:{server.port}", "LOCALHOST", "[::1]", "[::1]:80"):
        assert server.ask("GET", "/v1/models", Host=host).status == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example.com", "null", "https://127.0.0.1.evil.com", "http://127.0.0.1:1"]
)
def test_pages_of_another_origin_are_refused(server, origin: str) -> None:  # type: ignore[no-untyped-def]
    refused = server.post(CHAT, ASKED, Origin=origin)
    assert (refused.status, refused.error["code"]) == (403, "origin")
    assert "access-control-allow-origin" not in server.ask("GET", "/v1/models", Origin=origin).headers


def test_a_page_of_ours_may_ask(server) -> None:  # type: ignore[no-untyped-def]
    assert server.post(CHAT, ASKED, Origin=f"http://127.0.0.1:{server.port}").status == 200


def test_origins_that_were_allowed_get_cors_and_others_nothing(start) -> None:  # type: ignore[no-untyped-def]
    with start(Settings(names=("tiny",), allowed_origins=("https://app.example.com",))) as server:
        asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
        ours = server.ask("OPTIONS", CHAT, Origin="https://app.example.com", **asked)
        assert ours.headers["access-control-allow-origin"] == "https://app.example.com"
        assert "access-control-allow-credentials" not in ours.headers
        assert "access-control-allow-origin" not in server.ask("OPTIONS", CHAT, Origin="https://e.com", **asked).headers
        assert server.post(CHAT, ASKED, Origin="https://app.example.com").status == 200
        assert server.post(CHAT, ASKED, Origin="https://app.example.com.evil.com").status == 403


def in_time(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_a_key_is_wanted_everywhere_but_for_health(start) -> None:  # type: ignore[no-untyped-def]
    guarded = Settings(names=("tiny",), credentials=Credentials((KEY, "another-key"), ("anna", "pa:ss")))
    with start(guarded) as server:
        wrong = ("", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Basic {KEY}", basic("anna:pass"), basic("anna"), "x")
        for given in wrong:
            refused = server.ask("GET", "/v1/models", Authorization=given)
            assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
            assert KEY not in refused.body.decode()
        for path in ("/metrics", "/openapi.json", "/tokenizer_info", "/nothing"):
            assert server.ask("GET", path).status == 401
        good = (f"Bearer {KEY}", "bearer another-key", basic("anna:pa:ss"), basic(f"anyone:{KEY}"))
        for given in good:
            assert server.ask("GET", "/v1/models", Authorization=given).status == 200
        assert server.ask("GET", "/health").status == 200


def test_errors_and_headers_tell_nothing_and_forbid_much(server) -> None:  # type: ignore[no-untyped-def]
    for reply, status in (
        (server.ask("GET", "/nothing/here"), 404),
        (server.ask("PUT", CHAT, b"{}"), 405),
        (server.post(CHAT, ASKED | {"model": "gpt-9"}), 404),
        (server.ask("GET", "/v1/models/gpt-9"), 404),
        (server.post(CHAT, ASKED | {"messages": []}), 400),
    ):
        assert reply.status == status
        assert reply.error["type"] == "invalid_request_error"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-request-id"]
    assert server.ask("PUT", CHAT, b"{}").headers["allow"] == "POST"


def test_a_failure_of_ours_is_a_500_without_a_word_of_it(start, caplog) -> None:  # type: ignore[no-untyped-def]
    class Broken:
        name, window = "broken", 100

        def stream(self, prompt: object, config: object) -> object:
            raise RuntimeError("a secret prompt")

    with start(runtime=Broken()) as server:
        for asked in (ASKED, ASKED | {"stream": True}):
            failed = server.post(CHAT, asked)
            assert (failed.status, failed.error["type"]) == (500, "server_error")
            assert "secret" not in failed.body.decode()
    assert "RuntimeError at " in caplog.text
    assert "secret" not in "".join(record.getMessage() for record in caplog.records)


def test_logs_and_metrics_have_no_content(server, caplog) -> None:  # type: ignore[no-untyped-def]
    with caplog.at_level("INFO", "qwen_agent.server"):
        server.post(CHAT, ASKED | {"messages": [{"role": "user", "content": "xyzzy"}]}, Authorization="Bearer plugh")
        server.ask("GET", "/a%0Ab?q=xyzzy")
        assert in_time(lambda: "/a%0Ab" in caplog.text), "a request is logged when it is over"
    told = caplog.text + server.ask("GET", "/metrics").body.decode()
    assert "POST /v1/chat/completions 200" in told
    assert "GET /a%0Ab 404" in told
    assert "xyzzy" not in told and "plugh" not in told


# ---- clients that leave, and that read slowly


def _stream(server, asked: dict[str, object], path: str = CHAT) -> socket.socket:  # type: ignore[no-untyped-def]
    """A raw connection on which a stream has begun."""
    raw = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    body = json.dumps(asked).encode()
    raw.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return raw


LONG = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 4000, "temperature": 1.5, "seed": 1}


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_is_killed_frees_its_place(server, streams: bool) -> None:  # type: ignore[no-untyped-def]
    raw = _stream(server, LONG | {"stream": streams}, "/v1/completions")
    if streams:
        assert b"data: " in raw.recv(1 << 16) + raw.recv(1 << 16)
    else:
        assert in_time(lambda: server.shared.active == 1)
    assert server.shared.active == 1
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, as of a killed program
    raw.close()
    assert server.idle()


def test_a_full_queue_is_a_429_that_says_when_to_come_back(start) -> None:  # type: ignore[no-untyped-def]
    with start(active=1, waiting=0) as server, contextlib.closing(_stream(server, LONG, "/v1/completions")):
        assert in_time(lambda: server.shared.active == 1)
        for asked in (ASKED, ASKED | {"stream": True}):
            busy = server.post(CHAT, asked)
            assert (busy.status, busy.error["code"]) == (429, "rate_limit_exceeded")
            assert int(busy.headers["retry-after"]) >= 1


def test_a_request_that_takes_too_long_is_ended(start) -> None:  # type: ignore[no-untyped-def]
    with start(Settings(names=("tiny",), seconds=1.0)) as server:
        late = server.post("/v1/completions", LONG)
        assert (late.status, late.error["code"], late.headers["x-should-retry"]) == (503, "stopped", "false")
        streamed = server.post("/v1/completions", LONG | {"stream": True})
        assert streamed.status == 200
        assert streamed.events[-1]["error"]["code"] == "stopped"
        assert server.idle()


def test_a_body_that_does_not_come_is_not_waited_for(start) -> None:  # type: ignore[no-untyped-def]
    with (
        start(Settings(names=("tiny",), patience=0.3)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw,
    ):
        raw.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
        assert raw.recv(4096).startswith(b"HTTP/1.1 408 ")


# ---- the parts


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"a": [1, {"b": "[[[[[[[["}]}', True),
        (r'{"a": "\"[[[[", "b": "\\"}', True),
        ("[" * 5 + "]" * 5, True),
        ("[" * 6 + "]" * 6, False),
        ('"' + "[" * 100, True),
        ("[1]," * 1000, True),
        ('{"a":' * 6, False),
        ("", True),
    ],
)
def test_depth_is_counted_outside_of_strings(text: str, good: bool) -> None:
    if good:
        check_json(text.encode(), depth=5)
    else:
        with pytest.raises(ApiError, match="deeper than 5"):
            check_json(text.encode(), depth=5)


def test_depth_is_counted_in_time_linear_in_the_body() -> None:
    started = time.perf_counter()
    for body in (b'\\"' * (1 << 19), b'"' + b'\\"' * (1 << 19), b"[]" * (1 << 19), b'""' * (1 << 19)):
        check_json(body)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "key"),
        ({"host": "192.0.2.1"}, "key"),
        ({"host": "::"}, "key"),
        ({"host": "example.com"}, "IP address"),
        ({"host": "0.0.0.0", "credentials": Credentials((KEY,))}, "allowed_hosts"),
        ({"names": ()}, "names"),
        ({"body": 5}, "body"),
        ({"seconds": 0}, "seconds"),
        ({"allowed_origins": ("*",)}, "allowed_origins"),
        ({"allowed_origins": ("https://*.example.com",)}, "allowed_origins"),
        ({"allowed_origins": ("https://example.com/path",)}, "allowed_origins"),
    ],
)
def test_settings_that_cannot_be_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**options)  # type: ignore[arg-type]


def test_an_address_of_others_is_served_with_a_key_under_its_names() -> None:
    assert hosts_of("192.0.2.1", ["box.local"], guarded=True) == ["192.0.2.1", "box.local"]
    assert hosts_of("::", ["box.local"], guarded=True)[-1] == "box.local"
    assert "localhost" in hosts_of("127.0.0.1", [], guarded=False)


def test_credentials_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen_agent.server import security

    compared: list[bytes] = []
    compare = security.hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return compare(a, b)

    monkeypatch.setattr(security.hmac, "compare_digest", counting)
    assert Credentials(("one-key", "two-key")).admit(b"Bearer one-key")
    assert compared == [b"one-key", b"two-key"]
    assert not Credentials(("one-key",)).admit(b"Basic !!!")
    assert not Credentials()
