"""One question and what became of it, folded from the events of a run as they happen."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from qwen_agent.types import (
    ApprovalNeeded,
    Approved,
    Artifact,
    Delta,
    Event,
    Finished,
    Message,
    Reading,
    Step,
    StepFinished,
    StopReason,
    ToolCall,
    ToolFinished,
    ToolStarted,
    Usage,
)

Phase = Literal["writing", "asking", "running", "done"]
_STOCK_THOUGHT = "i now know the final answer"


@dataclass(slots=True)
class ShownStep:
    """A step as far as it is known. ``seconds`` is what the tool took; None until it is done."""

    thought: str = ""
    tool: str = ""
    arguments: str = ""
    code: bool = False
    observation: str = ""
    ok: bool = True
    refused: bool = False
    seconds: float | None = None
    artifacts: tuple[Artifact, ...] = ()
    phase: Phase = "writing"

    @property
    def says_something(self) -> bool:
        """False for the thought that only announces the answer."""
        return bool(self.tool) or self.thought.strip(" .").lower() not in ("", _STOCK_THOUGHT)


@dataclass(slots=True)
class Turn:
    """A question, its files (and what the model is told of them), the steps and the answer so far.

    ``end`` is None while the run goes on and where it broke off with ``problem``, which is an error. ``messages`` are
    what later questions are told of this turn: nothing, if it was stopped or failed.
    """

    question: str
    files: tuple[Artifact, ...] = ()
    about_files: str = ""
    steps: list[ShownStep] = field(default_factory=list)
    answer: str = ""
    read: tuple[int, int] = (0, 0)
    end: StopReason | None = None
    problem: Exception | None = None
    usage: Usage = field(default_factory=Usage)
    messages: tuple[Message, ...] = ()

    @property
    def over(self) -> bool:
        return self.end is not None or self.problem is not None

    def apply(self, event: Event) -> None:
        """Take in what happened. Notices show it early; what they showed is replaced by what was read in the end."""
        match event:
            case Reading(done, total):
                self.read = (done, total)
            case Delta(part, text):
                self.read = (0, 0)
                self._write(part, text)
            case ApprovalNeeded(call):
                self._call(call, "asking")
            case Approved(granted):
                self._open().refused = not granted
            case ToolStarted(call):
                self._call(call, "running")
            case ToolFinished(call, result):
                step = self._call(call, "done")
                step.observation, step.ok, step.seconds = result.content, result.ok, result.seconds
                step.artifacts = result.artifacts
            case StepFinished(step):
                self._finish_step(step)
            case Finished(result):
                self.answer, self.end, self.usage = result.answer or self.answer, result.stop_reason, result.usage
                self._close()

    def fail(self, problem: Exception) -> None:
        """The run broke off."""
        self.problem = problem
        self._close()

    def _write(self, part: str, text: str) -> None:
        if part == "final_answer":
            self.answer += text
            return
        step = self._open()
        if part == "thought":
            step.thought += text
        elif part == "action":
            step.tool += text
        else:
            step.arguments += text

    def _open(self) -> ShownStep:
        if not self.steps or self.steps[-1].phase == "done":
            self.steps.append(ShownStep())
        return self.steps[-1]

    def _call(self, call: ToolCall, phase: Phase) -> ShownStep:
        step = self._open()
        step.tool, step.phase = call.name, phase
        step.arguments, step.code = written(call)
        return step

    def _finish_step(self, finished: Step) -> None:
        # A call that was refused as a repetition ends its step without a result.
        step = self.steps[-1] if self.steps and finished.result is not None else self._open()
        step.thought, step.phase = finished.thought, "done"
        if finished.call is not None:
            step.tool = finished.call.name
            step.arguments, step.code = written(finished.call)
        elif self.answer and finished.thought.strip() == self.answer.strip():
            self.steps.pop()  # the thought was the answer

    def _close(self) -> None:
        self.steps = [step for step in self.steps if step.says_something]
        for step in self.steps:
            step.phase = "done"


def written(call: ToolCall) -> tuple[str, bool]:
    """(a call's arguments for people, whether they are code): code as it is, everything else as JSON."""
    if call.arguments is None:
        return call.raw.strip(), False
    if set(call.arguments) == {"code"}:
        return str(call.arguments["code"]), True
    return json.dumps(dict(call.arguments), ensure_ascii=False, indent=2, default=str), False
