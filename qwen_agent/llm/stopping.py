"""Stop strings, matched on decoded text and held back, so that no part of one is ever shown.

Token ids cannot do this: "Observation:" is written with different ids after different characters, and in Qwen's
vocabulary it begins in the middle of what a stream has already shown.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text piece by piece; get back what is safe to show.

    The text returned by all ``feed`` calls is what precedes the stop string that is complete first, minus at most the
    end of the text that might still become one. ``matched`` is the stop string found, or None.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Text that can no longer be part of a stop string. After a match, always ""."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            # The one that is complete first wins, however the text is cut into pieces; of two, the longer.
            at, self.matched = min(found, key=lambda pair: (pair[0] + len(pair[1]), pair[0]))
            shown, self._held = self._held[:at], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """The end of the text, which did not become a stop string after all."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of ``stop`` that ``text`` ends with."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
