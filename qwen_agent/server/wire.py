"""What OpenAI's two chat formats have in common: sampling, tools, choices, answer formats, content.

A field that a client's library sends and that changes nothing here is taken and left alone; one that would change the
answer is honoured or refused. docs/server_api.md has the lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from qwen_agent.dialogue.request import AnswerForm, Choice
from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import TokenLogprob
from qwen_agent.server.errors import ApiError
from qwen_agent.tools.base import Tool
from qwen_agent.tools.plugins import from_openai_function, from_qwen_plugin

MAX_TOOLS = 128  # OpenAI's limit, as are the next two
MAX_STOPS = 4
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 2048
_LEAST_LOGPROB = -9999.0  # what OpenAI gives for "impossible": JSON has no infinity
_MAX_STOP = 1024  # characters of a stop string

N = TypeVar("N", int, float)
Number = Annotated[float, Field(allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1, max_length=_MAX_STOP)]


class Part(BaseModel):
    """A part of a message's content. What of it is read depends on its type."""

    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | list[Part] | None


class Sampling(BaseModel):
    """How tokens are chosen, in both formats. ``top_k`` and ``repetition_penalty`` are not OpenAI's but everybody's."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1, max_length=512)
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None

    def sampled(self, defaults: GenerationConfig) -> GenerationConfig:
        """The defaults with what the request says. ``top_p`` 0 is greedy, as at OpenAI; ``top_k`` -1 is off."""
        greedy = self.top_p == 0
        return replace(
            defaults,
            temperature=0.0 if greedy else _or(self.temperature, defaults.temperature),
            top_p=defaults.top_p if greedy else _or(self.top_p, defaults.top_p),
            top_k=max(_or(self.top_k, defaults.top_k), 0),
            repetition_penalty=_or(self.repetition_penalty, defaults.repetition_penalty),
            seed=defaults.seed if self.seed is None else self.seed,
        )


def text_in(content: Content, where: str) -> str:
    """The text of a message's content. Raises InputError for what is not text."""
    if content is None or isinstance(content, str):
        return content or ""
    pieces: list[str] = []
    for part in content:
        if part.type in ("text", "input_text", "output_text", "summary_text", "reasoning_text"):
            pieces.append(part.text or "")
        elif part.type == "refusal":
            pieces.append(part.refusal or "")
        else:
            raise InputError(
                f"{where} has a part of the type {part.type!r}, but the model reads text only: put it into words"
            )
    return "".join(pieces)


def toolbox(specs: Iterable[Mapping[str, Any]]) -> dict[str, Tool]:
    """Tools that the client runs; of two with one name, the last. Raises InputError, naming what is wrong."""
    tools = [_tool(spec) for spec in specs]
    return {tool.name: tool for tool in tools}


def choice_of(asked: Any) -> Choice:
    """OpenAI's ``tool_choice``, in the spelling of either format. Raises InputError for another."""
    if asked is None or asked == "auto":
        return Choice()
    if asked == "none":
        return Choice("none")
    if asked == "required":
        return Choice("required")
    if isinstance(asked, Mapping):
        if asked.get("type", "function") == "function" and (name := _name(asked)):
            return Choice("required", (name,))
        if asked.get("type") == "allowed_tools" and (allowed := _allowed(asked.get("allowed_tools", asked))):
            return allowed
    raise InputError(
        f"tool_choice={_short(asked)} cannot be used: give 'none', 'auto', 'required', a function or allowed_tools"
    )


def form_of(asked: Mapping[str, Any] | None) -> AnswerForm | None:
    """OpenAI's ``response_format``, and ``text.format`` of the Responses API, whose schema is not nested."""
    kind = (asked or {}).get("type", "text")
    if asked is None or kind == "text":
        return None
    if kind == "json_object":
        return AnswerForm({"type": "object"}, shown=False)
    if kind != "json_schema":
        raise InputError(f"the answer's format {kind!r} is not known: use 'text', 'json_object' or 'json_schema'")
    inner = asked.get("json_schema", asked)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InputError(f"a json_schema needs 'schema', a JSON Schema object; {_short(schema)} was given")
    _check_schema(schema)
    return AnswerForm(schema, shown=True)


def stops_of(asked: str | Sequence[str] | None) -> tuple[str, ...]:
    """OpenAI's ``stop``: one string or several."""
    return (asked,) if isinstance(asked, str) else tuple(asked or ())


def refuse(field: str, why: str) -> ApiError:
    """The error for a field that would change the answer and is not supported."""
    return ApiError(
        400, f"{field} is not supported: {why}", code="unsupported_parameter", param=field.partition("=")[0]
    )


def told_logprobs(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens as OpenAI has them."""
    return [
        _logprob(token.text, token.logprob) | {"top_logprobs": [_logprob(text, log) for _, text, log in token.top]}
        for token in tokens
    ]


def _logprob(text: bytes, logprob: float) -> dict[str, Any]:
    return {
        "token": text.decode("utf-8", "replace"),
        "logprob": max(logprob, _LEAST_LOGPROB),
        "bytes": list(text),
    }


def _tool(spec: Mapping[str, Any]) -> Tool:
    """A tool from OpenAI's JSON, or from a function in the words of Qwen's server of 2023."""
    kind = spec.get("type", "function")
    if kind != "function":
        raise InputError(f"a tool of the type {kind!r} cannot be used: only 'function' can")
    inner = spec.get("function", spec)
    if not isinstance(inner, Mapping):
        raise InputError(f"'function' must be an object with name, description and parameters, not {_short(inner)}")
    parameters = inner.get("parameters") or {}
    name = inner.get("name_for_model") or inner.get("name")
    described = inner.get("description_for_model") or inner.get("description")
    if isinstance(parameters, list):
        return from_qwen_plugin({**inner, "name_for_model": name, "description": described or ""}, _not_run_here)
    if not isinstance(parameters, Mapping):
        raise InputError(f"the parameters of {name!r} must be a JSON Schema object, not {_short(parameters)}")
    tool = from_openai_function(
        {"name": name, "description": described, "parameters": {"type": "object", **parameters}}, _not_run_here
    )
    human = inner.get("name_for_human")
    return replace(tool, name_for_human=human) if isinstance(human, str) and human else tool


def _not_run_here(**arguments: Any) -> None:
    raise AssertionError("tools of a client are never run here")


def _allowed(spec: Any) -> Choice | None:
    """The choice in {"mode": "auto" | "required", "tools": [...]}."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("tools"), list):
        return None
    mode = spec.get("mode", "auto")
    names = tuple(_name(tool) if isinstance(tool, Mapping) else "" for tool in spec["tools"])
    if not names or not all(names) or mode not in ("auto", "required"):
        return None
    kind: Literal["auto", "required"] = "required" if mode == "required" else "auto"
    return Choice(kind, names)


def _name(spec: Mapping[str, Any]) -> str:
    inner = spec.get("function", spec)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else ""


def _check_schema(schema: Mapping[str, Any]) -> None:
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise InputError(f"the answer's schema is not a valid JSON Schema: {error.message[:200]}") from None


def _or(given: N | None, default: N) -> N:
    return default if given is None else given


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
