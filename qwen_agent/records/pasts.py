"""The facts of a log, handed out to a run that is repeated: in their order only, or as they fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar, cast

from qwen_agent.records.described import LogEnds
from qwen_agent.records.drift import DriftEntry, brief, first_difference, shown, title
from qwen_agent.records.log import Log
from qwen_agent.types import (
    Approved,
    Compacted,
    Event,
    Fact,
    ModelWrote,
    RunStarted,
    StepFinished,
    ToolFinished,
)

F = TypeVar("F", bound=Fact)


class Strict:
    """The facts in their order, for a run that must ask for just these."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.left = deque(facts)
        self.drift: list[DriftEntry] = []
        self.step = 1
        self.stalled = False
        self._given: Fact | None = None

    def take(self, kind: type[F], about: str) -> F | None:
        found = self.find(kind, about)
        self._given = found or self._given
        return found

    def find(self, kind: type[F], about: str) -> F | None:
        fact = self.left[0] if self.left else None
        if self.stalled or not isinstance(fact, kind):
            return None
        if fact.about == about:
            self.left.popleft()
            return fact
        if isinstance(fact, ToolFinished | Approved):
            self.note("the call", fact.about, about)
            raise LogEnds()
        # The run goes on without this fact, until the model is asked: that shows the whole prompt.
        self.note("the prompt", fact.about, about)
        self.stalled = True
        return None

    @property
    def goes_on(self) -> bool:
        return bool(self.left) and not self.stalled

    def must_have_ended(self, about: str) -> None:
        if not self.stalled:
            raise LogEnds(about=about)

    def watch(self, event: Event, log: Log) -> None:
        """Called with each event of the run: a fact that it made up by itself (a limit, a compaction) is drift."""
        self.step += isinstance(event, StepFinished)
        if not isinstance(event, Fact) or event is self._given:
            return
        if self.left or not log.resumable:
            self.note("what comes next", title(self.left[0]) if self.left else "the end of the run", title(event))
            self.after_drift()

    def after_drift(self) -> None:
        raise LogEnds()

    def ended(self, log: Log, stop: LogEnds, expected: Callable[[], str]) -> None:
        """The run asked for something that the log does not have: judge whether it should have."""
        if self.stalled and stop.prompt:
            *before, entry = self.drift
            places = first_difference(expected(), shown(stop.prompt))
            self.drift = [*before, replace(entry, expected=places[0], found=places[1]) if places else entry]
        elif not self.drift and (self.left or not log.resumable):
            next_one = title(self.left[0]) if self.left else "the end of the run"
            self.note("what comes next", next_one, f"something new is asked for at {stop.about}")

    def note(self, what: str, expected: str, found: str) -> None:
        self.drift.append(DriftEntry(what, brief(expected), brief(found), self.step))


class Lenient(Strict):
    """The facts for a run that may be another one: what is asked for is found if it can be, and the liberty noted."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        super().__init__(facts)
        self._results = {fact.about: fact for fact in self.left if isinstance(fact, ToolFinished)}
        self._observations = 0
        self._prompt_is_other = False

    def find(self, kind: type[F], about: str) -> F | None:
        if kind is ToolFinished:
            return cast("F | None", self._result(about))
        if kind is Approved and self.left and not isinstance(self.left[0], Approved):
            self.note("approval", "nobody was asked", about)
            return cast(F, Approved(True, about))
        if kind in (RunStarted, ModelWrote):
            while self.left and not isinstance(self.left[0], kind):
                self.note("what comes next", title(self.left.popleft()), kind.__name__)
        if not self.left or not isinstance(self.left[0], kind):
            return None
        fact = self.left.popleft()
        assert isinstance(fact, kind)
        self._compare(fact, about)
        if isinstance(fact, Compacted):
            return replace(fact, steps=tuple(at for at in fact.steps if at < self._observations))
        return fact

    def must_have_ended(self, about: str) -> None:
        raise LogEnds(about=about)

    def after_drift(self) -> None:
        return None

    def _compare(self, fact: Fact, about: str) -> None:
        if fact.about == about:
            return
        if isinstance(fact, Approved):
            self.note("the call", fact.about, about)
        elif not self._prompt_is_other:  # once: all later ones differ too
            self._prompt_is_other = True
            self.note("the prompt", fact.about, about)

    def _result(self, about: str) -> ToolFinished | None:
        """The result of the same call, the next one first; else the next result of any."""
        waiting = [fact for fact in self.left if isinstance(fact, ToolFinished)]
        same = next((fact for fact in waiting if fact.about == about), None)
        found = same or self._results.get(about) or next(iter(waiting), None)
        if found is None:
            return None
        self._observations += 1
        if not self.left or found is not self.left[0] or found is not same:
            self.note("the call", title(self.left[0]) if self.left else "the end of the log", about)
        if found in self.left:
            self.left.remove(found)
        return found
