"""Programs that ask a model again about what came of its last answer, over the log of `answers`.

Each program is a function of a Runtime, written as if the model answered at once; it runs in a thread of its own. When
all that are running wait for the model, their questions are one round: asked together, logged, and never asked again.
So a run that was killed comes back to where it was by its log, as long as the programs do the same as before.
"""

from __future__ import annotations

import itertools
import queue
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from answers import About, Answer, Ask, Question, collect, recorded

from qwen_agent.errors import QwenAgentError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.types import Prompt, Text, Usage

T = TypeVar("T")
NOT_ASKED = "not asked yet"
Reply = Callable[[Sequence[Question]], Sequence[Answer]]
"""Answers to a round of questions, in their order."""


class NoAnswer(QwenAgentError):
    """The model could not be asked: neither right nor wrong."""


def asked(
    programs: Mapping[str, Callable[[Asking], T]], ask: Ask, path: Path, about: About, together: int
) -> dict[str, T | NoAnswer]:
    """What came of each program, with the answers of ``ask`` or of the log at ``path``; see `answers.collect`."""
    ended: dict[str, T | NoAnswer] = {}
    rounds = itertools.count(1)

    def reply(questions: Sequence[Question]) -> Sequence[Answer]:
        print(f"round {next(rounds)}: {len(ended)} of {len(programs)} are done, {len(questions)} ask", file=sys.stderr)
        return collect(questions, ask, path, about, max_errors=1.0)

    for name, end in in_rounds(programs, reply, together):
        ended[name] = end
    return ended


def replayed(
    programs: Mapping[str, Callable[[Asking], T]], paths: Sequence[Path], about: About, together: int
) -> dict[str, T | NoAnswer]:
    """The same from logs alone: a program whose question is in none of them comes to `NoAnswer`."""

    def reply(questions: Sequence[Question]) -> Sequence[Answer]:
        known = recorded(paths, questions, about)
        return [known.get(each.id, Answer(each.id, "", error=NOT_ASKED)) for each in questions]

    return dict(in_rounds(programs, reply, together))


def in_rounds(
    programs: Mapping[str, Callable[[Asking], T]], reply: Reply, together: int
) -> Iterator[tuple[str, T | NoAnswer]]:
    """What comes of each program, as they end; at most ``together`` of them run at a time.

    The id of a question is the program's name and the number of the question in it. A program whose question has no
    answer sees `NoAnswer`; if it does not catch it, that is what comes of it. Other exceptions get through.
    """
    inbox: queue.SimpleQueue[_Letter | str] = queue.SimpleQueue()
    pool = ThreadPoolExecutor(together, thread_name_prefix="program")
    ends = {name: pool.submit(_run, name, program, inbox) for name, program in programs.items()}
    left = set(programs)
    waiting: list[_Letter] = []
    try:
        while left:
            letter = inbox.get()
            if isinstance(letter, str):
                left.remove(letter)
                yield letter, ends[letter].result()
            else:
                waiting.append(letter)
            if waiting and len(waiting) == min(together, len(left)):
                _answer(waiting, reply)
                waiting = []
    finally:
        left -= {name for name, end in ends.items() if end.cancel()}
        _refuse(waiting, left, inbox)
        pool.shutdown()


def _refuse(waiting: Sequence[_Letter], left: set[str], inbox: queue.SimpleQueue[_Letter | str]) -> None:
    """Answer no more, until the programs that are left have ended."""
    for letter in waiting:
        letter.answer.set_exception(NoAnswer("the run was stopped"))
    while left:
        late = inbox.get()
        if isinstance(late, str):
            left.remove(late)
        else:
            late.answer.set_exception(NoAnswer("the run was stopped"))


@dataclass(frozen=True, slots=True)
class _Letter:
    question: Question
    answer: Future[Answer] = field(default_factory=Future)


def _run(name: str, program: Callable[[Asking], T], inbox: queue.SimpleQueue[_Letter | str]) -> T | NoAnswer:
    try:
        return program(Asking(name, inbox))
    except NoAnswer as error:
        return error
    finally:
        inbox.put(name)


def _answer(letters: Sequence[_Letter], reply: Reply) -> None:
    answers = reply([letter.question for letter in letters])
    for letter, answer in zip(letters, answers, strict=True):
        letter.answer.set_result(answer)


class Asking:
    """The Runtime of one program. ``answers`` are those it got so far.

    It knows no tokenizer: it counts three characters a token, and leaves it to the model to say what is too long.
    """

    name = "asking"
    window = 1 << 30

    def __init__(self, program: str, inbox: queue.SimpleQueue[_Letter | str]) -> None:
        self.answers: list[Answer] = []
        self._program, self._inbox = program, inbox

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        letter = _Letter(Question(f"{self._program}#{len(self.answers) + 1}", prompt, config, self._program))
        self._inbox.put(letter)
        answer = letter.answer.result()
        if answer.error:
            raise NoAnswer(f"{answer.id}: {answer.error}")
        self.answers.append(answer)
        usage = Usage(0, 0, answer.tokens)
        written = (Text(answer.text),)
        yield Chunk(answer.text, finish="length" if answer.cut else "stop", output=written, usage=usage)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        raise NotImplementedError("programs that run in rounds generate only")

    def count_tokens(self, prompt: Prompt) -> int:
        return -(-len(text_of(prompt)) // 3)
