"""The loop, on a runtime that says what it is told to: every way a step can go wrong, and the limits."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from qwen_agent import Agent, tool
from qwen_agent.errors import ContextOverflow, InputError, ToolError
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import step_grammar
from qwen_agent.types import (
    AgentResult,
    Delta,
    Finished,
    Message,
    ModelWrote,
    RunStarted,
    StepFinished,
    StopReason,
    ToolFinished,
    ToolStarted,
)

CALL = 'Thought: look it up\nAction: height\nAction Input: {"thing": "tower"}\nObservation: 12 m, invented'
ANSWER = " I now know the final answer.\nFinal Answer: 330 m"


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    if thing == "nothing":
        raise ToolError("There is no such thing.")
    if thing == "bug":
        raise RuntimeError("boom\nwith a second line")
    return f"The {thing} is 330 m tall."


def call(name: str = "height", arguments: str = '{"thing": "tower"}') -> str:
    return f"Thought: t\nAction: {name}\nAction Input: {arguments}\nObservation:"


def test_one_call_and_an_answer(scripted: Any) -> None:
    runtime = scripted(CALL, ANSWER)
    result = Agent(runtime, [height]).run("How tall is the tower?")
    assert (result.answer, result.stop_reason) == ("330 m", StopReason.FINAL_ANSWER)
    step, last = result.steps
    assert step.call is not None
    assert step.result is not None
    assert (step.thought, step.call.arguments, step.result.content) == (
        "look it up",
        {"thing": "tower"},
        "The tower is 330 m tall.",
    )
    assert last.thought == "I now know the final answer."


def test_the_prompt_grows_by_what_was_written_and_really_observed(scripted: Any) -> None:
    runtime = scripted(CALL, ANSWER)
    result = Agent(runtime, [height]).run("q")
    first, second = runtime.prompts
    written = 'Thought: look it up\nAction: height\nAction Input: {"thing": "tower"}\n'
    assert second == first + written + "Observation: The tower is 330 m tall.\nThought:"
    assert result.transcript == second[len(first) :] + ANSWER


def test_an_invented_observation_is_never_believed(scripted: Any) -> None:
    """Not even from a runtime that ignores stop strings."""

    class Deaf(scripted):  # type: ignore[misc]
        def stream(self, prompt: Any, config: GenerationConfig) -> Any:
            return super().stream(prompt, GenerationConfig())

    invented = CALL + "\nThought: so\nFinal Answer: 12 m"
    runtime = Deaf(invented, ANSWER)
    result = Agent(runtime, [height]).run("q")
    assert result.answer == "330 m"
    assert "invented" not in runtime.prompts[1]
    assert "invented" in result.steps[0].discarded


def test_events_in_order(scripted: Any) -> None:
    events = list(Agent(scripted(CALL, ANSWER), [height]).stream("q"))
    kinds = [k for k, _ in itertools.groupby(type(e) for e in events)]
    first = [Delta, ModelWrote, ToolStarted, ToolFinished, StepFinished]
    assert kinds == [RunStarted, *first, Delta, ModelWrote, StepFinished, Finished]
    parts = [part for part, _ in itertools.groupby(e.part for e in events if isinstance(e, Delta))]
    assert parts == ["thought", "action", "action_input", "thought", "final_answer"]


def observed(scripted: Any, output: str, **options: Any) -> tuple[str, AgentResult]:
    result = Agent(scripted(output, ANSWER), [height], **options).run("q")
    first = result.steps[0].result
    assert first is not None
    assert result.stop_reason is StopReason.FINAL_ANSWER
    return first.content, result


def test_an_unknown_tool_gets_the_list_and_a_suggestion(scripted: Any) -> None:
    content, _ = observed(scripted, call(name="hight"))
    assert content == "Error: there is no tool 'hight'; the tools are height. Did you mean height?"


def test_unreadable_arguments_get_a_sentence(scripted: Any) -> None:
    content, _ = observed(scripted, call(arguments="[1]"))
    assert content.startswith("Error: the action input '[1]' is not a JSON object")


def test_wrong_arguments_get_the_signature(scripted: Any) -> None:
    content, _ = observed(scripted, call(arguments='{"ting": "x"}'))
    assert "thing" in content
    assert "\n" not in content


def test_a_tool_that_fails_is_an_observation_without_a_traceback(scripted: Any) -> None:
    assert observed(scripted, call(arguments='{"thing": "nothing"}'))[0] == "There is no such thing."
    assert observed(scripted, call(arguments='{"thing": "bug"}'))[0] == "Error: RuntimeError: boom with a second line"


def test_arguments_that_had_to_be_mended_say_so(scripted: Any) -> None:
    _, result = observed(scripted, call(arguments="{'thing': 'tower',}"))
    assert result.steps[0].call is not None
    assert result.steps[0].call.repairs == ("JSON5 was accepted",)


def test_at_the_step_limit_the_model_is_made_to_answer(scripted: Any) -> None:
    runtime = scripted(call(), call(), " about 330 m\nObservation: no")
    result = Agent(runtime, [height], limits=Limits(steps=2)).run("q")
    assert (result.answer, result.stop_reason) == ("about 330 m", StopReason.MAX_STEPS)
    assert runtime.prompts[-1].endswith("\nThought: I now know the final answer.\nFinal Answer:")
    assert runtime.configs[-1].grammar is None


def test_no_steps_at_all_is_a_direct_answer(scripted: Any) -> None:
    result = Agent(scripted("42"), [height], limits=Limits(steps=0)).run("q")
    assert (result.answer, result.stop_reason) == ("42", StopReason.MAX_STEPS)


def test_at_the_token_limit_the_model_is_made_to_answer(scripted: Any) -> None:
    result = Agent(scripted(call(), "330 m"), [height], limits=Limits(tokens=5)).run("q")
    assert (result.answer, result.stop_reason) == ("330 m", StopReason.MAX_TOKENS)


def test_a_long_observation_is_cut_to_the_window(scripted: Any) -> None:
    @tool(max_chars=100_000)
    def long() -> str:
        return "word " * 15_000

    runtime = scripted(call("long", "{}"), ANSWER, window=2000)
    result = Agent(runtime, [long]).run("q")
    assert result.stop_reason is StopReason.FINAL_ANSWER
    assert result.steps[0].result is not None
    assert result.steps[0].result.dropped_chars > 60_000
    assert len(runtime.prompts[1].split()) < 2000


def test_a_full_window_ends_in_an_answer(scripted: Any) -> None:
    @tool
    def long() -> str:
        return "word " * 400

    class Greedy(scripted):  # type: ignore[misc]
        def stream(self, prompt: Any, config: GenerationConfig) -> Any:
            self.outputs = [call("long", "{}") if config.grammar else "it is 7"]
            return super().stream(prompt, config)

    result = Agent(Greedy(window=1300), [long], limits=Limits(steps=99, repeats=99)).run("q")
    assert (result.answer, result.stop_reason) == ("it is 7", StopReason.CONTEXT_FULL)


def test_a_silent_model_is_asked_for_an_answer(scripted: Any) -> None:
    assert Agent(scripted("", "fine"), [height]).run("q").answer == "fine"


def test_a_model_that_never_answers_gives_its_last_observation(scripted: Any) -> None:
    result = Agent(scripted(call(), ""), [height], limits=Limits(steps=1)).run("q")
    assert result.answer == "I have no answer. The last observation was: The tower is 330 m tall."
    assert result.stop_reason is StopReason.MAX_STEPS


def test_a_model_that_waits_for_an_observation_without_a_call_is_asked_for_an_answer(scripted: Any) -> None:
    result = Agent(scripted("Thought: I need to look.\nObservation: 5", "5"), [height]).run("q")
    assert result.answer == "5"


def test_text_without_markers_is_the_answer(scripted: Any) -> None:
    result = Agent(scripted("Thought: The tools do not help, so hello!"), [height]).run("hi")
    assert (result.answer, result.stop_reason) == ("The tools do not help, so hello!", StopReason.FINAL_ANSWER)


def test_an_answer_that_was_cut_off_says_so(scripted: Any) -> None:
    agent = Agent(scripted("Final Answer: one two three"), [height], generation=GenerationConfig(max_new_tokens=5))
    result = agent.run("q")
    assert (result.answer, result.stop_reason) == ("one two three", StopReason.MAX_TOKENS)


def test_without_tools_it_is_a_plain_chat(scripted: Any) -> None:
    runtime = scripted("Action: speaks louder.")
    assert Agent(runtime).run("hi").answer == "Action: speaks louder."
    assert "Begin!" not in runtime.prompts[0]
    assert runtime.configs[0].stop == ()


def test_tool_names_are_constrained(scripted: Any) -> None:
    runtime = scripted(ANSWER)
    Agent(runtime, [height]).run("q")
    assert runtime.configs[0].grammar == step_grammar([height])
    assert runtime.configs[0].stop == ("Observation:", "Observation\uff1a")


def test_a_cancelled_run_ends_at_once_and_closes_the_stream(scripted: Any) -> None:
    runtime = scripted(CALL, ANSWER)
    answers = iter([False, False, True])
    *_, last = Agent(runtime, [height]).stream("q", cancelled=lambda: next(answers))
    assert isinstance(last, Finished)
    assert last.result.stop_reason is StopReason.CANCELLED
    assert runtime.closed == 1


def test_closing_the_events_closes_the_generation(scripted: Any) -> None:
    runtime = scripted(CALL)
    events = Agent(runtime, [height]).stream("q")
    assert isinstance(next(event for event in events if isinstance(event, Delta)), Delta)
    events.close()  # type: ignore[attr-defined]
    assert runtime.closed == 1


def test_usage_is_the_sum_of_the_steps(scripted: Any) -> None:
    result = Agent(scripted(CALL, ANSWER), [height]).run("q")
    assert result.usage.generated_tokens == sum(s.usage.generated_tokens for s in result.steps) > 0
    assert result.usage.prompt_tokens == sum(s.usage.prompt_tokens for s in result.steps)


def test_a_turn_becomes_history(scripted: Any) -> None:
    agent = Agent(scripted(CALL, ANSWER, ANSWER), [height])
    history: list[Message] = []
    history += agent.turn("first", agent.run("first"))
    agent.run("second", history)
    prompt = agent.runtime.prompts[-1]
    assert "Question: first" in prompt
    assert "Observation: The tower is 330 m tall.\nThought: I now know" in prompt
    assert prompt.endswith("second\nassistant\n")


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question: str, scripted: Any) -> None:
    with pytest.raises(InputError, match="question is empty"):
        Agent(scripted()).run(question)


def test_a_question_longer_than_the_window_is_refused(scripted: Any) -> None:
    with pytest.raises(ContextOverflow, match="window is 500"):
        Agent(scripted(window=500)).run("word " * 600)


def test_impossible_limits_are_refused(scripted: Any) -> None:
    with pytest.raises(InputError, match=r"Limits\.steps=-1"):
        Limits(steps=-1)
    with pytest.raises(InputError, match="tool_choice='hight'"):
        Agent(scripted(), [height], tool_choice="hight")
    with pytest.raises(InputError, match="tool_choice='required'"):
        Agent(scripted(), tool_choice="required")
    with pytest.raises(InputError, match="call_threshold=2"):
        Agent(scripted(), [height], call_threshold=2)


def test_one_agent_answers_from_many_threads(scripted: Any) -> None:
    """An agent holds no state of a run."""
    one, two = scripted(CALL, ANSWER), scripted("Final Answer: 2")
    agent_one, agent_two = Agent(one, [height]), Agent(two, [height])
    first, second = agent_one.stream("a"), agent_two.stream("b")
    results = [e.result for pair in itertools.zip_longest(first, second) for e in pair if isinstance(e, Finished)]
    assert {r.answer for r in results} == {"330 m", "2"}
