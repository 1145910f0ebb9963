"""The client: a hand-written server over stdio that behaves, and some that do not. HTTP is in test_mcp_server.py."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcp")

from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.tools import mcp as module
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Tool
from qwen_agent.tools.mcp import HttpServer, McpServer, StdioServer, mcp_tools, server_from

STUB = str(Path(__file__).with_name("mcp_stub.py"))


def start(mode: str = "", **options: Any) -> McpServer:
    return mcp_tools([sys.executable, STUB, mode], **{"seconds": 10.0, **options})


def tools_of(server: McpServer) -> dict[str, Tool]:
    return {tool.name: tool for tool in server.tools}


@pytest.fixture(scope="module")
def server() -> Iterator[McpServer]:
    with start() as opened:
        yield opened


@pytest.fixture
def tools(server: McpServer) -> dict[str, Tool]:
    return tools_of(server)


def exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def soon(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


# ---- tools


def test_tools_come_as_ours(tools: dict[str, Tool]) -> None:
    echo = tools["echo"]
    assert echo.description == "Says it again."
    assert echo.parameters["required"] == ["text"]
    assert echo.invoke({"text": "你好"}).content == "你好"
    assert tools["cancelled_calls"].name_for_human == "What was cancelled"
    assert echo.invoke({"words": 1}).content.startswith("Wrong arguments: there is no argument")


def test_every_tool_says_what_it_may_do(tools: dict[str, Tool]) -> None:
    assert all(tool.untrusted and tool.repeatable for tool in tools.values())
    reader, writer = tools["echo"], tools["die"]
    assert (reader.side_effects, reader.approval) == (False, "auto")
    assert (writer.side_effects, writer.approval) == (True, "ask")


def test_a_tool_that_cannot_be_offered_is_left_out_with_a_warning(server: McpServer) -> None:
    assert "remote" not in tools_of(server)
    (warning,) = server.warnings
    assert "'remote'" in warning
    assert "127.0.0.1:9" in warning


def test_only_what_was_allowed() -> None:
    with start(allow=["echo"], prefix="stub", approval="deny") as server:
        (tool,) = server.tools
        assert (tool.name, tool.approval) == ("stub__echo", "deny")
        assert tool.invoke({"text": "a"}).content == "a"
    with pytest.raises(InputError, match=r"no tool 'write'; it has echo, sleep"):
        start(allow=["echo", "write"])


def test_a_list_in_pages_is_read_to_its_end() -> None:
    with start("pages") as server:
        assert [tool.name for tool in server.tools] == ["echo", "sleep", "die"]


def test_a_list_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOOLS", 20)
    with start("endless") as server:
        assert len(server.tools) == 20
        assert "only the first 20" in server.warnings[0]


# ---- results


def test_the_servers_failures_are_failed_calls(tools: dict[str, Tool]) -> None:
    for name, words in (
        ("fail", "The disk is full."),
        ("refuse", "refuse failed: not now [31mplease."),
        ("garbage", "garbage failed:"),
    ):
        result = tools[name].invoke({})
        assert not result.ok
        assert result.content.startswith(words)
    assert tools["echo"].invoke({"text": "still there"}).ok


def test_structured_content_and_floods(tools: dict[str, Tool]) -> None:
    assert tools["structured"].invoke({}).content == '{"degrees": 21}'
    flood = tools["flood"].invoke({})
    assert len(flood.content) == 6000
    assert flood.dropped_chars > 1_000_000


def test_pictures_go_into_the_store(tmp_path: Path) -> None:
    with start(allow=["picture"], store=ArtifactStore(tmp_path / "store")) as server:
        result = server.tools[0].invoke({})
    (picture,) = result.artifacts
    assert picture.media_type == "image/png"
    assert picture.id in result.content
    assert "[link to a: file:///a.txt]" in result.content


# ---- promises: time


def test_a_call_that_takes_too_long_is_given_up() -> None:
    with start(seconds=0.5) as server:
        tools = tools_of(server)
        started = time.monotonic()
        result = tools["sleep"].invoke({"seconds": 30})
        assert time.monotonic() - started < 5
        assert not result.ok
        assert "no answer from 'python" in result.content.replace(Path(sys.executable).name, "python")
        assert tools["echo"].invoke({"text": "goes on"}).ok


def test_a_cancelled_call_is_cancelled_at_the_server_too(tools: dict[str, Tool]) -> None:
    before = json.loads(tools["cancelled_calls"].invoke({}).content)
    began = time.monotonic()
    result = tools["sleep"].invoke({"seconds": 30}, cancelled=lambda: time.monotonic() - began > 0.3)
    assert (result.ok, result.content) == (False, "sleep was cancelled.")
    assert time.monotonic() - began < 5
    assert soon(lambda: len(json.loads(tools["cancelled_calls"].invoke({}).content)) == len(before) + 1)


def test_slow_calls_do_not_wait_for_each_other(tools: dict[str, Tool]) -> None:
    results: list[bool] = []
    started = time.monotonic()
    work = lambda: results.append(tools["sleep"].invoke({"seconds": 1}).ok)  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 5
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("mode", ["silent", "silent-list"])
def test_a_server_that_says_nothing_is_given_up(mode: str) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match="no answer from"):
        start(mode, connect_seconds=1)
    assert time.monotonic() - started < 12


def test_closing_ends_even_a_stubborn_server() -> None:
    server = start("stubborn")
    process = int(tools_of(server)["process"].invoke({}).content)
    started = time.monotonic()
    server.close()
    assert time.monotonic() - started < 15
    assert soon(lambda: not exists(process))


# ---- promises: a server that goes away


def test_a_server_that_cannot_be_started_is_named() -> None:
    with pytest.raises(InputError, match=r"'no-such-program' cannot be used: there is no program 'no-such-program'"):
        mcp_tools(["no-such-program"])
    with pytest.raises(InputError, match="it wrote: ModuleNotFoundError: no module named 'weather'"):
        start("crash")


def test_a_server_that_dies_is_started_again_for_the_next_call() -> None:
    lines: list[str] = []
    with start(log=lines.append) as server:
        tools = tools_of(server)
        first = tools["process"].invoke({}).content
        died = tools["die"].invoke({})
        assert not died.ok
        assert "was lost during the call" in died.content
        assert tools["echo"].invoke({"text": "back"}).content == "back"
        second = tools["process"].invoke({}).content
        assert second != first
        os.kill(int(second), 9)
        assert soon(lambda: not exists(int(second)))
        assert tools["echo"].invoke({"text": "back again"}).content == "back again"
    assert "about to die" in lines


def test_a_server_that_cannot_be_started_again_fails_in_a_sentence(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_bytes(Path(STUB).read_bytes())
    with mcp_tools([sys.executable, str(script)]) as server:
        tools = tools_of(server)
        script.unlink()
        assert not tools["die"].invoke({}).ok
        result = tools["echo"].invoke({"text": "a"})
        assert "was lost and cannot be reached again" in result.content
        script.write_bytes(Path(STUB).read_bytes())
        assert tools["echo"].invoke({"text": "a"}).ok


def test_a_closed_server_says_so() -> None:
    with start() as server:
        echo = tools_of(server)["echo"]
    assert echo.invoke({"text": "a"}).content == f"The connection to the MCP server '{server.name}' was closed."
    server.close()


def test_tools_keep_their_server_and_the_last_one_ends_it() -> None:
    echo = tools_of(start())["echo"]
    process = int(tools_of(start(allow=["process"]))["process"].invoke({}).content)
    gc.collect()
    assert echo.invoke({"text": "alive"}).ok
    assert soon(lambda: not exists(process))


def test_a_server_ends_with_us() -> None:
    code = (
        f"import os, signal, sys; from qwen_agent.tools.mcp import mcp_tools\n"
        f"tools = {{t.name: t for t in mcp_tools([sys.executable, {STUB!r}]).tools}}\n"
        "print(tools['process'].invoke({}).content, flush=True)\n"
    )
    for ending in ("", "os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(1)"):
        done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, timeout=60)
        assert soon(lambda process=int(done.stdout): not exists(process)), done.stderr
        assert done.stderr == ""


def test_junk_between_messages_is_passed_over(capfd: pytest.CaptureFixture[str]) -> None:
    with start("junk") as server:
        assert tools_of(server)["echo"].invoke({"text": "a"}).ok
    assert capfd.readouterr().err == ""


# ---- promises: the environment


def test_the_environment_stays_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_KEY", "hidden")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    address = StdioServer(sys.executable, (STUB,), env={"GIVEN": "yes"}, cwd=tmp_path)
    with mcp_tools(address) as server:
        seen = json.loads(tools_of(server)["environment"].invoke({}).content)
    assert seen["GIVEN"] == "yes"
    assert seen["TMPDIR"] == str(tmp_path)
    known = {"PATH", "HOME", "LOGNAME", "SHELL", "TERM", "USER", "LANG", "LC_ALL", "TMPDIR", "GIVEN", "LC_CTYPE"}
    assert sys.platform == "win32" or set(seen) <= known


def test_what_may_be_secret_is_not_in_names() -> None:
    with pytest.raises(InputError) as caught:
        mcp_tools(HttpServer("http://user:hidden@127.0.0.1:9/mcp?key=hidden"), connect_seconds=5)
    assert "http://127.0.0.1:9/mcp" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert "hidden" not in repr(HttpServer("http://a", {"Authorization": "hidden"}))
    with start() as server:
        assert server.name.endswith("mcp_stub.py")
        assert "/" not in server.name


# ---- addresses


def test_addresses() -> None:
    assert server_from("https://example.com/mcp") == HttpServer("https://example.com/mcp")
    assert server_from("uvx 'my server' --flag") == StdioServer("uvx", ("my server", "--flag"))
    assert server_from(["uvx", "server"]) == StdioServer("uvx", ("server",))


@pytest.mark.parametrize("address", ["", [], "ftp://example.com", "'unbalanced", [1]])
def test_what_is_no_address_is_refused(address: Any) -> None:
    with pytest.raises(InputError):
        mcp_tools(address)


@pytest.mark.parametrize("options", [{"prefix": "no spaces"}, {"prefix": "1st"}, {"allow": "echo"}])
def test_options_that_cannot_be_used_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(options.values())))):
        start(**options)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingDependency, match=r"qwen-react-agent\[mcp\]"):
        start()
