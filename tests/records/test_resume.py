"""Going on with a run whose process was killed, paused or cancelled: in another process, from the log alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_agent import Agent, tool
from qwen_agent.errors import Drift
from qwen_agent.limits import Limits
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.runtime import text_of
from qwen_agent.records.log import Log, RunLog, read_log, to_json
from qwen_agent.records.replay import replay
from qwen_agent.tools import calculator
from qwen_agent.types import AgentResult, Fact, LimitReached, ModelWrote, StopReason, ToolFinished, ToolStarted

# A model that needs no memory of its own: what it says depends on what is in the prompt. Its second tool call kills
# the whole process, without a chance to clean up, as long as the file "armed" is there.
AGENT = """
import dataclasses, os, signal, sys
from pathlib import Path
from qwen_agent import Agent, tool
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.records.log import RunLog
from qwen_agent.types import Finished, Text, Usage

log, mode, armed = sys.argv[1], sys.argv[2], Path(sys.argv[3])


class Model:
    name, window = "stateless", 4000
    def count_tokens(self, prompt):
        return len(text_of(prompt).split())
    def score(self, prompt, choices):
        return [0.0 for _ in choices]
    def stream(self, prompt, config):
        done = text_of(prompt).count("Observation:") - 1  # one stands in the template
        said = [" a\\nAction: add\\nAction Input: {\\"a\\": 1, \\"b\\": 2}\\n",
                " b\\nAction: add\\nAction Input: {\\"a\\": 3, \\"b\\": 4}\\n",
                " c\\nFinal Answer: 7"][done]
        yield Chunk(said[:5])
        usage = Usage(self.count_tokens(prompt), 0, len(said.split()), 0.01, 0.02)
        stop = None if done == 2 else "Observation:"
        yield Chunk(said[5:], finish="stop", stop=stop, output=(Text(said),), usage=usage)


@tool
def add(a: int, b: int) -> int:
    "Adds two numbers."
    if a == 3 and armed.exists():
        armed.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return a + b


asking = dataclasses.replace(add, approval="ask") if mode.startswith("ask") else add
agent = Agent(Model(), [asking])
if "resume" in mode:
    approved = {"approve": True, "refuse": False}.get(mode.rpartition("-")[2])
    opened = RunLog.resumed(log, approved=approved)
else:
    opened = RunLog(log)
with opened:
    events = agent.resume(opened.facts) if opened.past else agent.stream("How much?")
    for event in opened.record(events):
        if isinstance(event, Finished):
            print(event.result.answer, event.result.stop_reason.value)
"""


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the agent above in a process of its own."""
    (tmp_path / "agent.py").write_text(AGENT, encoding="utf-8")

    def run(mode: str, log: str = "run.jsonl") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "agent.py"), str(tmp_path / log), mode, str(tmp_path / "armed")]
        root = str(Path(__file__).parents[2])
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONPATH": root}
        )

    return run


def facts(log: Log) -> list[Any]:
    """All that happened, without how long it took."""

    def untimed(value: Any) -> Any:
        if isinstance(value, dict):
            timed = ("elapsed", "seconds", "prefill_seconds", "decode_seconds")
            return {key: untimed(each) for key, each in value.items() if key not in timed}
        return [untimed(each) for each in value] if isinstance(value, list) else value

    return [untimed(to_json(fact)) for fact in log.facts]


def result(log: Log) -> AgentResult:
    assert log.finished is not None
    return log.finished.result


def test_a_killed_run_goes_on_in_another_process(process: Any, tmp_path: Path) -> None:
    undisturbed = process("run", "undisturbed.jsonl")
    assert undisturbed.stdout == "7 final_answer\n", undisturbed.stderr
    (tmp_path / "armed").touch()
    killed = process("run")
    assert killed.returncode == -signal.SIGKILL
    broken = read_log(tmp_path / "run.jsonl")
    assert broken.finished is None
    assert isinstance(broken.events[-1], ToolStarted)
    assert len([fact for fact in broken.facts if isinstance(fact, ToolFinished)]) == 1
    resumed = process("resume")
    assert resumed.stdout == "7 final_answer\n", resumed.stderr
    whole, again = read_log(tmp_path / "undisturbed.jsonl"), read_log(tmp_path / "run.jsonl")
    assert facts(again) == facts(whole)
    assert [type(event) for event in again.events] == [type(event) for event in whole.events]
    assert result(again).transcript == result(whole).transcript
    assert replay(again).same


@pytest.mark.parametrize(("decision", "content"), [("approve", "3"), ("refuse", "Error: the user does not allow")])
def test_a_paused_run_goes_on_in_another_process(process: Any, tmp_path: Path, decision: str, content: str) -> None:
    assert process("ask-run").stdout == " paused\n"
    waiting = read_log(tmp_path / "run.jsonl").waiting
    assert waiting is not None
    assert waiting.arguments == {"a": 1, "b": 2}
    second = process(f"ask-resume-{decision}")
    assert second.stdout == " paused\n", second.stderr  # a decision holds for one call
    third = process(f"ask-resume-{decision}")
    assert third.stdout == "7 final_answer\n", third.stderr
    log = read_log(tmp_path / "run.jsonl")
    first = result(log).steps[0].result
    assert first is not None
    assert first.content.startswith(content)
    assert replay(log).same


