"""The conversation itself, on a screen that only takes notes; and through pipes, as the command runs it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qwen_agent import assemble
from qwen_agent.cli import main
from qwen_agent.react import Agent
from qwen_agent.terminal.attachments import Attachments, settings_in
from qwen_agent.terminal.chat import Chat
from qwen_agent.terminal.saved import Saved
from qwen_agent.terminal.screen import PlainScreen, State
from qwen_agent.tools.calculator import calculator
from qwen_agent.tools.catalog import Settings
from qwen_agent.tools.code_interpreter import code_interpreter

YES = "I know.\nFinal Answer: Yes."
PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000002000000030806000000") + b"\0" * 20


class Notes(PlainScreen):
    """Reads lines from a list; keeps what was said and complained about."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        self.said: list[str] = []
        self.complaints: list[str] = []

    def read(self, state: State) -> str:
        if not self.lines:
            raise EOFError
        return self.lines.pop(0)

    def say(self, text: str) -> None:
        self.said.append(text)

    def complain(self, text: str) -> None:
        self.complaints.append(text)


Hold = Callable[..., Notes]


@pytest.fixture
def hold(scripted: Any, tmp_path: Path) -> Hold:
    """Hold a conversation of these lines with a model that says yes; ``hold.runtime`` is what it ran on."""

    def held(*lines: str, name: str | None = None, tools: Iterable[Any] = (calculator,), **settings: Any) -> Notes:
        runtime = scripted(*[YES] * len(lines))
        folder = tmp_path / "working"
        folder.mkdir(exist_ok=True)
        attachments = Attachments(folder, settings_in(folder, Settings(**settings)))
        screen = Notes(lines)
        Chat(Agent(runtime, tools), screen, attachments, Saved(tmp_path / "saved"), name=name).loop()
        screen.runtime = runtime  # type: ignore[attr-defined]
        return screen

    return held


def test_undo_and_clear_take_questions_out_of_the_next_prompt(hold: Hold) -> None:
    done = hold("One?", "Two?", ":undo", "Three?", ":clh", "Four?", ":undo", ":undo")
    prompts = done.runtime.prompts  # type: ignore[attr-defined]
    assert ["One?" in prompts[2], "Two?" in prompts[2], "Three?" in prompts[2]] == [True, False, True]
    assert "Three?" not in prompts[3]
    assert "nothing to undo" in done.complaints[-1]


def test_tools_are_switched(hold: Hold) -> None:
    done = hold(
        ":tools off calculator", "One?", ":tools on calculator", "Two?", ":tools off calculater", ":tools maybe"
    )
    prompts = done.runtime.prompts  # type: ignore[attr-defined]
    assert ["calculator" in prompt for prompt in prompts] == [False, True]
    assert done.said[1].startswith("off  calculator")
    assert "did you mean calculator?" in done.complaints[0]
    assert "on or off" in done.complaints[1]


def test_the_system_message_is_replaced(hold: Hold) -> None:
    done = hold(":system Be terse.", "One?")
    assert "Be terse." in done.runtime.prompts[0]  # type: ignore[attr-defined]


def test_an_empty_answer_to_every_command(hold: Hold) -> None:
    done = hold(":history", ":steps", ":attach", ":sessions", ":save", ":load", ":export x.md", ":q now", ":")
    assert len(done.said) == 5
    assert len(done.complaints) == 5


def test_a_text_file_is_attached_and_can_be_read(hold: Hold, tmp_path: Path) -> None:
    file = tmp_path / "my notes.txt"
    file.write_text("secret 417\n")
    done = hold(f":attach {file}", "What is it?", "Again?")
    prompts = done.runtime.prompts  # type: ignore[attr-defined]
    assert "[Attached: my notes.txt (text/plain); read_file can open it]" in prompts[0]
    assert "read_file" in prompts[0].partition("Begin!")[0]
    assert prompts[1].count("[Attached:") == 1  # it is in the history, and not told again


