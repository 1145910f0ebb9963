"""The built-in tools by name: what each does, what it needs, and how it is built.

One list for the command line, the server and MCP. Nothing is imported before it is built. What cannot be built raises
InputError, MissingDependency or SandboxUnavailable, whose text is the one thing to do about it; options are named as
on the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from qwen_agent.errors import InputError
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user chose. Everything is optional; each tool says what it cannot do without.

    ``docs`` is searched, with its index in the file ``index`` (None: in the user's cache); ``files`` is listed, read
    and, with ``write``, written; ``workdir`` is where code runs (None: in a temporary folder), in no sandbox if
    ``unsafe``; ``artifacts`` is where pictures and files that tools make are kept. ``web`` holds the search service
    and its keys (`qwen_agent.tools.web_search`).

    ``image_model`` and ``vision_model`` are checkpoints on this machine or hub ids, or, with ``image_url`` and
    ``vision_url``, the names of models behind an OpenAI-compatible service; an ``image_url`` with {prompt} in it is
    a service that answers with a picture. ``brief`` makes results short enough for the embedded model.
    """

    docs: Path | None = None
    index: Path | None = None
    files: Path | None = None
    write: bool = False
    workdir: Path | None = None
    unsafe: bool = False
    artifacts: Path | None = None
    web: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    image_model: str = ""
    image_url: str = ""
    image_key: str = field(default="", repr=False)
    vision_model: str = ""
    vision_url: str = ""
    vision_key: str = field(default="", repr=False)
    device: str = ""
    brief: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A tool, or a few that belong together. ``needs`` says in the options of the command line what it wants."""

    name: str
    summary: str
    needs: str
    build: Callable[[Settings], tuple[Tool, ...]]


def catalog() -> Mapping[str, Entry]:
    """The built-in tools by name, in the order in which they are shown."""
    return _CATALOG


def build_tools(names: Iterable[str], settings: Settings) -> tuple[Tool, ...]:
    """The tools of these names, in this order. Raises InputError for a name that there is not, or what `Entry` says."""
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in _CATALOG:
            raise InputError(f"there is no tool {name!r}: choose from {', '.join(_CATALOG)}, or 'none'")
    return tuple(tool for name in wanted for tool in _CATALOG[name].build(settings))


def _calculator(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.calculator import calculator

    return (calculator,)


def _search(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.search import search_documents

    if settings.docs is None:
        raise InputError("search needs a folder of documents: add --docs DIR")
    if settings.brief:
        return (search_documents(settings.docs, results=1, chars=120, index=settings.index),)
    return (search_documents(settings.docs, index=settings.index),)


def _code_interpreter(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.code_interpreter import code_interpreter

    return (code_interpreter(settings.workdir, store=_store(settings), unsafe=settings.unsafe),)


def _files(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.files import file_tools

    if settings.files is None:
        raise InputError("files needs the folder that may be read: add --files DIR")
    return file_tools(settings.files, write=settings.write)


def _current_time(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.clock import current_time

    return (current_time,)


def _convert_units(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.units import convert_units

    return (convert_units,)


def _web_search(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.web_search import backend_from, web_search

    backend = backend_from(settings.web)
    return (web_search(backend, results=2) if settings.brief else web_search(backend),)


def _web_page(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.web_page import web_page

    return (web_page(chars=500) if settings.brief else web_page(),)


def _generate_image(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.image_generation import endpoint_images, image_generation, local_images, url_images

    store = _store(settings)
    if store is None:
        raise InputError("generate_image needs a folder for its pictures: add --artifacts DIR")
    if "{prompt}" in settings.image_url:
        backend = url_images(settings.image_url)
    elif settings.image_url:
        backend = endpoint_images(settings.image_url, model=settings.image_model, key=settings.image_key)
    elif settings.image_model:
        backend = local_images(settings.image_model, device=settings.device)
    else:
        raise InputError("generate_image needs a model: add --image-model FOLDER_OR_HUB_ID, or --image-url URL")
    return (image_generation(backend, store),)


def _read_text(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.image_understanding import image_text

    _check_pictures("read_text", settings)
    return (image_text(_store(settings), settings.files),)


def _describe_image(settings: Settings) -> tuple[Tool, ...]:
    from qwen_agent.tools.image_understanding import endpoint_vision, image_description, local_vision

    _check_pictures("describe_image", settings)
    if not settings.vision_model:
        raise InputError("describe_image needs a model: add --vision-model FOLDER_OR_HUB_ID (or with --vision-url URL)")
    if settings.vision_url:
        backend = endpoint_vision(settings.vision_url, model=settings.vision_model, key=settings.vision_key)
    else:
        backend = local_vision(settings.vision_model, device=settings.device)
    return (image_description(backend, _store(settings), settings.files),)


def _check_pictures(name: str, settings: Settings) -> None:
    if settings.files is None and settings.artifacts is None:
        raise InputError(f"{name} needs a folder with pictures: add --files DIR")


def _store(settings: Settings) -> ArtifactStore | None:
    return ArtifactStore(settings.artifacts) if settings.artifacts is not None else None


_ENTRIES = (
    Entry("calculator", "Arithmetic, exact", "", _calculator),
    Entry("current_time", "Date and time in any time zone", "", _current_time),
    Entry("convert_units", "Units of measurement, exact", "", _convert_units),
    Entry("search", "Search in a folder of documents", "--docs DIR", _search),
    Entry("files", "List, read and (with --write) write files of a folder", "--files DIR", _files),
    Entry("code_interpreter", "Run Python in a sandbox", "bubblewrap, on Linux", _code_interpreter),
    Entry("web_search", "Search the web", "the network", _web_search),
    Entry("web_page", "Read a web page", "the network", _web_page),
    Entry("generate_image", "Make a picture", "--artifacts DIR and --image-model or --image-url", _generate_image),
    Entry("read_text", "Read the text in a picture (OCR)", "--files DIR", _read_text),
    Entry("describe_image", "Say what a picture shows", "--files DIR and --vision-model", _describe_image),
)
_CATALOG: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
