"""QwenAgentLLM: text in, text out, for code that is written for completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from langchain_core.language_models.llms import LLM
from langchain_core.outputs import GenerationChunk
from pydantic import ConfigDict

from qwen_agent.langchain_adapter.settings import PROVIDER, Settings, usage_metadata
from qwen_agent.loop.threads import iterate_in_thread
from qwen_agent.prompt import DEFAULT_SYSTEM, build
from qwen_agent.types import Text


class QwenAgentLLM(Settings, LLM):
    """A completion model. Its errors are those of `ChatQwenAgent`.

    The text is asked as a user's question under the ``system`` text; with ``system=None`` it is continued as it stands.
    """

    model_config = ConfigDict(extra="forbid")

    system: str | None = DEFAULT_SYSTEM

    @property
    def _llm_type(self) -> str:
        return f"{PROVIDER}-llm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, "system": self.system}

    def _call(self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any) -> str:
        return "".join(chunk.text for chunk in self._written(prompt, stop, kwargs))

    async def _acall(self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any) -> str:
        return "".join([chunk.text async for chunk in self._astream(prompt, stop, **kwargs)])

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[GenerationChunk]:
        for chunk in self._written(prompt, stop, kwargs):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[GenerationChunk]:
        async for chunk in iterate_in_thread(lambda cancelled: self._written(prompt, stop, kwargs)):
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _written(self, text: str, stop: list[str] | None, changes: Mapping[str, Any]) -> Iterator[GenerationChunk]:
        settings = self._for_call(stop, changes)
        prompt = (Text(text),) if self.system is None else build(text, system=self.system)
        for chunk in settings._write(prompt, settings._config()):
            if chunk.finish is not None:
                told = {**settings._metadata(chunk.finish), "usage_metadata": usage_metadata(chunk.usage)}
                yield GenerationChunk(text=chunk.text, generation_info=told)
            elif chunk.text:
                yield GenerationChunk(text=chunk.text)
