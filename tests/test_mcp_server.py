"""Our tools and agent for the clients of others: through our own client over stdio and HTTP, and by hand."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp")

from qwen_agent import mcp_server, mcp_service
from qwen_agent.errors import InputError, MissingDependency, ToolError
from qwen_agent.mcp_server import http_app, serve
from qwen_agent.mcp_service import Service, UnknownTool
from qwen_agent.react import Agent
from qwen_agent.tools import mcp_sdk
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Tool, ToolOutput, cancelled, tool
from qwen_agent.tools.mcp import HttpServer, McpServer, StdioServer, mcp_tools
from qwen_agent.types import Artifact

SERVED = """
import os, sys
from qwen_agent.mcp_server import serve
from qwen_agent.tools.base import tool

@tool(untrusted=True)
def add(a: int, b: int) -> int:
    '''Add two numbers.'''
    return a + b

@tool(side_effects=True)
def noisy() -> str:
    print("on standard output", flush=True)
    os.system("echo from a child")
    return "read " + repr(sys.stdin.read())

serve([add, noisy], transport=sys.argv[1], port=0, ready=lambda url: print(url, flush=True))
"""
FACT = 'Thought: t\nAction: fact\nAction Input: {"about": "tower"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: 330 m"


@tool
def fact(about: str) -> str:
    """A fact."""
    if about == "nothing":
        raise ToolError("There is no such thing.")
    return f"The {about} is 330 m tall."


class Patient:
    """A tool that runs until it is cancelled, and tells that it was."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.tool = Tool("wait", "Waits.", {"type": "object"}, self.run, side_effects=True, approval="ask")

    def run(self) -> str:
        while not cancelled():
            time.sleep(0.02)
        self.cancelled.set()
        return "cancelled"


