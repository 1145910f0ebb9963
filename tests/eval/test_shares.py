"""Shares and Wilson's interval."""

from __future__ import annotations

import math

import pytest
from shares import Share


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (17, 27, 0.4423, 0.7848),  # by hand: p = .6296, z2/n = .1423, middle .6148, half .1713, over 1.1423
        (0, 10, 0.0, 0.2775),  # z2 / (n + z2) = 3.8416 / 13.8416
        (10, 10, 0.7225, 1.0),
    ],
)
def test_the_interval_is_wilsons(hits: int, n: int, low: float, high: float) -> None:
    assert Share(hits, n).interval() == pytest.approx((low, high), abs=1e-3)


def test_nothing_is_no_share() -> None:
    assert math.isnan(Share(0, 0).value) and Share(0, 0).interval() == (0.0, 1.0)
    assert str(Share(0, 0)) == "–" and Share(0, 0).as_json()["value"] is None
    assert str(Share(1, 2)) == "1/2 = 50.0 % [9.5, 90.5]"
