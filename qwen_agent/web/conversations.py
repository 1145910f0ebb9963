"""All conversations of the page: by key, so many and no more, each with a folder that is removed with it."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from pathlib import Path

from qwen_agent.limits import Limits
from qwen_agent.llm.runtime import Runtime
from qwen_agent.web.conversation import Choices, Conversation, MakeTools

KEY_HEADER = "x-conversation"  # in which a tab sends the key of its conversation
MAX_CONVERSATIONS = 64
IDLE_SECONDS = 12 * 3600.0


class Conversations:
    """Safe to share. The one that was used least recently makes room for a new one."""

    def __init__(
        self,
        runtime: Runtime,
        make_tools: MakeTools,
        choices: Choices,
        *,
        system: str,
        limits: Limits,
        most: int = MAX_CONVERSATIONS,
    ) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="qwen-agent-web-"))
        self.runtime = runtime
        self.choices = choices
        self._make_tools, self._system, self._limits = make_tools, system, limits
        self._most = most
        self._lock = threading.Lock()
        self._found: dict[str, Conversation] = {}

    def open(self, key: str) -> Conversation:
        """The conversation of this key; a new one if there is none (any more)."""
        known = self.get(key)
        if known is not None:
            return known
        folder = Path(tempfile.mkdtemp(prefix="chat-", dir=self.root))
        made = Conversation(
            key, self.runtime, self._make_tools, folder, self.choices, system=self._system, limits=self._limits
        )
        with self._lock:
            kept = self._found.setdefault(key, made)
            dropped = self._superfluous()
        if kept is not made:  # two events of one tab came at once
            dropped.append(made)
        for each in dropped:
            _remove(each)
        return kept

    def get(self, key: str) -> Conversation | None:
        """The conversation of this key, if there is one. Whoever asks for it watches it."""
        with self._lock:
            found = self._found.get(key)
        if found is not None:
            found.watched()
        return found

    def by_download_key(self, key: str) -> Conversation | None:
        with self._lock:
            return next((each for each in self._found.values() if each.download_key == key), None)

    def forget(self, key: str) -> None:
        """Drop a conversation with its files."""
        with self._lock:
            found = self._found.pop(key, None)
        if found is not None:
            _remove(found)

    def close(self) -> None:
        """End every run and remove every file."""
        with self._lock:
            dropped, self._found = list(self._found.values()), {}
        for each in dropped:
            _remove(each)
        shutil.rmtree(self.root, ignore_errors=True)

    def _superfluous(self) -> list[Conversation]:
        oldest_first = sorted(self._found.values(), key=lambda each: (each.running, each.used))
        too_many = len(oldest_first) - self._most
        now = time.monotonic()
        dropped = [each for at, each in enumerate(oldest_first) if at < too_many or now - each.used > IDLE_SECONDS]
        for each in dropped:
            del self._found[each.key]
        return dropped


def _remove(conversation: Conversation) -> None:
    conversation.close()
    shutil.rmtree(conversation.folder, ignore_errors=True)
