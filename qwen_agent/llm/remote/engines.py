"""What the engines understand beyond OpenAI's API, under the names they give it.

An engine is known by what ``GET /models`` says owns its models. Field names are from the engines' own request classes;
docs/scaling.md says which of them have been run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig

Fields = Mapping[str, Any]

_FAR_BACK = 1 << 15  # tokens; llama.cpp has no word for "all" and keeps a list of this length


@dataclass(frozen=True, slots=True)
class Engine:
    """The dialect of one engine; the defaults are OpenAI's own API and nothing more.

    ``sampling`` gives the fields for what OpenAI's API has no words for; None if the engine has none either.
    ``keep_stop`` makes the engine leave a stop string in its text, so that it is known which one it was; without it
    stop strings are found on our side alone. ``continued`` makes it go on with an open assistant message in a chat;
    None if it cannot. ``guided`` holds the output to a grammar in llguidance's Lark. ``ends_in_ids`` is True if the ids
    it returns include the token that ended the text. ``text_is_text`` if its /tokenize can take all text for text.
    """

    name: str
    sampling: Callable[[GenerationConfig], Fields] | None = None
    completion: Fields = field(default_factory=dict)
    keep_stop: Fields | None = None
    stops_at_ids: bool = False
    ends_in_ids: bool = False
    continued: Fields | None = None
    text_is_text: bool = False
    guided: Callable[[str], Fields] | None = None
    guided_by: str = ""


def _vllm_sampling(config: GenerationConfig) -> Fields:
    # All are sent, since what is left out is taken from the model's generation_config.json.
    return {"top_k": config.top_k or -1, "min_p": 0.0, "repetition_penalty": config.repetition_penalty}


def _llama_cpp_sampling(config: GenerationConfig) -> Fields:
    fields = {"top_k": config.top_k, "min_p": 0.0, "repeat_penalty": config.repetition_penalty}
    return fields if config.repetition_penalty == 1.0 else {**fields, "repeat_last_n": _FAR_BACK}


def _own_sampling(config: GenerationConfig) -> Fields:
    return {"top_k": config.top_k, "repetition_penalty": config.repetition_penalty}


OPENAI = Engine("openai")
VLLM = Engine(
    "vllm",
    sampling=_vllm_sampling,
    completion={"return_token_ids": True, "add_special_tokens": False},
    keep_stop={"include_stop_str_in_output": True},
    stops_at_ids=True,
    ends_in_ids=True,
    continued={"add_generation_prompt": False, "continue_final_message": True},
    guided=lambda lark: {"structured_outputs": {"grammar": lark}},
    guided_by='vllm serve --structured-outputs-config \'{"backend": "guidance"}\'',
)
SGLANG = Engine(
    "sglang",
    sampling=_vllm_sampling,
    completion={"return_token_ids": True},
    keep_stop={"no_stop_trim": True},
    stops_at_ids=True,
    ends_in_ids=True,
    continued={"continue_final_message": True},
    guided=lambda lark: {"ebnf": lark},
    guided_by="sglang.launch_server --grammar-backend llguidance",
)
LLAMA_CPP = Engine(
    "llama.cpp",
    sampling=_llama_cpp_sampling,
    completion={"return_progress": True},
    continued={"add_generation_prompt": False, "continue_final_message": True},
    text_is_text=True,
    guided=lambda lark: {"grammar": f"%llguidance {{}}\n{lark}"},
    guided_by="a llama-server that was built with -DLLAMA_LLGUIDANCE=ON",
)
OWN = Engine("qwen-agent", sampling=_own_sampling, text_is_text=True)

ENGINES = {engine.name: engine for engine in (OPENAI, VLLM, SGLANG, LLAMA_CPP, OWN)}
_OWNERS = {"vllm": VLLM, "sglang": SGLANG, "llamacpp": LLAMA_CPP, "qwen-agent": OWN, "qwen-react-agent": OWN}


def engine_of(owner: str, asked: str) -> Engine:
    """The engine that was asked for; for "auto" the one whose models have this owner, or OpenAI's API and no more."""
    if asked == "auto":
        return _OWNERS.get(owner, OPENAI)
    if asked not in ENGINES:
        raise InputError(f"engine={asked!r} is unknown: use auto, {', '.join(ENGINES)}")
    return ENGINES[asked]


def sampling_fields(engine: Engine, config: GenerationConfig) -> dict[str, Any]:
    """How to sample. Raises InputError for what the endpoint has no field for."""
    common: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p}
    if config.seed is not None:
        common["seed"] = config.seed
    if engine.sampling is not None:
        return {**common, **engine.sampling(config)}
    for name, value, off in (("top_k", config.top_k, 0), ("repetition_penalty", config.repetition_penalty, 1.0)):
        if value != off:
            raise InputError(f"{name}={value} cannot be sent: this endpoint knows OpenAI's fields only, leave it {off}")
    return common
