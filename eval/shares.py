"""Shares of yes and no, with how sure they are."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Share:
    """``hits`` of ``n``."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """Between 0 and 1; nan of nothing."""
        return self.hits / self.n if self.n else math.nan

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's interval (Wilson 1927, formula 7), by default of 95 %; (0, 1) of nothing."""
        if not self.n:
            return 0.0, 1.0
        middle = self.value + z * z / (2 * self.n)
        half = z * math.sqrt(self.value * (1 - self.value) / self.n + z * z / (4 * self.n * self.n))
        scale = 1 + z * z / self.n
        return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

    def as_json(self) -> dict[str, float | int | None]:
        low, high = self.interval()
        return {"hits": self.hits, "n": self.n, "value": self.value if self.n else None, "low": low, "high": high}

    def __str__(self) -> str:
        if not self.n:
            return "–"
        low, high = self.interval()
        return f"{self.hits}/{self.n} = {100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
