"""The command line as a user meets it, with the embedded model.

Commands run in this process, where the model is loaded once; in one of their own where that is the point: the main job,
terminals, signals, pipes, servers.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_agent import assemble, cli, doctor
from qwen_agent.assemble import Sources, build_tools, rebuild_tools
from qwen_agent.cli import main
from qwen_agent.errors import InputError
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.tools.catalog import Settings, catalog

STUB = f"{sys.executable} {Path(__file__).parent / 'tools' / 'mcp_stub.py'}"
COMMAND = [sys.executable, "-m", "qwen_agent"]
SCRIPTED = Path(__file__).parent / "terminal" / "scripted.py"
DOCS = Path(__file__).parent.parent / "examples" / "docs"
HEIGHT = "How tall is the Eiffel Tower multiplied by 3?"


@pytest.fixture(scope="module", autouse=True)
def loaded_once(request: pytest.FixtureRequest) -> Iterator[None]:
    """The embedded model is loaded once for all commands that run in this process."""
    load = assemble.load

    def loaded(model: str, **options: Any) -> LocalRuntime:
        plain = all(options[name] is None for name in ("device", "dtype", "kv_cache"))
        if model == "embedded" and plain:
            runtime: LocalRuntime = request.getfixturevalue("embedded")
            return runtime
        return load(model, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "load", loaded)
        yield


def qwen_agent(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command in this process, without a terminal."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main(arguments)
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user starts it: a process of its own, which loads all it needs."""
    return subprocess.run([*COMMAND, *arguments], input="", capture_output=True, text=True, timeout=120, check=False)


