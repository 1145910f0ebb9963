"""What comes from the guest, read with suspicion: output streams, frames, replies.

A frame is one byte of kind, four bytes of length (big-endian) and the payload. Kind J is JSON; kind P is a PNG file
that belongs to the next J, so that pictures need no decoding here. Every size is bounded before anything is parsed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from qwen_agent.tools.sandbox.policy import MIB, Limits

MAX_IMAGE_BYTES = 4 * MIB
MAX_IMAGE_PIXELS = 25_000_000
MAX_CONTROL_BYTES = 64 * MIB  # of one call, all frames together
MAX_FRAMES = 1000  # of one call: a small frame costs the host more to read than the guest to write
CLIP_NOTE_CHARS = 100


class Gone(Exception):
    """The guest died, lied or broke a limit that ends it. The text says which, as a clause for the model."""


class Output:
    """One output stream as it comes in: its beginning and its end are kept, the middle is only counted."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._limit = limit
        self._keep = 4 * limit  # a character is at most four bytes
        self._head, self._tail = bytearray(), bytearray()

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._keep - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._keep:
            del self._tail[: -self._keep]

    def text(self) -> tuple[str, int]:
        """(text, characters left out). What never was decoded counts by its bytes."""
        missing = self.total - len(self._head) - len(self._tail)
        if not missing:
            return clip((self._head + self._tail).decode(errors="replace"), self._limit)
        return clip(self._head.decode(errors="replace") + self._tail.decode(errors="replace"), self._limit, missing)


def clip(text: str, limit: int, missing: int = 0) -> tuple[str, int]:
    """``text`` without its middle, of which ``missing`` characters are gone already; and how many that is in all."""
    dropped = max(0, len(text) - limit) + missing
    if not dropped:
        return text, 0
    half = limit // 2
    return f"{text[:half]}\n[... {dropped} characters left out ...]\n{text[len(text) - half :]}", dropped


def request(identity: str, code: str) -> bytes:
    """The frame that asks for a cell to be run."""
    payload = json.dumps({"id": identity, "code": code}).encode()
    return b"J" + len(payload).to_bytes(4, "big") + payload


@dataclass(frozen=True, slots=True)
class Reply:
    """The guest's word on one request. ``id`` is None for the greeting of a new guest."""

    id: str | None
    value: str = ""
    error: str = ""
    dropped: int = 0
    lost: bool = False
    images: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Replies:
    """Cuts the byte stream into frames and these into replies. Raises Gone for what no honest guest sends."""

    limits: Limits
    _images: list[bytes] = field(default_factory=list)
    _buffer: bytearray = field(default_factory=bytearray)
    _total: int = 0
    _frames: int = 0

    def feed(self, data: bytes) -> list[Reply]:
        self._total += len(data)
        if self._total > MAX_CONTROL_BYTES:
            raise Gone("it flooded its connection to the host")
        self._buffer += data
        replies = []
        while (frame := self._next_frame()) is not None:
            self._frames += 1
            if self._frames > MAX_FRAMES:
                raise Gone("it flooded its connection to the host")
            if frame[:1] == b"P":
                self._images.append(frame[1:])
            else:
                replies.append(_read(frame[1:], tuple(self._images)))
                self._images.clear()
        return replies

    def _next_frame(self) -> bytes | None:
        """Kind and payload of a complete frame."""
        if len(self._buffer) < 5:
            return None
        kind, length = bytes(self._buffer[:1]), int.from_bytes(self._buffer[1:5], "big")
        # JSON writes a character as up to twelve bytes: two escapes of six.
        longest = {b"P": MAX_CONTROL_BYTES, b"J": 65536 + 2 * 12 * (self.limits.output + CLIP_NOTE_CHARS)}
        if length > longest.get(kind, -1):
            raise Gone("it sent the host a malformed reply")
        if len(self._buffer) < 5 + length:
            return None
        payload = bytes(self._buffer[5 : 5 + length])
        del self._buffer[: 5 + length]
        return kind + payload


def _read(payload: bytes, images: tuple[bytes, ...]) -> Reply:
    try:
        message = json.loads(payload)
        if message == {"ready": True}:
            return Reply(None)
        reply = Reply(**message, images=images)
    except (ValueError, TypeError, RecursionError):
        raise Gone("it sent the host a malformed reply") from None
    texts = all(isinstance(text, str) for text in (reply.id, reply.value, reply.error))
    if not texts or type(reply.dropped) is not int or not 0 <= reply.dropped < 1 << 50 or type(reply.lost) is not bool:
        raise Gone("it sent the host a malformed reply")
    return reply


def acceptable_image(data: bytes) -> bool:
    """Whether this is a PNG file by its header, and small enough for others to decode."""
    if len(data) > MAX_IMAGE_BYTES or data[:16] != b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR":
        return False
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return 0 < width * height <= MAX_IMAGE_PIXELS


def encodable(text: str) -> str:
    """Without lone surrogates, which no tokenizer and no terminal takes."""
    return text.encode(errors="replace").decode()
