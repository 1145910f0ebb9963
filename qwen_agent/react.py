"""The agent: one loop from a question to an answer.

    prompt -> model -> parser -> tool -> observation -> prompt ...

Only executed tools make observations; nothing the model writes can raise; a run always ends with an answer and a
StopReason. The state of a run is its prompt, as token ids where the model wrote them, so the runtime's KV cache stays
valid from step to step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import ChoiceAfter
from qwen_agent.llm.runtime import Chunk, Runtime, text_of
from qwen_agent.parser import Parsed, Part, StepParser, read_arguments
from qwen_agent.prompt import DEFAULT_SYSTEM, ReActTemplate, build, observation
from qwen_agent.tools.base import Tool, toolbox
from qwen_agent.types import (
    AgentResult,
    Delta,
    Event,
    Finished,
    Message,
    Prompt,
    Reading,
    Role,
    Step,
    StepFinished,
    StopReason,
    Text,
    ToolCall,
    ToolFinished,
    ToolResult,
    ToolStarted,
    Usage,
)

OBSERVATION = "Observation:"
_ANSWER_TOKENS = 256  # kept free in the window for a forced final answer and the words that force it
_FORCED_TOKENS = 192  # the most that answer may take
_STEP_TOKENS = 96  # with less room than this before that, another step is not begun
_FORCED_ANSWER = "I now know the final answer.\nFinal Answer:"

Cancelled = Callable[[], bool]


@dataclass(slots=True)
class _Run:
    """What grows while a run goes on."""

    prompt: Prompt
    opened: int  # segments of the prompt before the assistant's turn
    steps: list[Step] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def transcript(self) -> str:
        return text_of(self.prompt[self.opened :])


@dataclass(frozen=True, slots=True)
class _Output:
    """One generation: its last chunk and what the parser made of the text."""

    chunk: Chunk
    parsed: Parsed


class Agent:
    """A runtime with tools. It holds no state of a run: use one agent for many questions, from many threads.

    ``max_steps`` bounds the tool calls of a run, ``max_tokens`` the tokens it may generate; ``generation`` says how a
    single step is sampled and how long it may be. At a limit the model is made to answer without further calls.
    """

    def __init__(
        self,
        runtime: Runtime,
        tools: Iterable[Tool | Callable[..., Any]] = (),
        *,
        system: str = DEFAULT_SYSTEM,
        template: ReActTemplate = ReActTemplate(),
        generation: GenerationConfig = GenerationConfig(),
        max_steps: int = 8,
        max_tokens: int = 4096,
    ) -> None:
        if max_steps < 0 or max_tokens < 1:
            raise InputError(f"max_steps={max_steps} and max_tokens={max_tokens} must be at least 0 and 1")
        self.runtime = runtime
        self.tools: Mapping[str, Tool] = toolbox(tools)
        self.system = system
        self.template = template
        self.max_steps = max_steps
        self.max_tokens = max_tokens
        self.generation = generation

    def run(self, question: str, history: Sequence[Message] = ()) -> AgentResult:
        """Answer a question. Raises InputError if it is empty, ContextOverflow if it does not fit the window."""
        for event in self.stream(question, history):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError("a stream of events always ends with Finished")

    def stream(
        self, question: str, history: Sequence[Message] = (), cancelled: Cancelled = lambda: False
    ) -> Iterator[Event]:
        """The same as typed events, as they happen; the last is Finished.

        ``cancelled`` is asked between tokens; when it says True the run ends with StopReason.CANCELLED. Closing the
        iterator also stops the generation.
        """
        if not question.strip():
            raise InputError("the question is empty: ask something")
        prompt = self._open(question, history)
        return self._loop(_Run(prompt, len(prompt)), cancelled)

    def turn(self, question: str, result: AgentResult) -> tuple[Message, Message]:
        """A finished run as two messages, to be appended to the history of the next."""
        return Message(Role.USER, question), Message(Role.ASSISTANT, result.transcript)

    def _loop(self, run: _Run, cancelled: Cancelled) -> Iterator[Event]:
        while True:
            room = self._room(run.prompt)
            limit = self._limit(run, room)
            if limit is not None:
                yield from self._conclude(run, limit, cancelled)
                return
            output = yield from self._think(run, self._step_config(run, room), cancelled)
            if output is None:
                yield _finished(run, "", StopReason.CANCELLED)
                return
            if output.parsed.action is None:
                yield from self._answer(run, output, cancelled)
                return
            yield from self._act(run, output)

    def _open(self, question: str, history: Sequence[Message]) -> Prompt:
        prompt = build(
            question,
            tools=list(self.tools.values()),
            history=history,
            system=self.system,
            template=self.template,
            budget=self.runtime.window - _ANSWER_TOKENS,
            count=self.runtime.count_tokens,
        )
        tokens = self.runtime.count_tokens(prompt)
        if tokens > self.runtime.window - _ANSWER_TOKENS:
            raise ContextOverflow(tokens, self.runtime.window)
        return prompt

    def _limit(self, run: _Run, room: int) -> StopReason | None:
        """The limit that has been reached, if any."""
        if self.tools and len(run.steps) >= self.max_steps:
            return StopReason.MAX_STEPS
        if run.usage.generated_tokens >= self.max_tokens:
            return StopReason.MAX_TOKENS
        if room < _STEP_TOKENS:
            return StopReason.CONTEXT_FULL
        return None

    def _room(self, prompt: Prompt) -> int:
        """Tokens that may still be written before the part of the window that is kept for the answer."""
        return self.runtime.window - _ANSWER_TOKENS - self.runtime.count_tokens(prompt)

    def _step_config(self, run: _Run, room: int) -> GenerationConfig:
        left = min(self.max_tokens - run.usage.generated_tokens, room)
        config = replace(self.generation, max_new_tokens=min(self.generation.max_new_tokens, left))
        if not self.tools:
            return config
        names = ChoiceAfter("Action:", tuple(self.tools))
        return replace(config, stop=(*config.stop, OBSERVATION), constraint=names)

    def _think(
        self, run: _Run, config: GenerationConfig, cancelled: Cancelled, first: Part = "thought"
    ) -> Generator[Event, None, _Output | None]:
        """Generate and parse one output; None if the run was cancelled."""
        parser = StepParser(first if self.tools else "final_answer")
        chunks = self.runtime.stream(run.prompt, config)
        last = Chunk()
        try:
            for last in chunks:
                if last.read is not None:
                    yield Reading(*last.read)
                yield from parser.feed(last.text)
                if cancelled():
                    return None
        finally:
            _close(chunks)
        held, parsed = parser.finish()
        yield from held
        run.usage += last.usage
        return _Output(last, parsed)

    def _act(self, run: _Run, output: _Output) -> Iterator[Event]:
        """Run the tool that was asked for and put its observation into the prompt."""
        call = self._read_call(output.parsed)
        yield ToolStarted(call)
        result = self._invoke(call)
        written = _believed(output)
        if not text_of(written).endswith("\n"):
            written += (Text("\n"),)
        result = self._shortened(run, written, result)
        run.prompt += written + observation(result.content)
        parsed = output.parsed
        step = Step(parsed.thought, call, result, parsed.discarded, output.chunk.usage)
        run.steps.append(step)
        yield ToolFinished(call, result)
        yield StepFinished(step)

    def _read_call(self, parsed: Parsed) -> ToolCall:
        name = parsed.action or ""
        tool = self.tools.get(name)
        if tool is None:
            return ToolCall(name, None, parsed.action_input, problem=self._unknown(name))
        found = read_arguments(parsed.action_input, tool.parameters, tool.args_format)
        return ToolCall(name, found.values, parsed.action_input, found.problem, found.repairs)

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.tools, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"there is no tool {name!r}; the tools are {', '.join(self.tools)}.{hint}"

    def _invoke(self, call: ToolCall) -> ToolResult:
        if call.arguments is None:
            return ToolResult(f"Error: {call.problem}", ok=False)
        return self.tools[call.name].invoke(call.arguments)

    def _shortened(self, run: _Run, written: Prompt, result: ToolResult) -> ToolResult:
        """Halve the observation until it fits the window."""
        content = result.content
        while len(content) > 100 and self._room(run.prompt + written + observation(content)) < _STEP_TOKENS:
            half = len(content) // 4
            content = f"{content[:half]} ... {content[-half:]}"
        dropped = result.dropped_chars + max(len(result.content) - len(content), 0)
        return replace(result, content=content, dropped_chars=dropped)

    def _answer(self, run: _Run, output: _Output, cancelled: Cancelled) -> Iterator[Event]:
        """No call: what the model wrote is the answer, if it ended there by itself; else it is asked for one."""
        parsed = output.parsed
        cut = output.chunk.finish == "length"
        reason = StopReason.MAX_TOKENS if cut else StopReason.FINAL_ANSWER
        ended = not cut and output.chunk.stop != OBSERVATION
        answer = parsed.answer or (parsed.thought if ended else "")
        run.prompt += _believed(output)
        if answer:
            yield from self._finish_step(run, output, answer, reason)
        else:
            yield from self._conclude(run, reason, cancelled)

    def _conclude(self, run: _Run, reason: StopReason, cancelled: Cancelled) -> Iterator[Event]:
        """Take the tools away and have the model answer with what it knows."""
        if self.tools:
            text = text_of(run.prompt)
            lead = " " if text.endswith("Thought:") else "Thought: " if text.endswith("\n") else "\nThought: "
            run.prompt += (Text(lead + _FORCED_ANSWER),)
        config = replace(self.generation, max_new_tokens=_FORCED_TOKENS, stop=(OBSERVATION, "\nThought:", "\nAction"))
        output = yield from self._think(run, config, cancelled, first="final_answer")
        if output is None:
            yield _finished(run, "", StopReason.CANCELLED)
            return
        run.prompt += output.chunk.output
        answer = output.parsed.answer or _nothing_found(run)
        yield from self._finish_step(run, output, answer, reason)

    def _finish_step(self, run: _Run, output: _Output, answer: str, reason: StopReason) -> Iterator[Event]:
        parsed = output.parsed
        if parsed.answer is None and parsed.thought:
            yield Delta("final_answer", answer)
        step = Step(parsed.thought, discarded=parsed.discarded, usage=output.chunk.usage)
        yield StepFinished(step)
        run.steps.append(step)
        yield _finished(run, answer, reason)


def _believed(output: _Output) -> Prompt:
    """The output as tokens; if some of it was discarded, the believed part as text."""
    return (Text(output.parsed.kept),) if output.parsed.discarded else output.chunk.output


def _finished(run: _Run, answer: str, reason: StopReason) -> Finished:
    return Finished(AgentResult(answer, tuple(run.steps), reason, run.usage, run.transcript()))


def _nothing_found(run: _Run) -> str:
    observations = [step.result.content for step in run.steps if step.result is not None]
    if not observations:
        return "I have no answer."
    return f"I have no answer. The last observation was: {observations[-1]}"


def _close(chunks: Iterator[Chunk]) -> None:
    """Stop a generation that is not wanted any more (a plain iterator has nothing to stop)."""
    close = getattr(chunks, "close", None)
    if close is not None:
        close()
