"""What is in a picture: its text (OCR, offline) and what it shows (a vision model, here or behind an endpoint).

A picture is named as a model knows it: by the id or the name of an artifact, or by a path inside the user's folder.
Its header is read first, so that one too large to decode is refused (`qwen_agent.tools.images`).
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools import images
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Tool, cancelled, tool
from qwen_agent.tools.beneath import Folder, shown, worded_for_the_model
from qwen_agent.tools.endpoint import Endpoint
from qwen_agent.tools.local_models import (
    check_checkpoint,
    check_package,
    device_and_dtype,
    first_line,
    quiet_transformers,
)

OCR_SIDE = 3000  # pixels; text of a scanned page stays legible, and larger pictures only cost time
VISION_SIDE = 1280
MAX_NEW_TOKENS = 200
LOCAL_SECONDS = 300.0
CAPTION = "Describe this picture in a few sentences."

_ID = re.compile(r"\b[0-9a-f]{12,64}\b")
_MAX_REPLY = 1 << 20


@dataclass(frozen=True, slots=True)
class VisionBackend:
    """Something that answers a question ("" for a description) about a picture. ``remote``: it leaves this machine."""

    answer: Callable[[bytes, str], str]
    remote: bool
    seconds: float


def image_text(store: ArtifactStore | None = None, folder: Path | None = None) -> Tool:
    """The tool ``read_text``: the text in a picture, by PaddleOCR's models, which lie in the package rapidocr.

    They are loaded at the first call (about a second) and read Chinese, Japanese, English and other Latin scripts.
    Raises MissingDependency without rapidocr, InputError for a folder that does not exist.
    """
    check_package("rapidocr", "ocr")
    check_package("onnxruntime", "ocr")
    sources, reader = _Sources(store, folder), _Reader()

    @tool(name="read_text", untrusted=True, seconds=120.0)
    def read_text(image: str) -> str:
        """Read the text in a picture: a scan, a photo of a page, a screenshot.

        Args:
            image: id or name of the picture
        """
        return reader.read(sources.load(image)) or "No text was found in the picture."

    return read_text


def image_description(backend: VisionBackend, store: ArtifactStore | None = None, folder: Path | None = None) -> Tool:
    """The tool ``describe_image``. With a remote backend it has a side effect: the picture is sent to others."""
    sources = _Sources(store, folder)

    @tool(name="describe_image", untrusted=True, side_effects=backend.remote, seconds=backend.seconds)
    def describe_image(image: str, question: str = "") -> str:
        """Look at a picture: say what it shows, or answer a question about it.

        Args:
            image: id or name of the picture
            question: what to find out, empty for a description
        """
        return backend.answer(sources.load(image), question.strip()[:1000]) or "The vision model said nothing."

    return describe_image


def local_vision(model: str, *, device: str = "") -> VisionBackend:
    """A checkpoint of the transformers pipeline "image-text-to-text", by its folder or hub id, loaded at first use.

    Vision-language models answer questions (Qwen-VL, SmolVLM, LLaVA ...); captioners (BLIP, GIT) describe, and take a
    question as the beginning of their text. Only safetensors are loaded, and no code of a checkpoint's own is run.

    Raises MissingDependency without transformers, InputError for what is neither a checkpoint's folder nor a hub id.
    """
    check_package("transformers", "image")
    return VisionBackend(_VisionModel(check_checkpoint(model, "config.json"), device), False, LOCAL_SECONDS)


def endpoint_vision(base_url: str, *, model: str, key: str = "") -> VisionBackend:
    """A vision model behind ``/chat/completions`` of OpenAI's. It is sent the picture as PNG, without its metadata."""
    endpoint = Endpoint(base_url, key)

    def answer(data: bytes, question: str) -> str:
        picture = base64.b64encode(images.thumbnail(data, VISION_SIDE)).decode()
        content = [
            {"type": "text", "text": question or CAPTION},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        ]
        body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": MAX_NEW_TOKENS}
        reply = endpoint.post("chat/completions", body, _MAX_REPLY)
        try:
            return str(reply["choices"][0]["message"]["content"] or "").strip()
        except (KeyError, IndexError, TypeError):
            raise ToolError(f"The service at {endpoint.host} sent no answer.") from None

    return VisionBackend(answer, True, endpoint.seconds)