# ---- in one process: the edges

CALL = 'Thought: t\nAction: height\nAction Input: {"thing": "tower"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: 330 m"


@tool
def height(thing: str) -> str:
    """The height of a thing."""
    return f"The {thing} is 330 m tall."


def broken_after(path: Path, agent: Agent, kind: type[Fact], question: str = "How tall?") -> None:
    """Log a run up to its first fact of this kind."""
    with RunLog(path) as log:
        for event in log.record(agent.stream(question)):
            if isinstance(event, kind):
                return


def resume(path: Path, agent: Agent) -> AgentResult:
    with RunLog.resumed(path) as log:
        for _ in log.record(agent.resume(log.facts)):
            pass
    return result(read_log(path))


def test_nothing_that_is_known_is_asked_again(tmp_path: Path, scripted: Any) -> None:
    called: list[str] = []

    @tool
    def counted(thing: str) -> str:
        called.append(thing)
        return thing

    call = CALL.replace("height", "counted")
    broken_after(tmp_path / "run.jsonl", Agent(scripted(call), [counted]), ToolFinished)
    runtime = scripted(ANSWER)
    assert resume(tmp_path / "run.jsonl", Agent(runtime, [counted])).answer == "330 m"
    assert called == ["tower"]
    assert len(runtime.prompts) == 1


def test_a_resumed_run_keeps_its_limits(tmp_path: Path, scripted: Any) -> None:
    limits = Limits(steps=1)
    broken_after(tmp_path / "run.jsonl", Agent(scripted(CALL), [height], limits=limits), ToolFinished)
    done = resume(tmp_path / "run.jsonl", Agent(scripted(" 330 m"), [height], limits=limits))
    assert (done.stop_reason, done.answer) == (StopReason.MAX_STEPS, "330 m")


def test_a_run_that_was_killed_at_its_limit_still_gets_its_answer(tmp_path: Path, scripted: Any) -> None:
    agent = Agent(scripted(CALL, " 330 m"), [height], limits=Limits(tool_calls=1))
    broken_after(tmp_path / "run.jsonl", agent, LimitReached)
    done = resume(tmp_path / "run.jsonl", Agent(scripted(" 330 m"), [height], limits=Limits(tool_calls=1)))
    assert (done.stop_reason, done.answer) == (StopReason.MAX_TOOL_CALLS, "330 m")


def test_another_agent_cannot_go_on_with_the_run(tmp_path: Path, scripted: Any) -> None:
    broken_after(tmp_path / "run.jsonl", Agent(scripted(CALL), [height]), ToolFinished)
    before = (tmp_path / "run.jsonl").read_bytes()
    with pytest.raises(Drift):
        resume(tmp_path / "run.jsonl", Agent(scripted(ANSWER), [height], system="You are terse."))
    assert (tmp_path / "run.jsonl").read_bytes() == before


class Stateless:
    """A model whose words depend on the prompt alone, so it goes on wherever a run broke off."""

    def __init__(self, scripted: Any, *outputs: str) -> None:
        self.name, self.window, self.outputs, self.scripted = "scripted", 10_000, outputs, scripted
        self.count_tokens = scripted().count_tokens

    def score(self, prompt: Any, choices: Any) -> list[float]:
        return []

    def stream(self, prompt: Any, config: Any) -> Any:
        done = text_of(prompt).count("Observation:") - 1  # one stands in the template
        return self.scripted(self.outputs[done], weights=(0.5, 0.5)).stream(prompt, config)


def test_a_log_cut_at_any_byte_is_gone_on_with(tmp_path: Path, scripted: Any) -> None:
    """A write may stop anywhere: what is left is resumed to the same end, with every fact in it once."""
    agent = Agent(Stateless(scripted, CALL, CALL.replace("tower", "bridge"), ANSWER), [height])
    with RunLog(tmp_path / "whole.jsonl") as log:
        for _ in log.record(agent.stream("How tall?")):
            pass
    whole, data = read_log(log.path), log.path.read_bytes()
    path = tmp_path / "cut.jsonl"
    for cut in range(data.index(b"\n") + 1, len(data), 23):
        path.write_bytes(data[:cut])
        assert resume(path, agent).transcript == result(whole).transcript
        assert facts(read_log(path)) == facts(whole)
        assert [type(event) for event in read_log(path).events] == [type(event) for event in whole.events]


# ---- with the real thing


def test_the_embedded_model_goes_on_to_the_same_answer(embedded: LocalRuntime, tmp_path: Path) -> None:
    question = "What is 12 * 12 minus 100?"
    agent = Agent(embedded, [calculator])
    undisturbed = agent.run(question)
    assert undisturbed.steps[0].call is not None
    broken_after(tmp_path / "run.jsonl", agent, ToolFinished, question)
    done = resume(tmp_path / "run.jsonl", agent)
    assert (done.answer, done.transcript) == (undisturbed.answer, undisturbed.transcript)
    log = read_log(tmp_path / "run.jsonl")
    assert any(part.token_ids for fact in log.facts if isinstance(fact, ModelWrote) for part in tokens(fact))
    again = replay(log)
    assert again.same, again.report()
    assert again.result is not None
    assert again.result.written == done.written


def tokens(fact: ModelWrote) -> list[Any]:
    return [part for part in fact.output if hasattr(part, "token_ids")]
