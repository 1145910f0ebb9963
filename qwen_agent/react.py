"""The agent: one loop from a question to an answer.

    prompt -> model -> parser -> tool -> observation -> prompt ...

Only executed tools make observations; nothing the model writes can raise; a run always ends with an answer and a
StopReason. What comes from outside (the model's words, the tools' results, a person's decisions) enters as facts, so
a run can be repeated, and gone on with, from its log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.limits import Limits
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar, call_grammar, json_grammar, step_grammar
from qwen_agent.llm.runtime import Runtime, text_of
from qwen_agent.loop import context
from qwen_agent.loop.calls import Approve, observe, permission, read_call, reader
from qwen_agent.loop.output import OutputType
from qwen_agent.loop.run import Cancelled, Nothing, Past, Recorded, Run, Turn, call_key
from qwen_agent.loop.threads import iterate_in_thread
from qwen_agent.loop.writing import OBSERVATION, Output, Writer
from qwen_agent.prompt import DEFAULT_SYSTEM, ReActTemplate, build, force_answer, observation, openings
from qwen_agent.tools.base import Tool, toolbox
from qwen_agent.types import (
    AgentResult,
    Compacted,
    Delta,
    Event,
    Fact,
    Finished,
    LimitReached,
    Message,
    Prompt,
    Role,
    RunStarted,
    Step,
    StepFinished,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    ToolStarted,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

_FORCED_TOKENS = 192  # the most that a forced answer may take
_ANSWERS_SENT_BACK = 2  # how often a final answer that does not fit the output type is returned to the model

Happening = Generator[Event, None, bool]  # events, and at the end: is the run over?


@dataclass(frozen=True, init=False, eq=False)
class Agent:
    """A runtime with tools. It is immutable and holds no state of a run: share it between threads.

    ``tools`` are Tools or typed functions. ``generation`` says how a single step is sampled and how long it may be,
    ``limits`` how far a run may go. ``tool_choice`` is "auto", "none", "required" (the first step must call a tool) or
    the name of the tool to call first. ``call_threshold`` moves the balance of "auto" where the runtime can tell how
    sure the model is: a tool is called exactly if the probability of calling is at least this. ``output_type`` is a
    pydantic model that the final answer must fit (`AgentResult.output`). ``approve`` is asked before calls of tools
    whose approval is "ask"; without it such a call pauses the run.

    `dataclasses.replace` makes a changed copy.
    """

    runtime: Runtime
    tools: Mapping[str, Tool]
    system: str
    template: ReActTemplate
    generation: GenerationConfig
    limits: Limits
    tool_choice: str
    call_threshold: float | None
    output_type: type[BaseModel] | None
    approve: Approve | None

    def __init__(
        self,
        runtime: Runtime,
        tools: Iterable[Tool | Callable[..., Any]] | Mapping[str, Tool] = (),
        *,
        system: str = DEFAULT_SYSTEM,
        template: ReActTemplate = ReActTemplate(),
        generation: GenerationConfig = GenerationConfig(),
        limits: Limits = Limits(),
        tool_choice: str = "auto",
        call_threshold: float | None = None,
        output_type: type[BaseModel] | None = None,
        approve: Approve | None = None,
    ) -> None:
        box = toolbox(tools.values() if isinstance(tools, Mapping) else tools)
        _check(box, tool_choice, call_threshold)
        values = locals() | {"tools": box}
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, values[field.name])
        # Derived once, so that a step costs little.
        typed = OutputType(output_type) if output_type is not None else None
        derived = {
            "_typed": typed,
            "_schema": typed.schema if typed is not None else None,
            "_writer": Writer(runtime, tuple(box), call_threshold),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_grammar", step_grammar(box.values(), self._schema) if box else None)

    if TYPE_CHECKING:
        _typed: OutputType | None
        _schema: Mapping[str, Any] | None
        _writer: Writer
        _grammar: Grammar | None

    # ---- ways in

    def run(
        self, question: str, history: Sequence[Message] = (), *, cancelled: Cancelled = lambda: False
    ) -> AgentResult:
        """Answer a question. Raises InputError if it is empty, ContextOverflow if it does not fit the window."""
        return _result(self.stream(question, history, cancelled))

    def stream(
        self, question: str, history: Sequence[Message] = (), cancelled: Cancelled = lambda: False
    ) -> Iterator[Event]:
        """The same as typed events, as they happen; the last is Finished.

        ``cancelled`` is asked between tokens and while tools run; when it says True the run ends with
        StopReason.CANCELLED. Closing the iterator also stops the generation.
        """
        return self._start(question, history, Nothing(), cancelled)

    async def arun(self, question: str, history: Sequence[Message] = ()) -> AgentResult:
        """`run` without blocking the event loop. Cancelling the task cancels the run."""
        async for event in self.astream(question, history):
            if isinstance(event, Finished):
                return event.result
        raise AssertionError("a stream of events always ends with Finished")

    def astream(self, question: str, history: Sequence[Message] = ()) -> AsyncIterator[Event]:
        """`stream` without blocking the event loop. It is the same loop, in a thread of its own."""
        return iterate_in_thread(lambda cancelled: self.stream(question, history, cancelled))

    def resume(self, facts: Iterable[Fact], cancelled: Cancelled = lambda: False) -> Iterator[Event]:
        """Go on with a run from the facts of its log (see log.py). Its events come again from the beginning.

        Nothing that is known is asked again; a tool that was running when the log broke off runs again. Raises Drift
        where this agent does not do what the log says, InputError for a log without a beginning.
        """
        known = list(facts)
        if not known or not isinstance(known[0], RunStarted):
            raise InputError("the log does not begin with the start of a run: nothing can be resumed from it")
        return self._start(known[0].question, known[0].history, Recorded(known), cancelled)

    def replay(self, past: Past, question: str, history: Sequence[Message]) -> Iterator[Event]:
        """A run whose past is known in part or in whole; what a cassette is made of."""
        return self._start(question, history, past, lambda: False)

    def turn(self, question: str, result: AgentResult) -> tuple[Message, Message]:
        """A finished run as two messages, to be appended to the history of the next."""
        return Message(Role.USER, question), Message(Role.ASSISTANT, result.transcript, result.written)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what this agent does, as plain values for a log."""
        return {
            "model": self.runtime.name,
            "system": self.system,
            "template": dataclasses.asdict(self.template),
            "tools": [tool.describe() for tool in self.tools.values()],
            "generation": {
                key: getattr(self.generation, key)
                for key in ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "stop")
            },
            "limits": dataclasses.asdict(self.limits),
            "tool_choice": self.tool_choice,
            "call_threshold": self.call_threshold,
            "output_schema": self._schema,
        }

    # ---- the loop

    def _start(self, question: str, history: Sequence[Message], past: Past, cancelled: Cancelled) -> Iterator[Event]:
        if not question.strip():
            raise InputError("the question is empty: ask something")
        prompt = build(
            question,
            tools=list(self.tools.values()),
            history=history,
            system=self._typed.asked_for(self.system) if self._typed else self.system,
            template=self.template,
            budget=self.runtime.window - context.ANSWER_TOKENS,
            count=self.runtime.count_tokens,
        )
        run = Run(prompt, self.runtime.window, self.limits, past, cancelled)
        started = past.take(RunStarted, run.digest)
        if started is None:
            past.must_have_ended(run.digest)
            tokens = self.runtime.count_tokens(prompt)
            if tokens > self.runtime.window - context.ANSWER_TOKENS:
                raise ContextOverflow(tokens, self.runtime.window)
            started = RunStarted(question, tuple(history), self.describe(), tokens, self.runtime.window, run.digest)
        run.tokens = started.tokens
        return self._loop(run, started)

    def _loop(self, run: Run, started: RunStarted) -> Iterator[Event]:
        yield started
        over = False
        while not over:
            yield from self._make_room(run)
            if run.cancelled:
                yield run.finish("", StopReason.CANCELLED)
                return
            limit = self._limit(run)
            if limit is not None:
                yield limit
                over = yield from self._conclude(run, limit.reason)
            elif self._choice(run) == "none":
                over = yield from self._conclude(run, StopReason.FINAL_ANSWER)
            else:
                over = yield from self._step(run)

    def _step(self, run: Run) -> Happening:
        """Let the model write a step; then act on it, or take it for the answer."""
        output = yield from self._writer.write(run, self._step_config(run), "thought" if self.tools else "final_answer")
        if output is None:
            return False  # cancelled, out of time, or decided otherwise: the loop sees to it
        if output.parsed.action is not None:
            return (yield from self._act(run, output))
        return (yield from self._answer(run, output))

    def _make_room(self, run: Run) -> Iterator[Event]:
        known = run.past.take(Compacted, run.digest)
        made = (known, context.stubs_for(run, known)) if known else context.compaction(run, self.runtime.count_tokens)
        if made is None:
            return
        fact, stubs = made
        run.replace_observations(stubs, fact.tokens)
        run.reader = run.reader or reader(run)
        yield fact

    def _limit(self, run: Run) -> LimitReached | None:
        """The limit that has been reached, if any."""
        known = run.past.take(LimitReached, run.digest)
        if known is not None:
            return known
        limits = run.limits
        reached = {
            StopReason.MAX_STEPS: bool(self.tools) and len(run.steps) >= limits.steps,
            StopReason.MAX_TOOL_CALLS: limits.tool_calls is not None and run.tool_calls >= limits.tool_calls,
            StopReason.MAX_TOKENS: run.usage.generated_tokens >= limits.tokens,
            StopReason.MAX_SECONDS: run.expired and not run.past.goes_on,
            StopReason.CONTEXT_FULL: context.room(run) < context.STEP_TOKENS,
        }
        return next((LimitReached(reason, run.digest) for reason, is_so in reached.items() if is_so), None)

    def _choice(self, run: Run) -> str:
        """The tool choice for this step. A demand to call holds until there has been a call."""
        if not self.tools:
            return "auto"
        if self.tool_choice not in ("auto", "none") and run.turns:
            return "auto"
        return run.decided or self.tool_choice

    def _step_config(self, run: Run) -> GenerationConfig:
        left = max(min(run.limits.tokens - run.usage.generated_tokens, context.room(run)), 1)
        config = replace(self.generation, max_new_tokens=min(self.generation.max_new_tokens, left))
        if not self.tools:
            return replace(config, grammar=json_grammar(self._schema)) if self._schema else config
        choice = self._choice(run)
        weighed = choice == "auto" and self.tool_choice == "auto"
        return replace(
            config,
            stop=(*config.stop, *OBSERVATION),
            grammar=self._step_grammar(run, choice),
            choices=openings(self.tools, run.ends_with()) if weighed else (),
        )

    def _step_grammar(self, run: Run, choice: str) -> Grammar | None:
        offered = self._offered(run)
        if choice == "required":
            return call_grammar(offered.values())
        if choice != "auto":
            return call_grammar([offered[choice]])
        if run.reader is not None:
            return step_grammar(offered.values(), self._schema)
        return self._grammar

    def _offered(self, run: Run) -> Mapping[str, Tool]:
        return self.tools if run.reader is None else {**self.tools, run.reader.name: run.reader}

    # ---- calls

    def _act(self, run: Run, output: Output) -> Happening:
        """Have the tool called that was asked for, and put its observation into the prompt."""
        offered = self._offered(run)
        call = read_call(output.parsed, offered, output.call_cut_off)
        tool = offered.get(call.name)
        asked = 0 if tool is not None and tool.repeatable else run.times_asked(call_key(call))
        if asked >= run.limits.repeats:
            yield from self._note_step(run, output, call)
            limit = run.past.take(LimitReached, run.digest) or LimitReached(StopReason.REPEATED_CALL, run.digest)
            yield limit
            return (yield from self._conclude(run, limit.reason))
        permitted = yield from permission(run, call, tool, self.approve)
        if permitted is None:
            yield run.finish("", StopReason.PAUSED)
            return True
        yield ToolStarted(call)
        finished = observe(
            run, call, tool if permitted else None, asked > 0, output.wrote.tokens, self.runtime.count_tokens
        )
        if finished is None:
            yield run.finish("", StopReason.CANCELLED)
            return True
        yield finished
        newline: Prompt = () if text_of(output.believed).endswith("\n") else (Text("\n"),)
        written, tokens = output.believed + newline, output.wrote.tokens + len(newline) + finished.tokens
        run.append(Turn(written, observation(finished.result.content), finished.result, tokens, finished.tokens))
        yield from self._note_step(run, output, call, finished.result)
        return False

    # ---- the answer

    def _answer(self, run: Run, output: Output) -> Happening:
        """No call: what the model wrote is the answer, if it ended there by itself; else it is asked for one."""
        parsed = output.parsed
        reason = StopReason.MAX_TOKENS if output.cut_off else StopReason.FINAL_ANSWER
        ended = not output.cut_off and output.wrote.stop not in OBSERVATION
        answer = parsed.answer or (parsed.thought if ended else "")
        if answer and parsed.answer is None:
            yield Delta("final_answer", answer)
        if answer:
            return (yield from self._accept(run, output, answer, reason))
        run.end_with(output.believed, output.wrote.tokens)
        return (yield from self._conclude(run, reason))

    def _conclude(self, run: Run, reason: StopReason) -> Happening:
        """Take the tools away and have the model answer with what it knows."""
        if self.tools:
            lead = force_answer(run.ends_with())
            run.end_with(lead, self.runtime.count_tokens(lead))
        by_itself = reason is StopReason.FINAL_ANSWER
        longest = max(min(self.generation.max_new_tokens, context.room(run)), _FORCED_TOKENS)
        config = replace(
            self.generation,
            max_new_tokens=longest if by_itself else _FORCED_TOKENS,
            stop=(*OBSERVATION, "\nThought:", "\nAction") if self.tools else self.generation.stop,
            grammar=json_grammar(self._schema, lead=" " if self.tools else "") if self._schema else None,
        )
        output = yield from self._writer.write(run, config, "final_answer", to_the_end=True)
        if output is None:
            yield run.finish("", StopReason.CANCELLED)
            return True
        answer = output.parsed.answer or _nothing_found(run)
        return (yield from self._accept(run, output, answer, reason))

    def _accept(self, run: Run, output: Output, answer: str, reason: StopReason) -> Happening:
        """End the run with this answer; or, if it does not fit the output type, send it back."""
        made, problem = self._typed.read(answer) if self._typed else (None, "")
        if problem and reason is StopReason.FINAL_ANSWER:
            if run.answers_sent_back < _ANSWERS_SENT_BACK and self.tools:
                return (yield from self._send_back(run, output, problem))
            reason = StopReason.INVALID_OUTPUT
        run.end_with(output.believed, output.wrote.tokens)
        yield from self._note_step(run, output)
        yield run.finish(answer, reason, made)
        return True

    def _send_back(self, run: Run, output: Output, problem: str) -> Happening:
        run.answers_sent_back += 1
        result = ToolResult(f"Error: {problem} Give the Final Answer again.", ok=False)
        observed = observation(result.content)
        tokens = self.runtime.count_tokens(observed)
        run.append(Turn((*output.believed, Text("\n")), observed, result, output.wrote.tokens + 1 + tokens, tokens))
        yield from self._note_step(run, output, result=result)
        return False

    def _note_step(
        self, run: Run, output: Output, call: ToolCall | None = None, result: ToolResult | None = None
    ) -> Iterator[Event]:
        parsed = output.parsed
        step = Step(
            parsed.thought,
            call,
            result,
            parsed.discarded,
            output.wrote.usage,
            run.confidence,
            parsed.repairs,
            parsed.invented,
        )
        run.steps.append(step)
        run.confidence = None
        yield StepFinished(step)


def _check(tools: Mapping[str, Tool], tool_choice: str, call_threshold: float | None) -> None:
    choices = ("auto", "none", "required", *tools)
    if tool_choice not in choices or (tool_choice == "required" and not tools):
        raise InputError(f"tool_choice={tool_choice!r} cannot be used: choose from {', '.join(choices)}")
    if call_threshold is not None and not 0.0 <= call_threshold <= 1.0:
        raise InputError(f"call_threshold={call_threshold!r} cannot be used: it must be a probability, or None")


def _result(events: Iterable[Event]) -> AgentResult:
    for event in events:
        if isinstance(event, Finished):
            return event.result
    raise AssertionError("a stream of events always ends with Finished")


def _nothing_found(run: Run) -> str:
    observations = [step.result.content for step in run.steps if step.result is not None]
    if not observations:
        return "I have no answer."
    return f"I have no answer. The last observation was: {observations[-1]}"
