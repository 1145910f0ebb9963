"""Constrained decoding: which tokens may come next.

First version: after a marker at the start of a line ("Action:") only one of a few strings (the tools' names) can be
written, up to the end of the line. The choice is made on bytes, not on one fixed tokenisation: at every point, the
allowed tokens are all those that are a prefix of what may still come.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Allowed = Callable[[bytes], Sequence[int] | None]


class Constraint(Protocol):
    def bind(self, vocabulary: Mapping[bytes, int]) -> Allowed:
        """For one vocabulary (bytes -> id): a function (UTF-8 generated so far) -> allowed ids, or None for all.

        The UTF-8 may end within a character.
        """
        ...


@dataclass(frozen=True, slots=True)
class ChoiceAfter:
    """After ``marker`` at the start of a line, one of ``choices`` and a newline. Elsewhere, anything."""

    marker: str
    choices: tuple[str, ...]

    def bind(self, vocabulary: Mapping[bytes, int]) -> Allowed:
        def allowed(raw: bytes) -> Sequence[int] | None:
            rest = self._rest_of_line(raw)
            if rest is None:
                return None
            endings = self._endings(rest)
            return [i for end in endings for i in _prefix_tokens(end, vocabulary)] or None

        return allowed

    def _rest_of_line(self, raw: bytes) -> bytes | None:
        """What follows the marker on the last line; None if that line does not begin with it."""
        line, marker = raw[raw.rfind(b"\n") + 1 :], self.marker.encode()
        return line[len(marker) :] if line.startswith(marker) else None

    def _endings(self, rest: bytes) -> list[bytes]:
        """What may still be written. One space before the choice is the trained form, but a model may leave it out."""
        wholes = [f"{space}{choice}\n".encode() for choice in self.choices for space in (" ", "")]
        return [whole[len(rest) :] for whole in wholes if whole.startswith(rest)]


def _prefix_tokens(raw: bytes, vocabulary: Mapping[bytes, int]) -> list[int]:
    """Ids of every token whose bytes are a non-empty prefix of ``raw``."""
    return [vocabulary[raw[:end]] for end in range(1, len(raw) + 1) if raw[:end] in vocabulary]
