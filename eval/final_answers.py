"""Is a final answer right? Exact checks of numbers and words, against a question's ``check``.

- ``number``: the answer has this number (within ``tolerance``, else to a part in 10**6), and no number of its own
  making: every other one stands in the question or in an observation. Thousands may be grouped with commas.
- ``words``: of each list of alternatives one is in the answer, as whole words, in any case.
- ``never``: none of these is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})+(?:\.\d+)?(?![\d])|(?<![\w.])[-−]?\d+(?:\.\d+)?")


def right(check: Mapping[str, Any], answer: str, question: str, observations: Sequence[str]) -> bool:
    """Whether the answer passes. An empty one never does."""
    if not answer.strip():
        return False
    if "number" in check and not _number_is_right(check, answer, [question, *observations]):
        return False
    return all(_any_of(words, answer) for words in check.get("words", ())) and not _any_of(
        check.get("never", ()), answer
    )


def numbers_in(text: str) -> list[float]:
    """The numbers written in digits, in their order. A sign counts where nothing stands before it."""
    return [float(found.replace(",", "").replace("−", "-")) for found in _NUMBER.findall(text)]


def _number_is_right(check: Mapping[str, Any], answer: str, known: Sequence[str]) -> bool:
    expected, found = check["number"], numbers_in(answer)
    right_ones = [x for x in found if _near(x, expected, check.get("tolerance", 0.0))]
    grounded = {x for text in known for x in numbers_in(text)}
    return bool(right_ones) and all(x in right_ones or any(_near(x, y, 0.0) for y in grounded) for x in found)


def _near(x: float, y: float, tolerance: float) -> bool:
    return math.isclose(x, y, rel_tol=1e-6, abs_tol=tolerance)


def _any_of(words: Sequence[str], text: str) -> bool:
    # "can't" is written with either apostrophe.
    text = text.replace("\u2019", "'")
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)
