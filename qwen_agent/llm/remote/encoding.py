"""Prompts -> what an endpoint takes: token ids, the text of a raw prompt, or the messages of a chat.

Promise: text can never become a control token.
- As token ids it is exact with a tokenizer of ours, which cannot write one. An endpoint's own tokenizer may take
  "<|im_end|>" in a text for the token; there the text is cut behind the first character of whatever looks like one
  (`SURFACE`), and the parts are encoded apart: the same text to the byte, in ordinary tokens.
- In a raw prompt or a chat the endpoint sees one string and does as it likes with it, so a space is put behind that
  first character: "< |im_end|>". Only there does the model read something else than was written.

Not promised: control tokens that do not look like `SURFACE`, where no tokenizer of ours is given.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from qwen_agent.errors import InputError
from qwen_agent.llm.remote.endpoint import Endpoint, Refused
from qwen_agent.llm.remote.engines import LLAMA_CPP, Engine
from qwen_agent.llm.tokenizer import Tokenizer, control_id
from qwen_agent.types import IM_END, IM_START, Control, Generated, Prompt, Text

SURFACE = re.compile(r"<(?=[^\s<>]{1,80}>)|\[(?=/?[A-Z][A-Z0-9_]{1,40}\]|[gs]MASK\])|[\[\]](?=[e~!]{1,3}b?[\[\]])")
"""The first character of what may be the surface form of a control token: <no spaces>, [CAPITALS], ]~b]."""

GO_ON = "Go on with your last message from the very place where it ends. Write only what comes next."
"""What the user says in a chat that cannot be continued, after the assistant's unfinished message."""

_KEPT_TEXTS = 4096
_PIECES = re.compile(r"[A-Za-z]+|[^\S\n ]+|\n+| {2,}|[^\sA-Za-z]")
_LETTERS_PER_TOKEN = 3


class Encoding(Protocol):
    """How prompts go out."""

    @property
    def about(self) -> str:
        """In words, for people."""
        ...

    @property
    def exact(self) -> bool:
        """Whether `count` is what the endpoint counts, and not an estimate."""
        ...

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """The part of a request that holds the prompt. Raises InputError for a prompt it cannot hold."""
        ...

    def count(self, prompt: Prompt) -> int: ...


class Vocabulary(Protocol):
    """Encodes text as ordinary text, and knows control tokens by their surface form."""

    about: str

    def encode(self, text: str) -> Sequence[int]: ...

    def control(self, name: str) -> int:
        """Raises InputError if there is none of that name."""
        ...


class LocalVocabulary:
    """A tokenizer of ours, which must be that of the endpoint's model."""

    about = "by the tokenizer given"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.encode: Callable[[str], Sequence[int]] = functools.lru_cache(_KEPT_TEXTS)(
            lambda text: tuple(tokenizer.encode(text))
        )

    def control(self, name: str) -> int:
        return control_id(self._tokenizer, name)


class EndpointVocabulary:
    """The tokenizer behind an endpoint's /tokenize, in vLLM's or llama.cpp's words. What it said is kept."""

    about = "by the endpoint's /tokenize"

    def __init__(self, endpoint: Endpoint, model: str, engine: Engine) -> None:
        self._endpoint = endpoint
        self._model = model
        self._engine = engine
        self._ask = functools.lru_cache(_KEPT_TEXTS)(self._tokenize)
        self.control = functools.lru_cache(64)(self._control)

    def encode(self, text: str) -> Sequence[int]:
        if self._engine.text_is_text:
            return self._ask(text, False)
        return tuple(itertools.chain.from_iterable(self._ask(part, False) for part in parts(text)))

    def _control(self, name: str) -> int:
        found = self._ask(name, True)
        if len(found) == 1:
            return found[0]
        # An endpoint that takes all text for text tells its control tokens elsewhere.
        try:
            told = self._endpoint.get(f"{self._endpoint.root}/tokenizer_info").get("added_tokens_decoder", {})
        except (Refused, AttributeError):
            told = {}
        for token_id, token in told.items() if isinstance(told, Mapping) else ():
            if name == (token.get("content") if isinstance(token, Mapping) else token):
                return int(token_id)
        raise InputError(f"this model's vocabulary has no control token {name!r}")

    def _tokenize(self, text: str, special: bool) -> tuple[int, ...]:
        """Raises Refused where there is no such route, InputError where the answer has no tokens."""
        if not text:
            return ()
        body: dict[str, Any] = {"model": self._model, "prompt": text, "add_special_tokens": False}
        if self._engine is LLAMA_CPP:
            body = {"content": text, "add_special": False, "parse_special": special}
        answer = self._endpoint.post(f"{self._endpoint.root}/tokenize", body)
        tokens = answer.get("tokens") if isinstance(answer, Mapping) else None
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, int) for token in tokens):
            raise InputError(f"{self._endpoint.root}/tokenize answers without tokens")
        return tuple(tokens)


