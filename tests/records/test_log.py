"""The log: every event survives JSON, nothing that was seen is lost, and damage is told from a torn last line."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import qwen_agent
from qwen_agent import Agent, tool
from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.records.log import FORMAT, RunLog, from_json, read_log, to_json
from qwen_agent.types import (
    AgentResult,
    ApprovalNeeded,
    Approved,
    Compacted,
    Confidence,
    Control,
    Delta,
    Event,
    Fact,
    Finished,
    Generated,
    LimitReached,
    Message,
    ModelWrote,
    Reading,
    Role,
    RunStarted,
    Step,
    StepFinished,
    StopReason,
    Text,
    ToolCall,
    ToolFinished,
    ToolResult,
    ToolStarted,
    Usage,
    Weighed,
)

CALL = 'Thought: look\nAction: height\nAction Input: {"thing": "tower"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: 330 m"


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    return f"The {thing} is 330 m tall."


# ---- events as JSON

strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**70)
seconds = st.floats(0, 1e9)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(strings, values, max_size=3)
segments = (
    st.builds(Control, strings)
    | st.builds(Text, strings)
    | st.builds(Generated, strings, st.lists(numbers, max_size=3).map(tuple))
)
prompts = st.lists(segments, max_size=3).map(tuple)
messages = st.builds(Message, st.sampled_from(Role), strings, prompts)
calls = st.builds(ToolCall, strings, st.none() | objects, strings, strings, st.lists(strings, max_size=2).map(tuple))
results = st.builds(ToolResult, strings, st.booleans(), numbers, seconds)
usages = st.builds(Usage, numbers, numbers, numbers, seconds, seconds)
confidences = st.none() | st.builds(Confidence, seconds, st.dictionaries(strings, seconds, max_size=2))
steps = st.builds(
    Step,
    strings,
    st.none() | calls,
    st.none() | results,
    strings,
    usages,
    confidences,
    st.lists(strings, max_size=2).map(tuple),
    numbers,
)
reasons = st.sampled_from(StopReason)
agent_results = st.builds(
    AgentResult, strings, st.lists(steps, max_size=2).map(tuple), reasons, usages, strings, prompts, values
)
parts = st.sampled_from(["thought", "action", "action_input", "final_answer"])
finishes = st.sampled_from(["stop", "length"])
EVENTS: dict[type[Event], st.SearchStrategy[Any]] = {
    Reading: st.builds(Reading, numbers, numbers),
    Delta: st.builds(Delta, parts, strings),
    ToolStarted: st.builds(ToolStarted, calls),
    StepFinished: st.builds(StepFinished, steps),
    ApprovalNeeded: st.builds(ApprovalNeeded, calls),
    RunStarted: st.builds(
        RunStarted, strings, st.lists(messages, max_size=2).map(tuple), objects, numbers, numbers, strings
    ),
    Weighed: st.builds(Weighed, confidences, strings),
    ModelWrote: st.builds(ModelWrote, prompts, finishes, st.none() | strings, numbers, usages, seconds, strings),
    Approved: st.builds(Approved, st.booleans(), strings),
    ToolFinished: st.builds(ToolFinished, calls, results, numbers, seconds, strings),
    Compacted: st.builds(Compacted, st.lists(numbers, max_size=3).map(tuple), numbers, strings),
    LimitReached: st.builds(LimitReached, reasons, strings),
    Finished: st.builds(Finished, agent_results),
}


def test_every_event_is_covered() -> None:
    assert set(EVENTS) == set(typing.get_args(Event))


@settings(max_examples=300, deadline=None)
@given(st.one_of(*EVENTS.values()))
def test_every_event_survives_json(event: Event) -> None:
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


def test_a_missing_field_takes_its_default_and_an_unknown_one_is_an_error() -> None:
    assert from_json({"event": "approved", "granted": True}) == Approved(True)
    with pytest.raises(InputError, match=r"approved.when: there is no such field"):
        from_json({"event": "approved", "granted": True, "when": 1})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "there is no event None"),
        ({"event": ["x"]}, "there is no event"),
        ({"event": "approved"}, "approved: missing 1 required positional argument: 'granted'"),
        ({"event": "approved", "granted": 1}, "approved.granted: expected bool, found int"),
        ({"event": "limit_reached", "reason": "boredom"}, "'boredom' is none of final_answer, max_steps"),
        ({"event": "compacted", "steps": ["x"], "tokens": 1}, r"compacted.steps\[0\]: expected int, found str"),
        ({"event": "tool_started", "call": None}, "tool_started.call: expected dict"),
        ({"event": "finished", "result": {"written": [{"ids": [1]}]}}, r"finished.result.written\[0\]: missing"),
    ],
)
def test_what_is_no_event_is_said_in_one_sentence(value: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        from_json(value)


def test_an_object_as_output_becomes_plain_json() -> None:
    class Height(BaseModel):
        metres: int

    event = Finished(AgentResult("{}", (), StopReason.FINAL_ANSWER, Usage(), output=Height(metres=330)))
    assert to_json(event)["result"]["output"] == {"metres": 330}


# ---- writing


def logged(path: Path, scripted: Any, *outputs: str) -> list[Event]:
    with RunLog(path) as log:
        return list(log.record(Agent(scripted(*outputs or (CALL, ANSWER)), [height]).stream("How tall?")))


def test_a_log_has_all_events_but_deltas_and_readings(tmp_path: Path, scripted: Any) -> None:
    path = tmp_path / "deep" / "run.jsonl"
    events = logged(path, scripted)
    log = read_log(path)
    kept = [event for event in events if not isinstance(event, Delta | Reading)]
    assert [to_json(event) for event in log.events] == [json.loads(json.dumps(to_json(event))) for event in kept]
    assert log.finished == events[-1]
    assert not log.torn
    assert not log.resumable
    assert {type(event) for event in log.facts} == {RunStarted, ModelWrote, ToolFinished}
    assert {type(event) for event in log.notices} == {ToolStarted, StepFinished}


def test_the_first_line_is_the_header(tmp_path: Path, scripted: Any) -> None:
    logged(tmp_path / "run.jsonl", scripted)
    first = json.loads((tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (first["event"], first["format"], first["version"]) == ("run_started", FORMAT, qwen_agent.__version__)
    assert first["time"].endswith("+00:00")


def test_an_event_is_in_the_file_before_it_is_seen(tmp_path: Path, scripted: Any) -> None:
    with RunLog(tmp_path / "run.jsonl") as log:
        for event in log.record(Agent(scripted(CALL, ANSWER), [height]).stream("How tall?")):
            if not isinstance(event, Delta | Reading):
                assert read_log(log.path).events[-1] == from_json(json.loads(json.dumps(to_json(event))))


def test_facts_are_on_the_disk_before_they_are_seen(
    tmp_path: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    events = logged(tmp_path / "run.jsonl", scripted)
    assert len(synced) == sum(isinstance(event, Fact) for event in events)


def test_nothing_of_the_environment_enters_the_log(
    tmp_path: Path, scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_thisisasecret")
    logged(tmp_path / "run.jsonl", scripted)
    written = (tmp_path / "run.jsonl").read_text(encoding="utf-8")
    found = [name for name, value in os.environ.items() if len(value) > 8 and value in written]
    assert found == []


def test_text_of_any_language_stays_readable_and_a_lone_surrogate_is_escaped(tmp_path: Path, scripted: Any) -> None:
    logged(tmp_path / "run.jsonl", scripted, "Thought: 埃菲尔铁塔\u2028\x85\nFinal Answer: \udc80\\ 330")
    assert "埃菲尔铁塔" in (tmp_path / "run.jsonl").read_text(encoding="utf-8")
    finished = read_log(tmp_path / "run.jsonl").finished
    assert finished is not None
    assert finished.result.answer == "\udc80\\ 330"


def test_a_log_is_not_overwritten(tmp_path: Path, scripted: Any) -> None:
    logged(tmp_path / "run.jsonl", scripted)
    before = (tmp_path / "run.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"already holds a log: choose another file, or go on"):
        RunLog(tmp_path / "run.jsonl")
    assert (tmp_path / "run.jsonl").read_bytes() == before


def test_a_run_that_could_not_begin_leaves_a_log_that_can_be_used(tmp_path: Path, scripted: Any) -> None:
    with RunLog(tmp_path / "run.jsonl") as log, pytest.raises(ContextOverflow):
        list(log.record(Agent(scripted(window=300)).stream("x " * 400)))
    with pytest.raises(InputError, match="holds no run"):
        read_log(tmp_path / "run.jsonl")
    logged(tmp_path / "run.jsonl", scripted)


def test_two_runs_do_not_write_one_log(tmp_path: Path, scripted: Any) -> None:
    with RunLog(tmp_path / "run.jsonl") as log:
        next(log.record(Agent(scripted(CALL, ANSWER), [height]).stream("How tall?")))
        with pytest.raises(InputError, match="being written by another run"):
            RunLog.resumed(tmp_path / "run.jsonl")


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "run.jsonl", tmp_path):
        with pytest.raises(InputError, match=r"the log .* cannot be used: \w+"):
            RunLog(path)


def test_a_log_can_go_into_a_pipe(scripted: Any) -> None:
    reading, writing = os.pipe()
    with RunLog(f"/dev/fd/{writing}") as log:
        list(log.record(Agent(scripted(ANSWER)).stream("How tall?")))
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert [json.loads(line)["event"] for line in lines][-1] == "finished"


def test_closing_the_record_stops_the_run(tmp_path: Path, scripted: Any) -> None:
    runtime = scripted(CALL, ANSWER)
    with RunLog(tmp_path / "run.jsonl") as log:
        events = log.record(Agent(runtime, [height]).stream("How tall?"))
        while not isinstance(next(events), Delta):
            pass
        events.close()  # type: ignore[attr-defined]
    assert runtime.closed == 1


# ---- reading


def test_a_torn_last_line_is_left_out(tmp_path: Path, scripted: Any) -> None:
    path = tmp_path / "run.jsonl"
    logged(path, scripted)
    whole = path.read_bytes()
    for cut in (1, 5, 200):
        path.write_bytes(whole[:-cut])
        log = read_log(path)
        assert log.torn
        assert log.finished is None
        assert isinstance(log.events[-1], StepFinished)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda lines: [lines[0], "{", *lines[2:]], "line 2: not a JSON object"),
        (lambda lines: [lines[0], "[]", *lines[2:]], "line 2: not a JSON object"),
        (lambda lines: [lines[0], '{"event": "guess"}', *lines[2:]], "line 2: there is no event 'guess'"),
        (lambda lines: lines[1:], "line 1: not the beginning of a run"),
        (lambda lines: ["hello", "world"], "line 1: not a JSON object"),
        (lambda lines: [*lines, lines[1]], r"line \d+: the log goes on after the end of its run"),
        (lambda lines: [lines[0].replace('"format": 1', '"format": 2')], "has format 2, and this version reads 1"),
        (lambda lines: [], "holds no run"),
    ],
)
def test_other_damage_is_an_error_with_its_line(tmp_path: Path, scripted: Any, damage: Any, problem: str) -> None:
    path = tmp_path / "run.jsonl"
    logged(path, scripted)
    lines = damage(path.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        read_log(path)


def test_no_log_at_all_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_log(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="No such file"):
        RunLog.resumed(tmp_path / "none.jsonl")


# ---- going on


def cut_after(path: Path, kind: type[Event], *, torn: str = "") -> None:
    """What a crash right after the first event of this kind would leave."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    log = read_log(path)
    last = next(at for at, event in enumerate(log.events) if isinstance(event, kind))
    path.write_text("".join(lines[: last + 1]) + torn, encoding="utf-8")


