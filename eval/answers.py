"""Asking a model many questions, and the log of its answers: written as they come, resumed where they ended.

    answers = collect(questions, local("embedded", workers=2), Path("run.jsonl"), {"model": "embedded", "set": "mine"})

A log is JSON Lines, one answer a row, with the digest of all that the answer depends on (prompt, settings, ``about``).
A row is used again only under the same digest. An answer with an ``error`` is neither right nor wrong: it is asked
again by the next run, and too many of them fail a run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk, Runtime, text_of
from qwen_agent.types import Prompt

_CHUNK = 1024  # tokens; 15 to 20 % faster than 512 on prompts of 700 and 1,000
ERRORS_IN_A_ROW = 20  # nothing gets through any more: the rest would fail too
About = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. ``id`` is unique in a run; ``group`` says what it is counted with."""

    id: str
    prompt: Prompt
    config: GenerationConfig
    group: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. ``cut``: it ended at the token limit. ``weights`` are those of the config's choices, if known.

    ``error`` says why there is no answer: a refusal of the server, a timeout, an empty reply.
    """

    id: str
    text: str
    error: str = ""
    cut: bool = False
    tokens: int = 0
    weights: tuple[float, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. ``reused`` of the ``done`` were in the log before; tokens and seconds are of this run."""

    done: int
    total: int
    reused: int
    errors: int
    tokens: int
    seconds: float

    @property
    def left(self) -> float:
        """Seconds until the end at the speed so far; infinite before the first answer."""
        asked = self.done - self.reused
        return self.seconds / asked * (self.total - self.done) if asked else float("inf")


Ask = Callable[[Sequence[Question]], Iterator[Answer]]
"""Asks every question once and yields the answers as they come, in any order."""


# ---- the log --------------------------------------------------------------------------------------------------------


def collect(
    questions: Sequence[Question],
    ask: Ask,
    path: Path,
    about: About,
    *,
    max_errors: float = 0.02,
    report: Callable[[Progress], None] | None = None,
) -> list[Answer]:
    """An answer to each question, in their order: from the log at ``path`` where it has one, else asked and logged.

    ``about`` (JSON values) names the model and all settings that the questions do not hold. Questions are asked in
    the order of their prompts' texts, so that those with a common beginning follow each other. ``report`` is called
    after each answer; by default a line on stderr. Raises SystemExit if the log holds another run or is damaged, or if
    more than a share of ``max_errors`` of all answers are errors; what was answered is in the log in any case.
    """
    report = report or ProgressLine()
    about = json.loads(json.dumps(about))  # as the log has it
    keys = _keys(questions, about)
    known = {key: answer for key, answer in _read(path, about).items() if key in keys and not answer.error}
    todo = sorted((question for key, question in keys.items() if key not in known), key=lambda q: text_of(q.prompt))
    if todo:
        truncate_torn(path)
        key_of = {question.id: key for key, question in keys.items()}
        before = Progress(len(known), len(keys), len(known), 0, 0, 0.0)
        known |= _ask_rest(todo, ask, path, about, key_of, before, report)
    answers = [known[key] for key in keys]
    _check_errors([answer for answer in answers if answer.error], len(answers), max_errors, path)
    return answers


def recorded(paths: Iterable[Path], questions: Sequence[Question], about: About) -> dict[str, Answer]:
    """What logs hold of the answers to these questions, by id, errors included; an answer goes before an error.

    Raises SystemExit if one holds another run or is damaged.
    """
    about = json.loads(json.dumps(about))
    keys = _keys(questions, about)
    found: dict[str, Answer] = {}
    for path in paths:
        for key, answer in _read(path, about).items():
            if key in keys and (answer.id not in found or found[answer.id].error):
                found[answer.id] = answer
    return found


def runs_in(path: Path) -> list[dict[str, Any]]:
    """The different ``about`` of the rows of a log, in their order. Raises SystemExit if it is damaged or missing."""
    if not path.exists():
        raise SystemExit(f"there is no file {path}")
    runs: list[dict[str, Any]] = []
    for row in _rows(path):
        if row["about"] not in runs:
            runs.append(row["about"])
    return runs


def _keys(questions: Sequence[Question], about: About) -> dict[str, Question]:
    if len({question.id for question in questions}) < len(questions):
        raise InputError("two questions have the same id: give each its own")
    described = json.dumps(about, sort_keys=True)
    # The representation of frozen dataclasses names every field of prompt and settings.
    texts = [repr((question.id, question.prompt, question.config, described)) for question in questions]
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32] for text in texts]
    return dict(zip(digests, questions, strict=True))


