"""A log repeats itself without a model and without tools; what does not repeat it is found and shown."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from qwen_agent import Agent, Tool, tool
from qwen_agent.errors import Drift, InputError
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.prompt import ReActTemplate
from qwen_agent.records.log import Log, RunLog, read_log
from qwen_agent.records.replay import Replay, ReplayRuntime, replay
from qwen_agent.types import (
    AgentResult,
    Delta,
    Event,
    Message,
    Role,
    StepFinished,
    StopReason,
    ToolFinished,
    ToolStarted,
)

ANSWER = " I now know the final answer.\nFinal Answer: 330 m"


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    return f"The {thing} is 330 m tall."


@tool
def width(thing: str) -> str:
    """The width of a thing."""
    return f"The {thing} is 125 m wide."


def call(thing: str, name: str = "height") -> str:
    return f'Thought: t\nAction: {name}\nAction Input: {{"thing": "{thing}"}}\nObservation: 12 m'


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Log]:
    """Run an agent, log it, and read the log."""

    def run(agent: Agent, question: str = "How tall?", history: Sequence[Message] = ()) -> Log:
        with RunLog(tmp_path / "run.jsonl") as log:
            for _ in log.record(agent.stream(question, history)):
                pass
        return read_log(log.path)

    return run


def edited(log: Log, change: Callable[[list[Any]], list[Any]]) -> Log:
    """The log with other events, written and read again."""
    return dataclasses.replace(log, events=tuple(change(list(log.events))))


def result_of(log: Log) -> AgentResult:
    assert log.finished is not None
    return log.finished.result


def whats(done: Replay) -> list[str]:
    return [entry.what for entry in done.drift]


# ---- the same again


def test_an_unchanged_agent_repeats_its_log(record: Any, scripted: Any) -> None:
    agent = Agent(scripted(call("tower"), call("bridge"), ANSWER), [height])
    log = record(agent)
    for again in (replay(log), replay(log, agent), replay(log, strict=False), replay(log, agent, strict=False)):
        assert again.same, again.report()
        assert again.result == result_of(log)
        assert again.changes == ()
        assert again.report() == "The run repeats its log."


def test_a_replay_shows_the_whole_transcript_again(record: Any, scripted: Any) -> None:
    log = record(Agent(scripted(call("tower"), ANSWER), [height]))
    events = replay(log).events
    kinds = [kind for kind, _ in itertools.groupby(type(event).__name__ for event in events)]
    shown = ["Delta", "ModelWrote", "ToolStarted", "ToolFinished", "StepFinished"]
    assert kinds == ["RunStarted", *shown, "Delta", "ModelWrote", "StepFinished", "Finished"]
    assert "".join(event.text for event in events if isinstance(event, Delta)).endswith("330 m")


def test_a_replay_uses_no_model_and_no_tool(record: Any, scripted: Any) -> None:
    called: list[str] = []

    @tool
    def counted(thing: str) -> str:
        called.append(thing)
        return thing

    runtime = scripted(call("tower", "counted"), ANSWER)
    agent = Agent(runtime, [counted])
    log = record(agent)
    assert replay(log, agent).same
    assert called == ["tower"]
    assert len(runtime.prompts) == 2


class Slow:
    """Each token takes its time."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.name, self.window = inner, inner.name, inner.window
        self.count_tokens, self.score = inner.count_tokens, inner.score

    def stream(self, prompt: Any, config: GenerationConfig) -> Any:
        for chunk in self.inner.stream(prompt, config):
            time.sleep(0.003)
            yield chunk


def slow(runtime: Any) -> Any:
    return Slow(runtime)


long_text = " ".join(f"word{i}" for i in range(300))


@tool(max_chars=20_000)
def story(part: int) -> str:
    """A long text."""
    return f"part {part}: {long_text}"


def tell(part: int) -> str:
    return f'Thought: t\nAction: story\nAction Input: {{"part": {part}}}\nObservation:'


