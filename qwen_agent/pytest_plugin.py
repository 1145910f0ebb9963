"""A pytest fixture that records an agent's runs once and repeats them ever after, without a model.

    def weather_agent(runtime=None):
        return Agent(runtime or load_runtime("embedded"), tools=[get_current_weather])

    def test_the_weather_in_oslo(cassette):
        result = cassette(weather_agent, "What's the weather like in Oslo?")
        assert "18" in result.answer

``pytest --record`` runs what has no cassette yet, with the model and the tools, and writes a log to
``cassettes/<test file>/<test>.jsonl`` beside the test file; ``--record=all`` records anew. Without it, the run is
repeated from that log, and the test fails where the agent of today parts from it.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from qwen_agent.llm.runtime import Runtime
    from qwen_agent.react import Agent
    from qwen_agent.types import AgentResult, Message


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("qwen_agent").addoption(
        "--record",
        nargs="?",
        const="missing",
        choices=("missing", "all"),
        help="Record agents' runs that have no cassette yet, or 'all' of them anew. Write it last, or with =.",
    )


@pytest.fixture
def cassette(request: pytest.FixtureRequest) -> Cassette:
    """``cassette(agent, question, history=())`` -> AgentResult. See the top of qwen_agent/pytest_plugin.py."""
    return Cassette(request)


class Cassette:
    """The runs of one test. A test with several has a file for each, in their order."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._record: str | None = request.config.getoption("--record")
        self._nodeid = request.node.nodeid
        self._folder = request.node.path.parent / "cassettes" / request.node.path.stem
        self._runs = 0

    def __call__(
        self, agent: Agent | Callable[..., Agent], question: str, history: Sequence[Message] = ()
    ) -> AgentResult:
        """Run the agent, from the cassette if there is one; fails the test where it parts from it.

        ``agent`` may be a function that makes one. If it has a parameter, it is called without it to record, and
        with a runtime that needs no model to repeat; so the model is loaded only when there is something to record.
        """
        __tracebackhide__ = True
        self._runs += 1
        path = self._folder / f"{_file_name(self._nodeid)}{f'-{self._runs}' if self._runs > 1 else ''}.jsonl"
        if self._record == "all" or (self._record and not path.exists()):
            return _recorded(path, _made(agent), question, history)
        if not path.exists():
            pytest.fail(f"there is no cassette {path}; record it: {self._command('')}", pytrace=False)
        return self._repeated(path, agent, question, history)

    def _repeated(self, path: Path, agent: Any, question: str, history: Sequence[Message]) -> AgentResult:
        __tracebackhide__ = True
        from qwen_agent.records.log import read_log
        from qwen_agent.records.replay import ReplayRuntime, replay

        log = read_log(path)
        if (log.started.question, log.started.history) != (question, tuple(history)):
            self._fail(path, "the test asks something else now")
        runtime = ReplayRuntime(log.started.agent["model"], log.started.window)
        done = replay(log, _made(agent, runtime))
        if not done.same or done.result is None:
            self._fail(path, "the agent does something else now\n" + done.report())
        return done.result

    def _fail(self, path: Path, problem: str) -> NoReturn:
        __tracebackhide__ = True
        pytest.fail(f"{path}: {problem}\nIf that is meant, record it anew: {self._command('=all')}", pytrace=False)

    def _command(self, value: str) -> str:
        return f"pytest '{self._nodeid}' --record{value}"


def _recorded(path: Path, agent: Agent, question: str, history: Sequence[Message]) -> AgentResult:
    from qwen_agent.records.log import RunLog
    from qwen_agent.types import Finished

    unfinished = path.with_suffix(".unfinished")  # so that a run that fails leaves no cassette
    unfinished.unlink(missing_ok=True)
    try:
        with RunLog(unfinished) as log:
            *_, last = log.record(agent.stream(question, history))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    assert isinstance(last, Finished)
    return last.result


def _made(agent: Agent | Callable[..., Agent], runtime: Runtime | None = None) -> Agent:
    from qwen_agent.react import Agent

    if isinstance(agent, Agent):
        return agent
    wanted = runtime is not None and inspect.signature(agent).parameters
    return agent(runtime) if wanted else agent()


def _file_name(nodeid: str) -> str:
    """The test's name, with its class and parameters, as a file name that every system takes."""
    name = nodeid.partition("::")[2].replace("::", ".")
    safe = re.sub(r"[^\w.\[\]-]", "_", name)[:120]
    return safe if safe == name else f"{safe}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
