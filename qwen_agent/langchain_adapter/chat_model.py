"""ChatQwenAgent: any of our runtimes as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.chat_models import agenerate_from_stream, generate_from_stream
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import ConfigDict, Field

from qwen_agent.dialogue.request import toolbox_of
from qwen_agent.errors import InputError
from qwen_agent.langchain_adapter.reply import Reply
from qwen_agent.langchain_adapter.request import asked_for, chosen
from qwen_agent.langchain_adapter.settings import PROVIDER, Settings, usage_metadata
from qwen_agent.llm.runtime import Chunk
from qwen_agent.loop.threads import iterate_in_thread

_CAN = ("tool_calling", "tool_choice", "structured_output", "text_inputs", "text_outputs", "reasoning_output")
_CANNOT = ("image_inputs", "audio_inputs", "video_inputs", "pdf_inputs", "image_outputs", "audio_outputs")


class ChatQwenAgent(Settings, BaseChatModel):
    """A chat model: ``ChatQwenAgent(model="embedded")`` or ``ChatQwenAgent(runtime=...)``.

    Loading raises ModelError; settings that cannot be used raise InputError or pydantic's ValidationError. A message
    that cannot be shown to the model (a picture, a call without its result) raises InputError, a prompt that does not
    fit the window PromptTooLong. System messages count as one, wherever they stand.
    """

    model_config = ConfigDict(extra="forbid")

    streaming: bool = False
    api_key: str | None = Field(default=None, exclude=True, repr=False)
    """Taken for the sake of code that gives one to every model: there is nothing to log in to."""
    max_retries: int | None = Field(default=None, exclude=True, repr=False)
    """The same: nothing here fails by chance."""

    @property
    def _llm_type(self) -> str:
        return f"{PROVIDER}-chat"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {**super()._get_ls_params(stop=stop, **kwargs), "ls_provider": PROVIDER}

    def _resolve_model_profile(self) -> Any:
        limits = {"max_input_tokens": self.runtime.window, "max_output_tokens": self.max_tokens}
        return limits | dict.fromkeys(_CAN, True) | dict.fromkeys(_CANNOT, False)

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[Any, AIMessage]:
        """The model with these tools: pydantic classes, typed functions, LangChain tools, JSON or OpenAI schemas.

        ``tool_choice`` is "auto" (or None), "none", "any" (or "required", True) or a tool's name. Arguments always fit
        their schema, so ``strict`` changes nothing; nor does ``parallel_tool_calls``: there is one call per message.
        Raises InputError for tools that cannot be used and for a choice that is not among them.
        """
        specs = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=specs, tool_choice=chosen(tool_choice, toolbox_of(specs)), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["function_calling", "json_schema", "json_mode"] = "function_calling",
        include_raw: bool = False,
        **kwargs: Any,
    ) -> Runnable[Any, Any]:
        """The model, answering with objects of this schema.

        "function_calling" has it call a tool with that schema; "json_schema" asks for JSON in the prompt and holds the
        answer to the schema; "json_mode" only holds it to the schema, so your prompt must say what is wanted.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        kwargs.pop("strict", None)
        if kwargs or method not in ("json_schema", "json_mode"):
            raise InputError(f"with_structured_output(method={method!r}, {kwargs}) cannot be used: see its docstring")
        wanted = convert_to_json_schema(schema)
        asked = {"type": "json_schema", "json_schema": {"name": wanted["title"], "schema": wanted}}
        llm = self.bind(
            response_format=asked if method == "json_schema" else {"type": "json_object", "schema": wanted},
            ls_structured_output_format={"kwargs": {"method": method}, "schema": schema},
        )
        parser: Any = JsonOutputParser()
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            parser = PydanticOutputParser(pydantic_object=schema)
        if not include_raw:
            return llm | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=llm) | parsed.with_fallbacks([failed], exception_key="parsing_error")

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return generate_from_stream(self._stream(messages, stop, **kwargs))

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await agenerate_from_stream(self._astream(messages, stop, **kwargs))

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in iterate_in_thread(lambda cancelled: self._stream(messages, stop, **kwargs)):
            yield chunk

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        asked = {name: kwargs.pop(name, None) for name in ("tools", "tool_choice", "response_format")}
        for name in ("strict", "parallel_tool_calls", "stream"):  # nothing depends on them
            kwargs.pop(name, None)
        settings = self._for_call(stop, kwargs)
        request = asked_for(messages, **asked)
        reply = Reply(request.tools, request.first)
        chunk = Chunk()
        for chunk in settings._write(request.prompt, settings._config(request.grammar, request.stops)):
            for message in reply.feed(chunk.text):
                yield ChatGenerationChunk(message=message)
        for message in reply.finish(at_limit=chunk.finish == "length", at_stop=chunk.stop is not None):
            yield ChatGenerationChunk(message=message)
        last = AIMessageChunk(
            content="",
            usage_metadata=usage_metadata(chunk.usage),
            response_metadata=settings._metadata("tool_calls" if reply.called else chunk.finish),
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)
