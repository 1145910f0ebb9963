"""The cassette fixture, as a user's tests meet it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import qwen_agent

pytest_plugins = ["pytester"]

# The tests of a user: a model that must be loaded only to record, and a tool whose description may change.
TESTS = """
import os
import pytest
from qwen_agent import Agent, tool
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.types import Text, Usage


class Model:
    name, window = "model", 4000
    def count_tokens(self, prompt):
        return len(text_of(prompt).split())
    def stream(self, prompt, config):
        done = text_of(prompt).count("Observation:") > 1
        said = " b\\nFinal Answer: 18 degrees" if done else ' a\\nAction: weather\\nAction Input: {"city": "Oslo"}\\n'
        stop = None if done else "Observation:"
        yield Chunk(said, finish="stop", stop=stop, output=(Text(said),), usage=Usage(1, 0, 1))


def load():
    with open("loaded", "a") as file:
        file.write("x")
    return Model()


def weather(city: str) -> str:
    with open("called", "a") as file:
        file.write("x")
    return "18 degrees"


def agent(runtime=None):
    described = tool(description=os.environ.get("DESCRIPTION", "The weather of a city."))(weather)
    return Agent(runtime or load(), [described])


def test_oslo(cassette):
    assert cassette(agent, "How warm is it in Oslo?").answer == "18 degrees"


class TestMore:
    @pytest.mark.parametrize("question", ["Warm?", "Cold/wet?"])
    def test_twice(self, cassette, question):
        first, second = cassette(agent, question), cassette(agent, question + "!")
        assert first.answer == second.answer
"""


@pytest.fixture
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    # By name, since the package may be installed (with its entry point) or not.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_weather=TESTS)
    pytester.makeini("[pytest]\naddopts = -p qwen_agent.pytest_plugin -p no:cacheprovider\n")
    return pytester


def times(user: pytest.Pytester, name: str) -> int:
    path = user.path / name
    return len(path.read_text()) if path.exists() else 0


def test_without_a_cassette_the_test_fails_with_the_command(user: pytest.Pytester) -> None:
    done = user.runpytest("-k", "oslo")
    done.assert_outcomes(failed=1, deselected=2)
    done.stdout.fnmatch_lines(
        ["there is no cassette *test_oslo.jsonl; record it: pytest 'test_weather.py::test_oslo' --record"]
    )
    assert times(user, "loaded") == 0


def test_a_run_is_recorded_once_and_then_repeated_without_model_and_tools(user: pytest.Pytester) -> None:
    user.runpytest("--record").assert_outcomes(passed=3)
    assert (times(user, "loaded"), times(user, "called")) == (5, 5)
    user.runpytest().assert_outcomes(passed=3)
    user.runpytest("--record").assert_outcomes(passed=3)
    assert (times(user, "loaded"), times(user, "called")) == (5, 5)
    names = sorted(path.name for path in (user.path / "cassettes" / "test_weather").iterdir())
    assert len(names) == 5
    assert "test_oslo.jsonl" in names
    assert {"TestMore.test_twice[Warm_]", "TestMore.test_twice[Cold_wet_]"} == {
        name.rpartition("]")[0] + "]" for name in names if name != "test_oslo.jsonl"
    }


def test_another_agent_fails_with_the_drift_and_can_be_recorded_anew(
    user: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.runpytest("-k", "oslo", "--record").assert_outcomes(passed=1, deselected=2)
    monkeypatch.setenv("DESCRIPTION", "How warm a city is.")
    done = user.runpytest("-k", "oslo")
    done.assert_outcomes(failed=1, deselected=2)
    done.stdout.fnmatch_lines(
        [
            "*the agent does something else now",
            "step 1, the prompt:",
            "*the log: *The weather of a city*",
            "*the replay: *How warm a city is*",
            "changed: tools.weather.description: The weather of a city. -> How warm a city is.",
            "If that is meant, record it anew: pytest 'test_weather.py::test_oslo' --record=all",
        ]
    )
    assert times(user, "loaded") == 1
    user.runpytest("-k", "oslo", "--record=all").assert_outcomes(passed=1, deselected=2)
    user.runpytest("-k", "oslo").assert_outcomes(passed=1, deselected=2)
    assert times(user, "loaded") == 2


def test_another_question_is_no_other_run_of_the_same_cassette(user: pytest.Pytester) -> None:
    user.runpytest("-k", "oslo", "--record").assert_outcomes(passed=1, deselected=2)
    user.makepyfile(test_weather=TESTS.replace("How warm is it in Oslo?", "And in Bergen?"))
    done = user.runpytest("-k", "oslo")
    done.assert_outcomes(failed=1, deselected=2)
    done.stdout.fnmatch_lines(["*the test asks something else now"])


def test_an_agent_itself_will_do_and_keeps_its_runtime_unused(user: pytest.Pytester) -> None:
    user.makepyfile(
        test_weather=TESTS.partition("def test_oslo")[0]
        + "def test_oslo(cassette):\n    assert cassette(agent(Model()), 'Warm?').answer == '18 degrees'\n"
        + "def test_made(cassette):\n    assert cassette(lambda: agent(Model()), 'Warm?').answer == '18 degrees'\n"
    )
    user.runpytest("--record").assert_outcomes(passed=2)
    user.runpytest().assert_outcomes(passed=2)
    assert times(user, "called") == 2


def test_a_run_that_fails_leaves_no_cassette(user: pytest.Pytester) -> None:
    user.makepyfile(test_weather=TESTS.replace("return Model()", "return None"))
    user.runpytest("-k", "oslo", "--record").assert_outcomes(failed=1, deselected=2)
    assert list((user.path / "cassettes").rglob("*.*")) == []


def test_a_cassette_is_an_ordinary_log(user: pytest.Pytester) -> None:
    user.runpytest("-k", "oslo", "--record")
    path: Path = user.path / "cassettes" / "test_weather" / "test_oslo.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert (lines[0]["event"], lines[-1]["event"]) == ("run_started", "finished")


def test_the_plugin_loads_nothing_heavy(user: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(qwen_agent.__file__).parent.parent))
    user.makepyfile(test_weather="import sys\ndef test_it():\n    assert not {'torch', 'pydantic'} & set(sys.modules)")
    user.runpytest_subprocess().assert_outcomes(passed=1)
