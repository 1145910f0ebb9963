"""What an MCP server says, as values of ours: a listed tool -> a definition, the result of a call -> text and files.

Pure: no SDK and no network. Both versions of the SDK speak the same JSON, and that is what is read here.

Promises
- descriptions_are_one_short_line: no control, invisible or private characters, no newlines, bounded length.
- nothing_is_fetched: a schema that refers to another document is refused; a link in a result is only named.
- no_pattern_of_a_server_is_run: a hostile regular expression would block the whole process, so the server, which
  checks its arguments anyway, keeps its patterns to itself.
- a_schema_stays_small: one that would grow without bound when its references are written out is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
import re
import unicodedata
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_agent.errors import InputError, QwenAgentError, ToolError
from qwen_agent.tools.artifacts import ArtifactStore, describe
from qwen_agent.tools.base import ToolOutput
from qwen_agent.tools.schema import check_parameters, compact, references
from qwen_agent.types import Artifact

MAX_DESCRIPTION = 600  # characters; a small model reads every tool's in every prompt
MAX_ARGUMENT_DESCRIPTION = 200
MAX_SCHEMA_CHARS = 30_000
MAX_SCHEMA_PARTS = 2_000  # with every reference written out
MAX_NAME = 64  # what most model APIs allow
MAX_FILE = 16 << 20  # bytes of one picture or file in a result
MAX_TEXT = 1 << 20  # characters of one result, before the tool's own limit

_MAPS_OF_SCHEMAS = ("properties", "$defs", "definitions", "dependentSchemas")
_PLAIN_VALUES = ("default", "const", "enum", "examples", "required")
_LEFT_OUT = ("$schema", "$id", "$comment", "pattern", "patternProperties")
_INVISIBLE = ("Cf", "Co", "Cs", "Cn")


@dataclass(frozen=True, slots=True)
class Definition:
    """A tool as its server describes it, cleaned. ``name`` is what the server calls it."""

    name: str
    title: str
    description: str
    parameters: dict[str, Any]
    read_only: bool


def read_definition(listed: Mapping[str, Any]) -> Definition:
    """One entry of a server's list. Raises InputError, saying why, for a tool that cannot be offered to a model."""
    hints = listed.get("annotations") or {}
    if (listed.get("execution") or {}).get("taskSupport") == "required":
        raise InputError("it can only be called as a task, which is not supported")
    try:
        parameters = _parameters(listed.get("inputSchema") or {})
    except RecursionError:
        raise InputError("its schema is nested too deeply") from None
    return Definition(
        name=listed["name"],
        title=one_line(listed.get("title") or hints.get("title") or "", MAX_NAME),
        description=one_line(listed.get("description") or "", MAX_DESCRIPTION),
        parameters=parameters,
        read_only=hints.get("readOnlyHint") is True,
    )


def own_name(name: str, prefix: str | None, taken: Container[str]) -> str:
    """A name that our tools may have: ``prefix__name``, other characters as "_", numbered if it is taken already."""
    made = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{prefix}__{name}" if prefix else name)
    made = (made if re.match(r"[A-Za-z_]", made) else f"_{made}")[:MAX_NAME]
    unique, number = made, 1
    while unique in taken:
        number += 1
        unique = f"{made[: MAX_NAME - 4]}_{number}"
    return unique


