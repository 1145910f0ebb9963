"""A run again from its log alone: no model is loaded, no tool is called, nobody is asked.

What came from outside is taken from the log's facts; all the rest (parsing, arguments, limits, the prompt) is done by
the code as it is now. Where the two part, that is drift. So a log is a regression test: of this package with the agent
that the log describes, and of your own agent when you pass it.

Not seen: what a model would write to another prompt, what a tool would return today, and settings that only the model
feels (a temperature); `Replay.changes` lists those.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent.loop.run import call_key, usable
from qwen_agent.react import Agent
from qwen_agent.records.codec import to_json
from qwen_agent.records.described import LogEnds, ReplayRuntime, described_agent, kept_history, on_paper, opening
from qwen_agent.records.drift import DriftEntry, brief, pair, shown, title
from qwen_agent.records.log import Log
from qwen_agent.records.pasts import Lenient, Strict
from qwen_agent.types import AgentResult, Event, Finished, Step, StepFinished, ToolCall

__all__ = ["DriftEntry", "Replay", "ReplayRuntime", "changes", "replay"]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay made of a log.

    ``result`` is the end of the run as it was made again; for a log that ended before its run did, what the log says
    (None if it was broken off). ``changes`` are differences between the agent of the log and the one given, whether
    they show or not.
    """

    result: AgentResult | None
    drift: tuple[DriftEntry, ...]
    events: tuple[Event, ...]
    changes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return not self.drift

    def report(self) -> str:
        """The drift for people; if there is none, one line that says so."""
        if self.same:
            return "The run repeats its log."
        lines = [str(entry) for entry in self.drift]
        return "\n".join([*lines, *(f"changed: {change}" for change in self.changes)])


def replay(log: Log, agent: Agent | None = None, *, strict: bool = True) -> Replay:
    """Repeat a run. ``agent`` is the agent of today; without one, that of the log is rebuilt from its description.

    A strict replay ends where it parts from the log. A lenient one goes on with the next fact that will do (for a
    tool's result: that of the same call, wherever in the log it is), and every liberty it took is an entry. The
    agent's runtime, its tools' functions and its ``approve`` are not used.
    """
    described = described_agent(log)
    today = described if agent is None else on_paper(agent, log)
    history = kept_history(log, described)
    past = (Strict if strict else Lenient)(usable(log.facts))
    events: list[Event] = []
    try:
        for event in today.replay(past, log.started.question, history):
            if past.stalled:
                continue  # only to hear what the model would have been asked
            events.append(event)
            past.watch(event, log)
    except LogEnds as stop:
        past.ended(log, stop, lambda: shown(opening(described, log, history)) + _transcript(log))
    finished = next((event.result for event in events if isinstance(event, Finished)), None)
    if finished is None and past.drift == [] and log.finished is not None:
        finished = log.finished.result
    drift = (*past.drift, *_differences(log, events, past))
    return Replay(finished, drift, tuple(events), changes(log, agent) if agent is not None else ())


def changes(log: Log, agent: Agent) -> tuple[str, ...]:
    """What has changed from the agent of the log to this one, one setting a line."""
    return tuple(_changes("", log.started.agent, json.loads(json.dumps(agent.describe(), default=str))))


def _changes(where: str, was: Any, is_now: Any) -> Iterator[str]:
    was = list(was) if isinstance(was, tuple) else was
    if isinstance(was, Mapping) and isinstance(is_now, Mapping):
        for key in {**was, **is_now}:
            yield from _changes(f"{where}.{key}" if where else str(key), was.get(key), is_now.get(key))
    elif where == "tools":
        yield from _changes(where, {tool["name"]: tool for tool in was}, {tool["name"]: tool for tool in is_now})
    elif was != is_now:
        yield f"{where}: {brief(was)} -> {brief(is_now)}"


def _differences(log: Log, events: Sequence[Event], past: Strict) -> Iterator[DriftEntry]:
    """What the steps and the end became, beside what they were."""
    was = [event.step for event in log.notices if isinstance(event, StepFinished)]
    now = [event.step for event in events if isinstance(event, StepFinished)]
    for at, (one, other) in enumerate(zip(was, now, strict=False), 1):
        for (what, expected), (_, found) in zip(_facets(one), _facets(other), strict=True):
            if expected != found:
                yield DriftEntry(what, *pair(expected, found), at)
    finished = [event for event in events if isinstance(event, Finished)]
    if not finished or log.finished is None:
        return
    if past.left:
        yield DriftEntry("the end", title(past.left[0]), "the end of the run", len(now))
    for what, expected, found in _ends(log.finished.result, finished[0].result):
        if expected != found:
            yield DriftEntry(what, *pair(expected, found), len(now))


def _facets(step: Step) -> list[tuple[str, str]]:
    return [
        ("the thought", step.thought),
        ("the call", "no call" if step.call is None else _call(step.call)),
        ("the observation", "no observation" if step.result is None else step.result.content),
        ("what was discarded", step.discarded),
    ]


def _call(call: ToolCall) -> str:
    return call_key(call) + (f" ({call.problem})" if call.problem else "")


def _ends(was: AgentResult, now: AgentResult) -> list[tuple[str, str, str]]:
    return [
        ("the answer", was.answer, now.answer),
        ("why it ended", was.stop_reason.value, now.stop_reason.value),
        ("the output", _output(was), _output(now)),
    ]


def _output(result: AgentResult) -> str:
    return json.dumps(to_json(Finished(result))["result"]["output"], sort_keys=True)


def _transcript(log: Log) -> str:
    return log.finished.result.transcript if log.finished is not None else ""
