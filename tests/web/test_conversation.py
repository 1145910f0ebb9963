"""Conversations: what is asked, stopped, approved, kept and removed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talker import PNG, STEPS, Talker, make_tools

from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.tools.base import ToolOutput, tool
from qwen_agent.tools.code_interpreter import code_interpreter
from qwen_agent.types import Artifact, StopReason
from qwen_agent.web import conversation as module
from qwen_agent.web.conversation import Choices, Conversation, Place
from qwen_agent.web.conversations import Conversations

Until = Callable[[Callable[[], object]], None]
ALL = Choices(("calculator", "list_files", "read_file", "write_file", "draw", "failing"))


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Callable[..., Conversation]]:
    """Make a conversation."""
    all_of_them: list[Conversation] = []

    def make(runtime: Any = None, tools: Any = make_tools, choices: Choices = ALL) -> Conversation:
        folder = tmp_path / f"chat-{len(all_of_them)}"
        found = Conversation("0" * 32, runtime or Talker(), tools, folder, choices)
        all_of_them.append(found)
        return found

    yield make
    for each in all_of_them:
        each.close()


def test_turns_are_remembered(made: Any, until: Until) -> None:
    runtime = Talker()
    chat = made(runtime)
    chat.ask("  What is 15% of 2,340?  ")
    until(lambda: not chat.running)
    chat.ask("And now?")
    until(lambda: not chat.running)
    first, second = chat.turns
    assert (first.question, first.answer, first.end) == ("What is 15% of 2,340?", "351", StopReason.FINAL_ANSWER)
    assert second.answer == "You said: And now?"
    assert "Observation: 351" in runtime.prompts[-1]


def test_switched_off_tools_are_not_offered(made: Any, until: Until) -> None:
    runtime = Talker()
    chat = made(runtime, choices=Choices(("calculator",)))
    chat.ask("hello")
    until(lambda: not chat.running)
    assert "calculator" in runtime.prompts[0]
    assert "read_file" not in runtime.prompts[0]


def test_sampling_reaches_the_runtime(scripted: Any, made: Any, until: Until) -> None:
    runtime = scripted("Hello.")
    generation = GenerationConfig(max_new_tokens=77, temperature=0.7, top_p=0.9, seed=3)
    chat = made(runtime, choices=Choices((), generation))
    chat.ask("hello")
    until(lambda: not chat.running)
    used = runtime.configs[0]
    assert (used.temperature, used.top_p, used.seed, used.max_new_tokens) == (0.7, 0.9, 3, 77)


def test_stop_ends_the_turn_and_forgets_it(made: Any, until: Until) -> None:
    runtime = Talker(delay=0.005)
    chat = made(runtime)
    chat.ask("long")
    until(lambda: "word" in chat.turns[0].answer)
    with pytest.raises(InputError, match="still being written"):
        chat.ask("another")
    chat.stop()
    until(lambda: not chat.running)
    assert chat.turns[0].end is StopReason.CANCELLED
    assert "word" in chat.turns[0].answer
    chat.ask("hello")
    until(lambda: not chat.running)
    assert "long" not in runtime.prompts[-1]


def test_asking_again_replaces_the_turn_and_drops_the_later_ones(made: Any, until: Until) -> None:
    runtime = Talker()
    chat = made(runtime)
    for question in ("one", "two", "three"):
        chat.ask(question)
        until(lambda: not chat.running)
    chat.ask_again(1, "zwei")
    until(lambda: not chat.running)
    assert [turn.answer for turn in chat.turns] == ["You said: one", "You said: zwei"]
    assert "two" not in runtime.prompts[-1]
    chat.ask_again(0)
    until(lambda: not chat.running)
    assert [turn.question for turn in chat.turns] == ["one"]
    for at in (-1, 1):
        with pytest.raises(InputError, match="there is no turn"):
            chat.ask_again(at)


def test_asking_again_does_not_wait_for_the_run_it_replaces(made: Any, until: Until) -> None:
    chat = made(Talker(delay=0.005))
    chat.ask("long")
    until(lambda: chat.turns[0].answer)
    chat.ask_again(0, "short")
    until(lambda: not chat.running)
    assert [turn.answer for turn in chat.turns] == ["You said: short"]


def test_uploads_can_be_read_and_survive_being_asked_again(made: Any, until: Until) -> None:
    runtime = Talker()
    chat = made(runtime)
    chat.ask("What is in table.csv?", [("table.csv", b"fruit\napple\npear\n"), ("../p.png", PNG)])
    until(lambda: not chat.running)
    table, picture = chat.turns[0].files
    assert (table.name, table.media_type) == ("table.csv", "text/plain")
    assert (picture.name, picture.width) == ("p.png", 96)
    assert chat.turns[0].steps[0].observation == "fruit\napple\npear"
    assert f"What is in table.csv?\n[file: table.csv]\n[image {picture.id}: p.png, PNG, 96x64]" in runtime.prompts[0]
    chat.ask_again(0)
    until(lambda: not chat.running)
    assert chat.turns[0].files == (table, picture)
    assert {path.name for path in (chat.folder / "files").iterdir()} == {"table.csv", "p.png"}


@pytest.mark.parametrize(
    ("question", "uploads", "words"),
    [
        ("  ", 0, "empty"),
        ("x" * 100_001, 0, "attach it as a file"),
        ("x", 11, "11 files are more than the 10"),
    ],
)
def test_what_cannot_be_asked_changes_nothing(made: Any, question: str, uploads: int, words: str) -> None:
    chat = made()
    with pytest.raises(InputError, match=words):
        chat.ask(question, [(f"{n}.txt", b"x") for n in range(uploads)])
    assert chat.turns == []
    assert chat.version == 0


def test_files_that_a_call_leaves_are_handed_out(made: Any, until: Until) -> None:
    chat = made()
    chat.ask("write it")
    until(lambda: chat.waiting)
    assert chat.waiting.arguments["path"] == "note.txt"
    assert chat.turns[0].steps[0].phase == "asking"
    chat.decide(True)
    until(lambda: not chat.running)
    (note,) = chat.turns[0].steps[0].artifacts
    assert Path(note.path).read_text() == "Buy milk\nBuy bread\n"
    assert Path(note.path).is_relative_to(chat.folder / "artifacts")


def test_a_refused_call_is_not_made(made: Any, until: Until) -> None:
    chat = made()
    chat.ask("write it")
    until(lambda: chat.waiting)
    chat.decide(False)
    until(lambda: not chat.running)
    assert chat.turns[0].steps[0].refused
    assert not list((chat.folder / "files").iterdir())
    assert chat.turns[0].end is StopReason.FINAL_ANSWER


def test_stop_while_approval_is_asked(made: Any, until: Until) -> None:
    chat = made()
    chat.ask("write it")
    until(lambda: chat.waiting)
    chat.stop()
    until(lambda: not chat.running)
    assert chat.turns[0].end is StopReason.CANCELLED
    assert chat.waiting is None
    assert not list((chat.folder / "files").iterdir())


def test_every_call_can_be_asked_about(made: Any, until: Until) -> None:
    chat = made(choices=Choices(("calculator",), ask=True))
    chat.ask("What is 15% of it?")
    until(lambda: chat.waiting)
    assert chat.waiting.name == "calculator"
    chat.decide(True)
    until(lambda: not chat.running)
    assert chat.turns[0].answer == "351"


def test_pictures_are_copied_where_no_tool_reaches_them(made: Any, until: Until, tmp_path: Path) -> None:
    outside = tmp_path / "made.png"
    outside.write_bytes(PNG)

    def tools(place: Place) -> list[Any]:
        @tool
        def draw() -> ToolOutput:
            """Draw."""
            artifact = Artifact("f" * 12, "made.png", "image/png", len(PNG), str(outside), 96, 64)
            return ToolOutput("drawn", (artifact, Artifact("e" * 12, "gone.png", "image/png", 1, "/nowhere/gone.png")))

        return [draw]

    chat = made(tools=tools, choices=Choices(("draw",)))
    chat.ask("draw it")
    until(lambda: not chat.running)
    (shown,) = chat.turns[0].steps[0].artifacts
    assert Path(shown.path).read_bytes() == PNG
    assert Path(shown.path).is_relative_to(chat.folder / "artifacts")


def test_a_link_that_code_leaves_shows_nothing(made: Any, until: Until, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")

    def tools(place: Place) -> list[Any]:
        @tool
        def draw() -> str:
            """Draw."""
            (place.files / "link.txt").symlink_to(secret)
            return "drawn"

        return [draw]

    chat = made(tools=tools, choices=Choices(("draw",)))
    chat.ask("draw it")
    until(lambda: not chat.running)
    assert chat.turns[0].steps[0].artifacts == ()


@pytest.mark.skipif(os.name == "nt", reason="no sandbox there")
def test_files_and_figures_of_code(made: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "open('sum.txt', 'w').write(str(sum(map(int, open('n.txt')))))"
    call = f'I compute.\nAction: code_interpreter\nAction Input: {{"code": "{code}"}}\n'
    monkeypatch.setitem(STEPS, "add", [call, "Done."])
    chat = made(tools=lambda place: [code_interpreter(place.files)], choices=Choices(("code_interpreter",)))
    chat.ask("add them", [("n.txt", b"1\n2\n")])
    until(lambda: not chat.running)
    (step,) = chat.turns[0].steps
    assert step.ok, step.observation
    assert step.code
    assert [(made.name, Path(made.path).read_text()) for made in step.artifacts] == [("sum.txt", "3")]


def test_what_fails_inside_is_logged_and_the_rest_kept(
    made: Any, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    chat = made()
    chat.ask("hello")
    until(lambda: not chat.running)
    with caplog.at_level(logging.ERROR):
        chat.ask("boom")
        until(lambda: not chat.running)
    assert isinstance(chat.turns[1].problem, RuntimeError)
    assert "a secret that belongs in the log only" in caplog.text
    chat.ask("hello again")
    until(lambda: not chat.running)
    assert chat.turns[2].answer == "You said: hello again"


def test_a_question_that_does_not_fit(made: Any, until: Until) -> None:
    chat = made(Talker(window=600), choices=Choices(()))
    chat.ask("word " * 700)
    until(lambda: not chat.running)
    assert isinstance(chat.turns[0].problem, ContextOverflow)


def test_a_run_that_nobody_watches_ends(made: Any, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNWATCHED_SECONDS", 0.1)
    chat = made(Talker(delay=0.01))
    chat.ask("long")
    until(lambda: not chat.running)
    assert chat.turns[0].end is StopReason.CANCELLED


def conversations(most: int = 3, runtime: Any = None) -> Conversations:
    return Conversations(runtime or Talker(), make_tools, ALL, system="Be kind.", limits=Limits(), most=most)


def test_conversations_are_separate_and_so_many(until: Until) -> None:
    chats = conversations()
    first = chats.open("a")
    assert chats.open("a") is first
    first.ask("hello", [("a.txt", b"a")])
    until(lambda: not first.running)
    assert chats.open("b").turns == []
    assert not list((chats.open("b").folder / "files").iterdir())
    first.watched()
    chats.open("c"), chats.open("d")
    assert chats.get("b") is None  # used least recently
    assert chats.get("a") is first
    assert chats.by_download_key(first.download_key) is first
    assert chats.by_download_key("") is None
    chats.close()


def test_folders_go_with_their_conversations(until: Until) -> None:
    chats = conversations(runtime=Talker(delay=0.01))
    kept, forgotten = chats.open("a"), chats.open("b")
    assert kept.folder.is_dir()
    chats.forget("b")
    assert not forgotten.folder.exists()
    kept.ask("long")
    chats.close()
    assert not chats.root.exists()
    until(lambda: kept.turns[0].over)