@dataclass(frozen=True, slots=True)
class AsTokenIds:
    """Prompts as token ids, segment by segment, so that no token crosses a border between segments."""

    vocabulary: Vocabulary
    exact: bool = True

    @property
    def about(self) -> str:
        return f"token ids, made {self.vocabulary.about}"

    def ids(self, prompt: Prompt) -> list[int]:
        found: list[int] = []
        for segment in prompt:
            match segment:
                case Control(name):
                    found.append(self.vocabulary.control(name))
                case Text(content):
                    found.extend(self.vocabulary.encode(content))
                case Generated(_, token_ids):
                    found.extend(token_ids)
        return found

    def body(self, prompt: Prompt) -> dict[str, Any]:
        return {"prompt": self.ids(prompt)}

    def count(self, prompt: Prompt) -> int:
        return len(self.ids(prompt))


@dataclass(frozen=True, slots=True)
class AsText:
    """Prompts as the text of a raw prompt, with control tokens by their surface form."""

    counted: Callable[[str], int]
    about: str = "text"
    exact: bool = False

    def body(self, prompt: Prompt) -> dict[str, Any]:
        return {"prompt": "".join(_written(prompt))}

    def count(self, prompt: Prompt) -> int:
        return _count(prompt, self.counted)


@dataclass(frozen=True, slots=True)
class AsMessages:
    """ChatML prompts as the messages of a chat, its template applied by the endpoint.

    An assistant's turn that is open and not empty is continued with the fields ``continued``. Where the endpoint cannot
    do that (None), the user asks for it (`GO_ON`): the model then begins a turn, so it may repeat itself.
    What it repeats of the last line is left out (`repeated`).
    """

    counted: Callable[[str], int]
    continued: Mapping[str, Any] | None
    about: str = "chat messages"
    exact: bool = False

    def body(self, prompt: Prompt) -> dict[str, Any]:
        *closed, (role, content) = _turns(prompt)
        messages = [{"role": role, "content": content} for role, content in closed]
        if role != "assistant" or not content:
            return {"messages": messages if role == "assistant" else [*messages, {"role": role, "content": content}]}
        messages.append({"role": role, "content": content})
        if self.continued is not None:
            return {"messages": messages, **self.continued}
        return {"messages": [*messages, {"role": "user", "content": GO_ON}]}

    def count(self, prompt: Prompt) -> int:
        return _count(prompt, self.counted)


def repeated(encoding: Encoding, prompt: Prompt) -> str:
    """The line that a model may write again because it cannot go on in the middle of it; "" where it can."""
    if not isinstance(encoding, AsMessages) or encoding.continued is not None:
        return ""
    role, content = _turns(prompt)[-1]
    return content.rpartition("\n")[2].strip() if role == "assistant" else ""


def parts(text: str) -> list[str]:
    """The text in parts none of which holds a `SURFACE`; joined they are the text."""
    ends = [match.end() for match in SURFACE.finditer(text)]
    return [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)]) if start < end]


def harmless(text: str) -> str:
    """The text with a space in whatever looks like a control token."""
    return " ".join(parts(text))


def estimate(text: str) -> int:
    """More tokens than ordinary text has in the vocabularies of today's models.

    One for three letters of a word, one for each digit, sign and run of blanks, and for any other character one less
    than its bytes in UTF-8.
    """
    return sum(_piece(piece) for piece in _PIECES.findall(text))


def _piece(piece: str) -> int:
    if piece.isascii():
        return -(-len(piece) // _LETTERS_PER_TOKEN) if piece.isalpha() else 1
    return max(len(piece.encode("utf-8", "replace")) - 1, 1)


def _count(prompt: Prompt, counted: Callable[[str], int]) -> int:
    return sum(
        1 if isinstance(segment, Control) else len(segment.token_ids) if isinstance(segment, Generated)
        else counted(segment.content)
        for segment in prompt
    )  # fmt: skip


def _written(prompt: Prompt) -> list[str]:
    """Control tokens and, between them, harmless text."""
    # Text is joined first: a surface form may lie across segments.
    runs = itertools.groupby(prompt, key=lambda segment: isinstance(segment, Control))
    return [
        "".join(s.name for s in run if isinstance(s, Control)) if control
        else harmless("".join(s.content for s in run if not isinstance(s, Control)))
        for control, run in runs
    ]  # fmt: skip


def _turns(prompt: Prompt) -> list[tuple[str, str]]:
    """The turns of a ChatML prompt as (role, harmless text); the last may be open."""
    turns: list[tuple[str, str]] = []
    inside = False
    for text_or_control in _runs(prompt):
        if text_or_control == IM_START and not inside:
            inside = True
            turns.append(("", ""))
        elif text_or_control == IM_END and inside:
            inside = False
        elif isinstance(text_or_control, str) and inside and not turns[-1][0]:
            role, newline, content = text_or_control.partition("\n")
            if role not in ("system", "user", "assistant") or not newline:
                raise _no_chat()
            turns[-1] = (role, harmless(content))
        elif text_or_control != "\n":
            raise _no_chat()
    if not turns or not all(role for role, _ in turns):
        raise _no_chat()
    return turns


def _runs(prompt: Prompt) -> list[str | Control]:
    """Control tokens, and the text between them."""
    runs: list[str | Control] = []
    for segment in prompt:
        if isinstance(segment, Control):
            runs.append(segment)
        elif runs and isinstance(runs[-1], str):
            runs[-1] += segment.content
        else:
            runs.append(segment.content)
    return [run for run in runs if run != ""]


def _no_chat() -> InputError:
    return InputError(
        "this prompt is not a ChatML conversation, so it cannot be sent as chat messages: use completions"
    )
