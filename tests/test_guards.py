"""What keeps a run from going on for ever, calling the wrong thing or dying: budgets, repeats, approval, decisions."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from qwen_agent import Agent, tool
from qwen_agent.errors import InputError
from qwen_agent.limits import Limits
from qwen_agent.llm.grammar import call_grammar
from qwen_agent.tools.base import cancelled
from qwen_agent.types import (
    AgentResult,
    ApprovalNeeded,
    Compacted,
    Finished,
    LimitReached,
    StopReason,
    ToolFinished,
    ToolStarted,
)

ANSWER = " I now know the final answer.\nFinal Answer: 330 m"


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    return f"The {thing} is 330 m tall."


def call(name: str = "height", arguments: str = '{"thing": "tower"}') -> str:
    return f"Thought: t\nAction: {name}\nAction Input: {arguments}\nObservation:"


def observations(result: AgentResult) -> list[str]:
    return [step.result.content for step in result.steps if step.result is not None]


# ---- budgets


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["call", "other", "bad", "unknown", "answer", "silence", "chatter"]), max_size=8),
    st.integers(0, 4),
    st.none() | st.integers(0, 3),
    st.sampled_from([0, 1, 7, 4096]),
    st.sampled_from([None, 0.0, 60.0]),
    st.integers(1, 3),
)
def test_every_run_ends_in_an_answer_within_its_budgets(
    scripted: Any, said: list[str], steps: int, calls: int | None, tokens: int, seconds: float | None, repeats: int
) -> None:
    texts = {
        "call": call(),
        "other": call(arguments='{"thing": "hill"}'),
        "bad": call(arguments="[1"),
        "unknown": call("hight"),
        "answer": ANSWER,
        "silence": "",
        "chatter": "Observation: 12\nObservation: 13",
    }
    runtime = scripted(*(texts[each] for each in said), *["Final Answer: done"] * 20)
    limits = Limits(steps=steps, tool_calls=calls, tokens=tokens, seconds=seconds, repeats=repeats)
    events = list(Agent(runtime, [height], limits=limits).stream("q"))
    last = events[-1]
    assert isinstance(last, Finished)
    result = last.result
    assert result.answer
    assert sum(isinstance(event, ToolFinished) for event in events) <= steps
    executed = [
        e for e in events if isinstance(e, ToolFinished) and e.result.ok and "made before" not in e.result.content
    ]
    assert len(executed) <= (steps if calls is None else min(calls, steps))
    if steps == 0 or tokens == 0 or calls == 0 or seconds == 0.0:
        assert result.stop_reason is not StopReason.FINAL_ANSWER
        assert len(runtime.prompts) == 1


def test_a_budget_of_tool_calls_counts_only_calls_that_reach_a_tool(scripted: Any) -> None:
    runtime = scripted(call("hight"), call(), "330 m")
    result = Agent(runtime, [height], limits=Limits(tool_calls=1)).run("q")
    assert (result.answer, result.stop_reason) == ("330 m", StopReason.MAX_TOOL_CALLS)
    assert len(result.steps) == 3


def test_the_clock_ends_a_generation_and_a_tool(scripted: Any) -> None:
    @tool(seconds=30)
    def slow() -> str:
        while not cancelled():
            time.sleep(0.01)
        stopped.set()
        return "too late"

    stopped = threading.Event()
    started = time.monotonic()
    result = Agent(scripted(call("slow", "{}"), "what I have"), [slow], limits=Limits(seconds=0.3)).run("q")
    assert (result.answer, result.stop_reason) == ("what I have", StopReason.MAX_SECONDS)
    assert "timed out" in observations(result)[0]
    assert time.monotonic() - started < 5
    assert stopped.wait(5)


# ---- repeats


def test_a_repeated_call_gets_its_result_again_and_then_the_run_must_answer(scripted: Any) -> None:
    count = iter(range(9))

    @tool
    def once(n: int) -> str:
        return f"run {next(count)}"

    same = [call("once", arguments) for arguments in ('{"n": 1}', '{"n":1}', "{'n': 1}")]
    events = list(Agent(scripted(*same, "done"), [once]).stream("q"))
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.result.answer, last.result.stop_reason) == ("done", StopReason.REPEATED_CALL)
    first, second = observations(last.result)
    assert first == "run 0"
    assert second.startswith("run 0\n(This call was made before")
    assert last.result.steps[2].result is None
    assert sum(isinstance(event, LimitReached) for event in events) == 1


def test_a_repeat_after_a_failure_is_tried_again_and_a_clock_may_be_asked_often(scripted: Any) -> None:
    results = iter([RuntimeError("down"), "up"])

    @tool
    def flaky() -> str:
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    @tool(repeatable=True)
    def clock() -> str:
        return "12:00"

    result = Agent(scripted(call("flaky", "{}"), call("flaky", "{}"), ANSWER), [flaky]).run("q")
    assert observations(result) == ["Error: RuntimeError: down", "up"]
    result = Agent(scripted(*[call("clock", "{}")] * 5, ANSWER), [clock]).run("q")
    assert observations(result) == ["12:00"] * 5
    assert result.stop_reason is StopReason.FINAL_ANSWER


def test_invalid_calls_are_repeats_too(scripted: Any) -> None:
    result = Agent(scripted(*[call("hight")] * 3, "done"), [height]).run("q")
    assert result.stop_reason is StopReason.REPEATED_CALL


def test_a_call_that_was_cut_off_is_not_run(scripted: Any) -> None:
    cut = 'Thought: t\nAction: height\nAction Input: {"thing": "a very long'

    class Short(scripted):  # type: ignore[misc]
        def stream(self, prompt: Any, config: Any) -> Any:
            for chunk in super().stream(prompt, config):
                yield dataclasses.replace(chunk, finish="length") if chunk.finish and len(self.prompts) == 1 else chunk

    result = Agent(Short(cut, ANSWER), [height]).run("q")
    assert observations(result) == ["Error: the end of the call is missing; write it again, and shorter"]


# ---- approval


def dangerous(approval: Any) -> Any:
    @tool(approval=approval)
    def delete(path: str) -> str:
        deleted.append(path)
        return "deleted"

    deleted: list[str] = []
    delete_call = call("delete", '{"path": "a"}')
    return delete, delete_call, deleted


def test_a_denied_tool_is_never_run(scripted: Any) -> None:
    delete, asked, deleted = dangerous("deny")
    result = Agent(scripted(asked, ANSWER), [delete]).run("q")
    assert observations(result) == ["Error: the user does not allow this call of delete; go on without it."]
    assert not deleted


@pytest.mark.parametrize("granted", [True, False])
def test_a_person_is_asked(granted: bool, scripted: Any) -> None:
    delete, asked, deleted = dangerous("ask")
    result = Agent(scripted(asked, ANSWER), [delete], approve=lambda call: granted).run("q")
    assert deleted == (["a"] if granted else [])
    assert result.stop_reason is StopReason.FINAL_ANSWER


def test_with_nobody_to_ask_the_run_pauses_and_can_be_resumed(scripted: Any) -> None:
    delete, asked, deleted = dangerous("ask")
    agent = Agent(scripted(asked, ANSWER), [delete])
    events = list(agent.stream("q"))
    assert isinstance(events[-1], Finished)
    assert events[-1].result.stop_reason is StopReason.PAUSED
    assert isinstance(events[-2], ApprovalNeeded)
    assert not deleted
    facts = [event for event in events if hasattr(event, "about")]
    *_, last = dataclasses.replace(agent, approve=lambda call: True).resume(facts)
    assert last.result.answer == "330 m"
    assert deleted == ["a"]


# ---- decisions


def test_steps_carry_the_confidence_of_the_model(scripted: Any) -> None:
    runtime = scripted(call(), ANSWER, weights=(0.25, 0.75))
    result = Agent(runtime, [height]).run("q")
    confidence = result.steps[0].confidence
    assert confidence is not None
    assert (confidence.call, confidence.tools) == (0.75, {"height": 0.75})
    assert [len(config.choices) for config in runtime.configs] == [2, 2]


def test_a_threshold_decides_whether_to_call(scripted: Any) -> None:
    runtime = scripted("hello", weights=(0.4, 0.6))
    result = Agent(runtime, [height], call_threshold=0.7).run("q")
    assert (result.answer, result.stop_reason) == ("hello", StopReason.FINAL_ANSWER)
    assert runtime.prompts[-1].endswith("Thought: I now know the final answer.\nFinal Answer:")
    assert result.steps[0].confidence is not None
    runtime = scripted(call(), call(), weights=(0.4, 0.6))
    events = Agent(runtime, [height], call_threshold=0.5).stream("q")
    assert any(isinstance(event, ToolStarted) for event in events)
    assert runtime.configs[1].grammar == call_grammar([height])


@pytest.mark.parametrize("choice", ["required", "height"])
def test_a_demand_to_call_holds_for_the_first_step(choice: str, scripted: Any) -> None:
    @tool
    def other() -> str:
        return ""

    runtime = scripted(call(), ANSWER)
    agent = Agent(runtime, [height, other], tool_choice=choice)
    assert agent.run("q").answer == "330 m"
    wanted = call_grammar([height] if choice == "height" else [height, other])
    assert runtime.configs[0].grammar == wanted
    assert runtime.configs[1].grammar == agent._grammar


def test_without_a_choice_to_call_the_model_answers(scripted: Any) -> None:
    runtime = scripted("330 m")
    result = Agent(runtime, [height], tool_choice="none").run("q")
    assert (result.answer, result.stop_reason) == ("330 m", StopReason.FINAL_ANSWER)
    assert "height" in runtime.prompts[0]


# ---- typed answers


class Height(BaseModel):
    metres: int


def test_an_answer_becomes_an_object(scripted: Any) -> None:
    runtime = scripted(call(), ' I now know the final answer.\nFinal Answer: {"metres": 330}')
    result = Agent(runtime, [height], output_type=Height).run("q")
    assert result.output == Height(metres=330)
    assert '"metres"' in runtime.prompts[0]


def test_an_answer_that_does_not_fit_is_sent_back(scripted: Any) -> None:
    wrong = 'Final Answer: {"metres": "tall"}'
    right = ' I now know the final answer.\nFinal Answer: {"metres": 330}'
    runtime = scripted(wrong, right)
    result = Agent(runtime, [height], output_type=Height).run("q")
    assert (result.output, result.stop_reason) == (Height(metres=330), StopReason.FINAL_ANSWER)
    assert "Observation: Error: In the Final Answer, metres:" in runtime.prompts[1]
    result = Agent(scripted(wrong, wrong, wrong), [height], output_type=Height).run("q")
    assert (result.output, result.stop_reason) == (None, StopReason.INVALID_OUTPUT)
    assert result.answer == '{"metres": "tall"}'


# ---- context


def test_old_observations_make_room_and_can_be_read_again(scripted: Any) -> None:
    @tool
    def page(n: int) -> str:
        return f"page {n} " + "word " * 150

    texts = [call("page", f'{{"n": {n}}}') for n in range(8)]
    again = call("read_observation", '{"step": 1}')
    runtime = scripted(*texts, again, ANSWER, window=1400)
    events = list(Agent(runtime, [page], limits=Limits(steps=20)).stream("q"))
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.result.stop_reason is StopReason.FINAL_ANSWER
    compacted = [event for event in events if isinstance(event, Compacted)]
    assert 1 <= len(compacted) <= 4
    assert all(len(prompt.split()) < 1400 for prompt in runtime.prompts)
    final = runtime.prompts[-1]
    assert 'tokens left out; read_observation {"step": 1} shows them]' in final
    assert final.count("Action: page") == 8
    assert final.count("Observation:") == 1 + 9  # the template names it too
    assert observations(last.result)[-1].startswith("page 0 word")
    assert "page 7 word" in final


def test_a_result_is_cut_to_its_tokens_with_head_and_tail(scripted: Any) -> None:
    @tool(max_tokens=50, max_chars=100_000)
    def long() -> str:
        return " ".join(str(n) for n in range(5000))

    result = Agent(scripted(call("long", "{}"), ANSWER), [long]).run("q")
    content = observations(result)[0]
    assert content.startswith("0 1 2")
    assert content.endswith("4998 4999")
    assert len(content.split()) <= 50


# ---- sharing, stopping


def test_an_agent_cannot_be_changed_but_copied(scripted: Any) -> None:
    agent = Agent(scripted(ANSWER), [height])
    with pytest.raises(dataclasses.FrozenInstanceError):
        agent.system = "x"  # type: ignore[misc]
    assert dataclasses.replace(agent, system="x").tools == agent.tools


def lingering() -> tuple[Any, threading.Event, threading.Event]:
    """A tool that runs until nobody waits for it; an event when it has begun, and one when it has stopped."""

    @tool(seconds=30)
    def slow() -> str:
        running.set()
        while not cancelled():
            time.sleep(0.01)
        stopped.set()
        return ""

    running, stopped = threading.Event(), threading.Event()
    return slow, running, stopped


def test_a_cancelled_run_stops_its_tool(scripted: Any) -> None:
    slow, running, stopped = lingering()
    result = Agent(scripted(call("slow", "{}")), [slow]).run("q", cancelled=running.is_set)
    assert result.stop_reason is StopReason.CANCELLED
    assert stopped.wait(5)


def test_async_runs_do_not_block_and_can_be_cancelled(scripted: Any) -> None:
    slow, running, stopped = lingering()

    async def main() -> None:
        one, two = await asyncio.gather(
            Agent(scripted(call(), ANSWER), [height]).arun("a"), Agent(scripted("Final Answer: 2"), [height]).arun("b")
        )
        assert (one.answer, two.answer) == ("330 m", "2")
        task = asyncio.create_task(Agent(scripted(call("slow", "{}")), [slow]).arun("q"))
        while not running.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert stopped.wait(5)


def test_nothing_can_be_resumed_without_a_beginning(scripted: Any) -> None:
    with pytest.raises(InputError, match="does not begin"):
        Agent(scripted()).resume([])
