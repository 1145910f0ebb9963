"""What the chat model and the completion model share: which runtime, and how it generates."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages.ai import UsageMetadata
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from qwen_agent.errors import ContextOverflow
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar
from qwen_agent.llm.runtime import Chunk, Runtime
from qwen_agent.types import Prompt, Text, Usage

PROVIDER = "qwen-agent"
_loaded: WeakValueDictionary[str, Any] = WeakValueDictionary()
_loading = threading.Lock()


class PromptTooLong(ContextOverflow, ContextOverflowError):
    """ContextOverflow, also by the name under which LangChain's middleware looks for it."""


class Settings(BaseModel):
    """A model and how it generates. All of it can be changed for one call: ``invoke(..., temperature=0.7)``."""

    model_config = ConfigDict(extra="forbid")

    model: str = "embedded"
    """"embedded", a checkpoint's folder or a hub id: loaded with the object, and shared between objects."""
    runtime: Any = Field(default=None, exclude=True, repr=False, validate_default=True)
    """A runtime that is already there; ``model`` is then its name."""
    temperature: float = 0.0
    max_tokens: int = 512
    """The most tokens that one message may take."""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    """Strings that end the text and are not part of it. Those of a call replace these."""
    timeout: float | None = None
    """Seconds after which a generation is given up with TimeoutError."""

    _others: dict[str, Runtime] = PrivateAttr(default_factory=dict)

    @field_validator("runtime", mode="before")
    @classmethod
    def _has_runtime(cls, runtime: Runtime | None, info: ValidationInfo) -> Runtime:
        return runtime if runtime is not None else _load(info.data["model"])

    @model_validator(mode="after")
    def _is_usable(self) -> Any:
        self.model = self.runtime.name
        self._config()  # InputError for what cannot be used
        return self

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Settings.model_fields if name not in ("runtime", "timeout")}

    def get_num_tokens(self, text: str) -> int:
        """How many tokens the text has, by the model's own tokenizer."""
        return self.runtime.count_tokens((Text(text),))

    def _for_call(self, stop: list[str] | None, changes: Mapping[str, Any]) -> Settings:
        """The settings of one call. A model that it names stays loaded as long as this object."""
        now = {name: getattr(self, name) for name in Settings.model_fields}
        named = changes.get("model", self.model)
        if named != self.model:
            now["runtime"] = self._others.setdefault(named, _load(named))
        return Settings(**{**now, **changes, **({} if stop is None else {"stop": stop})})

    def _config(self, grammar: Grammar | None = None, stops: tuple[str, ...] = ()) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=(*(self.stop or ()), *stops),
            grammar=grammar,
        )

    def _write(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        """Generate. Raises PromptTooLong, and TimeoutError after ``timeout`` seconds."""
        started = time.monotonic()
        chunks: Iterator[Chunk] = iter(())
        try:
            chunks = self.runtime.stream(prompt, config)
            for chunk in chunks:
                if self.timeout is not None and time.monotonic() - started > self.timeout:
                    raise TimeoutError(f"{self.model} was not done within timeout={self.timeout:g} seconds: allow more")
                yield chunk
        except ContextOverflow as error:  # raised at once, or, by a runtime that is a generator, at the first chunk
            raise PromptTooLong(error.tokens, error.window) from None
        finally:
            getattr(chunks, "close", lambda: None)()

    def _metadata(self, finish: str | None) -> dict[str, Any]:
        return {"model_name": self.model, "model_provider": PROVIDER, "finish_reason": finish}


def usage_metadata(usage: Usage) -> UsageMetadata:
    """Token counts as LangChain has them; ``cache_read`` is the part of the input that was in the KV cache."""
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.generated_tokens,
        total_tokens=usage.prompt_tokens + usage.generated_tokens,
        input_token_details={"cache_read": usage.cached_tokens},
    )


def _load(model: str) -> Runtime:
    """The runtime of this name, shared with whoever else holds it at the moment."""
    with _loading:
        runtime = _loaded.get(model)
        if runtime is None:
            from qwen_agent.llm.local import load_runtime

            _loaded[model] = runtime = load_runtime(model)
        return runtime
