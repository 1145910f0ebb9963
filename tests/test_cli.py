"""The command line as a user meets it: real processes, the embedded model, no mocks."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "examples" / "docs"
HEIGHT = "How tall is the Eiffel Tower multiplied by 3?"


def qwen_agent(*arguments: str, stdin: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qwen_agent", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def assert_one_clear_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_the_main_job() -> None:
    """The README's first command."""
    done = qwen_agent("run", HEIGHT, "--docs", str(DOCS))
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
        (["run", "x", "--tools", "calculator,serch"], ["'serch'", "calculator, search, code_interpreter"]),
        (["run", "x", "--tools", "search"], ["--docs"]),
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


def test_a_chat_with_commands() -> None:
    script = ":help\n:seed 7\n:seed\nWhat is 12 * 12?\n:history\n:clear\n:history\n:nonsense\n\n:exit\n"
    done = qwen_agent("chat", stdin=script)
    assert done.returncode == 0, done.stderr
    assert "The seed is now 7." in done.stdout
    assert "Observation: 144" in done.stdout
    assert "Question" not in done.stdout
    assert "User:\nWhat is 12 * 12?" in done.stdout
    assert done.stdout.rstrip().endswith("User>") or "Nothing has been said yet." in done.stdout
    assert "There is no command :nonsense" in done.stderr


def test_a_chat_ends_with_its_input() -> None:
    assert qwen_agent("chat", "--tools", "none", stdin="").returncode == 0


def test_tools_are_listed() -> None:
    done = qwen_agent("tools")
    assert done.returncode == 0
    assert "calculator: " in done.stdout
    assert "search: not available: search needs a folder" in done.stdout
    assert "expression (string)" in done.stdout
    assert "code_interpreter: " in done.stdout


def test_doctor_finds_what_is_needed() -> None:
    done = qwen_agent("doctor")
    assert done.returncode == 0, done.stdout
    for what in ("Python", "PyTorch", "embedded model", "sandbox", "import name"):
        assert f"ok  {what}" in done.stdout


def test_a_reader_that_goes_away_leaves_no_traceback() -> None:
    command = f"{sys.executable} -m qwen_agent tools | head -c 5"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


# ---- logs


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of the main job."""
    path = tmp_path_factory.mktemp("logs") / "run.jsonl"
    done = qwen_agent("run", HEIGHT, "--docs", str(DOCS), "--log", str(path))
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
def test_on_a_terminal_a_person_is_asked(key: bytes, seen: str) -> None:
    code, shown = on_a_terminal(b"Allow it?", key, "run", "What is 12 * 12?", "--ask", "calculator")
    assert "expression: 12" in shown
    assert seen in shown
    assert "Traceback" not in shown
    assert code == 0 or key == b"n\n"


def on_a_terminal(marker: bytes, key: bytes, *arguments: str) -> tuple[int, str]:
    """Run on a pseudo-terminal, press ``key`` once ``marker`` is seen; (exit code, everything shown).

    ``key`` b"" is Ctrl-C. Not in the first second: until Python itself has started, nothing of ours can catch it.
    """
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "qwen_agent", *arguments],
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
    code, shown = on_a_terminal(marker, b"", "run", "Write a long story.", "--tools", "calculator")
    assert "Traceback" not in shown
    assert code == 130
    assert shown.rstrip().endswith("Interrupted.")
    # A progress bar hides the cursor while it runs; it must be back.
    assert shown.rfind("\x1b[?25h") >= shown.rfind("\x1b[?25l")
