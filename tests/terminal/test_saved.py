from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from qwen_agent.errors import InputError
from qwen_agent.terminal.saved import Conversation, Saved, Turn, state_folder
from qwen_agent.types import AgentResult, Generated, Step, StopReason, ToolCall, ToolResult, Usage

RESULT = AgentResult(
    "四",
    (Step("I must.", ToolCall("calculator", {"expression": "2+2"}, "{}"), ToolResult("4", seconds=0.5)),),
    StopReason.FINAL_ANSWER,
    Usage(10, 5, 3),
    "I must.\nFinal Answer: 四",
)
ONE = Conversation("embedded", "Be terse.", (Turn("2+2?", RESULT),), ("/tmp/a.txt",), 12.5)


def test_a_conversation_comes_back_as_it_was_but_for_the_ids_of_tokens(tmp_path: Path) -> None:
    saved = Saved(tmp_path / "new")
    written = Generated(RESULT.transcript, (1, 2, 3))
    turn = Turn(
        "2+2?", AgentResult("四", RESULT.steps, RESULT.stop_reason, RESULT.usage, RESULT.transcript, (written,))
    )
    assert saved.write("sums", Conversation("embedded", "Be terse.", (turn,), ("/tmp/a.txt",), 12.5)) == "sums"
    assert Saved(tmp_path / "new").read("sums") == ("sums", ONE)
    assert Saved(tmp_path / "new").read("last") == ("sums", ONE)


def test_what_another_program_wrote_is_not_replaced(tmp_path: Path) -> None:
    mine, other = Saved(tmp_path), Saved(tmp_path)
    mine.write("sums", ONE)
    _, past = other.read("sums")
    os.utime(tmp_path / "sums.json", (1, 1))  # so that the clock's grain does not matter
    other.read("sums")
    other.write("sums", Conversation(past.model, past.system, past.turns * 2))
    assert mine.write("sums", ONE) == "sums-2"
    assert [len(Saved(tmp_path).read(name)[1].turns) for name in ("sums", "sums-2")] == [2, 1]


def test_a_name_that_is_taken_is_not_claimed(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    assert saved.claim("sums") == "sums"
    saved.write("sums", ONE)
    with pytest.raises(InputError, match="--resume sums"):
        Saved(tmp_path).claim("sums")
    assert Saved(tmp_path).free_name("sums") == "sums-2"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "last", "x" * 81, "a b", "a\n"])
def test_names_are_only_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        Saved(tmp_path).claim(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": "x"}', "no conversation"),
        ('{"format": "qwen-agent conversation", "version": 2}', "newer version"),
        ('{"format": "qwen-agent conversation", "version": 1}', "damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_left_alone(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    saved = Saved(tmp_path)
    with pytest.raises(InputError, match=f"bad.json.*{said}"):
        saved.read("bad")
    assert said in saved.list()[0].problem
    assert saved.write("bad", ONE) == "bad-2"
    assert (tmp_path / "bad.json").read_text() == text


def test_a_turn_that_is_damaged_is_named(tmp_path: Path) -> None:
    saved = Saved(tmp_path)
    saved.write("sums", ONE)
    read = json.loads((tmp_path / "sums.json").read_text())
    read["turns"][0]["result"]["stop_reason"] = "tired"
    (tmp_path / "sums.json").write_text(json.dumps(read))
    with pytest.raises(InputError, match=r"sums\.json.*stop_reason"):
        saved.read("sums")


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no conversation has been saved"):
        Saved(tmp_path / "none").read("last")
    Saved(tmp_path).write("sums", ONE)
    with pytest.raises(InputError, match="'other'; there are sums"):
        Saved(tmp_path).read("other")


def test_the_folder_is_where_each_system_wants_it(tmp_path: Path) -> None:
    assert state_folder({"XDG_STATE_HOME": str(tmp_path)}, "linux") == tmp_path / "qwen-react-agent"
    assert state_folder({"XDG_STATE_HOME": "relative"}, "linux").parts[-3:] == (".local", "state", "qwen-react-agent")
    assert "Application Support" in state_folder({}, "darwin").parts
    assert state_folder({"LOCALAPPDATA": "C"}, "win32") == Path("C", "qwen-react-agent")
