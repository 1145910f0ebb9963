"""Streams without a network: who reads slowly, who leaves, what fails in the middle, and how long it may take."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("starlette")

from starlette.requests import Request

from qwen_agent.errors import Busy, Stopped
from qwen_agent.server import streaming
from qwen_agent.server.errors import ApiError, api_error
from qwen_agent.server.streaming import answered, named_events, streamed, to_json


class Client:
    """The other end: takes ``reads`` messages and then none, or leaves after ``stays`` of them."""

    def __init__(self, reads: int = 1000, stays: int = 1000) -> None:
        self.sent: list[dict[str, Any]] = []
        self._reads, self._stays = reads, stays
        self._gone = asyncio.Event()

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if len(self.sent) >= self._reads:
            await asyncio.Event().wait()
        self.sent.append(message)
        if len(self.sent) >= self._stays:
            self._gone.set()

    def leave(self) -> None:
        self._gone.set()


class Source:
    """Numbered events, ``pause`` seconds apart; it knows whether it was closed."""

    def __init__(self, count: int = 5, pause: float = 0.0, error: Exception | None = None) -> None:
        self.closed = False
        self._count, self._pause, self._error = count, pause, error

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        try:
            for number in range(self._count):
                await asyncio.sleep(self._pause)
                yield {"type": "piece", "number": number, "sequence_number": number}
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True


async def respond(client: Client, source: Source, *, seconds: float = 60, patience: float = 60, **options: Any) -> None:
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    request = Request(scope, client.receive)
    response = await streamed(request, source.events(), seconds=seconds, patience=patience, **options)
    await asyncio.wait_for(response(scope, client.receive, client.send), 20)


def run(client_options: dict[str, int], source: Source, **options: Any) -> Client:
    async def main() -> Client:
        client = Client(**client_options)
        await respond(client, source, **options)
        return client

    client = asyncio.run(main())
    assert source.closed
    return client


def data(client: Client) -> list[Any]:
    return [json.loads(line[6:]) for line in client.text.split("\n") if line.startswith("data: {")]


def test_events_and_the_mark_at_their_end_are_sent() -> None:
    client = run({}, Source())
    assert [event["number"] for event in data(client)] == [0, 1, 2, 3, 4]
    assert client.text.endswith("data: [DONE]\n\n")
    assert [message.get("more_body") for message in client.sent] == [None, *[True] * 5, False]
    assert dict(client.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")


def test_who_does_not_read_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        client = run({"reads": 3}, Source(1_000_000), patience=0.2)
    assert len(client.sent) == 3
    assert "cut off: it did not read for 0.2 seconds" in caplog.text


def test_who_leaves_ends_what_was_made_for_it() -> None:
    assert len(run({"stays": 3}, Source(1_000_000, pause=0.001)).sent) < 100
    assert len(run({"stays": 3}, Source(4, pause=0.2)).sent) <= 4


def test_what_fails_in_the_middle_is_told_as_the_last_event(caplog: pytest.LogCaptureFixture) -> None:
    client = run({}, Source(2, error=Stopped("time is up")))
    assert data(client)[-1] == {"error": api_error(Stopped("time is up")).body()["error"]}
    assert "[DONE]" not in client.text
    assert client.sent[-1]["more_body"] is False
    client = run({}, Source(2, error=RuntimeError("a secret")))
    assert data(client)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in client.text and "secret" not in caplog.text


def test_what_fails_before_the_first_event_has_a_status() -> None:
    with pytest.raises(Busy):
        run({}, Source(0, error=Busy(3)))


def test_an_error_among_named_events_has_a_name_and_a_number() -> None:
    client = run({}, Source(2, error=Stopped("time is up")), encode=named_events(), end=b"")
    assert client.text.startswith("event: piece\ndata: {")
    last = data(client)[-1]
    assert (last["type"], last["sequence_number"], last["message"]) == ("error", 2, "time is up")
    assert "event: error\n" in client.text


def test_time_ends_a_stream_too() -> None:
    client = run({}, Source(1_000_000, pause=0.01), seconds=0.3)
    assert data(client)[-1]["error"]["code"] == "stopped"
    with pytest.raises(Stopped, match=r"not done after 0\.1 seconds"):
        run({}, Source(5, pause=5), seconds=0.1)


def test_a_stream_without_news_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_ALIVE", 0.02)
    client = run({}, Source(2, pause=0.2))
    assert ": working\n\n" in client.text
    assert [event["number"] for event in data(client)] == [0, 1]


def test_work_for_a_client_that_leaves_is_cancelled() -> None:
    async def main() -> None:
        client, cancelled = Client(), asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        asyncio.get_running_loop().call_later(0.05, client.leave)
        request = Request({"type": "http", "headers": []}, client.receive)
        with pytest.raises(ApiError, match="left"):
            await answered(request, work(), 60)
        assert cancelled.is_set()

    asyncio.run(main())


def test_half_characters_become_a_replacement() -> None:
    assert to_json({"text": "a\ud800b 世界 \U0001f642"}).decode() == '{"text":"a\ufffdb 世界 \U0001f642"}'
