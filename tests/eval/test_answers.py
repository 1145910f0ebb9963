"""The log of answers: resumed after a kill, torn lines, other runs, errors, and who is asked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from answers import (
    ERRORS_IN_A_ROW,
    Answer,
    Progress,
    ProgressLine,
    Question,
    collect,
    concurrent,
    local,
    part,
    recorded,
    runs_in,
    shard,
)

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.prompt import build

HERE = Path(__file__).parent
EVAL = HERE.parents[1] / "eval"
ABOUT = {"model": "fake", "set": ["a", 1]}


@pytest.fixture(autouse=True)
def helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def questions(count: int, word: Callable[[int], str] = str) -> list[Question]:
    return [Question(f"q{i}", build(f"say {word(i)}"), GenerationConfig(max_new_tokens=9)) for i in range(count)]


class Counting:
    """Answers at once, backwards, and remembers whom it was asked for."""

    def __init__(self, errors: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self.errors = errors

    def __call__(self, asked: Sequence[Question]) -> Iterator[Answer]:
        for question in reversed(asked):
            self.asked.append(question.id)
            failed = question.id in self.errors
            text = "" if failed else f"said {question.id[1:]}"
            yield Answer(question.id, text, "HTTP 500" if failed else "", tokens=2, weights=(0.25, 0.75))


def quiet(_: Progress) -> None:
    pass


def test_answers_come_back_in_order_and_are_not_asked_again(tmp_path: Path) -> None:
    ask, path = Counting(), tmp_path / "new folder" / "log.jsonl"
    first = collect(questions(5), ask, path, ABOUT, report=quiet)
    assert [answer.id for answer in first] == ["q0", "q1", "q2", "q3", "q4"]
    assert first[0].weights == (0.25, 0.75)
    assert collect(questions(5), ask, path, ABOUT, report=quiet) == first
    assert len(ask.asked) == 5
    more = collect(questions(7), ask, path, ABOUT, report=quiet)
    assert more[:5] == first
    assert sorted(ask.asked[5:]) == ["q5", "q6"]


def test_another_prompt_or_setting_under_the_same_id_is_asked(tmp_path: Path) -> None:
    ask, path = Counting(), tmp_path / "log.jsonl"
    collect(questions(2), ask, path, ABOUT, report=quiet)
    collect(questions(2, lambda i: f"{i}!"), ask, path, ABOUT, report=quiet)
    longer = [Question(q.id, q.prompt, GenerationConfig(max_new_tokens=10)) for q in questions(2)]
    collect(longer, ask, path, ABOUT, report=quiet)
    assert len(ask.asked) == 6
    assert len(recorded([path], questions(2), ABOUT)) == 2


def test_a_kill_at_two_fifths_loses_nothing(tmp_path: Path) -> None:
    """A real process, really killed: the rest is asked, no more, and the answers are those of a run in one piece."""
    path = tmp_path / "log.jsonl"
    code = (
        f"import sys; sys.path[:0] = {[str(EVAL), str(HERE), str(EVAL.parent)]!r}\n"
        "from pathlib import Path\n"
        "import fake_model\n"
        "from answers import *\n"
        "from qwen_agent.prompt import build\n"
        "asked = [Question(f'q{i}', build(f'say {i}'), GenerationConfig(max_new_tokens=9)) for i in range(50)]\n"
        f"collect(asked, local('0.03', load=fake_model.load), Path({str(path)!r}), {ABOUT!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = path.read_bytes().count(b"\n")
    assert 20 <= kept < 50
    with path.open("ab") as log:  # as if the kill had come in the middle of a line
        log.write(b'{"key": "abc", "te')
    ask = Counting()
    resumed = collect(questions(50), ask, path, ABOUT, report=quiet)
    assert len(ask.asked) == 50 - kept
    whole = collect(questions(50), Counting(), tmp_path / "whole.jsonl", ABOUT, report=quiet)
    assert [answer.text for answer in resumed] == [answer.text for answer in whole]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_the_log_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    collect(questions(1), Counting(), path, ABOUT, report=quiet)
    with pytest.raises(SystemExit, match=r"holds another run .*model is 'fake' there, 'other' here.* new file"):
        collect(questions(1), Counting(), path, {**ABOUT, "model": "other"}, report=quiet)
    assert runs_in(path) == [ABOUT]


@pytest.mark.parametrize("line", ["not json", "[]", '{"id": "q0"}'])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(SystemExit, match=r"line 1 of .* is no answer"):
        collect(questions(1), Counting(), path, ABOUT, report=quiet)


def test_errors_are_kept_apart_and_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    failing = Counting(errors=["q3"])
    few = collect(questions(50), failing, path, ABOUT, report=quiet)
    assert [answer.id for answer in few if answer.error] == ["q3"]
    mended = Counting()
    assert not any(answer.error for answer in collect(questions(50), mended, path, ABOUT, report=quiet))
    assert mended.asked == ["q3"]


def test_too_many_errors_fail_the_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(
        SystemExit, match=r"2 of 50 .*more than the 2.0%[\s\S]*q3: HTTP 500[\s\S]*asks only these"
    ) as end:
        collect(questions(50), Counting(errors=["q3", "q4"]), path, ABOUT, report=quiet)
    assert end.value.code not in (0, None)
    assert len(recorded([path], questions(50), ABOUT)) == 50
    ask = Counting()
    collect(questions(50), ask, path, ABOUT, report=quiet)
    assert sorted(ask.asked) == ["q3", "q4"]


def test_a_run_that_gets_nowhere_stops_early(tmp_path: Path) -> None:
    ask = Counting(errors=[f"q{i}" for i in range(100)])
    with pytest.raises(SystemExit, match="the last 20 questions failed"):
        collect(questions(100), ask, tmp_path / "log.jsonl", ABOUT, report=quiet)
    assert len(ask.asked) == ERRORS_IN_A_ROW


def test_two_questions_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="same id"):
        collect(questions(1) * 2, Counting(), tmp_path / "log.jsonl", ABOUT, report=quiet)


def test_a_failing_question_is_an_error_and_so_is_an_empty_reply(tmp_path: Path) -> None:
    words = ["one", "fail", "nothing"]
    import fake_model

    asked = questions(3, words.__getitem__)
    one, fail, nothing = collect(
        asked, local("0", load=fake_model.load), tmp_path / "log.jsonl", ABOUT, max_errors=1.0, report=quiet
    )
    assert (one.text, one.error, one.tokens) == ("said one", "", 2)
    assert fail.error == "TimeoutError: no answer after 60 s"
    assert nothing.error == "an empty reply"


def test_processes_and_threads_answer_the_same(tmp_path: Path) -> None:
    import fake_model

    asked = questions(6)
    alone = collect(asked, local("0", load=fake_model.load), tmp_path / "1.jsonl", ABOUT, report=quiet)
    spawned = collect(asked, local("0", workers=2, load=fake_model.load), tmp_path / "2.jsonl", ABOUT, report=quiet)
    threads = collect(asked, concurrent(fake_model.FakeModel(0.0), 3), tmp_path / "3.jsonl", ABOUT, report=quiet)
    assert [a.text for a in alone] == [a.text for a in spawned] == [a.text for a in threads]


def test_neighbours_share_a_beginning(tmp_path: Path) -> None:
    ask = Counting()
    words = ["tools A, first", "tools B, first", "tools A, second", "tools B, second"]
    collect(questions(4, words.__getitem__), ask, tmp_path / "log.jsonl", ABOUT, report=quiet)
    assert ask.asked == ["q3", "q1", "q2", "q0"]  # this one answers backwards


def test_parts_make_the_whole() -> None:
    parts = [part(range(10), shard(f"{i}/3")) for i in (1, 2, 3)]
    assert sorted(n for each in parts for n in each) == list(range(10))


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "a/b"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is no part of a whole"):
        shard(text)


def test_progress_says_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(every=0.5)
    line(Progress(done=6, total=10, reused=2, errors=1, tokens=80, seconds=8.0))
    line(Progress(done=7, total=10, reused=2, errors=1, tokens=90, seconds=8.1))
    line(Progress(done=10, total=10, reused=2, errors=1, tokens=120, seconds=9.0))
    shown = capsys.readouterr().err.splitlines()
    # 4 answers in 8 s, 4 to come
    assert shown == [
        "6/10 (2 from the log), 1 errors  80 tokens  8 s  8 s left",
        "10/10 (2 from the log), 1 errors  120 tokens  9 s",
    ]