def _ask_rest(
    todo: Sequence[Question],
    ask: Ask,
    path: Path,
    about: About,
    key_of: Mapping[str, str],
    before: Progress,
    report: Callable[[Progress], None],
) -> dict[str, Answer]:
    asked: dict[str, Answer] = {}
    errors = in_a_row = tokens = 0
    started = time.monotonic()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", newline="\n") as log:
        for answer in ask(todo):
            asked[key_of[answer.id]] = answer
            row = {"key": key_of[answer.id], **asdict(answer), "about": about}
            # Escaped, because a model may write half a surrogate pair.
            log.write(json.dumps(row) + "\n")
            log.flush()
            errors, tokens = errors + bool(answer.error), tokens + answer.tokens
            in_a_row = in_a_row + 1 if answer.error else 0
            done = before.done + len(asked)
            report(Progress(done, before.total, before.reused, errors, tokens, time.monotonic() - started))
            if in_a_row == ERRORS_IN_A_ROW:
                raise SystemExit(
                    f"\nthe last {in_a_row} questions failed, so the rest is not asked; the last said: {answer.error}\n"
                    f"{path} keeps what was answered: run the same command again to go on"
                )
    if len(asked) < len(todo):
        raise SystemExit(f"\nonly {len(asked)} of {len(todo)} questions came back: run the same command again")
    return asked


def _check_errors(errors: Sequence[Answer], total: int, most: float, path: Path) -> None:
    if len(errors) <= most * total:
        return
    named = "\n".join(f"  {answer.id}: {answer.error}" for answer in errors[:10])
    rest = f"\n  and {len(errors) - 10} more" if len(errors) > 10 else ""
    raise SystemExit(
        f"{len(errors)} of {total} questions have no answer, more than the {most:.1%} that a score may lack:\n"
        f"{named}{rest}\nrun the same command again: it asks only these ({path} keeps the others)"
    )


def _read(path: Path, about: About) -> dict[str, Answer]:
    """The answers in a log by key, the latest of each."""
    names = [field.name for field in fields(Answer)]
    found = {}
    for row in _rows(path):
        if row["about"] != about:
            raise SystemExit(f"{path} holds another run ({_difference(row['about'], about)}): give this one a new file")
        answer = Answer(**{name: row[name] for name in names if name in row} | {"weights": tuple(row["weights"])})
        found[row["key"]] = answer
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The whole rows of a log; a line that the end of a run tore off is left out."""
    if not path.exists():
        return
    whole, _ = split_torn(path.read_bytes())
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            row["key"], row["about"], row["id"], row["text"], row["weights"]
        except (ValueError, KeyError, TypeError):
            raise SystemExit(f"line {number} of {path} is no answer: another file? Else remove the line") from None
        yield row


def split_torn(content: bytes) -> tuple[bytes, bytes]:
    """The whole lines of a log, and the one that the end of a run tore off."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def truncate_torn(path: Path) -> None:
    """Take the line that was torn off out of a log, if there is one."""
    if path.exists():
        whole, torn = split_torn(path.read_bytes())
        if torn:
            os.truncate(path, len(whole))


def _difference(theirs: About, ours: About) -> str:
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} is {theirs.get(name)!r} there, {ours.get(name)!r} here" for name in names)


class ProgressLine:
    """Done, tokens, seconds and the time that is left, on stderr: one line on a terminal, else one every 20 seconds."""

    def __init__(self, every: float = 20.0) -> None:
        self._every = 0.0 if sys.stderr.isatty() else every
        self._shown = 0.0

    def __call__(self, now: Progress) -> None:
        last = now.done == now.total
        if not last and now.seconds - self._shown < self._every:
            return
        self._shown = now.seconds
        errors = f", {now.errors} errors" if now.errors else ""
        reused = f" ({now.reused} from the log)" if now.reused else ""
        text = f"{now.done}/{now.total}{reused}{errors}  {now.tokens} tokens  {now.seconds:.0f} s"
        text += "" if last else f"  {now.left:.0f} s left"
        if self._every:
            print(text, file=sys.stderr)
        else:
            print(f"\r{text}\033[K", end="\n" if last else "", file=sys.stderr, flush=True)


# ---- parts of a run -------------------------------------------------------------------------------------------------


