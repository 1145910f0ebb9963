"""Text to token ids and back, for Qwen's tiktoken vocabulary and for byte-level BPE ``tokenizer.json`` files.

Promises
- Text can never become a control token: ``encode`` treats every string as ordinary text, and a prompt gets control
  tokens only from ``Control`` segments, by id.
- decode(encode(text)) is the text (for Qwen's vocabulary its NFC form), except that U+FFFD stands for what cannot be
  written: lone surrogates, and characters with a byte that a small vocabulary lacks.
- A streamed text never shows half a character.

Not promised: re-encoding decoded text gives back the same ids. Keep the ids.
"""

from __future__ import annotations

import base64
import codecs
import json
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import tiktoken

from qwen_agent.errors import CheckpointError, InputError
from qwen_agent.types import Control, Generated, Prompt, Text

# Qwen's split pattern (cl100k's, with numbers split into single digits).
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


class Tokenizer(Protocol):
    """What the runtime needs of a tokenizer. ``size`` counts the ids that may be sampled: 0 .. size - 1."""

    @property
    def specials(self) -> Mapping[str, int]:
        """Surface form -> id of the control tokens."""
        ...

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text; special surface forms in it are plain characters."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes an ordinary token stands for; b"" for a special one. KeyError for an id outside the vocabulary."""
        ...

    def vocabulary(self) -> Mapping[bytes, int]:
        """bytes -> id of every ordinary token."""
        ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder: ``qwen.tiktoken`` or ``tokenizer.json``. CheckpointError if there is none."""
    if (folder / "qwen.tiktoken").is_file():
        return QwenTokenizer(folder / "qwen.tiktoken")
    if (folder / "tokenizer.json").is_file():
        return BPETokenizer(folder / "tokenizer.json")
    raise CheckpointError(f"{folder} has no tokenizer: it needs qwen.tiktoken or tokenizer.json; download it again")


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, segment by segment, so that no token crosses a border between segments."""
    ids: list[int] = []
    for segment in prompt:
        match segment:
            case Control(name):
                ids.append(control_id(tokenizer, name))
            case Text(content):
                ids.extend(tokenizer.encode(content))
            case Generated(_, token_ids):
                ids.extend(token_ids)
    return ids


def control_id(tokenizer: Tokenizer, name: str) -> int:
    """The id of a control token by its surface form; InputError if this vocabulary does not have it."""
    try:
        return tokenizer.specials[name]
    except KeyError:
        raise InputError(f"this model's vocabulary has no control token {name!r}") from None


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids. Special tokens vanish; bytes that are not UTF-8 become U+FFFD."""
    return b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", errors="replace")


class StreamDecoder:
    """Token ids in, text out, character by character: bytes of an unfinished character are held back."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The text that this token completes (often all of it, "" in the middle of a character)."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the text ends within a character, else ""."""
        return self._utf8.decode(b"", final=True)


def _encodable(text: str) -> str:
    """Lone surrogates cannot be written in UTF-8; they become U+FFFD, as in every other place that writes text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class QwenTokenizer:
    """Qwen's byte-pair vocabulary in tiktoken's format: 151,643 ordinary tokens and 208 special ones."""

    def __init__(self, path: Path) -> None:
        ranks = _read_tiktoken(path)
        self.specials = {name: len(ranks) + i for i, name in enumerate(_QWEN_SPECIALS)}
        self.size = len(ranks) + len(self.specials)
        self._ranks = ranks
        self._surfaces = {token_id: name for name, token_id in self.specials.items()}
        self._bpe = tiktoken.Encoding(
            "Qwen", pat_str=_QWEN_SPLIT, mergeable_ranks=ranks, special_tokens=dict(self.specials)
        )

    def encode(self, text: str) -> list[int]:
        return self._bpe.encode_ordinary(unicodedata.normalize("NFC", _encodable(text)))

    def encode_with_specials(
        self,
        text: str,
        allowed_special: Literal["all"] | Collection[str] = "all",
        disallowed_special: Literal["all"] | Collection[str] = (),
    ) -> list[int]:
        """The 2023 API for those who ask: surface forms in ``allowed_special`` become control tokens.

        Never use it on text that a user, a tool or a model wrote. Raises ValueError if the text holds a form from
        ``disallowed_special``; others are ordinary text. Defaults as in the original tokenizer.
        """
        allowed = allowed_special if allowed_special == "all" else set(allowed_special)
        disallowed = disallowed_special if disallowed_special == "all" else set(disallowed_special)
        text = unicodedata.normalize("NFC", _encodable(text))
        return self._bpe.encode(text, allowed_special=allowed, disallowed_special=disallowed)  # type: ignore[arg-type]

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._surfaces else self._bpe.decode_single_token_bytes(token_id)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False, errors: str = "replace") -> str:
        """The text of ids, with the surface forms of special tokens unless they are skipped (the 2023 API)."""
        pieces = (
            (b"" if skip_special_tokens else self._surfaces[i].encode()) if i in self._surfaces else self.token_bytes(i)
            for i in ids
        )
        return b"".join(pieces).decode("utf-8", errors=errors)

    def vocabulary(self) -> Mapping[bytes, int]:
        return self._ranks


