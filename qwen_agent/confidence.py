"""A value for ``Agent(call_threshold=...)``, chosen on questions for which the right decision is known.

    threshold = pick_threshold(probabilities, should_call, false_positive_rate=0.05)
    agent = dataclasses.replace(agent, call_threshold=threshold.value)

The probabilities are those of the first steps: ``result.steps[0].confidence.call``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from qwen_agent.errors import InputError


@dataclass(frozen=True, slots=True)
class Threshold:
    """What happens if a tool is called exactly when the probability of calling is at least ``value``.

    ``false_positive_rate`` is the share of the cases without a right call that are called nevertheless, ``recall`` the
    share of those with one that are called.
    """

    value: float
    false_positive_rate: float
    recall: float


def pick_threshold(
    call_probabilities: Sequence[float], should_call: Sequence[bool], false_positive_rate: float
) -> Threshold:
    """The lowest threshold at which at most this share of the cases without a right call is called.

    Raises InputError if there is none, and where `curve` does.
    """
    if not 0.0 <= false_positive_rate <= 1.0:
        raise InputError(f"false_positive_rate={false_positive_rate!r} cannot be used: it must be from 0 to 1")
    points = curve(call_probabilities, should_call)
    good = [point for point in points if point.false_positive_rate <= false_positive_rate]
    if not good:
        raise InputError(
            f"no threshold keeps the false positives at {false_positive_rate:.1%}: at 1.0 they are "
            f"{points[0].false_positive_rate:.1%}; allow more of them"
        )
    return good[-1]


def curve(call_probabilities: Sequence[float], should_call: Sequence[bool]) -> tuple[Threshold, ...]:
    """Every threshold that makes a difference on these cases, from the highest, where the fewest are called.

    Raises InputError unless there is one probability a case, and cases of both kinds.
    """
    _check(call_probabilities, should_call)
    positives = sum(map(bool, should_call))
    negatives = len(should_call) - positives
    ordered = sorted(zip(call_probabilities, map(bool, should_call), strict=True), reverse=True)
    above = math.nextafter(ordered[0][0], math.inf)
    points = [Threshold(above, 0.0, 0.0)] if above <= 1.0 else []
    called = right = 0
    for value, cases in groupby(ordered, key=lambda case: case[0]):
        rights = [should for _, should in cases]
        called, right = called + len(rights), right + sum(rights)
        points.append(Threshold(value, (called - right) / negatives, right / positives))
    return tuple(points)


def _check(call_probabilities: Sequence[float], should_call: Sequence[bool]) -> None:
    if len(call_probabilities) != len(should_call):
        raise InputError(f"{len(call_probabilities)} probabilities do not go with {len(should_call)} decisions")
    if all(should_call) or not any(should_call):
        missing = "without" if all(should_call) else "with"
        raise InputError(f"there is no case {missing} a right call: a threshold needs cases of both kinds")
    for probability in call_probabilities:
        if not 0.0 <= probability <= 1.0:
            raise InputError(f"{probability!r} is no probability: it must be from 0 to 1")