UNTIL = {
    StopReason.MAX_STEPS: lambda s: Agent(s(call("a"), call("b"), ANSWER), [height], limits=Limits(steps=2)),
    StopReason.MAX_TOOL_CALLS: lambda s: Agent(s(call("a"), " 330 m"), [height], limits=Limits(tool_calls=1)),
    StopReason.MAX_TOKENS: lambda s: Agent(s(call("a"), call("b"), " 330 m"), [height], limits=Limits(tokens=12)),
    StopReason.MAX_SECONDS: lambda s: Agent(
        slow(s(call("a"), call("b"), " 330 m")), [height], limits=Limits(seconds=0.3)
    ),
    StopReason.REPEATED_CALL: lambda s: Agent(s(call("a"), call("a"), call("a"), " 330 m"), [height]),
    StopReason.CONTEXT_FULL: lambda s: Agent(
        s(*(tell(i) for i in range(9)), window=900), [story], limits=Limits(steps=30, verbatim_steps=30)
    ),
    StopReason.FINAL_ANSWER: lambda s: Agent(
        s(*(tell(i) for i in range(6)), ANSWER, window=1500), [story], limits=Limits(observation_tokens=400)
    ),
}


@pytest.mark.parametrize("reason", UNTIL, ids=lambda reason: reason.value)
@pytest.mark.parametrize("weights", [(), (0.25, 0.75)], ids=["", "weighed"])
def test_every_way_to_end_is_repeated(record: Any, scripted: Any, reason: StopReason, weights: Any) -> None:
    agent = UNTIL[reason](lambda *outputs, **options: scripted(*outputs, weights=weights, **options))
    log = record(agent)
    recorded = result_of(log)
    assert recorded.stop_reason is reason
    for again in (replay(log), replay(log, agent), replay(log, strict=False)):
        assert again.same, again.report()
        assert again.result is not None
        assert again.result.transcript == recorded.transcript
        assert again.result.stop_reason is reason
        assert again.result.usage == recorded.usage
    if reason is StopReason.FINAL_ANSWER:
        assert any(type(fact).__name__ == "Compacted" for fact in log.facts)
    if reason is StopReason.MAX_SECONDS and weights:
        names = [type(fact).__name__ for fact in log.facts]
        assert names[names.index("LimitReached") - 1] == "Weighed"  # time was up in the middle of a generation


