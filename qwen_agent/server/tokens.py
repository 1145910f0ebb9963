"""/tokenize, /detokenize and /tokenizer_info, in the words that vLLM gave them: evaluation harnesses ask for them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from qwen_agent.errors import InputError
from qwen_agent.llm.tokenizer import Tokenizer, decode
from qwen_agent.server.completions import known, readable
from qwen_agent.types import END_OF_TEXT, IM_END


class TokenizeRequest(BaseModel):
    """A text to be encoded. Whatever it looks like, it has no control tokens: ``add_special_tokens`` adds none."""

    model_config = ConfigDict(extra="ignore")

    prompt: str
    model: str | None = None
    add_special_tokens: StrictBool | None = None
    return_token_strs: StrictBool | None = None


class DetokenizeRequest(BaseModel):
    """Token ids to be decoded."""

    model_config = ConfigDict(extra="ignore")

    tokens: list[Annotated[int, Field(ge=0)]]
    model: str | None = None


def tokenize(body: TokenizeRequest, tokenizer: Tokenizer, window: int) -> dict[str, Any]:
    ids = tokenizer.encode(body.prompt)
    told: dict[str, Any] = {"count": len(ids), "max_model_len": window, "tokens": ids, "token_strs": None}
    if body.return_token_strs:
        told["token_strs"] = [readable(tokenizer.token_bytes(token)) for token in ids]
    return told


def detokenize(body: DetokenizeRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """The text; control tokens have none. Raises InputError for ids outside the vocabulary."""
    return {"prompt": decode(tokenizer, known(body.tokens, tokenizer))}


def tokenizer_info(tokenizer: Tokenizer, window: int) -> dict[str, Any]:
    """What of Hugging Face's tokenizer_config.json a client may need; the control tokens with their ids."""
    names = [name for name in (IM_END.name, END_OF_TEXT.name) if name in tokenizer.specials]
    if not names:
        raise InputError("this vocabulary has no token that ends a text")
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.size,
        "model_max_length": window,
        "bos_token": None,
        "eos_token": names[0],
        "pad_token": names[-1],
        "unk_token": None,
        "added_tokens_decoder": {
            str(token): {"content": name, "special": True} for name, token in sorted(tokenizer.specials.items())
        },
    }
