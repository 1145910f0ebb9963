"""Programs that ask in rounds: who is asked when, what is asked again, and what an error does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from answers import Answer, Question
from in_rounds import Asking, NoAnswer, asked, in_rounds, replayed

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import text_of
from qwen_agent.types import Text

CONFIG = GenerationConfig()


def say(runtime: Asking, text: str) -> str:
    *_, last = runtime.stream((Text(text),), CONFIG)
    return text_of(last.output)


def count_to(n: int) -> object:
    def program(runtime: Asking) -> list[str]:
        said: list[str] = []
        for _ in range(n):
            said.append(say(runtime, "".join(said) or "begin"))
        return said

    return program


def echo(questions: Sequence[Question]) -> list[Answer]:
    return [Answer(each.id, f"{len(text_of(each.prompt))},") for each in questions]


def test_all_that_wait_are_one_round() -> None:
    rounds: list[list[str]] = []

    def reply(questions: Sequence[Question]) -> list[Answer]:
        rounds.append(sorted(each.id for each in questions))
        return echo(questions)

    programs = {"a": count_to(1), "b": count_to(3), "c": count_to(2)}
    ended = dict(in_rounds(programs, reply, together=3))
    assert ended == {"a": ["5,"], "b": ["5,", "2,", "4,"], "c": ["5,", "2,"]}
    assert rounds == [["a#1", "b#1", "c#1"], ["b#2", "c#2"], ["b#3"]]


def test_no_more_run_at_a_time_than_are_allowed() -> None:
    sizes: list[int] = []

    def reply(questions: Sequence[Question]) -> list[Answer]:
        sizes.append(len(questions))
        return echo(questions)

    ended = dict(in_rounds({str(n): count_to(2) for n in range(7)}, reply, together=3))
    assert len(ended) == 7 and max(sizes) == 3 and sum(sizes) == 14


def test_what_has_no_answer_ends_its_program_only() -> None:
    def reply(questions: Sequence[Question]) -> list[Answer]:
        return [Answer(q.id, "x", error="HTTP 500" if q.id == "b#2" else "") for q in questions]

    ended = dict(in_rounds({"a": count_to(3), "b": count_to(3)}, reply, together=2))
    assert ended["a"] == ["x", "x", "x"]
    assert isinstance(ended["b"], NoAnswer) and str(ended["b"]) == "b#2: HTTP 500"


@pytest.mark.parametrize("broken", ["program", "reply"])
def test_what_is_broken_gets_through(broken: str) -> None:
    def program(runtime: Asking) -> None:
        say(runtime, "x")
        raise ZeroDivisionError

    def reply(questions: Sequence[Question]) -> list[Answer]:
        if broken == "reply":
            raise ZeroDivisionError
        return echo(questions)

    with pytest.raises(ZeroDivisionError):
        dict(in_rounds({"a": program, "b": count_to(2)}, reply, together=2))


def test_a_log_is_replayed_as_far_as_it_goes(tmp_path: Path) -> None:
    log, about = tmp_path / "log.jsonl", {"model": "echo"}

    def ask(questions: Sequence[Question]) -> Iterator[Answer]:
        return iter(echo(questions))

    programs = {"a": count_to(2), "b": count_to(3)}
    whole = asked(programs, ask, log, about, together=2)
    assert replayed(programs, [log], about, together=1) == whole
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:4]))
    cut = replayed(programs, [log], about, together=2)
    assert cut["a"] == whole["a"] and isinstance(cut["b"], NoAnswer) and "not asked yet" in str(cut["b"])
