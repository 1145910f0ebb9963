"""The agent of a log, from its description alone: it has no model and no tools, and counts no tokens."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from qwen_agent.errors import Drift, InputError
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Chunk
from qwen_agent.loop.run import Nothing
from qwen_agent.prompt import ReActTemplate
from qwen_agent.react import Agent
from qwen_agent.records.log import Log
from qwen_agent.tools.base import Tool
from qwen_agent.types import Message, Prompt, RunStarted, StepFinished

if TYPE_CHECKING:
    from pydantic import BaseModel
    from typing_extensions import LiteralString

_PROBLEM = re.compile(r"Error: In the Final Answer, (.*?): (.*?)\.(?: Give the Final Answer again\.)?$", re.DOTALL)


class LogEnds(Drift):
    """Something new was asked for, and there is no one to ask."""

    def __init__(self, prompt: Prompt = (), about: str = "") -> None:
        super().__init__("the log ends here: a replay has no model, no tools and no person to ask")
        self.prompt = prompt
        self.about = about


class ReplayRuntime:
    """Stands where the model was. It writes nothing and counts nothing: all that is known stands in the log."""

    def __init__(self, name: str, window: int) -> None:
        self.name = name
        self.window = window

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        raise LogEnds(prompt)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        raise LogEnds(prompt)

    def count_tokens(self, prompt: Prompt) -> int:
        return 0


def described_options(described: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of an Agent from its description: all but the model, the tools and an output type.

    Raises InputError if the description is not one that `Agent.describe` gives.
    """
    with _described():
        if missing := {"model", "tools", "output_schema"} - described.keys():
            raise KeyError(min(missing))
        generation = {**described["generation"], "stop": tuple(described["generation"]["stop"])}
        return {
            "system": described["system"],
            "template": ReActTemplate(**described["template"]),
            "generation": GenerationConfig(**generation),
            "limits": Limits(**described["limits"]),
            "tool_choice": described["tool_choice"],
            "call_threshold": described["call_threshold"],
        }


def described_agent(log: Log) -> Agent:
    """The agent of the log, as far as a description goes."""
    described = log.started.agent
    options = described_options(described)
    with _described():
        runtime, schema = ReplayRuntime(described["model"], log.started.window), described["output_schema"]
        tools = [Tool(**tool, function=_never) for tool in described["tools"]]
    said = None if schema is None else cast("type[BaseModel]", _SaidOutput(schema, log))
    return on_paper(Agent(runtime, tools, output_type=said, **options), log)


@contextlib.contextmanager
def _described() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError) as error:
        raise InputError(f"the log does not describe its agent as this version does ({error})") from None


def _never(**arguments: Any) -> NoReturn:
    raise AssertionError("a replay calls no tools")


def on_paper(agent: Agent, log: Log) -> Agent:
    """The agent without its model, and without its clock, since the log says when time was up."""
    runtime = ReplayRuntime(log.started.agent["model"], log.started.window)
    return replace(agent, runtime=runtime, limits=replace(agent.limits, seconds=None))


def kept_history(log: Log, described: Agent) -> tuple[Message, ...]:
    """The part of the history that was in the prompt: how much fits cannot be counted again without a tokenizer."""
    started = log.started
    for begin in range(0, len(started.history) + 1, 2):
        kept = started.history[begin:]
        first = next(iter(described.replay(Nothing(), started.question, kept)))
        if isinstance(first, RunStarted) and first.about == started.about:
            return kept
    return started.history


def opening(described: Agent, log: Log, history: Sequence[Message]) -> Prompt:
    """The prompt that the run of the log began with."""
    asking = replace(described, limits=Limits(), tool_choice="auto")
    try:
        deque(asking.replay(Nothing(), log.started.question, history), maxlen=0)
    except LogEnds as stop:
        return stop.prompt
    raise AssertionError("nothing goes on without a model")


class _SaidOutput:
    """The output type of an agent that is known by its description only: it says of each answer what it said then."""

    def __init__(self, schema: dict[str, Any], log: Log) -> None:
        self._schema = schema
        answers = [event.step for event in log.notices if isinstance(event, StepFinished) and event.step.call is None]
        problems = [_PROBLEM.match(step.result.content) for step in answers if step.result is not None]
        self._problems = deque(problem.groups() for problem in problems if problem)
        self._output = log.finished.result.output if log.finished else None

    def model_json_schema(self) -> dict[str, Any]:
        return self._schema

    def model_validate(self, values: Any) -> Any:
        if not self._problems and self._output is not None:
            return self._output
        from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

        where, message = self._problems.popleft() if self._problems else ("the object", "does not fit")
        loc = () if where == "the object" else tuple(where.split("."))
        problem = PydanticCustomError("logged", cast("LiteralString", message))
        raise ValidationError.from_exception_data("logged", [InitErrorDetails(type=problem, loc=loc, input=values)])
