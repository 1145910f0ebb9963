"""One request on its way: a loop over the guest's three channels until its reply, its end or a limit."""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from typing import IO

from qwen_agent.tools.sandbox.bubblewrap import Guest
from qwen_agent.tools.sandbox.policy import MIB, Limits
from qwen_agent.tools.sandbox.wire import Gone, Output, Replies, Reply, request

FLOOD_BYTES = 8 * MIB  # draining more than this would cost the host more than it is worth
POLL_SECONDS = 0.25
CHUNK = 1 << 18


class Call:
    """What is known of a call so far. After `perform` or `greet`, exactly one of ``reply`` and ``gone`` is set.

    ``stopped`` is why the guest was interrupted, ``gone`` why it had to be, or was, ended: clauses, "" if not so.
    ``watch`` is asked a few times a second which other limit is broken; its answer ends the guest. ``cancelled`` is
    asked as often; True interrupts the guest, as the time limit does.
    """

    def __init__(
        self, guest: Guest, limits: Limits, seconds: float, watch: Callable[[], str], cancelled: Callable[[], bool]
    ) -> None:
        self.limits = limits
        self.reply: Reply | None = None
        self.stopped = ""
        self.gone = ""
        self.stdout, self.stderr = Output(limits.output), Output(limits.output)
        self._guest, self._seconds, self._watch, self._cancelled = guest, seconds, watch, cancelled
        self._id: str | None = None
        self._incoming, self._outgoing = Replies(limits), memoryview(b"")
        self._interrupt_at = time.monotonic() + seconds
        self._kill_at = float("inf")
        self._look_at = time.monotonic() + POLL_SECONDS

    def greet(self) -> None:
        """Wait until a new guest says that it is ready."""
        self._converse()

    def perform(self, code: str) -> None:
        """Run one cell. Afterwards the guest sleeps, or is dead."""
        self._id = secrets.token_hex(8)  # so that no reply from an earlier call fits
        self._outgoing = memoryview(request(self._id, code))
        self._guest.signal(signal.SIGCONT)
        self._converse()

    def _converse(self) -> None:
        with selectors.DefaultSelector() as selector:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outgoing else 0)
            selector.register(self._guest.control, events)
            selector.register(self._guest.stdout, selectors.EVENT_READ, self.stdout)
            selector.register(self._guest.stderr, selectors.EVENT_READ, self.stderr)
            try:
                self._listen(selector)
                self._guest.signal(signal.SIGSTOP)  # threads left behind must not burn CPU between two calls
            except Gone as end:
                self.gone = str(end)
                self._guest.kill()
        self._drain()

    def _listen(self, selector: selectors.BaseSelector) -> None:
        while self.reply is None:
            pause = min(self._interrupt_at, self._kill_at, self._look_at) - time.monotonic()
            for key, ready in selector.select(max(0.0, pause)):
                if isinstance(key.data, Output):
                    self._on_output(selector, key.fd, key.data)
                else:
                    self._on_control(selector, ready)
            if self.reply is None:
                self._enforce()
        if self.reply.lost:
            raise Gone(f"it used up its {self.limits.memory // MIB} MiB of memory")

    def _on_output(self, selector: selectors.BaseSelector, pipe: int, output: Output) -> None:
        data = _read(pipe)
        if data == b"":
            selector.unregister(pipe)  # the guest closed it; the next cell opens it again
        elif data:
            output.add(data)
            if self.stdout.total + self.stderr.total > FLOOD_BYTES:
                self._interrupt(f"it printed more than {FLOOD_BYTES // MIB} MiB")

    def _on_control(self, selector: selectors.BaseSelector, ready: int) -> None:
        if ready & selectors.EVENT_WRITE:
            self._write(selector)
        if ready & selectors.EVENT_READ:
            data = _read(self._guest.control.fileno())
            if data == b"":
                raise Gone(self._obituary())
            for reply in self._incoming.feed(data or b""):
                if reply.id == self._id:  # a reply to anything else is stale, or forged
                    self.reply = self.reply or reply

    def _write(self, selector: selectors.BaseSelector) -> None:
        try:
            self._outgoing = self._outgoing[self._guest.control.send(self._outgoing[:CHUNK]) :]
        except BlockingIOError:
            return
        except OSError:
            raise Gone(self._obituary()) from None
        if not self._outgoing:
            selector.modify(self._guest.control, selectors.EVENT_READ)

    def _enforce(self) -> None:
        now = time.monotonic()
        if now >= self._kill_at:
            raise Gone(f"{self.stopped}, and it did not react to the interrupt")
        if now >= self._interrupt_at:
            self._interrupt(f"the time limit of {self._seconds:g} s was reached")
        if now >= self._look_at:
            if self._cancelled():
                self._interrupt("the run was cancelled")
            if problem := self._watch():
                raise Gone(problem)
            cost = time.monotonic() - now
            self._look_at = now + max(POLL_SECONDS, 10 * cost)

    def _interrupt(self, reason: str) -> None:
        if not self.stopped:
            self.stopped = reason
            self._interrupt_at, self._kill_at = float("inf"), time.monotonic() + self.limits.grace
            self._guest.signal(signal.SIGINT)

    def _obituary(self) -> str:
        try:
            status = self._guest.bwrap.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it closed its connection to the host"
        if status in {128 + number for number in signal.Signals}:
            return f"it crashed ({signal.Signals(status - 128).name})"
        return f"it ended itself with exit status {status}"

    def _drain(self) -> None:
        """What was written before the reply, or before the end, may still be in the pipes: at most their 64 KiB."""
        pipes: tuple[tuple[IO[bytes], Output], ...]
        pipes = (self._guest.stdout, self.stdout), (self._guest.stderr, self.stderr)
        for pipe, output in pipes:
            while (data := _read(pipe.fileno())) and output.total < 2 * FLOOD_BYTES:
                output.add(data)


def _read(end: int) -> bytes | None:
    """What there is: b"" at the end of the stream, None if there is nothing yet."""
    try:
        return os.read(end, CHUNK)
    except BlockingIOError:
        return None
    except OSError:
        return b""