class _Sources:
    """Where the pictures are that a model may name."""

    def __init__(self, store: ArtifactStore | None, folder: Path | None) -> None:
        if store is None and folder is None:
            raise InputError("give a store of artifacts or a folder: else there is no picture to look at")
        self._store, self._folder = store, Folder(folder) if folder else None

    def load(self, name: str) -> bytes:
        """The file of a picture that may be decoded. Raises ToolError."""
        with worded_for_the_model():
            data = self._find(name.strip())
            images.check(data)
            return data

    def _find(self, name: str) -> bytes:
        if self._store:
            mentioned = _ID.search(name)  # the whole line about an artifact will do
            if mentioned:
                return self._store.read(mentioned[0])
            if artifact := self._store.find(name.rpartition("/")[2]):
                return self._store.read(artifact.id)
        if self._folder:
            return self._folder.read(name, images.MAX_BYTES)
        raise InputError(f"there is no picture {shown(name)}: give its id, such as 3f2a9c1b04de")


class _Reader:
    """The OCR models, loaded once; they are called by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engine: Any = None

    def read(self, data: bytes) -> str:
        import numpy

        with worded_for_the_model():
            picture = images.decode(data, side=OCR_SIDE)
        if picture.mode == "RGBA":  # what is transparent is shown on white
            from PIL import Image

            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        with self._lock:
            self._engine = self._engine or _load_engine()
            found = self._engine(numpy.asarray(picture)[:, :, ::-1])  # OpenCV's order: blue, green, red
        if found.txts is None:
            return ""
        return _in_lines([(box, text) for box, text in zip(found.boxes.tolist(), found.txts, strict=True)])


def _load_engine() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={"Global.log_level": "error"})


def _in_lines(found: Sequence[tuple[Sequence[Sequence[float]], str]]) -> str:
    """Pieces of text as they are read: side by side on a line where they stand at the same height."""
    placed = [
        (sum(y for _, y in box) / 4, min(x for x, _ in box), max(y for _, y in box) - min(y for _, y in box), text)
        for box, text in found
    ]
    lines: list[list[tuple[float, float, float, str]]] = []
    for piece in sorted(placed):
        if lines and abs(piece[0] - lines[-1][0][0]) < 0.5 * min(piece[2], lines[-1][0][2]):
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return "\n".join("  ".join(text for _, _, _, text in sorted(line, key=lambda piece: piece[1])) for line in lines)


class _VisionModel:
    """A transformers pipeline that is loaded when it is first needed, and looks at one picture at a time."""

    def __init__(self, model: str, device: str) -> None:
        self._model, self._device = model, device
        self._lock = threading.Lock()
        self._pipeline: Any = None

    def __call__(self, data: bytes, question: str) -> str:
        with worded_for_the_model():
            picture = images.decode(data, side=VISION_SIDE).convert("RGB")
        with self._lock:
            self._pipeline = self._pipeline or self._load()
            said = self._ask(picture, question)
        return " ".join(said.split())

    def _load(self) -> Any:
        quiet_transformers()
        from transformers import pipeline

        try:
            device, dtype = device_and_dtype(self._device)
            safe = {"use_safetensors": True}
            return pipeline("image-text-to-text", self._model, device=device, dtype=dtype, model_kwargs=safe)
        except Exception as error:  # a border: the library raises whatever it likes
            raise ToolError(f"The vision model '{self._model}' cannot be loaded ({first_line(error)}).") from error

    def _ask(self, picture: Any, question: str) -> str:
        options = {
            "max_new_tokens": MAX_NEW_TOKENS,
            "return_full_text": False,
            "generate_kwargs": {"stopping_criteria": [lambda *_, **__: cancelled()]},
        }
        if getattr(self._pipeline.processor, "chat_template", None):
            content = [{"type": "image", "image": picture}, {"type": "text", "text": question or CAPTION}]
            [reply] = self._pipeline(text=[{"role": "user", "content": content}], **options)
        else:
            [reply] = self._pipeline(images=picture, text=question, **options)
        return str(reply["generated_text"])
