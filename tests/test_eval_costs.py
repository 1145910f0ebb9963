"""The scripts that measure what the agent and the grammar cost run, and measure what they say. Nothing is timed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qwen_agent.llm.local import LocalRuntime
from qwen_agent.types import StopReason

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "eval"))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_overhead_names_what_it_did_not_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overhead = module("overhead")

    def missing(package: str) -> str:
        raise overhead.PackageNotFoundError(package)

    monkeypatch.setattr(overhead, "version", missing)
    monkeypatch.setattr(sys, "argv", ["overhead.py", "--steps", "3", "--repeat", "1"])
    overhead.main()
    out = capsys.readouterr().out
    assert "| ours, streamed | " in out
    assert "not measured: smolagents, langchain" in out


def test_a_step_reads_its_observation_and_little_more(embedded: LocalRuntime) -> None:
    reuse = module("reuse")
    rows, reason = reuse.measure(LocalRuntime(embedded.model, embedded.tokenizer), 3)
    assert reason is StopReason.FINAL_ANSWER
    assert len(rows) == 4
    assert all(row.usage.prefilled_tokens - row.observed <= 8 for row in rows[1:])
    assert len(list(reuse.table(rows))) == 4


def test_the_same_text_is_written_with_and_without_a_grammar(embedded: LocalRuntime) -> None:
    grammar_cost = module("grammar_cost")
    rounds = grammar_cost.measure(embedded, 1)
    assert len({row.text for row in rounds.values()}) == 1
    free, appended, sampled = rounds.values()
    assert free.parts == [(0.0, 0.0, 0.0)]
    assert appended.passes < sampled.passes == sampled.tokens


def test_the_grammar_is_measured_on_a_vocabulary_alone() -> None:
    lines = list(module("grammar_cost").alone(ROOT / "tests" / "data" / "qwen.tiktoken.xz", 1))
    assert lines[0].startswith("151851 tokens")
    assert "tokens were chosen" in lines[-1]
