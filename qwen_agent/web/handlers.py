"""What the page's buttons do: each finds the conversation by the key that the tab sends, and never raises."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from qwen_agent.errors import QwenAgentError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.types import ToolCall
from qwen_agent.web.conversation import Choices, Conversation
from qwen_agent.web.conversations import KEY_HEADER, Conversations
from qwen_agent.web.messages import fenced, shown
from qwen_agent.web.texts import Texts
from qwen_agent.web.turn import written

_BEAT = 0.08  # seconds between two looks at a run
_KEY = re.compile(r"[0-9a-f]{32}")
View = tuple[Any, Any, Any, Any]  # messages, the buttons of the box to type in, whether approval is asked, for what


class Handlers:
    """The page's events in one language."""

    def __init__(self, conversations: Conversations, texts: Texts) -> None:
        self._conversations = conversations
        self._texts = texts

    def restore(self, request: gr.Request) -> tuple[Any, ...]:
        """What was set in this tab before it was reloaded, and where its conversation can be downloaded."""
        conversation = self._of(request)
        choices = conversation.choices
        made = choices.generation
        sampling = (made.temperature, made.top_p, made.max_new_tokens, made.seed)
        return (list(choices.tools), choices.ask, *sampling, self._exports(conversation))

    async def follow(self, request: gr.Request) -> AsyncIterator[View]:
        """Show the conversation as it grows, until no answer is being written."""
        async for view in self._views(await asyncio.to_thread(self._of, request)):
            yield view

    async def submit(self, request: gr.Request, message: Mapping[str, Any] | None, *settings: Any) -> Any:
        """Ask what was typed, with the files that were dropped. What cannot be asked stays in the box.

        What comes of it is followed in an event of its own: of two views that come at once the browser may draw only
        the second, and the box would not be emptied.
        """
        message = message or {}
        paths = [Path(path) for path in message.get("files", ())]

        def ask(conversation: Conversation) -> None:
            conversation.ask(message.get("text", ""), [(path.name, path.read_bytes()) for path in paths])
            for path in paths:
                path.unlink(missing_ok=True)

        if not await self._do(await asyncio.to_thread(self._of, request), settings, ask):
            return gr.skip()
        return gr.MultimodalTextbox(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)

    async def pick_example(self, request: gr.Request, picked: gr.SelectData, *settings: Any) -> AsyncIterator[View]:
        async for view in self._done(request, settings, lambda it: it.ask(str(picked.value["text"]))):
            yield view

    async def retry(self, request: gr.Request, picked: gr.RetryData, *settings: Any) -> AsyncIterator[View]:
        """Answer a question anew."""

        def ask_again(conversation: Conversation) -> None:
            conversation.ask_again(self._turn(conversation, picked.index))
            if conversation.choices.generation.temperature == 0:
                gr.Info(self._texts.same_again)

        async for view in self._done(request, settings, ask_again):
            yield view

    async def edit(self, request: gr.Request, edited: gr.EditData, *settings: Any) -> AsyncIterator[View]:
        """Ask the question as it now reads."""

        def ask_again(conversation: Conversation) -> None:
            conversation.ask_again(self._turn(conversation, edited.index), str(edited.value))

        async for view in self._done(request, settings, ask_again):
            yield view

    def new(self, request: gr.Request) -> str:
        """Forget the conversation and its files."""
        before = self._of(request)
        self._conversations.forget(before.key)
        conversation = self._of(request)
        conversation.choices = before.choices
        return self._exports(conversation)

    def stop(self, request: gr.Request) -> None:
        self._of(request).stop()

    def approve(self, request: gr.Request, asked: str) -> None:
        self._decide(request, asked, True)

    def refuse(self, request: gr.Request, asked: str) -> None:
        self._decide(request, asked, False)

    def _decide(self, request: gr.Request, asked: str, granted: bool) -> None:
        """What was decided is what was shown: the second click of two decides nothing about the next call."""
        conversation = self._of(request)
        if inspect.cleandoc(self._question(conversation.waiting)) == inspect.cleandoc(asked or ""):
            conversation.decide(granted)

    async def _done(
        self, request: gr.Request, settings: tuple[Any, ...], act: Callable[[Conversation], None]
    ) -> AsyncIterator[View]:
        """Do something and follow what comes of it."""
        conversation = await asyncio.to_thread(self._of, request)  # a new one has its tools built
        await self._do(conversation, settings, act)
        async for view in self._views(conversation):
            yield view

    async def _do(
        self, conversation: Conversation, settings: tuple[Any, ...], act: Callable[[Conversation], None]
    ) -> bool:
        """Whether it could be done. Why not is said in a corner of the page, and nothing has then changed."""
        try:
            conversation.choices = _chosen(*settings)
            await asyncio.to_thread(act, conversation)
        except QwenAgentError as problem:
            gr.Warning(self._texts.refused.format(problem=problem))
            return False
        return True

    async def _views(self, conversation: Conversation) -> AsyncIterator[View]:
        """The view, whenever it changes. Each is whole, so that none is missed where the browser leaves one out."""
        seen = -1
        while True:
            version, running, waiting = conversation.version, conversation.running, conversation.waiting
            if version != seen:
                messages, _ = shown(conversation.turns, self._texts)
                buttons = gr.MultimodalTextbox(submit_btn=not running, stop_btn=running)
                yield messages, buttons, gr.Group(visible=waiting is not None), self._question(waiting)
                seen = version
            elif not running:
                return
            await asyncio.sleep(_BEAT)

    def _question(self, waiting: ToolCall | None) -> str:
        if waiting is None:
            return ""
        arguments, is_code = written(waiting)
        question = self._texts.approval.format(tool=waiting.name)
        return f"{question}\n\n{fenced(arguments, 'python' if is_code else 'json', most=None)}"

    def _of(self, request: gr.Request) -> Conversation:
        key = request.headers.get(KEY_HEADER, "")
        if not _KEY.fullmatch(key):
            raise gr.Error("This page is not complete: reload it.")
        return self._conversations.open(key)

    def _turn(self, conversation: Conversation, index: int | tuple[int, int]) -> int:
        """The turn that a message on the page belongs to."""
        _, owners = shown(conversation.turns, self._texts)
        at = index if isinstance(index, int) else index[0]
        return owners[at] if 0 <= at < len(owners) else -1

    def _exports(self, conversation: Conversation) -> str:
        query = f"key={conversation.download_key}&amp;language={self._texts.code}"
        links = (("md", "Markdown"), ("json", "JSON"))
        return "".join(f'<a href="../conversation.{kind}?{query}" download>{name}</a>' for kind, name in links)


def _chosen(tools: Any, ask: Any, temperature: Any, top_p: Any, max_tokens: Any, seed: Any) -> Choices:
    """The settings; a field that was emptied is as it is at first."""
    given = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_tokens, "seed": seed}
    generation = GenerationConfig(**{name: value for name, value in given.items() if value is not None})
    return Choices(tuple(tools or ()), generation, bool(ask))
