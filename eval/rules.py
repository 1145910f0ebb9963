"""The original's rules for one call, in both of its versions, to the letter: of texts alone, no model, no files.

``qwen-2023-08`` is evaluate_plugin.py of the table with 99 / 0.89 / 9.7 (Qwen-7B-Chat), ``qwen-2023-12`` the one that
came with the data of 2023-12-06. They take a text apart by the first "Action:", "Action Input:" and "Observation:",
with the oddities of that: a marker that is missing cuts one character off the end, and a text with two actions is read
as the first action with the first input. Full-width colons are no markers.

    Tool Selection   a call is there and names the right tool, case aside
    Tool Input       ROUGE-L (F) of the two inputs, normalised as JSON5, over tokens; also where there is no call
    False Positive   a call is there
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from qwen_agent.errors import MissingDependency

Tokenize = Callable[[str], Sequence[str]]
"""A text as the texts of its tokens."""


@dataclass(frozen=True, slots=True)
class Rules:
    """One version. ``selection_mark`` and ``call_mark`` are what must be in a text for it to count as a call."""

    name: str
    selection_mark: str
    call_mark: str
    unreadable_as: Callable[[str], str]
    """What stands for an input that is no JSON5."""

    def selects(self, text: str, right: str) -> bool:
        """Tool Selection of one text, ``right`` being the right text."""
        return self.selection_mark in text and parse(text)[0].lower() == parse(right)[0].lower()

    def calls(self, text: str) -> bool:
        """False Positive Error of one text."""
        return self.call_mark in text

    def input_rouge(self, text: str, right: str, tokenize: Tokenize) -> float:
        """Tool Input of one text, from 0 to 1. Raises MissingDependency without rouge-score or json5."""
        wanted, written = (self._tokens(parse(each)[1], tokenize) for each in (right, text))
        return float(_scorer().score(wanted, written)["rougeL"].fmeasure)

    def _tokens(self, raw: str, tokenize: Tokenize) -> str:
        return " ".join(tokenize(self._normalised(raw)))

    def _normalised(self, raw: str) -> str:
        loads = _json5().loads
        try:
            return json.dumps(loads(raw), ensure_ascii=False, sort_keys=True)
        except Exception:  # as the original: whatever json5 raises
            return self.unreadable_as(raw)


RULES: Mapping[str, Rules] = {
    rules.name: rules
    for rules in (
        Rules("qwen-2023-08", "Action:", "\nAction:", lambda raw: raw),
        Rules("qwen-2023-12", "\nAction: ", "\nAction: ", lambda raw: ""),
    )
}


def parse(text: str) -> tuple[str, str]:
    """The name and the raw input of the first call, as `process_res` of the original finds them."""
    text += "\n"
    action = text[text.find("Action:") + len("Action:") : text.find("Action Input:")].strip()
    raw = text[text.find("Action Input:") + len("Action Input:") : text.find("Observation:")].strip()
    return action, raw


class _ByWhitespace:
    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError:
        raise MissingDependency("rouge-score", "eval") from None
    return RougeScorer(["rougeL"], tokenizer=_ByWhitespace())


@cache
def _json5() -> Any:
    try:
        import json5
    except ImportError:
        raise MissingDependency("json5", "eval") from None
    return json5
