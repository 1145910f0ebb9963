"""The events of a streamed answer -> the text that may be shown, and the tokens that lie before the stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_agent.errors import EndpointError
from qwen_agent.llm.runtime import FinishReason
from qwen_agent.llm.stopping import StopStrings
from qwen_agent.types import Generated, Prompt, Text

_FAILED = ("abort", "error", "cancelled", "content_filter")


@dataclass(slots=True)
class _Unit:
    """What one event brought: its ids, if the endpoint tells them, and where its text ends in the whole text."""

    ids: tuple[int, ...] | None
    end: int


class _Head:
    """The beginning of a text, held back until it is known whether it repeats what stood before."""

    def __init__(self, repeated: str) -> None:
        self._repeated = repeated
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._repeated:
            return text
        self._held += text
        begun = self._held.lstrip()
        if self._repeated.startswith(begun) and begun != self._repeated:
            return ""
        rest = begun.removeprefix(self._repeated) if begun.startswith(self._repeated) else self._held
        self._repeated = self._held = ""
        return rest

    def flush(self) -> str:
        rest, self._held, self._repeated = self._held, "", ""
        return rest


class Writer:
    """Collects one answer. ``ends_in_ids`` as in `Engine`; ``repeated`` is left out if the text begins with it."""

    def __init__(self, stops: Sequence[str], *, ends_in_ids: bool, repeated: str = "") -> None:
        self._head = _Head(repeated)
        self._stops = StopStrings(stops)
        self._ends_in_ids = ends_in_ids
        self._units: list[_Unit] = []
        self._text = ""
        self._shown = 0
        self._reason: Any = None  # what ended the text, in the endpoint's words
        self._completion_tokens: int | None = None
        self.finish: FinishReason | None = None
        self.prompt_tokens: int | None = None
        self.cached_tokens = 0

    @property
    def stopped(self) -> str | None:
        """The stop string that was found."""
        return self._stops.matched

    @property
    def begun(self) -> bool:
        return bool(self._units)

    def take(self, event: Mapping[str, Any], base: str) -> str:
        """One event; the text that may now be shown. Raises EndpointError if the endpoint gave up."""
        self._note_usage(event.get("usage"))
        choices = event.get("choices") or ()
        if not choices or self.stopped is not None:
            return ""
        choice = choices[0]
        said = choice.get("delta") or choice.get("message") or {}
        text = self._head.feed(choice.get("text") or said.get("content") or "")
        ids = choice.get("token_ids")
        if text or ids:
            self._text += text
            self._units.append(_Unit(tuple(ids) if ids is not None else None, len(self._text)))
        finish = choice.get("finish_reason")
        if finish in _FAILED:
            raise EndpointError(f"{base} ended the answer after {len(self._text)} characters: {finish}")
        if finish:
            self.finish = "length" if finish == "length" else "stop"
            self._reason = choice.get("stop_reason", choice.get("matched_stop"))
        if self.finish is not None:
            rest = self._head.flush()
            self._text, text = self._text + rest, text + rest
        return self._show(self._stops.feed(text))

    def end(self) -> str:
        """The end of the text, which did not become a stop string."""
        return "" if self.stopped is not None else self._show(self._stops.flush())

    @property
    def tokens(self) -> int:
        """How many were written: by their ids; as the endpoint counts them; one for each event."""
        if self._units and all(unit.ids is not None for unit in self._units):
            return sum(len(ids) for ids in self._written_ids())
        return len(self._units) if self._completion_tokens is None else self._completion_tokens

    def output(self) -> Prompt:
        """The shown text: as tokens where the endpoint told them and they lie wholly before the stop, else as text."""
        kept: list[int] = []
        covered = 0
        for unit, ids in zip(self._units, self._written_ids(), strict=True):
            if unit.ids is None or unit.end > self._shown:
                break
            kept += ids
            covered = unit.end
        segments: Prompt = (Generated(self._text[:covered], tuple(kept)),) if kept and covered else ()
        rest = self._text[covered if segments else 0 : self._shown]
        return (*segments, Text(rest)) if rest else segments

    def _written_ids(self) -> list[tuple[int, ...]]:
        """The ids of each unit, without the one that ended the text."""
        found = [unit.ids or () for unit in self._units]
        by_itself = self.finish == "stop" and self.stopped is None and not isinstance(self._reason, str)
        if self._ends_in_ids and by_itself and found and found[-1]:
            found[-1] = found[-1][:-1]
        return found

    def _show(self, text: str) -> str:
        self._shown += len(text)
        return text

    def _note_usage(self, usage: Any) -> None:
        if not isinstance(usage, Mapping):
            return
        self.prompt_tokens = usage.get("prompt_tokens", self.prompt_tokens)
        self._completion_tokens = usage.get("completion_tokens", self._completion_tokens)
        details = usage.get("prompt_tokens_details")
        if isinstance(details, Mapping):
            self.cached_tokens = details.get("cached_tokens") or 0
