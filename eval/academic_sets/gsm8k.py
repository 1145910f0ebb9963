"""GSM8K as Qwen asks it (8 worked examples for base models, the bare question in a chat) and by its three rules.

- ``base`` (evaluate_gsm8k.py): the last run of digits must be the number after "####". Runs of digits have no sign,
  comma or fraction, so 16 of the 1,319 right answers cannot be given.
- ``chat-2023-08`` (evaluate_chat_gsm8k.py): the last run of digits of the reply must be that of the worked solution.
- ``chat-2023-12``: the last number, with sign, commas and fraction, must be within 1e-4 of the solution's.

The original evaluates what it finds as Python. Here it is only read as a number, with the same outcome: what Python
does not take as a literal, as "007", is no number.

The original's examples are its file eval/gsm8k_prompt.txt, which ``shots`` names. Without it they are the eight of
Wei et al. 2022 (arXiv 2201.11903, table 20) as lm-evaluation-harness ships them, in the original's layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import datasets
import yaml

from academic_sets.files import Part, Row, dataset, read_lines
from qwen_agent.errors import InputError

THINK = "Let's think step by step"
_DIGITS = re.compile(r"\d+")
_FINAL = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER = re.compile(
    r"[+-]?(?=\.?[0-9])"
    r"(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d*)"  # 1,234 or 1234; in 1,2345 the comma ends a number
    r"(?:\.\d*)?"
)
_LITERAL = re.compile(r"-?(?:0+|[1-9][0-9]*|[0-9]+\.[0-9]*|\.[0-9]+)")
_LONGEST = 4300  # digits of an integer that Python reads


# ---- prompts


def few_shot(
    data: str, limit: int | None = None, shard: str = "1/1", shots: str | None = None, **_: object
) -> dict[str, datasets.Dataset]:
    """``shots``: a file with the worked examples, as the original's gsm8k_prompt.txt."""
    opening = wei_shots() if shots is None else _read_shots(Path(shots))
    return _asked(data, Part.of(limit, shard), lambda question: f"{opening}\nQuestion: {question}\n{THINK}\n")


def zero_shot(data: str, limit: int | None = None, shard: str = "1/1", **_: object) -> dict[str, datasets.Dataset]:
    return _asked(data, Part.of(limit, shard), lambda question: question)


def _asked(data: str, part: Part, prompt: Callable[[str], str]) -> dict[str, datasets.Dataset]:
    rows = read_lines(Path(data) / "gsm8k", "test")
    asked = [
        {"id": str(number), "prompt": prompt(row["question"]), "answer": row["answer"]}
        for number, row in enumerate(rows)
    ]
    return dataset(part.take(asked))


def _read_shots(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the original's eval/gsm8k_prompt.txt, or no --gsm8k-shots")
    return path.read_text(encoding="utf-8")


def wei_shots() -> str:
    task = yaml.safe_load((files("lm_eval") / "tasks/gsm8k/gsm8k-cot.yaml").read_text(encoding="utf-8"))
    samples = task["fewshot_config"]["samples"]
    return "\n".join(f"Question: {sample['question']}\n{THINK}\n{sample['target']}\n" for sample in samples)


# ---- scores


def score(doc: Row, results: Sequence[str]) -> dict[str, float]:
    """Right or wrong by each rule."""
    return {name: float(rule(results[0], doc["answer"])) for name, rule in RULES.items()}


def base(reply: str, solution: str) -> bool:
    final = _FINAL.search(solution)
    return final is not None and _equal(_last_digits(reply), _literal(final[1].strip().replace(",", "")))


def chat_2023_08(reply: str, solution: str) -> bool:
    return _equal(_last_digits(reply), _last_digits(solution))


def chat_2023_12(reply: str, solution: str) -> bool:
    said, right = _last_number(reply), _last_number(solution)
    return said is not None and right is not None and math.isclose(said, right, rel_tol=0, abs_tol=1e-4)


RULES: Mapping[str, Callable[[str, str], bool]] = {
    "base": base,
    "chat-2023-08": chat_2023_08,
    "chat-2023-12": chat_2023_12,
}


def _equal(said: float | None, right: float | None) -> bool:
    return said is not None and said == right


def _last_digits(text: str) -> float | None:
    found = _DIGITS.findall(text)
    return _literal(found[-1]) if found else None


def _last_number(text: str) -> float | None:
    found = _NUMBER.findall(text)
    return _literal(found[-1].replace(",", "").replace("+", "")) if found else None


def _literal(text: str) -> float | None:
    """The number that Python reads in a literal; None if it reads none."""
    if _LITERAL.fullmatch(text) is None or len(text) > _LONGEST:
        return None
    try:
        return float(text) if "." in text else int(text)
    except OverflowError:
        return None