def test_a_replay_takes_no_notice_of_the_clock(record: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that nearly ran out of time is repeated however slow the replay is."""
    agent = Agent(scripted(call("a"), ANSWER), [height], limits=Limits(seconds=5.0))
    log = record(agent)
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 3600)
    assert replay(log, agent).same


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_a_threshold_is_repeated(record: Any, scripted: Any, threshold: float) -> None:
    runtime = scripted(*([call("a"), call("b"), ANSWER] if threshold < 0.75 else [" 330 m"]), weights=(0.25, 0.75))
    agent = Agent(runtime, [height], call_threshold=threshold, limits=Limits(steps=2))
    log = record(agent)
    again = replay(log)
    assert again.same, again.report()
    assert again.result == result_of(log)


@pytest.mark.parametrize("choice", ["none", "required", "width"])
def test_a_tool_choice_is_repeated(record: Any, scripted: Any, choice: str) -> None:
    outputs = [" 330 m"] if choice == "none" else [call("a", "width"), ANSWER]
    log = record(Agent(scripted(*outputs), [height, width], tool_choice=choice))
    assert replay(log).same


def test_without_tools(record: Any, scripted: Any) -> None:
    log = record(Agent(scripted("It is 330 m tall.")))
    assert replay(log).same


@pytest.mark.parametrize("approved", [True, False])
def test_a_persons_decision_is_repeated(record: Any, scripted: Any, approved: bool) -> None:
    asking = replace(height, approval="ask")
    log = record(Agent(scripted(call("tower"), ANSWER), [asking], approve=lambda call: approved))
    assert replay(log).same
    assert replay(log, Agent(ReplayRuntime("scripted", 10_000), [asking])).same


def test_a_broken_off_run_is_repeated_as_far_as_it_went(record: Any, scripted: Any) -> None:
    whole = record(Agent(scripted(call("tower"), ANSWER), [height]))
    for length in range(1, len(whole.events)):
        again = replay(edited(whole, lambda events, length=length: events[:length]))  # type: ignore[misc]
        assert again.same, again.report()
        assert again.result is None or again.result == result_of(whole)


def test_a_paused_run_is_repeated_up_to_the_question(record: Any, scripted: Any) -> None:
    log = record(Agent(scripted(call("tower")), [replace(height, approval="ask")]))
    again = replay(log)
    assert again.same
    assert again.result == result_of(log)
    assert again.result.stop_reason is StopReason.PAUSED


def test_a_trimmed_history_is_trimmed_again_without_a_tokenizer(record: Any, scripted: Any) -> None:
    history = [
        message
        for turn in range(6)
        for message in (Message(Role.USER, f"{turn}? " * 60), Message(Role.ASSISTANT, f"{turn}! " * 60))
    ]
    runtime = scripted(call("tower"), ANSWER, window=700)
    log = record(Agent(runtime, [height]), history=history)
    assert "5!" in runtime.prompts[0]
    assert "0!" not in runtime.prompts[0]
    assert replay(log).same


class Height(BaseModel):
    metres: int


def test_an_answer_of_a_type_is_repeated_with_the_type_and_without_it(record: Any, scripted: Any) -> None:
    wrong, right = ' x\nFinal Answer: {"metres": "tall"}', ' x\nFinal Answer: {"metres": 330}'
    agent = Agent(scripted(call("tower"), wrong, " x\nFinal Answer: tall", right), [height], output_type=Height)
    log = record(agent)
    assert result_of(log).output == {"metres": 330}
    typed, described = replay(log, agent), replay(log)
    assert typed.same, typed.report()
    assert described.same, described.report()
    assert typed.result is not None
    assert described.result is not None
    assert typed.result.output == Height(metres=330)
    assert described.result.output == {"metres": 330}


def test_an_answer_that_never_fits_is_repeated(record: Any, scripted: Any) -> None:
    wrong = ' x\nFinal Answer: {"metres": "tall"}'
    agent = Agent(scripted(call("tower"), wrong, wrong, wrong), [height], output_type=Height)
    log = record(agent)
    assert result_of(log).stop_reason is StopReason.INVALID_OUTPUT
    for again in (replay(log, agent), replay(log)):
        assert again.same, again.report()


# ---- drift


@pytest.fixture
def log(record: Any, scripted: Any) -> Log:
    return record(Agent(scripted(call("tower"), call("bridge", "width"), ANSWER), [height, width]))


def today(*tools: Tool, **options: Any) -> Agent:
    return Agent(ReplayRuntime("scripted", 10_000), tools or (height, width), **options)


def test_another_system_message_is_shown_where_it_differs(log: Log) -> None:
    done = replay(log, today(system="You are a terse assistant."))
    [entry] = done.drift
    assert (entry.what, entry.step) == ("the prompt", 1)
    assert "a helpful assistant" in entry.expected
    assert "a terse assistant" in entry.found
    assert done.changes == ("system: You are a helpful assistant. -> You are a terse assistant.",)
    assert done.result is None
    assert "step 1, the prompt:" in done.report()
    assert "changed: system" in done.report()


@pytest.mark.parametrize(
    ("agent", "changed"),
    [
        (today(replace(height, description="How tall?"), width), "tools.height.description"),
        (today(height), "tools.width"),
        (today(template=ReActTemplate("APIs")), "template.noun"),
    ],
    ids=["description", "tools", "template"],
)
def test_another_prompt_is_drift(log: Log, agent: Agent, changed: str) -> None:
    done = replay(log, agent)
    assert whats(done) == ["the prompt"]
    assert done.drift[0].expected != done.drift[0].found
    assert any(change.startswith(changed) for change in done.changes)


def test_a_setting_that_only_the_model_feels_is_a_change_but_no_drift(log: Log) -> None:
    done = replay(log, today(generation=GenerationConfig(temperature=0.7)))
    assert done.same
    assert done.changes == ("generation.temperature: 0.0 -> 0.7",)


def swap_results(events: list[Event]) -> list[Event]:
    first, second = [at for at, event in enumerate(events) if isinstance(event, ToolFinished)]
    events[first], events[second] = events[second], events[first]
    return events


def test_results_in_another_order_are_drift_and_found_by_a_lenient_replay(log: Log) -> None:
    swapped = edited(log, swap_results)
    strict = replay(swapped)
    assert whats(strict)[0] == "the call"
    assert ("bridge" in strict.drift[0].expected, "tower" in strict.drift[0].found) == (True, True)
    assert strict.result is None
    lenient = replay(swapped, strict=False)
    assert not lenient.same
    assert lenient.result is not None
    assert lenient.result.answer == "330 m"
    assert [step.result.content for step in lenient.result.steps if step.result] == [
        "The tower is 330 m tall.",
        "The bridge is 125 m wide.",
    ]


def test_a_lenient_replay_goes_on_with_another_prompt_and_says_so_once(log: Log) -> None:
    done = replay(log, today(system="You are terse."), strict=False)
    assert whats(done) == ["the prompt"]
    assert done.result is not None
    assert done.result.answer == "330 m"


def test_a_lenient_replay_without_one_of_the_tools(log: Log) -> None:
    done = replay(log, today(height), strict=False)
    assert done.result is not None
    assert done.result.answer == "330 m"
    assert "the call" in whats(done)


def test_a_lenient_replay_takes_any_result_rather_than_none(log: Log) -> None:
    other = edited(
        log,
        lambda events: [
            replace(event, about='height {"thing": "spire"}') if isinstance(event, ToolFinished) else event
            for event in events
        ],
    )
    done = replay(other, strict=False)
    assert whats(done).count("the call") == 2
    assert done.result is not None
    assert done.result.answer == "330 m"


def test_an_approval_that_was_never_asked_for(log: Log) -> None:
    asking = today(replace(height, approval="ask"), width)
    strict = replay(log, asking)
    assert whats(strict) == ["what comes next"]
    assert "ToolFinished" in strict.drift[0].expected
    lenient = replay(log, asking, strict=False)
    assert whats(lenient) == ["approval"]
    assert lenient.result == result_of(log)


def test_a_smaller_limit_is_drift(log: Log) -> None:
    agent = today(limits=Limits(steps=1))
    assert not replay(log, agent).same
    lenient = replay(log, agent, strict=False)
    assert "why it ended" in whats(lenient)


def test_a_parser_that_reads_something_else_is_drift(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent is the same; the code has changed."""
    import qwen_agent.loop.calls as calls

    read = calls.read_arguments

    def careless(raw: str, *rest: Any) -> Any:
        return read(raw.replace("bridge", "ridge"), *rest)

    monkeypatch.setattr(calls, "read_arguments", careless)
    done = replay(log)
    assert "the call" in whats(done)
    assert "ridge" in done.drift[0].found
    assert done.drift[0].step == 2


def test_a_log_that_says_less_than_it_should_is_drift(log: Log) -> None:
    """Finished is there, but facts are missing before it."""
    done = replay(edited(log, lambda events: [*events[:-4], events[-1]]))
    assert not done.same


def test_a_compaction_that_does_not_fit_a_changed_run_is_no_crash(record: Any, scripted: Any) -> None:
    agent = UNTIL[StopReason.FINAL_ANSWER](scripted)
    log = record(agent)
    without = edited(
        log, lambda events: [e for e in events if not isinstance(e, ToolFinished) or '"part": 0' not in e.about]
    )
    assert not replay(without, strict=False).same
    assert not replay(without).same


@pytest.mark.parametrize("strict", [True, False])
def test_any_missing_or_doubled_fact_is_drift_and_never_a_crash(record: Any, scripted: Any, strict: bool) -> None:
    agent = UNTIL[StopReason.FINAL_ANSWER](scripted)
    log = record(agent)
    for at in range(1, len(log.events) - 1):
        if isinstance(log.events[at], StepFinished | ToolStarted):
            continue
        for change in (log.events[:at] + log.events[at + 1 :], log.events[: at + 1] + log.events[at:]):
            assert not replay(replace(log, events=change), strict=strict).same


def test_the_runtime_of_a_replay_says_that_the_log_ends() -> None:
    runtime = ReplayRuntime("scripted", 10_000)
    with pytest.raises(Drift, match="the log ends here"):
        Agent(runtime).run("How tall?")
    with pytest.raises(Drift, match="the log ends here"):
        runtime.score((), ())


def test_logs_are_compared_by_what_they_say_not_by_how_json_writes_it(record: Any, scripted: Any) -> None:
    log = record(Agent(scripted(call("tower"), ANSWER), [height]))
    agent = Agent(ReplayRuntime("scripted", 10_000), [height], generation=GenerationConfig(stop=()))
    assert json.dumps(log.started.agent)
    assert replay(log, agent).changes == ()


def test_a_description_of_another_kind_is_one_sentence(log: Log) -> None:
    started = replace(log.started, agent={"model": "x", "generation": {}})
    with pytest.raises(InputError, match="does not describe its agent as this version does"):
        replay(replace(log, events=(started, *log.events[1:])))
