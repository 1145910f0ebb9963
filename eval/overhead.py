"""What the agent itself costs per step: a model that answers at once, one trivial tool, runs of 10, 50 and 200 steps.

    python -m venv peers && peers/bin/pip install -c constraints.txt . smolagents 'langchain-core>=1.7,<2' langchain
    peers/bin/python eval/overhead.py

Beside ours: smolagents' ToolCallingAgent and langchain's create_agent, each with a scripted model of its own kind that
gives the same calls in the same order; one that is not installed is left out and named. Their models hand over whole
messages; ours does the same, and in a second row a chunk for every token. Figures are medians of --repeat rounds in
which all take turns, with the fastest in brackets: on a busy machine the two differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qwen_agent import Agent, StopReason
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk
from qwen_agent.types import Control, Generated, Prompt, Usage

STEPS = (10, 50, 200)
QUESTION = "Add up the numbers."
TOKENS = 30  # of a scripted step, when it is streamed

Start = Callable[[int], Callable[[], int]]  # number of steps -> a run that says how many calls there were


def main() -> None:
    args = _arguments()
    agents: dict[str, Start] = {
        "ours": lambda steps: ours(steps, 1),
        "ours, streamed": lambda steps: ours(steps, TOKENS),
    }
    missing = []
    for name, package, start in (("smolagents", "smolagents", smolagents), ("langchain", "langchain", langchain)):
        try:
            agents[f"{name} {version(package)}"] = start
        except PackageNotFoundError:
            missing.append(name)
    times: dict[str, list[str]] = {name: [] for name in agents}
    for steps in args.steps:
        for name, seconds in _measure(agents, steps, args.repeat).items():
            times[name].append(f"{1000 * statistics.median(seconds):.3f} ({1000 * min(seconds):.3f})")
    print(f"| ms a step | {' | '.join(f'{steps} steps' for steps in args.steps)} |")
    print("| --- " * (len(args.steps) + 1) + "|")
    for name, cells in times.items():
        print(f"| {name} | {' | '.join(cells)} |")
    if missing:
        print(f"\nNot installed, so not measured: {', '.join(missing)}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="steps of a run")
    parser.add_argument("--repeat", type=int, default=7, help="runs of which the median is taken")
    return parser.parse_args()


def _measure(agents: dict[str, Start], steps: int, repeat: int) -> dict[str, list[float]]:
    """Seconds a step, one figure for each round."""
    times: dict[str, list[float]] = {name: [] for name in agents}
    for round_ in range(repeat + 1):
        for name, start in agents.items():
            run = start(steps)
            started = time.perf_counter()
            calls = run()
            seconds = time.perf_counter() - started
            assert calls == steps, f"{name}: {calls} calls instead of {steps}"
            if round_:  # the first round imports and compiles
                times[name].append(seconds / steps)
    return times


def add(a: int, b: int) -> int:
    """Adds two integers.

    Args:
        a: the first
        b: the second
    """
    return a + b


# ---- ours


class ScriptedRuntime:
    """Calls ``add`` with new arguments ``steps`` times, then answers; each output comes in ``pieces``."""

    name = "scripted"
    window = 10**9

    def __init__(self, steps: int, pieces: int) -> None:
        call = 'Thought: I should use the add API.\nAction: add\nAction Input: {{"a": {}, "b": 1}}\n'
        self._outputs = [call.format(i) for i in range(steps)]
        self._outputs.append("Thought: I now know the final answer.\nFinal Answer: done")
        self._next = iter(self._outputs)
        self._pieces = pieces

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        text = next(self._next)
        size = -(-len(text) // self._pieces)
        for start in range(0, len(text), size):
            yield Chunk(text=text[start : start + size])
        stop = "Observation:" if text.endswith("\n") else None
        yield Chunk(
            finish="stop", stop=stop, output=(Generated(text, (1,) * TOKENS),), usage=Usage(generated_tokens=TOKENS)
        )

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return [0.0 for _ in choices]

    def count_tokens(self, prompt: Prompt) -> int:
        return sum(1 if isinstance(segment, Control) else len(segment.content) // 4 for segment in prompt)


def ours(steps: int, pieces: int) -> Callable[[], int]:
    agent = Agent(ScriptedRuntime(steps, pieces), [add], limits=Limits(steps=steps + 1, tokens=10**9))

    def run() -> int:
        result = agent.run(QUESTION)
        assert result.stop_reason is StopReason.FINAL_ANSWER, result.stop_reason
        return sum(step.result is not None and step.result.ok for step in result.steps)

    return run


# ---- the peers


def smolagents(steps: int) -> Callable[[], int]:
    from smolagents import LogLevel, Model, ToolCallingAgent, tool  # type: ignore[import-not-found]
    from smolagents.models import (  # type: ignore[import-not-found]
        ChatMessage,
        ChatMessageToolCall,
        ChatMessageToolCallFunction,
        MessageRole,
    )

    script = iter([*(("add", {"a": i, "b": 1}) for i in range(steps)), ("final_answer", {"answer": "done"})])

    class Scripted(Model):  # type: ignore[misc]
        def generate(self, messages: Any, **kwargs: Any) -> Any:
            name, arguments = next(script)
            function = ChatMessageToolCallFunction(name=name, arguments=arguments)
            call = ChatMessageToolCall(function=function, id="call", type="function")
            return ChatMessage(MessageRole.ASSISTANT, "I should use the add API.", [call])

    agent = ToolCallingAgent([tool(add)], Scripted(), max_steps=steps + 1, verbosity_level=LogLevel.OFF)

    def run() -> int:
        assert agent.run(QUESTION) == "done"
        return sum(step.observations is not None for step in agent.memory.steps[1:-1])

    return run


def langchain(steps: int) -> Callable[[], int]:
    from langchain.agents import create_agent  # type: ignore[import-not-found]
    from langchain_core.language_models import BaseChatModel  # type: ignore[import-not-found]
    from langchain_core.messages import AIMessage, ToolMessage  # type: ignore[import-not-found]
    from langchain_core.outputs import ChatGeneration, ChatResult  # type: ignore[import-not-found]

    calls = ({"name": "add", "args": {"a": i, "b": 1}, "id": f"call_{i}", "type": "tool_call"} for i in range(steps))
    script = iter([*(AIMessage("I should use the add API.", tool_calls=[call]) for call in calls), AIMessage("done")])

    class Scripted(BaseChatModel):  # type: ignore[misc]
        @property
        def _llm_type(self) -> str:
            return "scripted"

        def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
            return ChatResult(generations=[ChatGeneration(message=next(script))])

        def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
            return self

    agent = create_agent(Scripted(), [add])

    def run() -> int:
        question: Any = {"messages": [("user", QUESTION)]}
        result = agent.invoke(question, {"recursion_limit": 4 * steps + 10})
        assert result["messages"][-1].content == "done"
        return sum(isinstance(message, ToolMessage) for message in result["messages"])

    return run


if __name__ == "__main__":
    main()
