"""What the academic sets came to: numbers with intervals from the rows of one or several parts of a run, as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from academic_sets import multiple_choice, wmt22
from shares import Share

from qwen_agent.errors import InputError

Row = dict[str, Any]
Z = 1.96
_SAME = ("set", "version", "model", "settings", "data", "harness")


@dataclass(frozen=True, slots=True)
class Score:
    """A figure of 0 to 100 with its 95 % interval, over ``n`` answers."""

    name: str
    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True, slots=True)
class Set:
    """A set of the report: the harness's task, its scores (the headline first), and what the original published.

    ``floor`` is what guessing gets, in per cent.
    """

    task: str
    scores: Callable[[Sequence[Row]], list[Score]]
    published: Mapping[str, float]
    differs: str
    chat: bool = False
    floor: float = 0.0


# ---- scores


def _share(name: str, hits: float, n: int) -> Score:
    share = Share(round(hits), n)
    low, high = share.interval()
    return Score(name, 100 * share.value, 100 * low, 100 * high, n)


def _micro(name: str, answered: Sequence[multiple_choice.Answered]) -> Score:
    return _share(name, sum(right for _, right in answered), len(answered))


def _macro(name: str, answered: Sequence[multiple_choice.Answered]) -> Score:
    """The interval is normal, with the variance of a mean over strata; a subject of one question counts as a coin."""
    strata = multiple_choice.by_subject(answered).values()
    value = multiple_choice.macro(answered)
    error = math.sqrt(sum(map(_variance, strata))) / len(strata)
    low, high = max(0.0, value - Z * error), min(1.0, value + Z * error)
    return Score(name, 100 * value, 100 * low, 100 * high, len(answered))


def _variance(rights: Sequence[float]) -> float:
    n = len(rights)
    share = sum(rights) / n
    return share * (1 - share) / (n - 1) if n > 1 else 0.25


def _exam(name: str, average: Callable[[str, Sequence[multiple_choice.Answered]], Score]) -> Callable[..., list[Score]]:
    def scores(rows: Sequence[Row]) -> list[Score]:
        answered = [(row["subject"], float(row["right"])) for row in rows]
        found = [average("all", answered)]
        for group, members in multiple_choice.groups(name).items():
            part = [answer for answer in answered if answer[0] in members]
            found += [average(group, part)] if part else []
        return found

    return scores


def _gsm8k(*rules: str) -> Callable[..., list[Score]]:
    def scores(rows: Sequence[Row]) -> list[Score]:
        return [_share(f"rule {rule}", sum(row[rule] for row in rows), len(rows)) for rule in rules]

    return scores


def _passed(rows: Sequence[Row]) -> list[Score]:
    return [_share("pass@1", sum(row["passed"] for row in rows), len(rows))]


def _bleu(rows: Sequence[Row]) -> list[Score]:
    value, half = wmt22.bleu_interval([(row["said"], row["answer"]) for row in rows], wmt22.RESAMPLES)
    return [Score("BLEU", value, max(0.0, value - half), value + half, len(rows))]


_LETTER = "letters are compared in float32; the original's second softmax in bfloat16 makes close ones tie"
SETS: Mapping[str, Set] = {
    "mmlu": Set(
        "qwen_mmlu",
        _exam("mmlu", _micro),
        {"Qwen-7B, 2023-08": 56.7, "Qwen-7B, 2023-09": 58.2},
        f"{_LETTER}; prompts over 2,048 tokens are whole here (--max-length 2048 cuts them as the original did)",
        floor=100 * multiple_choice.FLOOR,
    ),
    "ceval": Set(
        "qwen_ceval",
        _exam("ceval", _macro),
        {"Qwen-7B, 2023-08": 60.8},
        f"the val split, whose answers are public; {_LETTER}",
        floor=100 * multiple_choice.FLOOR,
    ),
    "cmmlu": Set(
        "qwen_cmmlu",
        _exam("cmmlu", _macro),
        {"Qwen-7B, 2023-08": 58.8, "Qwen-7B, 2023-09": 62.2},
        _LETTER,
        floor=100 * multiple_choice.FLOOR,
    ),
    "gsm8k": Set(
        "qwen_gsm8k",
        _gsm8k("base", "chat-2023-12"),
        {"Qwen-7B, 2023-08": 51.6, "Qwen-7B, 2023-09": 51.7},
        "the examples, unless --gsm8k-shots gives the original's; by the rule base, 98.8 is the most there is",
    ),
    "gsm8k-chat": Set(
        "qwen_gsm8k_chat",
        _gsm8k("chat-2023-08", "chat-2023-12"),
        {"Qwen-7B-Chat, 2023-08": 41.1},
        "nothing",
        chat=True,
    ),
    "humaneval": Set(
        "qwen_humaneval",
        _passed,
        {"Qwen-7B, 2023-08": 24.4, "Qwen-7B, 2023-09": 29.9},
        "tests run in a sandbox, of which nothing written can claim to have passed",
    ),
    "humaneval-chat": Set(
        "qwen_humaneval_chat",
        _passed,
        {"Qwen-7B-Chat, 2023-08": 24.4},
        "as above",
        chat=True,
    ),
    "wmt22": Set(
        "qwen_wmt22_en_zh",
        _bleu,
        {"Qwen-7B, 2023-08": 30.6},
        "the original's prompt, examples and tokenisation were never published",
    ),
}


# ---- parts


def read_parts(paths: Iterable[Path], *, partial: bool = False) -> dict[str, dict[str, Any]]:
    """The results of each set, its parts put together.

    Raises InputError if parts do not belong together, or if some are missing and ``partial`` does not allow it.
    """
    parts: dict[str, list[dict[str, Any]]] = {}
    for path in _files(paths):
        result = json.loads(path.read_text(encoding="utf-8"))
        parts.setdefault(result["set"], []).append(result)
    if not parts:
        raise InputError("there are no results: run the sets first")
    return {name: _merged(name, parts[name], partial) for name in SETS if name in parts}


def _files(paths: Iterable[Path]) -> list[Path]:
    found = [file for path in paths for file in (path.glob("*.json") if path.is_dir() else [path])]
    for path in found:
        if not path.is_file():
            raise InputError(f"there is no file {path}")
    return found


def _merged(name: str, parts: Sequence[dict[str, Any]], partial: bool) -> dict[str, Any]:
    first = parts[0]
    for part in parts[1:]:
        different = [key for key in _SAME if part[key] != first[key]]
        if different:
            raise InputError(f"the parts of {name} are of different runs: {', '.join(different)} differ")
    shards = [tuple(map(int, part["shard"].split("/"))) for part in parts]
    counts = {count for _, count in shards}
    if len(counts) > 1 or len(set(shards)) < len(shards):
        raise InputError(f"the parts of {name} overlap: {', '.join(sorted(part['shard'] for part in parts))}")
    count = counts.pop()
    missing = sorted(set(range(1, count + 1)) - {index for index, _ in shards})
    if missing and not partial:
        raise InputError(f"{name} is not complete: part {', '.join(map(str, missing))} is missing (--partial to go on)")
    merged = {key: first[key] for key in _SAME}
    rows = [row for part in parts for row in part["rows"]]
    return merged | {
        "rows": sorted(rows, key=lambda row: row["id"]),
        "parts": f"{count - len(missing)} of {count}",
        "complete": not missing,
        "cut": sum(part["cut"] for part in parts),
        "seconds": sum(part["seconds"] for part in parts),
    }


# ---- tables


def summary(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was measured, without the rows: the JSON report."""
    report: dict[str, Any] = {}
    for name, result in results.items():
        answered = [row for row in result["rows"] if not row["error"]]
        about = {key: value for key, value in result.items() if key != "rows"}
        report[name] = about | {
            "n": len(result["rows"]),
            "errors": len(result["rows"]) - len(answered),
            "empty": sum(not row["said"].strip() for row in result["rows"]),
            "scores": [asdict(score) for score in SETS[name].scores(answered)] if answered else [],
            "floor": SETS[name].floor,
            "published": dict(SETS[name].published),
            "differs": SETS[name].differs,
        }
    return report


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    report = summary(results)
    lines = [
        "| set | asked | errors | score | floor | published | what differs |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, part) for name, part in report.items()),
    ]
    for name, part in report.items():
        if len(part["scores"]) > 1:
            lines += ["", f"{name}:", "", "| | n | |", "|---|---|---|"]
            lines += [f"| {score['name']} | {score['n']} | {Score(**score)} |" for score in part["scores"]]
    return "\n".join([*lines, "", *_notes(report)]) + "\n"


def _row(name: str, part: Mapping[str, Any]) -> str:
    headline = str(Score(**part["scores"][0])) if part["scores"] else "–"
    published = ", ".join(f"{value} ({model})" for model, value in part["published"].items())
    incomplete = "" if part["complete"] else f" (INCOMPLETE: {part['parts']} parts)"
    floor = f"{part['floor']:.0f}"
    cells = (name + incomplete, part["n"], part["errors"], headline, floor, published, part["differs"])
    return f"| {' | '.join(map(str, cells))} |"


def _notes(report: Mapping[str, Any]) -> Iterable[str]:
    models = {json.dumps(part["model"]) for part in report.values()}
    limits = {str(part["settings"]["limit"] or "none") for part in report.values()}
    yield f"Model: {'; '.join(sorted(models))}. Limit per subject or set: {', '.join(sorted(limits))}."
    yield "Brackets: 95 %, Wilson's for shares of questions, of strata for means over subjects, bootstrap for BLEU."
    cut = sum(part["cut"] for part in report.values())
    if cut:
        yield f"{cut} prompts were longer than the model reads: only their ends were read."
