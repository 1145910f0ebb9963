"""Responses that were made, so that the next can go on from them: in memory, with a bound, the oldest leave first."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from qwen_agent.dialogue.turns import Said
from qwen_agent.server.errors import ApiError


@dataclass(frozen=True, slots=True)
class Stored:
    """A response as it was sent, and all that had been said at its end but for the instructions."""

    response: dict[str, Any]
    said: tuple[Said, ...]

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return len(json.dumps(self.response)) + sum(len(str(astuple(message))) for message in self.said)


class ResponseStore:
    """At most ``responses`` of them, of ``size`` bytes together. It belongs to one event loop, and is lost with it."""

    def __init__(self, responses: int = 1000, size: int = 64 << 20) -> None:
        self._responses, self._size = responses, size
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._taken = 0

    def keep(self, stored: Stored) -> None:
        self._stored[stored.response["id"]] = stored
        self._taken += stored.size
        while self._stored and (len(self._stored) > self._responses or self._taken > self._size):
            self._taken -= self._stored.popitem(last=False)[1].size

    def said_until(self, key: str | None) -> Sequence[Said]:
        """What had been said at the end of a response. Raises ApiError where there is none of this id."""
        if key is None:
            return ()
        if key not in self._stored:
            raise ApiError(
                400,
                f"Previous response with id {key[:100]!r} not found: it was not stored, or left to make room",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        self._stored.move_to_end(key)
        return self._stored[key].said

    def get(self, key: str) -> dict[str, Any]:
        """A response as it was sent. Raises ApiError (404) where there is none of this id."""
        return self._found(key).response

    def delete(self, key: str) -> dict[str, Any]:
        """Forget a response; the answer to that. Raises as `get`."""
        self._taken -= self._found(key).size
        del self._stored[key]
        return {"id": key, "object": "response", "deleted": True}

    def _found(self, key: str) -> Stored:
        if key not in self._stored:
            raise ApiError(404, f"Response with id {key[:100]!r} not found.", code="response_not_found", param="id")
        return self._stored[key]