@contextlib.contextmanager
def http_server(service: Service, **options: Any) -> Iterator[int]:
    """The service over HTTP in a thread; its port."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            http_app(service, **options), log_level="critical", timeout_graceful_shutdown=1, ws="none"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


@contextlib.contextmanager
def connected(service: Service, **options: Any) -> Iterator[McpServer]:
    with http_server(service) as port, mcp_tools(f"http://127.0.0.1:{port}/mcp", **options) as client:
        yield client


def call(service: Service, name: str, **arguments: Any) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """A call without the protocol: its result and its reports."""
    reports: list[tuple[int, str]] = []

    async def report(step: int, text: str) -> None:
        reports.append((step, text))

    return asyncio.run(service.call(name, arguments, report)), reports


def post(port: int, headers: dict[str, str], method: str = "POST") -> tuple[int, http.client.HTTPMessage]:
    """The status of a first request."""
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": about})
    all_headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, "/mcp", body, {k: v for k, v in all_headers.items() if v})
    response = connection.getresponse()
    connection.close()
    return response.status, response.headers


# ---- what is served


def test_tools_are_listed_as_they_are() -> None:
    schema = {"$schema": "x", "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {}}}
    ours = [fact, Patient().tool, Tool("raw", "As is.", schema, print, untrusted=True)]
    listed = {entry["name"]: entry for entry in Service(ours).listed()}
    assert listed["fact"]["inputSchema"] == fact.parameters
    assert listed["fact"]["title"] == "Fact"
    assert listed["fact"]["annotations"] == {"readOnlyHint": True, "destructiveHint": False, "openWorldHint": False}
    assert listed["wait"]["annotations"] == {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": False}
    assert listed["raw"]["inputSchema"] == schema
    assert listed["raw"]["annotations"]["openWorldHint"]


def test_denied_tools_are_not_listed() -> None:
    denied = Tool("secret", "", {}, print, approval="deny")
    service = Service([fact, denied])
    assert [entry["name"] for entry in service.listed()] == ["fact"]
    with pytest.raises(UnknownTool, match="the tools are fact"):
        call(service, "secret")


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to serve"):
        Service([])
    with pytest.raises(InputError, match="two tools"):
        Service([fact, fact])


def test_an_agent_is_one_more_tool(scripted: Any) -> None:
    service = Service([], Agent(scripted(FACT, ANSWER), [fact]))
    (listed,) = service.listed()
    assert listed["name"] == "ask"
    assert "using fact" in listed["description"]
    result, reports = call(service, "ask", question="How tall is the tower?")
    assert result == {"content": [{"type": "text", "text": "330 m"}], "isError": False}
    assert [step for step, _ in reports] == list(range(1, len(reports) + 1))
    steps = [text for _, text in reports if text != "thinking"]
    assert steps == ['fact({"about": "tower"}) -> The tower is 330 m tall.', "answering"]


def test_an_agent_that_cannot_answer_says_so(scripted: Any) -> None:
    asking = Tool("fact", "", fact.parameters, fact.function, approval="ask")
    paused, _ = call(Service([], Agent(scripted(FACT), [asking])), "ask", question="How tall?")
    assert paused["isError"]
    assert "paused" in paused["content"][0]["text"]
    for wrong in ({}, {"question": 1}, {"question": "a", "more": 1}, {"question": " "}):
        result, _ = call(Service([], Agent(scripted(ANSWER), [fact])), "ask", **wrong)
        assert result["isError"]
    with pytest.raises(InputError, match="'ask'"):
        Service([Tool("ask", "", {}, print)], Agent(scripted(ANSWER)))


def test_an_answer_that_a_limit_forced_says_so(scripted: Any) -> None:
    from qwen_agent.limits import Limits

    agent = Agent(scripted(FACT, " 330 m"), [fact], limits=Limits(steps=1))
    result, _ = call(Service([], agent), "ask", question="How tall?")
    assert result["content"][0]["text"] == "330 m\n(stopped by: max_steps)"


def test_a_long_call_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_service, "_BEAT", 0.1)
    slow = Tool("slow", "", {}, lambda: time.sleep(0.55))
    _, reports = call(Service([slow]), "slow")
    assert len(reports) >= 3
    assert [step for step, _ in reports] == list(range(1, len(reports) + 1))


def test_files_are_sent_along(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    kept = (
        store.add(b"RIFF\x24\0\0\0WAVEfmt ", "a.wav", "audio/wav"),
        store.add("é,1".encode(), "a b.csv", "text/csv"),
        store.add(b"\0\1", "a.bin", "application/x-thing"),
    )
    result, _ = call(Service([Tool("make", "", {}, lambda: ToolOutput("made", kept))]), "make")
    text, sound, table, thing = result["content"]
    assert text == {"type": "text", "text": "made"}
    assert (sound["type"], sound["mimeType"]) == ("audio", "audio/wav")
    assert table["resource"] == {
        "uri": f"artifact:///{kept[1].id}/a%20b.csv",
        "mimeType": "text/csv",
        "text": "é,1",
    }
    assert thing["resource"]["blob"] == "AAE="


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
def test_a_file_that_became_a_link_or_a_pipe_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "link.png").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "large.png").write_bytes(b"")
    os.truncate(tmp_path / "large.png", mcp_service.MAX_FILE + 1)
    names = ("link.png", "pipe.png", "large.png", "none.png")
    files = tuple(Artifact("0" * 12, name, "image/png", 6, str(tmp_path / name)) for name in names)
    result, _ = call(Service([Tool("make", "", {}, lambda: ToolOutput("made", files))]), "make")
    assert [block["type"] for block in result["content"]] == ["text"] * 5
    assert "not sent" in result["content"][1]["text"]


# ---- over HTTP


def test_calls_over_http(scripted: Any) -> None:
    with connected(Service([fact], Agent(scripted(FACT, ANSWER), [fact])), prefix="far") as client:
        tools = {each.name: each for each in client.tools}
        assert tools["far__fact"].invoke({"about": "tower"}).content == "The tower is 330 m tall."
        assert tools["far__fact"].invoke({"about": "nothing"}).content == "There is no such thing."
        assert tools["far__ask"].invoke({"question": "How tall is it?"}).content == "330 m"
        assert not client.warnings


def test_large_pictures_arrive_and_endless_replies_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = ArtifactStore(tmp_path / "a").add(b"RIFF\x24\0\0\0WAVEfmt " + bytes(3_000_000), "a.wav", "audio/wav")
    service = Service([Tool("make", "", {}, lambda: ToolOutput("made", (sound,)))])
    with connected(service, store=ArtifactStore(tmp_path / "b"), seconds=10) as client:
        (came,) = client.tools[0].invoke({}).artifacts
        assert (came.id, came.size) == (sound.id, sound.size)
    monkeypatch.setattr(mcp_sdk, "MAX_REPLY", 1_000_000)
    with connected(service, seconds=3) as client:
        began = time.monotonic()
        result = client.tools[0].invoke({})
        assert not result.ok
        assert "make failed" in result.content
        assert time.monotonic() - began < 8


def test_a_compressed_reply_is_refused() -> None:
    class Bomb(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Bomb) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(InputError, match="cannot be used"):
            mcp_tools(f"http://127.0.0.1:{server.server_address[1]}/mcp", connect_seconds=3)
        assert time.monotonic() - began < 12
        server.shutdown()


def test_one_slow_tool_blocks_nobody() -> None:
    patient = Patient()
    with connected(Service([fact, patient.tool]), seconds=10) as client:
        tools = {each.name: each for each in client.tools}
        began = time.monotonic()
        stop = threading.Event()
        thread = threading.Thread(target=lambda: tools["wait"].invoke({}, cancelled=stop.is_set))
        thread.start()
        time.sleep(0.3)
        assert tools["fact"].invoke({"about": "tower"}).ok
        stop.set()
        thread.join()
        assert patient.cancelled.wait(5)
        assert time.monotonic() - began < 9


def test_a_client_that_goes_away_cancels_its_call() -> None:
    patient = Patient()
    service = Service([patient.tool])
    with http_server(service) as port:
        with mcp_tools(f"http://127.0.0.1:{port}/mcp") as client:
            thread = threading.Thread(target=lambda: client.tools[0].invoke({}))
            thread.start()
            time.sleep(0.3)
        thread.join()
        assert patient.cancelled.wait(8)


def test_a_question_that_is_cancelled_stops_the_agent(scripted: Any) -> None:
    patient = Patient()
    waits = Tool("fact", "", fact.parameters, lambda about: patient.run())
    with connected(Service([], Agent(scripted(FACT, ANSWER), [waits]))) as client:
        began = time.monotonic()
        result = client.tools[0].invoke({"question": "How?"}, cancelled=lambda: time.monotonic() - began > 0.5)
        assert not result.ok
        assert patient.cancelled.wait(5)


def test_only_this_machine_is_served() -> None:
    with http_server(Service([fact])) as port:
        ours = {"Host": f"127.0.0.1:{port}"}
        assert post(port, ours)[0] == 200
        assert post(port, {"Host": f"localhost:{port}"})[0] == 200
        assert post(port, {**ours, "Origin": f"http://localhost:{port}"})[0] == 200
        for foreign in ("evil.example.com", f"evil.example.com:{port}", "127.0.0.1.evil.com", "localhost.evil.com"):
            assert post(port, {"Host": foreign})[0] == 421
        for origin in ("http://evil.example.com", "null", "https://127.0.0.1.evil.com"):
            assert post(port, {**ours, "Origin": origin})[0] == 403
        assert post(port, {**ours, "Content-Type": "text/plain"})[0] in (400, 415)


def test_a_token_is_wanted_from_everyone() -> None:
    with http_server(Service([fact]), token="a long secret") as port:
        for given in ("", "Bearer", "Bearer wrong", "Basic a long secret", "Bearer a long secret2"):
            status, headers = post(port, {"Authorization": given})
            assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert post(port, {"Authorization": "bearer a long secret"})[0] == 200
        address = HttpServer(f"http://127.0.0.1:{port}/mcp", {"Authorization": "Bearer a long secret"})
        with mcp_tools(address) as client:
            assert client.tools[0].invoke({"about": "tower"}).ok
        with pytest.raises(InputError, match=r"127\.0\.0\.1"):
            mcp_tools(f"http://127.0.0.1:{port}/mcp", connect_seconds=5)


def test_other_machines_need_a_token() -> None:
    for host, options, words in (
        ("0.0.0.0", {}, "token"),
        ("192.0.2.1", {}, "token"),
        ("::", {}, "token"),
        ("example.com", {"token": "t"}, "IP address"),
        ("0.0.0.0", {"token": "t"}, "allowed_hosts"),
        ("127.0.0.1", {"token": ""}, "empty"),
    ):
        with pytest.raises(InputError, match=words):
            serve([fact], transport="http", host=host, port=0, **options)
    assert mcp_server._hosts("0.0.0.0", "t", ["box.local"])[-1] == "box.local"


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"127.0.0.1:{port} cannot be listened on"):
            serve([fact], transport="http", port=port)


# ---- over stdio, and as a program


def served(transport: str) -> StdioServer:
    return StdioServer(sys.executable, ("-c", SERVED, transport), env={"PYTHONPATH": os.pathsep.join(sys.path)})


def test_the_wire_stays_clean() -> None:
    lines: list[str] = []
    with mcp_tools(served("stdio"), log=lines.append) as client:
        tools = {each.name: each for each in client.tools}
        assert tools["add"].invoke({"a": 1, "b": 2}).content == "3"
        assert (tools["add"].side_effects, tools["noisy"].approval) == (False, "ask")
        assert tools["noisy"].invoke({}).content == "read ''"
        assert tools["add"].invoke({"a": 2, "b": 2}).content == "4"
    assert "on standard output" in lines
    assert "from a child" in lines


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_ctrl_c_ends_it_quietly(transport: str) -> None:
    command = [sys.executable, "-c", SERVED, transport]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        if transport == "http":
            assert process.stdout.readline().startswith("http://127.0.0.1:")
        else:
            process.stdin.write('{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
            process.stdin.flush()
            process.stdout.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (0, "")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    for transport in ("stdio", "http"):
        with pytest.raises(MissingDependency, match=r"qwen-react-agent\[mcp\]"):
            serve([fact], transport=transport, port=0)  # type: ignore[arg-type]