def _read_tiktoken(path: Path) -> dict[bytes, int]:
    try:
        lines = path.read_bytes().splitlines()
        pairs = (line.split() for line in lines if line)
        return {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise CheckpointError(f"{path} is not a tiktoken vocabulary ({error}): download it again") from None


class BPETokenizer:
    """A byte-level BPE ``tokenizer.json`` (Qwen 2 and later, the embedded model).

    The file's added tokens are taken out before the text encoder is built, so that it cannot know them: they are
    reachable through ``specials`` only.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Encoder

        spec = _read_tokenizer_json(path)
        added = {token["content"]: token["id"] for token in spec.pop("added_tokens", None) or []}
        spec["added_tokens"] = []
        spec["post_processor"] = None
        vocabulary: Mapping[str, int] = spec["model"]["vocab"]
        try:
            self._encoder = Encoder.from_str(json.dumps(spec))
        except Exception as error:  # the Rust side raises plain Exception for anything wrong in the file
            raise CheckpointError(f"{path} cannot be used ({error}): download it again") from None
        self.specials: Mapping[str, int] = added
        special_ids = set(added.values())
        self._bytes = {i: _token_bytes(t, path) for t, i in vocabulary.items() if i not in special_ids}
        self._bytes.update(dict.fromkeys(special_ids, b""))
        self.size = max(self._bytes) + 1
        self._ids = {b: i for i, b in self._bytes.items() if b}
        # The library drops a byte without a token silently, and small vocabularies lack the rarest.
        self._unwritable = bytes(b for b in range(256) if bytes([b]) not in self._ids)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._encoder.encode(self._writable(_encodable(text)), add_special_tokens=False).ids
        return ids

    def _writable(self, text: str) -> str:
        lacking = set(self._unwritable) & set(text.encode())
        if not lacking:
            return text
        return "".join("\ufffd" if lacking & set(char.encode()) else char for char in text)

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id]

    def vocabulary(self) -> Mapping[bytes, int]:
        return self._ids


def _read_tokenizer_json(path: Path) -> dict[str, Any]:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
        kind = spec["model"].get("type", "BPE")
        byte_level = "ByteLevel" in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a tokenizer file ({error!r}): download it again") from None
    if kind != "BPE" or not byte_level:
        raise CheckpointError(f"{path} is a {kind} tokenizer; only byte-level BPE (Qwen 2 and later) is implemented")
    assert isinstance(spec, dict)
    return spec


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: visible Latin-1 stands for itself, the rest is moved up from 256."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + i): b for i, b in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


def _token_bytes(token: str, path: Path) -> bytes:
    try:
        return bytes(_ALPHABET[c] for c in token)
    except KeyError:
        raise CheckpointError(
            f"{path}: token {token!r} is not in the byte-level alphabet; is it another kind?"
        ) from None