def test_a_file_is_mentioned(hold: Hold, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("secret 417\n")
    done = hold(f"Read @{file}, please; ask me@home.example and @nobody.")
    prompt = done.runtime.prompts[0]  # type: ignore[attr-defined]
    assert "Read notes.txt, please; ask me@home.example and @nobody." in prompt
    assert "[Attached: notes.txt" in prompt


def test_two_files_of_one_name_are_told_apart(hold: Hold, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.csv").write_text(folder)
    done = hold(f':attach "{tmp_path}/a/data.csv" {tmp_path}/b/data.csv', "Compare.")
    prompt = done.runtime.prompts[0]  # type: ignore[attr-defined]
    assert "Attached: data.csv" in prompt
    assert "Attached: data-2.csv" in prompt


def test_with_a_folder_of_the_users_own_attached_files_have_tools_of_their_own(hold: Hold, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (tmp_path / "notes.txt").write_text("secret")
    from qwen_agent.tools.files import file_tools

    done = hold(f":attach {tmp_path}/notes.txt", tools=file_tools(own), files=own)
    assert "read_file_attached can open it" in done.said[1]


def test_the_code_interpreter_finds_what_is_attached(hold: Hold, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\0\1\2\3")
    (tmp_path / "working").mkdir()
    runner = code_interpreter(tmp_path / "working")
    done = hold(f":attach {tmp_path}/data.bin", tools=(runner,))
    assert "code_interpreter can open it" in done.said[1]
    assert runner.invoke({"code": "len(open('data.bin','rb').read())"}).content == "4"


def test_what_nothing_can_open_is_not_attached(hold: Hold, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"\0\1\2\3")
    done = hold(f":attach {tmp_path}/data.bin", f":attach {tmp_path}/missing", ":attach", "One?")
    assert (
        "no tool can open data.bin (application/octet-stream): start with --tools code_interpreter"
        in done.complaints[0]
    )
    assert "is not a file" in done.complaints[1]
    assert done.said[-1] == "Nothing is attached."
    assert not list((tmp_path / "working").iterdir())
    assert "Attached" not in done.runtime.prompts[0]  # type: ignore[attr-defined]


def test_a_picture_is_attached_or_the_remedy_is_told(
    hold: Hold, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    done = hold(f":attach {tmp_path}/a.png")
    assert "qwen-react-agent[ocr]" in done.complaints[0]
    seen = hold(f":attach {tmp_path}/a.png", vision_model="m", vision_url="http://127.0.0.1:9/v1")
    assert "a.png (image/png, 2x3); describe_image can open it" in seen.said[1]


def test_conversations_are_saved_listed_loaded_and_exported(hold: Hold, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("secret")
    hold(f":attach {tmp_path}/notes.txt", "One?", "Two?", name="sums")
    out = tmp_path / "out"
    done = hold(":sessions", ":load sums", "Three?", f":export {out}.md", f":export {out}.json", f":export {out}.md")
    assert "sums" in done.said[1]
    assert "2 questions" in done.said[2]
    prompt = done.runtime.prompts[0]  # type: ignore[attr-defined]
    assert all(each in prompt for each in ("One?", "Two?", "Three?", "read_file"))
    assert "> Three?" in Path(f"{out}.md").read_text()
    assert [turn["answer"] for turn in json.loads(Path(f"{out}.json").read_text())] == ["Yes."] * 3
    assert "exists already" in done.complaints[0]
    assert len(Saved(tmp_path / "saved").read("sums")[1].turns) == 3


def test_a_file_that_is_gone_is_told_when_a_conversation_is_loaded(hold: Hold, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("secret")
    hold(f":attach {tmp_path}/notes.txt", "One?", name="sums")
    (tmp_path / "notes.txt").unlink()
    done = hold(":load sums")
    assert "notes.txt is no longer attached" in done.complaints[0]


def test_an_undone_question_is_not_saved_and_a_cleared_conversation_is_kept(hold: Hold, tmp_path: Path) -> None:
    done = hold("One?", "Two?", ":undo", ":clh", "Three?", name="sums")
    saved = Saved(tmp_path / "saved")
    assert [turn.question for turn in saved.read("sums")[1].turns] == ["One?"]
    assert "It is kept as sums." in done.said[2]
    assert len(saved.list()) == 2


# ---- without a terminal


@pytest.fixture
def piped(
    scripted: Any, state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """What `qwen-agent chat` prints to stdout and stderr for these lines."""

    def run(lines: str, *options: str, outputs: tuple[str, ...] = (YES,)) -> tuple[str, str]:
        monkeypatch.setattr(assemble, "load", lambda model, **_: scripted(*outputs))
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        assert main(["chat", *options]) == 0
        return capsys.readouterr()

    return run


def test_a_pipe_gets_plain_text_and_leaves_nothing_behind(piped: Any, state: Path) -> None:
    call = 'I must.\nAction: calculator\nAction Input: {"expression": "12*12"}\nObservation:'
    script = ":help\n:seed 7\n:seed\nWhat is 12*12?\n:history\n:clear-his\n:history\n:nonsense\n\n:exit\nNever read.\n"
    out, err = piped(script, outputs=(call, " I know.\nFinal Answer: **144**"))
    assert "\x1b" not in out + err
    assert "The seed is now 7." in out
    assert "Observation: 144\nThought: I know.\nFinal Answer: **144**\n" in out
    assert "User:\nWhat is 12*12?" in out
    assert "Nothing has been said yet." in out
    assert err.strip() == "There is no command :nonsense; :help lists them"
    assert not state.exists()


def test_a_pipe_is_saved_if_it_has_a_name(piped: Any, state: Path) -> None:
    piped("One?\n", "--session", "sums")
    out, _ = piped("Two?\n", "--resume", "sums")
    assert "1 question so far" in out
    assert len(Saved(state / "conversations").read("sums")[1].turns) == 2


def test_the_end_of_the_input_ends_a_chat(piped: Any) -> None:
    assert piped("")[0].rstrip().endswith("User>")


def test_a_call_that_needs_approval_is_not_made_without_a_terminal(piped: Any) -> None:
    call = 'I must.\nAction: calculator\nAction Input: {"expression": "12*12"}\nObservation:'
    out, err = piped("What is 12*12?\n", "--ask", "calculator", outputs=(call,))
    assert "no terminal to ask on" in err
    assert "144" not in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--resume",), "no conversation has been saved yet"),
        (("--resume", "other"), "no conversation 'other'"),
        (("--session", "../x"), "cannot name a conversation"),
        (("--session", "a", "--resume", "b"), "choose"),
    ],
)
def test_a_conversation_that_cannot_be_had(
    options: tuple[str, ...], said: str, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", *options]) == 1
    assert said in capsys.readouterr().err