def part(items: Sequence[T], shard: tuple[int, int]) -> Sequence[T]:
    """The i-th of n parts, i from 1: every n-th item from the i-th on."""
    index, count = shard
    return items[index - 1 :: count]


def shard(text: str) -> tuple[int, int]:
    """The type of a ``--shard I/N`` option."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part of a whole: give 1/4, 2/4, 3/4 or 4/4, say")
    return int(index), int(count)


# ---- whom to ask ----------------------------------------------------------------------------------------------------


def load(model: str) -> Runtime:
    """A model on this machine: embedded, a folder or a hub id."""
    from qwen_agent.llm.local import load_runtime

    runtime = load_runtime(model)
    if runtime.model.device.type == "cpu":
        # Packed weights are unpacked once a piece. Nobody waits for a cancel here, so pieces may be long.
        runtime.model.chunk = _CHUNK
    return runtime


def local(model: str, *, workers: int = 1, load: Callable[[str], Runtime] = load) -> Ask:
    """Asks a model on this machine: in this process, or in ``workers`` processes with one torch thread each.

    The model is loaded at the first question and stays. Each of several processes loads it itself; the system's page
    cache shares the file. ``load`` must be a function that can be pickled.
    """
    if workers < 1:
        raise InputError(f"workers={workers} cannot be used: it must be at least 1")

    @functools.cache
    def asker() -> _Asker:
        return _Asker(load(model))

    @functools.cache
    def pool() -> Executor:
        return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin_worker, initargs=(load, model))

    def ask(questions: Sequence[Question]) -> Iterator[Answer]:
        if workers == 1:
            yield from map(asker(), questions)
            return
        try:
            yield from _all_of(pool(), _ask_in_worker, questions)
        except BrokenProcessPool:
            raise SystemExit(
                "\na worker died, perhaps for want of memory; what was answered is in the log: run the same command "
                "again, with fewer --workers if it happens again"
            ) from None

    return ask


def endpoint(
    url: str, model: str, key: str = "", *, concurrency: int = 8, guided: bool = False, weigh: bool = False
) -> Ask:
    """Asks a model behind an OpenAI-compatible endpoint, ``concurrency`` questions at a time.

    ``guided`` has it keep to the questions' grammars, ``weigh`` weighs their choices, where the engine can; see
    `OpenAIRuntime`.
    """
    from qwen_agent.llm.remote import OpenAIRuntime

    @functools.cache
    def ask() -> Ask:
        runtime = OpenAIRuntime(url, model, api_key=key or None, concurrency=concurrency, guided=guided, weigh=weigh)
        return concurrent(runtime, concurrency)

    return lambda questions: ask()(questions)


def concurrent(runtime: Runtime, concurrency: int) -> Ask:
    """Asks one runtime from this many threads."""
    if concurrency < 1:
        raise InputError(f"concurrency={concurrency} cannot be used: it must be at least 1")

    def ask(questions: Sequence[Question]) -> Iterator[Answer]:
        with ThreadPoolExecutor(concurrency) as pool:
            yield from _all_of(pool, _Asker(runtime), questions)

    return ask


def _all_of(pool: Executor, ask_one: Callable[[Question], Answer], questions: Sequence[Question]) -> Iterator[Answer]:
    futures = [pool.submit(ask_one, question) for question in questions]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        for future in futures:
            future.cancel()


class _Asker:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, question: Question) -> Answer:
        started = time.monotonic()
        weights: tuple[float, ...] = ()
        last = Chunk()
        try:
            for last in self._runtime.stream(question.prompt, question.config):
                weights = last.weights or weights
        except Exception as error:  # whatever it is, the other questions are worth asking
            said = " ".join(f"{type(error).__name__}: {error}".split())
            return Answer(question.id, "", error=said[:500], seconds=time.monotonic() - started)
        text = text_of(last.output)
        return Answer(
            question.id,
            text,
            "" if text.strip() or last.stop else "an empty reply",  # to begin with a stop string is an answer
            last.finish == "length",
            last.usage.generated_tokens,
            weights,
            round(time.monotonic() - started, 3),
        )


_worker: _Asker | None = None


def _begin_worker(load: Callable[[str], Runtime], model: str) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and sends no more questions
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that is yet to be imported
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    _worker = _Asker(load(model))


def _end_with_parent() -> None:
    """A parent that was killed takes no more answers, and would leave its workers waiting for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ask_in_worker(question: Question) -> Answer:
    assert _worker is not None
    return _worker(question)
