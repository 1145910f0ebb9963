"""MMLU, C-Eval and CMMLU, five shots, as Qwen's evaluate_mmlu.py, evaluate_ceval.py and evaluate_cmmlu.py ask them.

The answer is the letter that the model finds likeliest as the next token. The original takes the softmax of bfloat16
probabilities twice, so that close letters tie and the earlier one wins; here log-probabilities in float32 decide. And
it reads CSV files with pandas, which turns an option "None" or "NA" into "nan"; here it stays what it is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets

from academic_sets.files import LETTERS, Part, Row, dataset, read_exam
from qwen_agent.errors import InputError

SHOTS = 5
FLOOR = 1 / len(LETTERS)
Answered = tuple[str, float]  # the subject of a question, and 1 if it was answered right


@dataclass(frozen=True, slots=True)
class Exam:
    """How a set is written: its scored split, the words before question and answer, a heading for its subjects."""

    split: str
    header: bool
    question: str
    answer: str
    space: str
    heading: str = ""


EXAMS = {
    "mmlu": Exam(
        "test",
        header=False,
        question="Question: ",
        answer="Answer:",
        space=" ",
        heading="The following are multiple choice questions (with answers) about {}.\n\n",
    ),
    "ceval": Exam("val", header=True, question="问题：", answer="答案：", space=""),
    "cmmlu": Exam("test", header=True, question="问题：", answer="答案：", space=""),
}


def mmlu(data: str, limit: int | None = None, shard: str = "1/1", **_: object) -> dict[str, datasets.Dataset]:
    return exam("mmlu", Path(data) / "mmlu", Part.of(limit, shard))


def ceval(data: str, limit: int | None = None, shard: str = "1/1", **_: object) -> dict[str, datasets.Dataset]:
    return exam("ceval", Path(data) / "ceval", Part.of(limit, shard))


def cmmlu(data: str, limit: int | None = None, shard: str = "1/1", **_: object) -> dict[str, datasets.Dataset]:
    return exam("cmmlu", Path(data) / "cmmlu", Part.of(limit, shard))


def exam(name: str, folder: Path, part: Part) -> dict[str, datasets.Dataset]:
    """The part's questions with their whole prompts: id, subject, prompt, answer."""
    style = EXAMS[name]
    shots = {subject: list(rows) for subject, rows in groupby(read_exam(folder, "dev", header=style.header), _subject)}
    rows = read_exam(folder, style.split, header=style.header)
    _check_subjects(name, {row["subject"] for row in rows}, set(shots))
    asked: list[Row] = []
    for subject, group in groupby(rows, _subject):
        opening = _opening(style, subject, shots[subject])
        asked += [
            {
                "id": f"{subject}/{number}",
                "subject": subject,
                "prompt": opening + _asked(style, row),
                "answer": row["answer"],
            }
            for number, row in enumerate(group)
        ]
    return dataset(part.take(asked))


def _subject(row: Row) -> str:
    return str(row["subject"])


def _check_subjects(name: str, scored: set[str], shown: set[str]) -> None:
    known = set(subjects(name))
    if scored - known:
        raise InputError(f"{name} has no subject {', '.join(sorted(scored - known))}: is this the right folder?")
    if scored - shown:
        raise InputError(f"the dev split has no examples for {', '.join(sorted(scored - shown))}")


def _opening(style: Exam, subject: str, shots: Sequence[Row]) -> str:
    examples = (f"{_asked(style, row)}{style.space}{row['answer']}\n\n" for row in shots[:SHOTS])
    return style.heading.format(subject.replace("_", " ")) + "".join(examples)


def _asked(style: Exam, row: Row) -> str:
    options = "".join(f"\n{letter}. {row[letter]}" for letter in LETTERS)
    return f"{style.question}{row['question']}{options}\n{style.answer}"


# ---- scores


@cache
def groups(name: str) -> Mapping[str, Sequence[str]]:
    """The groups that the original reports, each with its subjects; a subject may be in several."""
    loaded: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("subjects.json").read_text())
    return loaded[name]


def subjects(name: str) -> list[str]:
    return sorted({subject for members in groups(name).values() for subject in members})


def score_mmlu(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Answered]:
    return _score("mmlu", doc, results)


def score_ceval(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Answered]:
    return _score("ceval", doc, results)


def score_cmmlu(doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Answered]:
    return _score("cmmlu", doc, results)


def _score(name: str, doc: Row, results: Sequence[tuple[float, bool]]) -> dict[str, Answered]:
    """``results``: log-probability of each letter, and whether it is the likeliest token of all."""
    answered = (doc["subject"], float(choice(results) == doc["answer"]))
    counted_in = [group for group, members in groups(name).items() if doc["subject"] in members]
    return dict.fromkeys(("acc", *counted_in), answered)


def choice(results: Sequence[tuple[float, Any]]) -> str:
    """The likeliest letter; of equal ones the first."""
    likelihoods = [likelihood for likelihood, _ in results]
    return LETTERS[likelihoods.index(max(likelihoods))]


def micro(answered: Sequence[Answered]) -> float:
    """The share of right answers: MMLU's average."""
    return sum(right for _, right in answered) / len(answered)


def macro(answered: Sequence[Answered]) -> float:
    """The mean of the subjects' shares: C-Eval's and CMMLU's average."""
    shares = [sum(rights) / len(rights) for rights in by_subject(answered).values()]
    return sum(shares) / len(shares)


def by_subject(answered: Sequence[Answered]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for subject, right in answered:
        found[subject].append(right)
    return found
