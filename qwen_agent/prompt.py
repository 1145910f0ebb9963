"""Messages, tools and steps -> Prompt. Pure: no torch, no files, no tokenizer (a counting function is passed in).

The ReAct template and the placement of the tool text are those Qwen was trained on, to the byte: the template wraps
the only user turn, or, when there is history, the last finished one; the newest question then stands as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from qwen_agent.errors import InputError
from qwen_agent.types import IM_END, IM_START, Message, Prompt, Role, Text

DEFAULT_SYSTEM = "You are a helpful assistant."
READ_AGAIN = "read_observation"
MARKERS = ("Question", "Thought", "Action", "Action Input", "Observation", "Final Answer")

_THOUGHT = "Thought:"
_ANSWERS = "I now know the final answer"
_ARGS_FORMAT = {
    "json": "Format the arguments as a JSON object.",
    "code": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
}
_TEMPLATE = """Answer the following questions as best you can. You have access to the following {noun}:

{descriptions}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!

Question: {question}"""


class DescribedTool(Protocol):
    """What the prompt says about a tool."""

    @property
    def name(self) -> str: ...
    @property
    def name_for_human(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...
    @property
    def args_format(self) -> Literal["json", "code"]: ...


@dataclass(frozen=True, slots=True)
class ReActTemplate:
    """The two places where the official prompts differ from each other: "tools" or "APIs", and "," or ", "."""

    noun: str = "tools"
    separator: str = ","

    def render(self, tools: Sequence[DescribedTool], question: str) -> str:
        """The user turn that offers the tools and asks the question. No newline at the end."""
        return _TEMPLATE.format(
            noun=self.noun,
            descriptions="\n\n".join(describe(tool) for tool in tools),
            names=self.separator.join(tool.name for tool in tools),
            question=question,
        )


def describe(tool: DescribedTool) -> str:
    """One tool's line, as in Qwen's react_prompt.md."""
    parameters = json.dumps(parameter_list(tool.parameters), ensure_ascii=False)
    return (
        f"{tool.name}: Call this tool to interact with the {tool.name_for_human} API. "
        f"What is the {tool.name_for_human} API useful for? {tool.description} "
        f"Parameters: {parameters} {_ARGS_FORMAT[tool.args_format]}"
    )


def parameter_list(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A JSON Schema object -> Qwen's list of {name, description, required, schema}."""
    required = schema.get("required", ())
    # A schema may be true or false, too; true is the empty one.
    properties = {
        name: entry if isinstance(entry, Mapping) else {} for name, entry in schema.get("properties", {}).items()
    }
    return [
        {
            "name": name,
            "description": entry.get("description", ""),
            "required": name in required,
            "schema": {key: value for key, value in entry.items() if key != "description"},
        }
        for name, entry in properties.items()
    ]


def build(
    question: str,
    *,
    tools: Sequence[DescribedTool] = (),
    history: Sequence[Message] = (),
    system: str = DEFAULT_SYSTEM,
    template: ReActTemplate = ReActTemplate(),
    budget: int | None = None,
    count: Callable[[Prompt], int] = lambda prompt: 0,
) -> Prompt:
    """The whole prompt of a run, with the assistant's turn left open.

    ``history`` alternates user and assistant. With a ``budget`` (tokens for everything built here, measured by
    ``count``), the oldest pairs are left out until the rest fits; the system text, the tools and the question always
    stay, even if they alone are too long.
    """
    pairs = _pairs(history)
    if budget is not None:
        bare = chatml(_user_turns(question, (), tools, template)[0], (), system)
        spent = count(bare) - count(_turn(Role.SYSTEM, system))
        pairs = fit_history(pairs, system, budget - spent, count)
    *earlier, query = _user_turns(question, [asked for asked, _ in pairs], tools, template)
    answers = [answered for _, answered in pairs]
    return chatml(query, list(zip(earlier, answers, strict=True)), system)


def chatml(query: str, history: Sequence[tuple[str, str | Prompt]], system: str) -> Prompt:
    """ChatML as Qwen's make_context builds it: system, finished pairs, the query, an open assistant turn."""
    turns: list[tuple[Role, str | Prompt]] = [(Role.SYSTEM, system)]
    for asked, answered in history:
        turns += [(Role.USER, asked), (Role.ASSISTANT, answered)]
    turns.append((Role.USER, query))
    closed = [segment for role, content in turns for segment in (*_turn(role, content), Text("\n"))]
    return (*closed, IM_START, Text(Role.ASSISTANT.value), Text("\n"))


