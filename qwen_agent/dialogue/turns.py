"""Messages -> the turns of a conversation, the assistant's in the ReAct format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from qwen_agent.errors import InputError
from qwen_agent.llm.runtime import text_of
from qwen_agent.prompt import DEFAULT_SYSTEM, answer_step, awaits_thought, call_step, observation
from qwen_agent.types import Message, Prompt, Role, Text


@dataclass(frozen=True, slots=True)
class System:
    """Instructions. Those of all such messages are one text, wherever they stand."""

    text: str


@dataclass(frozen=True, slots=True)
class User:
    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it was written. ``whole`` is False if it could not be read, so that nobody has to answer it."""

    id: str
    name: str
    arguments: str
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Assistant:
    """What the model said. Its own calls are one at most; others make several at once."""

    text: str = ""
    thought: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool returned. ``call`` is the id of the call."""

    call: str
    text: str


Said = System | User | Assistant | Result


@dataclass(slots=True)
class Turn:
    """What the user asked, and the assistant's whole turn: steps with their observations, and the answer."""

    asked: str
    said: Prompt = ()


def conversation(messages: Sequence[Said]) -> tuple[str, list[Turn]]:
    """The system text, and at least one turn. Messages of one side that follow each other are one turn.

    Raises InputError where there is no question, and where calls and results do not match.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message, results in _with_results(messages):
        if isinstance(message, System):
            system.append(message.text)
        elif isinstance(message, User):
            if turns and not turns[-1].said:
                turns[-1].asked += f"\n\n{message.text}"
            else:
                turns.append(Turn(message.text))
        elif isinstance(message, Assistant):
            turns = turns or [Turn("")]
            turns[-1].said += _as_written(message, results, text_of(turns[-1].said))
    if not turns:
        raise InputError("there is no question: give at least one message of the user")
    return "\n\n".join(system) or DEFAULT_SYSTEM, turns


def history(turns: Sequence[Turn]) -> list[Message]:
    """Finished turns, as `qwen_agent.prompt.build` takes them."""
    pairs = [(Message(Role.USER, turn.asked), Message(Role.ASSISTANT, text_of(turn.said), turn.said)) for turn in turns]
    return [message for pair in pairs for message in pair]


def _with_results(messages: Sequence[Said]) -> Iterator[tuple[Said, dict[str, Result]]]:
    """Each message with the tools' results that follow it, by call."""
    if messages and isinstance(messages[0], Result):
        raise InputError(f"the result of the call {messages[0].call!r} comes first: keep the message with the call")
    for at, message in enumerate(messages):
        if isinstance(message, Result):
            continue
        following = takewhile(lambda other: isinstance(other, Result), messages[at + 1 :])
        results = {result.call: result for result in following if isinstance(result, Result)}
        calls = message.calls if isinstance(message, Assistant) else ()
        made, broken = ({call.id for call in calls if call.whole is whole} for whole in (True, False))
        for odd in sorted((made - set(results)) | (set(results) - made - broken)):
            lacks = "has no result right after it" if odd in made else "is not in the message before its result"
            raise InputError(f"the call {odd!r} {lacks}: keep calls and their results together")
        yield message, results


def _as_written(message: Assistant, results: Mapping[str, Result], before: str) -> Prompt:
    """The message as the model would have written it after the text ``before``, with the observations of its calls."""
    if not results:
        if message.thought or awaits_thought(before):
            return answer_step(before, message.text, message.thought)
        return (Text(f"\n{message.text}" if before else message.text),)
    written: Prompt = ()
    why = "\n".join(part for part in (message.thought, message.text) if part)
    for call in message.calls:
        if call.id in results:
            written += call_step(text_of(written) or before, call.name, call.arguments, why)
            written += observation(results[call.id].text)
            why = ""
    return written
