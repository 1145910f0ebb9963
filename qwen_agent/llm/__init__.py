"""The local runtime: load_model gives the bare decoder, load_runtime a model ready to generate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen_agent.llm.local import LocalRuntime, load_runtime
    from qwen_agent.llm.weights import load_model

__all__ = ["LocalRuntime", "load_model", "load_runtime"]


def __getattr__(name: str) -> Any:
    # torch takes a second to import, so nothing here is imported before it is asked for.
    if name == "load_model":
        from qwen_agent.llm.weights import load_model

        return load_model
    if name in ("LocalRuntime", "load_runtime"):
        from qwen_agent.llm import local

        return getattr(local, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