def fit_history(
    pairs: Sequence[tuple[str, str | Prompt]], system: str, budget: int, count: Callable[[Prompt], int]
) -> list[tuple[str, str | Prompt]]:
    """The newest whole pairs that, with the system turn, stay under ``budget`` tokens (make_context's rule)."""
    total = count(_turn(Role.SYSTEM, system))
    kept: list[tuple[str, str | Prompt]] = []
    for asked, answered in reversed(pairs):
        newline = Text("\n")
        total += count((newline, *_turn(Role.USER, asked), newline, *_turn(Role.ASSISTANT, answered)))
        if total >= budget:
            break
        kept.insert(0, (asked, answered))
    return kept


def observation(text: str) -> Prompt:
    """What follows a call: the tool's text as an observation, and the beginning of the next thought."""
    return (Text("Observation:"), Text(f" {quote_markers(printable(text))}\n"), Text(_THOUGHT))


def stub(step: int, tokens: int) -> Prompt:
    """What stands for an old observation when room is needed. ``step`` counts from 1."""
    return observation(f'[{tokens} tokens left out; {READ_AGAIN} {{"step": {step}}} shows them]')


def awaits_thought(before: str) -> bool:
    """Whether the text ends as an observation does, so that the model's next thought follows."""
    return before.endswith(_THOUGHT)


def call_step(before: str, name: str, arguments: str, thought: str = "") -> Prompt:
    """A step that calls a tool, as a model writes it after the text ``before``; an `observation` follows."""
    why = thought or f"{_use(name)}."
    return (Text(f"{_lead(before)}{why}\nAction: {name}\nAction Input: {arguments}\n"),)


def answer_step(before: str, answer: str, thought: str = "") -> Prompt:
    """A step that answers, as a model writes it after the text ``before``."""
    if not thought:
        return (*force_answer(before), Text(f" {answer}"))
    return (Text(f"{_lead(before)}{thought}\nFinal Answer: {answer}"),)


def force_answer(before: str) -> Prompt:
    """The words that make a model answer now, as they go on after the text ``before``."""
    return (Text(f"{_lead(before)}{_ANSWERS}.\nFinal Answer:"),)


def openings(tools: Iterable[str], before: str) -> tuple[Prompt, ...]:
    """How a step begins that answers, and how ones begin that call each of the tools, after the text ``before``."""
    lead = _lead(before)
    return tuple((Text(f"{lead}{text}"),) for text in (_ANSWERS, *map(_use, tools)))


def ask_for_json(system: str, schema: Mapping[str, Any]) -> str:
    """The system text, with the demand that the final answer be JSON of this schema."""
    wanted = json.dumps(schema, ensure_ascii=False)
    return f"{system}\nThe Final Answer must be one JSON object that fits this schema: {wanted}"


def quote_markers(text: str) -> str:
    """Prefix "> " to lines that begin like one of our markers, so that a tool's text cannot pose as a step."""
    return _MARKER_LINE.sub(r"> \1", text)


def printable(text: str) -> str:
    """The text without terminal escapes and control characters (newline and tab stay)."""
    return _CONTROL.sub("", _ESCAPE.sub("", text))


_MARKER_LINE = re.compile(rf"^([ \t]*(?:{'|'.join(MARKERS)})[ \t]*[:\uff1a])", re.MULTILINE | re.IGNORECASE)
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _lead(before: str) -> str:
    """What stands between the text ``before`` and a thought."""
    if awaits_thought(before):
        return " "
    return f"{_THOUGHT} " if not before or before.endswith("\n") else f"\n{_THOUGHT} "


def _use(tool: str) -> str:
    return f"I should use the {tool} API"


def _turn(role: Role, content: str | Prompt) -> Prompt:
    said = (Text(content),) if isinstance(content, str) else content
    return (IM_START, Text(role.value), Text("\n"), *said, IM_END)


def _pairs(history: Iterable[Message]) -> list[tuple[str, str | Prompt]]:
    turns = list(history)
    roles = [turn.role for turn in turns]
    if len(turns) % 2 or roles != [Role.USER, Role.ASSISTANT] * (len(turns) // 2):
        raise InputError(
            "history must alternate user and assistant turns, beginning with user and ending with assistant"
        )
    return [(turns[i].content, _said(turns[i + 1])) for i in range(0, len(turns), 2)]


def _said(turn: Message) -> str | Prompt:
    """The turn as the tokens that were written, where nothing has to be trimmed from them."""
    text = trimmed(turn.content)
    return turn.written if turn.written and text == turn.content else text


def _user_turns(
    question: str, earlier: Sequence[str], tools: Sequence[DescribedTool], template: ReActTemplate
) -> list[str]:
    """All user turns, the newest last, with the template around the right one."""
    turns = [trimmed(turn) for turn in (*earlier, question)]
    if tools:
        at = max(len(turns) - 2, 0)
        turns[at] = template.render(tools, turns[at])
    return turns


def trimmed(turn: str) -> str:
    """Newlines in front and whitespace behind are cut from every turn, as in the training data."""
    return turn.lstrip("\n").rstrip()