def assert_one_clear_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture(scope="module")
def main_job(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """The README's first command, and its log."""
    path = tmp_path_factory.mktemp("logs") / "run.jsonl"
    return started("run", HEIGHT, "--docs", str(DOCS), "--log", str(path)), path


def test_the_main_job(main_job: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, _ = main_job
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    starts = [line.partition(":")[0] for line in lines]
    assert [s for s in starts if s in ("Action", "Observation", "Final Answer")] == [
        "Action",
        "Observation",
        "Action",
        "Observation",
        "Final Answer",
    ]
    assert "Action: search" in lines
    assert "Action: calculator" in lines
    assert "330" in done.stdout
    assert "990" in lines[-1]
    assert "\x1b" not in done.stdout  # colours only on a terminal
    assert "from the cache" in done.stderr


def test_json_is_one_object() -> None:
    done = qwen_agent("run", HEIGHT, "--docs", str(DOCS), "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert set(told) == {"question", "answer", "steps", "stop_reason", "usage"}
    assert "990" in told["answer"]
    assert [s.get("action") for s in told["steps"]] == ["search", "calculator", None]
    assert told["stop_reason"] == "final_answer"
    assert told["usage"]["cached_tokens"] > told["usage"]["prefilled_tokens"] / 2
    assert [s["invented_observations"] for s in told["steps"]] == [0, 0, 0]
    assert [s["repairs"] for s in told["steps"]] == [[], [], []]
    assert all(sum(s["confidence"]["tools"].values()) + s["confidence"]["answer"] > 0.99 for s in told["steps"])


def test_a_step_limit_is_not_a_final_answer() -> None:
    done = qwen_agent("run", HEIGHT, "--docs", str(DOCS), "--max-steps", "1", "--json")
    assert done.returncode == 3
    told = json.loads(done.stdout)
    assert told["stop_reason"] == "max_steps"
    assert told["answer"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", ""], ["question is empty"]),
        (["run", "x", "--tools", "calculator,serch"], ["'serch'", "calculator, current_time", "or 'none'"]),
        (["run", "x", "--tools", "search"], ["--docs"]),
        (["run", "x", "--tools", "files"], ["--files"]),
        (["run", "x", "--tools", "generate_image"], ["--artifacts"]),
        (["run", "x", "--plugins", "no-such-plugin"], ["'no-such-plugin'"]),
        (["run", "x", "--mcp", "ftp://127.0.0.1"], ["ftp://127.0.0.1", "http://"]),
        (["run", "x", "--mcp", "/no/such/program"], ["/no/such/program"]),
        (["mcp", "--http", "--host", "0.0.0.0"], ["0.0.0.0", "token"]),
        (["mcp", "--http", "--token-file", "/no/such/file"], ["/no/such/file", "cannot be read"]),
        (["mcp", "--http", "--token-file", "/dev/null"], ["token is empty"]),
        (["mcp", "--tools", "none"], ["nothing to serve"]),
        (["run", "x", "--docs", "/no/such/folder"], ["/no/such/folder", "does not exist"]),
        (["run", "x", "--model", "/no/such/model"], ["/no/such/model", "embedded"]),
        (["run", "x", "--dtype", "int3"], ["int3", "float32"]),
        (["run", "x " * 20_000], ["window is 8192"]),
        (["run", "x", "--ask", "search"], ["'search'", "the tools are calculator"]),
        (["run", "x", "--log", "/proc/none/run.jsonl"], ["/proc/none", "cannot be used"]),
        (["resume", "/no/such/log"], ["/no/such/log", "No such file"]),
        (["replay", __file__], ["line 1", "no log"]),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], parts: list[str]) -> None:
    assert_one_clear_sentence(qwen_agent(*arguments), *parts)


def test_a_folder_without_text(tmp_path: Path) -> None:
    assert_one_clear_sentence(qwen_agent("run", "x", "--docs", str(tmp_path)), str(tmp_path), "no readable text")
    (tmp_path / "a.md").write_bytes(b"\0\1\2" * 100)
    assert_one_clear_sentence(qwen_agent("run", "x", "--docs", str(tmp_path)), "1 binary")


def test_a_foreign_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert_one_clear_sentence(qwen_agent("run", "x", "--model", str(tmp_path)), "tokenizer.json")


def test_every_tool_is_listed_with_its_parameters_or_its_remedy(tmp_path: Path) -> None:
    done = qwen_agent("tools")
    assert done.returncode == 0, done.stderr
    for name in catalog():
        assert f"{name}: " in done.stdout
    assert "search: not available: search needs a folder of documents: add --docs DIR" in done.stdout
    assert "expression (string)" in done.stdout
    done = qwen_agent("tools", "--files", str(tmp_path), "--write")
    assert "  list_files: " in done.stdout
    assert "  write_file: " in done.stdout


def test_an_installed_plugin_is_listed_and_not_loaded(
    plugin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tools"]) == 0
    assert f"{plugin}: a plugin of weather-for-agents: add --plugins {plugin}" in capsys.readouterr().out
    assert "weather_of_cli" not in sys.modules


def test_doctor_finds_what_is_needed() -> None:
    done = started("doctor")
    assert done.returncode == 0, done.stdout
    for what in ("Python", "PyTorch", "embedded model", "sandbox", "import name"):
        assert f"ok  {what}" in done.stdout


def test_doctor_tells_of_every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = {
        name: tuple(re.findall(r'"([a-z0-9-]+)', packages))
        for name, packages in re.findall(r"^(\w+) = \[(.*)\]$", listed, re.MULTILINE)
        if name not in ("test", "dev")
    }
    assert {name: packages for name, (_, packages) in doctor.EXTRAS.items()} == extras
    monkeypatch.setattr(doctor, "_version", lambda package: "" if package == "pypdf" else "1.0")
    found = {check.what: check for check in doctor.checks() if check.what in extras}
    assert found["ocr"].ok
    assert (found["pdf"].ok, found["pdf"].needed) == (False, False)
    assert found["pdf"].fix == "pip install 'qwen-react-agent[pdf]'"


def test_help_is_shown_without_loading_the_tools() -> None:
    code = "import sys; from qwen_agent.cli import main; main(['run', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "--mcp SERVER" in done.stdout
    assert not {"torch", "rich", "mcp", "qwen_agent.tools.base"} & set(done.stdout.split())


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    command = f"{sys.executable} -m qwen_agent tools | head -c 5"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


# ---- tools and where they come from


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed plugin with the tools "forecast" and "calculator"."""
    tools = "from qwen_agent.tools.base import Tool\nNONE = {'type': 'object', 'properties': {}}\n"
    tools += "both = [Tool(name, 'By a plugin', NONE, lambda: 'rain') for name in ('forecast', 'calculator')]\n"
    (tmp_path / "weather_of_cli.py").write_text(tools)
    about = tmp_path / "weather_for_agents-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: weather-for-agents\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[qwen_agent.tools]\nweather = weather_of_cli:both\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "weather_of_cli", raising=False)
    return "weather"


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def sources(warned: list[str]) -> Iterator[Callable[..., Sources]]:
    with contextlib.ExitStack() as stack:

        def make(plugins: str = "", mcp: Sequence[str] = (), **settings: Any) -> Sources:
            return Sources(Settings(**settings), plugins, mcp, stack, warned.append)

        yield make


Make = Callable[..., Sources]


def names(sources: Sources, tool_names: str | None = None) -> list[str]:
    return [tool.name for tool in build_tools(sources, tool_names=tool_names, ask=(), deny=())]


def test_without_a_choice_there_are_a_calculator_and_with_documents_a_search(sources: Make) -> None:
    assert names(sources()) == ["calculator"]
    assert names(sources(docs=DOCS)) == ["search", "calculator"]
    assert names(sources(docs=DOCS), "none") == []
    assert names(sources(), " current_time,calculator,current_time") == ["current_time", "calculator"]


def test_plugins_come_on_top_and_never_replace_a_tool(plugin: str, sources: Make, warned: list[str]) -> None:
    assert names(sources(plugins=plugin)) == ["calculator", "forecast"]
    assert warned == ["the tool 'calculator' of the plugin 'weather' is left out: there is one of that name"]
    assert names(sources(plugins="all"), "none") == ["forecast", "calculator"]


def test_the_tools_of_mcp_servers_come_on_top(sources: Make, warned: list[str], tmp_path: Path) -> None:
    pytest.importorskip("mcp")
    with contextlib.ExitStack() as stack:
        opened = replace(sources(mcp=[STUB, STUB], artifacts=tmp_path), stack=stack)
        tools = {tool.name: tool for tool in build_tools(opened, tool_names=None, ask=("echo",), deny=("die",))}
        assert {"calculator", "echo", "die", "sleep"} <= tools.keys()
        assert [tools[name].approval for name in ("echo", "die", "sleep")] == ["ask", "deny", "ask"]
        assert tools["echo"].invoke({"text": "hello"}).content == "hello"
        assert tools["picture"].invoke({}).artifacts
    assert not tools["echo"].invoke({"text": "hello"}).ok  # closed
    assert any("'remote'" in text for text in warned)
    assert any("'echo'" in text and "one of that name" in text for text in warned)


def test_only_the_option_runs_code_without_a_sandbox_and_loudly(sources: Make, warned: list[str]) -> None:
    (unsafe,) = build_tools(sources(unsafe=True), tool_names="code_interpreter", ask=(), deny=())
    assert (unsafe.approval, unsafe.side_effects) == ("ask", True)
    assert len(warned) == 1
    assert "WITHOUT A SANDBOX" in warned[0]


def test_a_resumed_run_gets_its_tools_back(plugin: str, sources: Make, tmp_path: Path) -> None:
    made = build_tools(
        sources(plugins=plugin, files=tmp_path, write=True),
        tool_names="files,current_time",
        ask=("read_file",),
        deny=(),
    )
    described = [tool.describe() for tool in made]
    again = rebuild_tools(described, sources(plugins=plugin, files=tmp_path, write=True))
    assert [tool.describe() for tool in again] == described
    with pytest.raises(InputError, match=r"'write_file': add --write"):
        rebuild_tools(described, sources(plugins=plugin, files=tmp_path))
    with pytest.raises(InputError, match=r"'forecast'.*add its --plugins or --mcp again"):
        rebuild_tools(described, sources(files=tmp_path, write=True))


def test_a_resumed_run_has_the_tool_that_it_had_of_two_with_one_name(plugin: str, sources: Make) -> None:
    for tool_names in ("none", None):
        made = build_tools(sources(plugins=plugin), tool_names=tool_names, ask=(), deny=())
        again = rebuild_tools([tool.describe() for tool in made], sources(plugins=plugin))
        assert [tool.description for tool in again] == [tool.description for tool in made]


def test_a_log_cannot_make_a_tool_need_less_approval(sources: Make) -> None:
    (tool,) = build_tools(sources(unsafe=True), tool_names="code_interpreter", ask=(), deny=())
    (again,) = rebuild_tools([{**tool.describe(), "approval": "auto"}], sources(unsafe=True))
    assert again.approval == "ask"


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("SERPAPI_KEY", "SERPER_API_KEY", "GOOGLE_CSE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_CSE_KEY", "hidden")
    assert main(["tools"]) == 0
    shown = capsys.readouterr().out
    assert "GOOGLE_CSE_ID is missing" in shown
    assert "hidden" not in shown


def test_keys_are_not_logged(scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Settings] = []
    build = build_tools

    def built(sources: Sources, **options: Any) -> list[Any]:
        used.append(sources.settings)
        return build(sources, **options)

    monkeypatch.setattr(cli, "build_tools", built)
    monkeypatch.setattr(assemble, "load", lambda model, **_: scripted("Thought: I know.\nFinal Answer: 330 m"))
    for name in ("SERPAPI_KEY", "QWEN_AGENT_IMAGE_KEY", "QWEN_AGENT_VISION_KEY"):
        monkeypatch.setenv(name, "hidden")
    log = tmp_path / "run.jsonl"
    service = ["--image-url", "http://127.0.0.1:9/v1", "--vision-url", "http://127.0.0.1:9/v1", "--vision-model", "m"]
    tools = ["--tools", "web_search,generate_image,describe_image", "--artifacts", str(tmp_path / "made"), *service]
    assert main(["run", "How tall?", "--log", str(log), *tools]) == 0
    assert (used[0].web["SERPAPI_KEY"], used[0].image_key, used[0].vision_key) == ("hidden",) * 3
    logged = log.read_text(encoding="utf-8")
    assert "generate_image" in logged
    assert "hidden" not in logged


# ---- serving MCP


def test_tools_are_served_over_stdio() -> None:
    mcp = pytest.importorskip("qwen_agent.tools.mcp")
    pytest.importorskip("mcp")
    command = [sys.executable, "-m", "qwen_agent", "mcp", "--tools", "calculator,current_time"]
    lines: list[str] = []
    with mcp.mcp_tools(command, log=lines.append) as server:
        tools = {tool.name: tool for tool in server.tools}
        assert list(tools) == ["calculator", "current_time"]
        assert tools["calculator"].invoke({"expression": "6*7"}).content == "42"
    assert not [line for line in lines if "Traceback" in line]


def test_tools_are_served_over_http_to_who_has_the_token(tmp_path: Path) -> None:
    mcp = pytest.importorskip("qwen_agent.tools.mcp")
    pytest.importorskip("mcp")
    (tmp_path / "token").write_text("a-long-random-token\n")
    command = [sys.executable, "-m", "qwen_agent", "mcp", "--http", "--port", "0"]
    command += ["--token-file", str(tmp_path / "token")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/mcp", url)
            with mcp.mcp_tools(mcp.HttpServer(url, {"Authorization": "Bearer a-long-random-token"})) as server:
                assert [tool.name for tool in server.tools] == ["calculator"]
            with pytest.raises(InputError):
                mcp.mcp_tools(url, connect_seconds=10)
        finally:
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors


def test_without_the_package_mcp_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["mcp", "--with-agent"]) == 1
    assert "pip install 'qwen-react-agent[mcp]'" in capsys.readouterr().err


# ---- logs


@pytest.fixture(scope="module")
def log(main_job: tuple[subprocess.CompletedProcess[str], Path]) -> Path:
    done, path = main_job
    assert done.returncode == 0, done.stderr
    return path


def broken_off(log: Path, tmp_path: Path, event: str) -> Path:
    """What is left of the log when the process is killed right after the first such event."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    last = next(at for at, line in enumerate(lines) if json.loads(line)["event"] == event)
    path = tmp_path / "broken.jsonl"
    path.write_text("".join(lines[: last + 1]) + '{"event": "mod', encoding="utf-8")
    return path


def test_a_log_is_not_overwritten(log: Path) -> None:
    assert_one_clear_sentence(qwen_agent("run", "x", "--log", str(log)), str(log), "qwen-agent resume")


def test_a_run_that_was_broken_off_is_resumed(log: Path, tmp_path: Path) -> None:
    path = broken_off(log, tmp_path, "tool_finished")
    done = qwen_agent("resume", str(path), "--docs", str(DOCS))
    assert done.returncode == 0, done.stderr
    assert "The last line was half-written" in done.stderr
    assert "Not as in the log" not in done.stderr
    whole, again = (file.read_text(encoding="utf-8").splitlines() for file in (log, path))
    assert json.loads(again[-1])["result"]["answer"] == json.loads(whole[-1])["result"]["answer"]
    assert [json.loads(line)["event"] for line in again] == [json.loads(line)["event"] for line in whole]
    assert done.stdout.count("Action: search") == 1  # the whole transcript is shown, each step once


def test_what_a_log_does_not_hold_must_be_given_again(log: Path, tmp_path: Path) -> None:
    path = broken_off(log, tmp_path, "tool_finished")
    assert_one_clear_sentence(qwen_agent("resume", str(path)), "--docs")
    assert_one_clear_sentence(qwen_agent("resume", str(path), "--refuse"), "no call waits")
    other = path.read_text(encoding="utf-8").replace('"name": "calculator"', '"name": "abacus"', 1)
    path.write_text(other, encoding="utf-8")
    assert_one_clear_sentence(qwen_agent("resume", str(path), "--docs", str(DOCS)), "'abacus'", "from Python")


def test_a_finished_run_is_not_resumed(log: Path) -> None:
    assert_one_clear_sentence(qwen_agent("resume", str(log)), "nothing left to do")


def test_drift_is_shown_where_it_begins(log: Path, tmp_path: Path) -> None:
    changed = log.read_text(encoding="utf-8").replace("You are a helpful assistant.", "You are terse.", 1)
    path = tmp_path / "changed.jsonl"
    path.write_text(changed, encoding="utf-8")
    done = qwen_agent("replay", str(path))
    assert done.returncode == 4
    assert "step 1, the prompt:" in done.stderr


def test_a_log_is_replayed_without_a_model(log: Path) -> None:
    shown = qwen_agent("replay", str(log))
    assert shown.returncode == 0, shown.stderr
    assert "Observation: 990" in shown.stdout
    assert "repeats its log" in shown.stderr
    told = json.loads(qwen_agent("replay", str(log), "--json").stdout)
    assert (told["same"], told["drift"]) == (True, [])
    assert [s.get("action") for s in told["run"]["steps"]] == ["search", "calculator", None]


def test_drift_has_an_exit_code_of_its_own(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.jsonl"
    changed = log.read_text(encoding="utf-8").replace("I should use the search API.", "I must search.", 1)
    path.write_text(changed, encoding="utf-8")
    strict = qwen_agent("replay", str(path), "--json")
    assert strict.returncode == 4
    told = json.loads(strict.stdout)
    assert (told["same"], told["run"]) == (False, None)
    assert told["drift"][0]["what"] == "the prompt"
    lenient = qwen_agent("replay", str(path), "--lenient")
    assert lenient.returncode == 4
    assert "Final Answer:" in lenient.stdout


def test_without_a_terminal_a_run_pauses_before_a_call_that_needs_approval(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    paused = qwen_agent("run", "What is 12 * 12?", "--ask", "calculator", "--log", str(path))
    assert paused.returncode == 3
    assert f"qwen-agent resume {path} --approve" in paused.stderr
    assert_one_clear_sentence(qwen_agent("resume", str(path)), "calculator waits", "--approve or --refuse")
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    refused = qwen_agent("resume", str(copy), "--refuse", "--json")
    assert "does not allow" in json.loads(refused.stdout)["steps"][0]["observation"]
    approved = qwen_agent("resume", str(path), "--approve")
    assert approved.returncode == 0, approved.stderr
    assert "Observation: 144" in approved.stdout
    assert qwen_agent("replay", str(path)).returncode == 0


def test_a_denied_tool_is_refused_without_asking() -> None:
    done = qwen_agent("run", "What is 12 * 12?", "--deny", "calculator", "--json")
    assert "does not allow" in json.loads(done.stdout)["steps"][0]["observation"]


@pytest.mark.parametrize(("key", "seen"), [(b"y\n", "144"), (b"n\n", "does not allow")])
def test_on_a_terminal_a_person_is_asked(key: bytes, seen: str, tmp_path: Path) -> None:
    call = 'I must.\nAction: calculator\nAction Input: {"expression": "12 * 12"}\nObservation:'
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"outputs": [call, " I know.\nFinal Answer: So it is."]}))
    command = [sys.executable, str(SCRIPTED), str(script), "run", "What is 12 * 12?", "--ask", "calculator"]
    code, shown = on_a_terminal(b"Allow it?", key, command)
    assert "expression: 12" in shown
    assert seen in shown
    assert "Traceback" not in shown
    assert code == 0


def on_a_terminal(marker: bytes, key: bytes, command: list[str]) -> tuple[int, str]:
    """Run on a pseudo-terminal, press ``key`` once ``marker`` is seen; (exit code, everything shown).

    ``key`` b"" is Ctrl-C. Not in the first second: until Python itself has started, nothing of ours can catch it.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    shown, pressed, started = b"", False, time.monotonic()
    while time.monotonic() - started < 90:
        ready, _, _ = select.select([master], [], [], 0.2)
        if ready:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data
        if not pressed and marker in shown and time.monotonic() - started > 1:
            if key:
                os.write(master, key)
            else:
                os.kill(process.pid, signal.SIGINT)
            pressed = True
        if process.poll() is not None and not ready:
            break
    os.close(master)
    return process.wait(timeout=30), shown.decode(errors="replace")


@pytest.mark.parametrize("marker", [b"", b"Loading", b"Thought"])
def test_ctrl_c_at_any_moment(marker: bytes) -> None:
    """While modules are imported, while the model loads, while it writes."""
    code, shown = on_a_terminal(marker, b"", [*COMMAND, "run", "Write a long story.", "--tools", "calculator"])
    assert "Traceback" not in shown
    assert code == 130
    assert shown.rstrip().endswith("Interrupted.")
    # A progress bar hides the cursor while it runs; it must be back.
    assert shown.rfind("\x1b[?25h") >= shown.rfind("\x1b[?25l")
