"""What takes the embedded model long is left out of the default run, and is in that with WHOLE_SUITES=1."""

from __future__ import annotations

import os

import pytest

# Of LangChain's integration suite for chat models, which takes a minute.
QUICK = (
    "test_ainvoke",
    "test_stream[model0]",
    "test_stream[model1]",
    "test_usage_metadata",
    "test_tool_calling[model1]",
)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Async tests of the suites run under asyncio, once."""
    return "asyncio"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not os.environ.get("WHOLE_SUITES"):
        left_out = [item for item in items if _is_slow(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_slow(item: pytest.Item) -> bool:
    if item.name == "test_the_langchain_page_runs":
        return True
    return item.parent is not None and item.parent.name == "TestChatModelIntegration" and item.name not in QUICK