def one_line(text: str, limit: int) -> str:
    """The text on one line of at most ``limit`` characters, without what a reader could not see."""
    shown = (" " if unicodedata.category(c) == "Cc" else c for c in text if unicodedata.category(c) not in _INVISIBLE)
    line = " ".join("".join(shown).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def read_result(result: Mapping[str, Any], store: ArtifactStore | None) -> ToolOutput:
    """The result of a call. Raises ToolError with the server's words if it says that the call failed."""
    lines: list[str] = []
    files: list[Artifact] = []
    spoke = False
    for block in result.get("content") or ():
        line, file = _read_block(block, store)
        spoke = spoke or block.get("type") == "text" or "text" in block.get("resource", {})
        lines.append(line)
        files += [file] if file is not None else []
    if not spoke and result.get("structuredContent") is not None:
        lines.insert(0, json.dumps(result["structuredContent"], ensure_ascii=False))
    text = "\n".join(line for line in lines if line)[:MAX_TEXT]
    if result.get("isError"):
        raise ToolError(text or "The tool failed and did not say why.")
    return ToolOutput(text or "(no output)", tuple(files))


def _parameters(given: Any) -> dict[str, Any]:
    """The schema of the arguments: descriptions cleaned, references written out."""
    size = len(json.dumps(given))
    if size > MAX_SCHEMA_CHARS:
        raise InputError(f"its schema has {size} characters, more than {MAX_SCHEMA_CHARS}")
    check_parameters(given)
    schema: dict[str, Any] = _cleaned(given)
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    if _parts(schema, definitions, MAX_SCHEMA_PARTS) > MAX_SCHEMA_PARTS:
        raise InputError(f"its schema has more than {MAX_SCHEMA_PARTS} parts when its references are written out")
    written_out = compact(schema)
    if next(references(written_out), None) is None:
        return written_out
    for reference in references(schema):  # compact() knows those to definitions only; a validator resolves the rest
        if not _resolves(schema, reference):
            raise InputError(f"its schema refers to {one_line(reference, 80)!r}, which it does not have")
    return schema


def _cleaned(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_cleaned(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _LEFT_OUT or key.startswith("x-"):
            continue
        if key == "description":
            made[key] = one_line(str(value), MAX_ARGUMENT_DESCRIPTION)
        elif key in _MAPS_OF_SCHEMAS:
            made[key] = {name: _cleaned(part) for name, part in value.items()}
        else:
            made[key] = value if key in _PLAIN_VALUES else _cleaned(value)
    if "patternProperties" in schema:
        made["additionalProperties"] = True
    return made


def _parts(schema: Any, definitions: Mapping[str, Any], limit: int, inside: frozenset[str] = frozenset()) -> int:
    """How many values the schema has with its references written out, as `compact` does it; stops past ``limit``."""
    if not isinstance(schema, (Mapping, list)):
        return 1
    parts = list(schema.values()) if isinstance(schema, Mapping) else schema
    name = str(schema.get("$ref", "")).rpartition("/")[2] if isinstance(schema, Mapping) else ""
    total = 1
    if name in definitions and name not in inside:
        total += _parts(definitions[name], definitions, limit, inside | {name})
    for part in parts:
        if total > limit:
            break
        total += _parts(part, definitions, limit - total, inside)
    return total


def _resolves(schema: Any, reference: str) -> bool:
    """Whether a JSON pointer ("#/a/b") leads somewhere."""
    if reference == "#":
        return True
    if not reference.startswith("#/"):
        return False
    for step in reference[2:].split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list) and step.isdecimal() and int(step) < len(schema):
            schema = schema[int(step)]
        elif isinstance(schema, Mapping) and step in schema:
            schema = schema[step]
        else:
            return False
    return isinstance(schema, (Mapping, bool))


def _read_block(block: Mapping[str, Any], store: ArtifactStore | None) -> tuple[str, Artifact | None]:
    """One block of a result: a line for the model, and a file if there is one and it was kept."""
    kind = block.get("type")
    if kind == "text":
        return block["text"], None
    if kind in ("image", "audio"):
        return _keep(kind, block["data"], block.get("mimeType"), "", store)
    if kind == "resource":
        held = block["resource"]
        if "text" in held:
            return held["text"], None
        return _keep("file", held["blob"], held.get("mimeType"), str(held.get("uri", "")), store)
    if kind == "resource_link":
        name = one_line(str(block.get("name") or ""), 80)
        return f"[link to {name}: {one_line(str(block.get('uri', '')), 300)}]", None
    return f"[content of the unknown type {one_line(str(kind), 40)!r}]", None


def _keep(
    kind: str, encoded: str, media_type: str | None, uri: str, store: ArtifactStore | None
) -> tuple[str, Artifact | None]:
    """Put a file into the store, if there is one; say in a line what became of it."""
    media = one_line(media_type or "application/octet-stream", 80)
    what = f"{kind}, {media}, {len(encoded) * 3 // 4} bytes"
    if store is None:
        return f"[{what}: not kept]", None
    if len(encoded) * 3 // 4 > MAX_FILE:
        return f"[{what}: not kept, it is larger than {MAX_FILE} bytes]", None
    name = re.split(r"[?#]", uri)[0].rstrip("/").rpartition("/")[2] or kind
    name = name if "." in name else f"{name}{mimetypes.guess_extension(media) or '.bin'}"
    try:
        kept = store.add(base64.b64decode(encoded, validate=True), name, media)
    except binascii.Error:
        return f"[{what}: not kept, it is not valid base64]", None
    except QwenAgentError as problem:
        return f"[{what}: not kept: {problem}]", None
    return describe(kept), kept
