"""What the command ``serve`` makes of its options: keys, the agent's tools, the web page's tools."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_agent.assemble import Sources, build_tools
from qwen_agent.errors import InputError
from qwen_agent.server.security import Credentials

if TYPE_CHECKING:
    from qwen_agent.react import Agent
    from qwen_agent.tools.base import Tool
    from qwen_agent.web.conversation import Place
    from qwen_agent.web.page import PageOptions

_LEAST_KEY = 8  # characters


def credentials(key_file: Path | None, keys: str | None, auth_file: Path | None, auth: str | None) -> Credentials:
    """What opens the server: the keys of a file or of a text, one a line; USER:PASSWORD of a file or a text.

    Raises InputError for a file that cannot be read or holds nothing, and for what cannot be sent in a header.
    """
    texts = [_read(key_file) if key_file is not None else keys, _read(auth_file) if auth_file is not None else auth]
    found = tuple(_key(line, key_file) for line in _lines(texts[0]))
    if key_file is not None and not found:
        raise InputError(f"{key_file} holds no key: write one on a line of its own")
    pairs = _lines(texts[1])
    if texts[1] is not None and (len(pairs) != 1 or not all(pairs[0].partition(":"))):
        raise InputError("HTTP Basic needs USER:PASSWORD, with something on both sides of the colon")
    return Credentials(found, None if not pairs else (pairs[0].partition(":")[0], pairs[0].partition(":")[2]))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the key cannot be read from {file} ({error})") from None


def _lines(text: str | None) -> list[str]:
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def _key(key: str, file: Path | None) -> str:
    if len(key) < _LEAST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        where = file or "the environment"
        raise InputError(f"a key from {where} cannot be used: at least {_LEAST_KEY} letters, digits and signs")
    return key


def page_options(
    agent: Agent, sources: Sources, *, tool_names: str | None, ask: Sequence[str], deny: Sequence[str]
) -> PageOptions:
    """A page like the agent, whose tools work in the folders of each conversation.

    Without ``tool_names`` that is a calculator, the conversation's files, and the documents if there are some.
    """
    from qwen_agent.web.page import PageOptions

    names = tool_names
    if names is None:
        names = "calculator,files" if sources.settings.docs is None else "search,calculator,files"
    # Connections are made once, not for every conversation.
    others = build_tools(sources, tool_names="none", ask=(), deny=())

    def make_tools(place: Place) -> list[Tool]:
        settings = sources.settings
        files = settings.files if settings.files is not None else place.files
        settings = replace(settings, files=files, workdir=place.files, artifacts=place.artifacts)
        own = replace(sources, settings=settings, plugins="", mcp_servers=(), warn=lambda text: None)
        tools = {tool.name: tool for tool in others}
        tools |= {tool.name: tool for tool in build_tools(own, tool_names=names, ask=(), deny=())}
        for name in (*ask, *deny):
            if name not in tools:
                raise InputError(f"{name!r} cannot be asked about or denied: the tools are {', '.join(tools)}")
            tools[name] = replace(tools[name], approval="deny" if name in deny else "ask")
        return list(tools.values())

    return PageOptions(make_tools=make_tools, generation=agent.generation, limits=agent.limits, system=agent.system)


def log_to_stderr(*, requests: bool) -> None:
    """Have the server's log, and if wanted one line for each request, written to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    server = logging.getLogger("qwen_agent.server")
    server.addHandler(handler)
    server.setLevel(logging.INFO)
    logging.getLogger("qwen_agent.server.access").disabled = not requests
