"""LangChain's own suites: chat models (unit and integration) and tools, on the embedded model."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

pytest.importorskip("langchain_tests")

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests, ToolsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests, ToolsUnitTests

from qwen_agent.langchain_adapter import ChatQwenAgent, QwenAgentTool, to_langchain
from qwen_agent.llm.hub import EMBEDDED
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.tools import calculator


class OnEmbedded:
    """What both suites are told about the model."""

    runtime: ClassVar[LocalRuntime]

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _runtime(cls, embedded: LocalRuntime) -> None:
        OnEmbedded.runtime = embedded

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatQwenAgent

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"runtime": self.runtime}


class TestChatModelUnit(OnEmbedded, ChatModelUnitTests):
    pass


@pytest.mark.anyio
class TestChatModelIntegration(OnEmbedded, ChatModelIntegrationTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"runtime": self.runtime, "max_tokens": 96}

    @property
    def model_override_value(self) -> str:
        return str(EMBEDDED)  # the same weights, loaded once more from their folder

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> Any:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        model = ChatQwenAgent(**self.chat_model_params)
        model.invoke("Say hello.")
        if not stream:
            return model.invoke("Say hello.")
        first, *rest = model.stream("Say hello.")
        return sum(rest, first)


class OnCalculator:
    @property
    def tool_constructor(self) -> QwenAgentTool:
        return to_langchain(calculator)

    @property
    def tool_invoke_params_example(self) -> dict[str, Any]:
        return {"expression": "2 + 3"}


class TestToolUnit(OnCalculator, ToolsUnitTests):
    pass


@pytest.mark.anyio
class TestToolIntegration(OnCalculator, ToolsIntegrationTests):
    pass
