"""A conversation: one agent, a history that grows, one question at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from qwen_agent.loop.run import Cancelled
from qwen_agent.react import Agent
from qwen_agent.types import AgentResult, Event, Finished, Message, StopReason


class Session:
    """Remembers its turns as the tokens that were written, so each question costs only what is new in its prompt.

    The original format moves the tools' description to the last finished turn, so what a turn can reuse of the KV
    cache ends there: the second question continues the first prompt, later ones share the system text only. A turn
    that was cancelled or paused leaves no trace. Safe to share: questions from several threads wait for each other.
    """

    def __init__(self, agent: Agent, history: Sequence[Message] = ()) -> None:
        self.agent = agent
        self._history = tuple(history)
        self._lock = threading.Lock()

    @property
    def history(self) -> tuple[Message, ...]:
        """The finished turns, user and assistant alternating."""
        return self._history

    def ask(self, question: str) -> AgentResult:
        """Answer in the light of what was said before. Raises as `Agent.run` does; the history is then unchanged."""
        *_, last = self.stream(question)
        assert isinstance(last, Finished)
        return last.result

    def stream(self, question: str, cancelled: Cancelled = lambda: False) -> Iterator[Event]:
        """The same as events. The turn is remembered when the last of them, Finished, is handed out."""
        with self._lock:
            for event in self.agent.stream(question, self._history, cancelled):
                if isinstance(event, Finished) and event.result.stop_reason not in _UNFINISHED:
                    self._history += self.agent.turn(question, event.result)
                yield event

    def clear(self) -> None:
        """Forget everything that was said."""
        with self._lock:
            self._history = ()


_UNFINISHED = (StopReason.CANCELLED, StopReason.PAUSED)