@pytest.mark.parametrize("kind", [RunStarted, ModelWrote, ToolStarted, ToolFinished, StepFinished])
@pytest.mark.parametrize("torn", ["", '{"event": "model_wr'])
def test_a_resumed_log_has_everything_once(tmp_path: Path, scripted: Any, kind: type[Event], torn: str) -> None:
    path = tmp_path / "run.jsonl"
    logged(path, scripted)
    whole = without_times(path)
    cut_after(path, kind, torn=torn)
    outputs = [CALL, ANSWER] if kind is RunStarted else [ANSWER]
    with RunLog.resumed(path) as log:
        assert log.past is not None
        assert log.past.torn is bool(torn)
        events = list(log.record(Agent(scripted(*outputs), [height]).resume(log.facts)))
    assert isinstance(events[0], RunStarted)  # the past comes again, but is not written again
    assert without_times(path) == whole


def without_times(path: Path) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            timed = ("time", "elapsed", "seconds", "prefill_seconds", "decode_seconds")
            return {key: plain(each) for key, each in value.items() if key not in timed}
        return [plain(each) for each in value] if isinstance(value, list) else value

    return [plain(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_finished_run_cannot_be_resumed(tmp_path: Path, scripted: Any) -> None:
    logged(tmp_path / "run.jsonl", scripted)
    with pytest.raises(InputError, match="nothing left to do"):
        RunLog.resumed(tmp_path / "run.jsonl")


def test_a_cancelled_run_can_be_resumed(tmp_path: Path, scripted: Any) -> None:
    path = tmp_path / "run.jsonl"
    done: list[Event] = []
    with RunLog(path) as log:
        stream = Agent(scripted(CALL, ANSWER), [height]).stream("How tall?", cancelled=lambda: bool(done))
        for event in log.record(stream):
            if isinstance(event, StepFinished):
                done.append(event)
    assert read_log(path).finished.result.stop_reason is StopReason.CANCELLED  # type: ignore[union-attr]
    with RunLog.resumed(path) as log:
        list(log.record(Agent(scripted(ANSWER), [height]).resume(log.facts)))
    finished = read_log(path).finished
    assert finished is not None
    assert finished.result.answer == "330 m"
    assert len(finished.result.steps) == 2


@pytest.mark.parametrize("granted", [True, False])
def test_a_decision_is_a_fact_of_the_log(tmp_path: Path, scripted: Any, granted: bool) -> None:
    path = tmp_path / "run.jsonl"
    asking = dataclasses.replace(height, approval="ask")
    with RunLog(path) as log:
        list(log.record(Agent(scripted(CALL), [asking]).stream("How tall?")))
    with RunLog.resumed(path) as log:  # nobody has decided yet: it pauses again
        list(log.record(Agent(scripted(), [asking]).resume(log.facts)))
    waiting = read_log(path).waiting
    assert waiting is not None
    assert waiting.name == "height"
    with RunLog.resumed(path, approved=granted) as log:
        list(log.record(Agent(scripted(ANSWER), [asking]).resume(log.facts)))
    done = read_log(path)
    assert [event.granted for event in done.facts if isinstance(event, Approved)] == [granted]
    [observed] = [event.result for event in done.facts if isinstance(event, ToolFinished)]
    assert observed.ok is granted
    assert done.waiting is None


def test_a_decision_needs_a_call_that_waits(tmp_path: Path, scripted: Any) -> None:
    logged(tmp_path / "run.jsonl", scripted)
    cut_after(tmp_path / "run.jsonl", ToolStarted)
    with pytest.raises(InputError, match="no call waits"):
        RunLog.resumed(tmp_path / "run.jsonl", approved=True)
    RunLog.resumed(tmp_path / "run.jsonl").close()
