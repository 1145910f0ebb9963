"""The original's scores of rows with ``prompt``, ``response`` and ``gen``: same names, with what each row was worth.

A row without a text (``gen`` empty or blank) is an error: neither right nor wrong, and counted apart. The original
counts it as wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rules import Rules, Tokenize
from shares import Share
from tool_sets.files import rows


def scores(positive: Path | None, negative: Path | None, rules: Rules, tokenize: Tokenize) -> dict[str, Any]:
    """The report as JSON values. Each of ``rows`` has all three values; which counts is told by its ``file``.

    Raises SystemExit, naming file and row, for rows of another form.
    """
    paths = {"positive": positive, "negative": negative}
    read = {kind: _rows(path) for kind, path in paths.items() if path is not None}
    found = [_row(kind, number, row, rules, tokenize) for kind in read for number, row in enumerate(read[kind], 1)]
    good = {kind: [row for row in found if row["file"] == kind and not row["error"]] for kind in read}
    report: dict[str, Any] = {"rules": rules.name}
    if right := good.get("positive"):
        report["react_positive"] = {
            "action_right_rate": _mean([row["action_right"] for row in right]),
            "action_input_rouge": _mean([row["action_input_rouge"] for row in right]),
        }
    if none := good.get("negative"):
        report["react_negative"] = {"bad_rate": _mean([row["bad"] for row in none])}
    report["intervals"] = {
        "action_right_rate": Share(sum(row["action_right"] for row in right or ()), len(right or ())).interval(),
        "bad_rate": Share(sum(row["bad"] for row in none or ()), len(none or ())).interval(),
    }
    report["counts"] = {kind: {"n": len(read[kind]), "errors": len(read[kind]) - len(good[kind])} for kind in read}
    report["sha256"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in paths.values() if p is not None}
    report["rows"] = found
    return report


def as_text(report: Mapping[str, Any]) -> str:
    """The scores in the lines of a table."""
    lines = [f"rules {report['rules']}, tokens of ROUGE: {report['tokenizer']}"]
    for kind, names in {"positive": ("action_right_rate", "action_input_rouge"), "negative": ("bad_rate",)}.items():
        counts = report["counts"].get(kind)
        for name in names if counts else ():
            value = report.get(f"react_{kind}", {}).get(name)
            low, high = report["intervals"].get(name, (None, None))
            between = f"  [{low:.4f}, {high:.4f}]" if low is not None and value is not None else ""
            shown = "-" if value is None else f"{value:.4f}"
            lines.append(f"react_{kind}.{name}: {shown}{between}  ({counts['n']} rows, {counts['errors']} errors)")
    return "\n".join(lines)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise SystemExit(f"there is no file {path}")
    found = list(rows(path))
    for number, row in enumerate(found, 1):
        gen = row.get("gen", [])
        if not all(isinstance(row.get(key), str) for key in ("prompt", "response")) or not isinstance(gen, list):
            raise SystemExit(
                f"{path}, row {number}: needs 'prompt' and 'response', strings, and 'gen', a list of one text"
            )
        if not all(isinstance(text, str) for text in gen):
            raise SystemExit(f"{path}, row {number}: 'gen' holds {gen!r}, not texts")
    return found


def _row(kind: str, number: int, row: Mapping[str, Any], rules: Rules, tokenize: Tokenize) -> dict[str, Any]:
    text, right = next(iter(row.get("gen", [])), ""), row["response"]
    if not text.strip():
        error = "no text in 'gen'"
        return {
            "file": kind,
            "row": number,
            "error": error,
            "action_right": None,
            "action_input_rouge": None,
            "bad": None,
        }
    return {
        "file": kind,
        "row": number,
        "error": "",
        "action_right": rules.selects(text, right),
        "action_input_rouge": rules.input_rouge(text, right, tokenize),
        "bad": rules.calls(text),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
