"""HumanEval by the scorer of eval/humaneval.py: completions tested in the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets
from humaneval import ASKED, Problem, body_in, passes, read

from academic_sets.files import Part, Row, dataset
from qwen_agent.errors import InputError

_NAMES = ("task_id", "prompt", "entry_point", "test")


def continued(data: str, limit: int | None = None, shard: str = "1/1", **_: object) -> dict[str, datasets.Dataset]:
    return _asked(data, Part.of(limit, shard), "")


def asked_for(data: str, limit: int | None = None, shard: str = "1/1", **_: object) -> dict[str, datasets.Dataset]:
    return _asked(data, Part.of(limit, shard), ASKED)


def _asked(data: str, part: Part, opening: str) -> dict[str, datasets.Dataset]:
    folder = Path(data) / "humaneval"
    found = [path for path in (folder / "HumanEval.jsonl", folder / "HumanEval.jsonl.gz") if path.is_file()]
    if not found:
        raise InputError(f"{folder} has no HumanEval.jsonl nor HumanEval.jsonl.gz: see eval/EVALUATION.md")
    return dataset(part.take([_row(problem, opening) for problem in read(found[0])]))


def _row(problem: Problem, opening: str) -> Row:
    return {
        "id": problem.task_id,
        "answer": problem.canonical_solution,
        "asked": opening + problem.prompt,
        **{name: getattr(problem, name) for name in _NAMES},
    }


def score_continued(doc: Row, results: Sequence[str]) -> dict[str, float]:
    return _score(doc, results[0])


def score_asked_for(doc: Row, results: Sequence[str]) -> dict[str, float]:
    return _score(doc, body_in(_problem(doc), results[0]))


def _score(doc: Row, completion: str) -> dict[str, float]:
    return {"passed": float(passes(_problem(doc), completion).passed)}


def _problem(doc: Row) -> Problem:
    return Problem(**{name: doc[name] for name in _NAMES})
