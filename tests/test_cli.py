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


def interrupted_after(marker: bytes, *arguments: str) -> tuple[int, str]:
    """Run on a pseudo-terminal, press Ctrl-C once ``marker`` is seen; (exit code, everything shown).

    Not in the first second: until Python itself has started, nothing of ours can catch it.
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
            os.kill(process.pid, signal.SIGINT)
            pressed = True
        if process.poll() is not None and not ready:
            break
    os.close(master)
    return process.wait(timeout=30), shown.decode(errors="replace")


@pytest.mark.parametrize("marker", [b"", b"Loading", b"Thought"])
def test_ctrl_c_at_any_moment(marker: bytes) -> None:
    """While modules are imported, while the model loads, while it writes."""
    code, shown = interrupted_after(marker, "run", "Write a long story.", "--tools", "calculator")
    assert "Traceback" not in shown
    assert code == 130
    assert shown.rstrip().endswith("Interrupted.")
    # A progress bar hides the cursor while it runs; it must be back.
    assert shown.rfind("\x1b[?25h") >= shown.rfind("\x1b[?25l")
