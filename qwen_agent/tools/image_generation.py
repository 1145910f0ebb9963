"""Pictures from words: a diffusion model on this machine, an OpenAI-compatible service, or a service behind a URL.

`image_generation` makes one tool of any of the three backends. The picture goes into an `ArtifactStore`; the model
reads one line about it, and can name it by its id to other tools.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from string import Formatter
from typing import Any
from urllib.parse import quote, urlsplit

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools import http, images
from qwen_agent.tools.artifacts import ArtifactStore, describe
from qwen_agent.tools.base import Tool, ToolOutput, cancelled, tool
from qwen_agent.tools.beneath import worded_for_the_model
from qwen_agent.tools.endpoint import Endpoint
from qwen_agent.tools.local_models import (
    check_checkpoint,
    check_package,
    device_and_dtype,
    first_line,
    quiet_transformers,
)

MIN_SIDE, MAX_SIDE = 64, 2048
MAX_STEPS = 150
MAX_PROMPT_CHARS = 1500
MAX_SEED = 2**32 - 1
LOCAL_SECONDS = 900.0  # without a GPU a picture takes minutes
REMOTE_SECONDS = 150.0
URL_SIDE = 1024  # for a template that wants a size when the model named none

_MAX_REPLY = images.MAX_BYTES * 4 // 3 + (1 << 16)  # a picture in base 64, in JSON


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """What is asked of a backend. ``width``, ``height`` (pixels) and ``steps`` are 0 for its own choice."""

    prompt: str
    width: int = 0
    height: int = 0
    steps: int = 0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class MadeImage:
    """An encoded picture, and what the model should know of how it was made."""

    data: bytes
    note: str = ""


@dataclass(frozen=True, slots=True)
class ImageBackend:
    """Something that makes pictures. ``remote``: what is asked for leaves this machine."""

    make: Callable[[ImageRequest], MadeImage]
    remote: bool
    seconds: float


def image_generation(backend: ImageBackend, store: ArtifactStore) -> Tool:
    """The tool ``generate_image``. With a remote backend it has a side effect: the prompt is sent to others."""

    @tool(name="generate_image", repeatable=True, side_effects=backend.remote, seconds=backend.seconds)
    def generate_image(prompt: str, width: int = 0, height: int = 0, steps: int = 0, seed: int = -1) -> ToolOutput:
        """Make a picture from a description.

        Args:
            prompt: what the picture shows, in English
            width: in pixels, 0 for the usual
            height: in pixels, 0 for the usual
            steps: of denoising, 0 for the usual
            seed: the same seed makes the same picture; -1 for a new one
        """
        made = backend.make(_checked(prompt, width, height, steps, seed))
        if images.read_header(made.data) is None:
            start = " ".join(made.data[:80].decode(errors="replace").split())
            raise ToolError(f"No picture came back, but: {start!a}")
        with worded_for_the_model():
            artifact = store.add(made.data, _name(prompt))
        return ToolOutput(f"{describe(artifact)} {made.note}".strip(), (artifact,))

    return generate_image


def local_images(
    model: str, *, device: str = "", on_step: Callable[[int, int], None] = lambda done, total: None
) -> ImageBackend:
    """A text-to-image checkpoint of diffusers, by its folder or hub id, loaded at the first picture.

    ``on_step`` is told (steps done, steps in all). Seeds are those of torch's generator on the CPU, so that they do not
    depend on the device. Only safetensors are loaded, and no code that comes with a checkpoint is run. What a
    checkpoint refuses to draw is left to the checkpoint.

    Raises MissingDependency without diffusers, InputError for what is neither a checkpoint's folder nor a hub id.
    """
    check_package("diffusers", "image")
    check_package("transformers", "image")
    return ImageBackend(_Pipeline(check_checkpoint(model, "model_index.json"), device, on_step), False, LOCAL_SECONDS)


def endpoint_images(base_url: str, *, model: str = "", key: str = "") -> ImageBackend:
    """A service with ``/images/generations`` like OpenAI's. Size, steps and seed are sent only if a call names them."""
    endpoint = Endpoint(base_url, key)

    def make(request: ImageRequest) -> MadeImage:
        body: dict[str, Any] = {"prompt": request.prompt, "n": 1}
        if model:
            body["model"] = model
        if request.width or request.height:
            body["size"] = f"{request.width or request.height}x{request.height or request.width}"
        if request.steps:
            body["steps"] = request.steps
        if request.seed is not None:
            body["seed"] = request.seed
        return MadeImage(_picture_of(endpoint.post("images/generations", body, _MAX_REPLY), endpoint))

    return ImageBackend(make, True, REMOTE_SECONDS)


def url_images(template: str) -> ImageBackend:
    """A service that answers a GET with a picture, such as ``https://image.pollinations.ai/prompt/{prompt}``.

    The template may also have ``{width}``, ``{height}``, ``{steps}`` and ``{seed}``. Raises InputError for another one.
    """
    _check_template(template)

    def make(request: ImageRequest) -> MadeImage:
        seed = _seed(request)
        side = request.width or request.height or URL_SIDE
        url = template.format(
            prompt=quote(request.prompt, safe=""),
            width=side,
            height=request.height or side,
            steps=request.steps or 25,
            seed=seed,
        )
        if len(url) > http.MAX_URL:
            raise ToolError("The prompt is too long for this service: use fewer words.")
        return MadeImage(_fetched(url, REMOTE_SECONDS - 10, True), f"seed {seed}" if "{seed}" in template else "")

    return ImageBackend(make, True, REMOTE_SECONDS)


class _Pipeline:
    """A diffusers pipeline that is loaded when it is first needed, and draws one picture at a time."""

    def __init__(self, model: str, device: str, on_step: Callable[[int, int], None]) -> None:
        self._model, self._device, self._on_step = model, device, on_step
        self._lock = threading.Lock()
        self._pipeline: Any = None

    def __call__(self, request: ImageRequest) -> MadeImage:
        while not self._lock.acquire(timeout=0.2):
            _stop_if_cancelled()
        try:
            self._pipeline = self._pipeline or self._load()
            _stop_if_cancelled()
            return self._draw(request)
        finally:
            self._lock.release()

    def _load(self) -> Any:
        quiet_transformers()  # whose parts most pipelines are made of
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        try:
            device, dtype = device_and_dtype(self._device)
            pipeline = DiffusionPipeline.from_pretrained(self._model, dtype=dtype, use_safetensors=True)
            pipeline = pipeline.to(device)
        except Exception as error:  # a border: the library raises whatever it likes
            raise ToolError(f"The image model '{self._model}' cannot be loaded ({first_line(error)}).") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _draw(self, request: ImageRequest) -> MadeImage:
        import torch

        seed = _seed(request)
        wanted = {
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.steps,
            "generator": torch.Generator("cpu").manual_seed(seed),
            "callback_on_step_end": self._after_step,
        }
        known = inspect.signature(self._pipeline.__call__).parameters
        result = self._pipeline(
            request.prompt, **{name: each for name, each in wanted.items() if each and name in known}
        )
        note = f"seed {seed}"
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            note += ", blacked out by the checkpoint's own safety checker"
        return MadeImage(images.encode(result.images[0]), note)

    def _after_step(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        _stop_if_cancelled()
        self._on_step(step + 1, pipeline.num_timesteps)
        return values


def _checked(prompt: str, width: int, height: int, steps: int, seed: int) -> ImageRequest:
    if not prompt.strip():
        raise ToolError("The prompt is empty: say what the picture shows.")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ToolError(f"The prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARS} are taken.")
    for name, side in (("width", width), ("height", height)):
        if side and not MIN_SIDE <= side <= MAX_SIDE:
            raise ToolError(f"{name} must be from {MIN_SIDE} to {MAX_SIDE} pixels, or 0 for the usual, not {side}.")
    if not 0 <= steps <= MAX_STEPS:
        raise ToolError(f"steps must be from 1 to {MAX_STEPS}, or 0 for the usual, not {steps}.")
    if not -1 <= seed <= MAX_SEED:
        raise ToolError(f"seed must be from 0 to {MAX_SEED}, or -1 for a new one, not {seed}.")
    # Diffusion models take multiples of 8 only.
    return ImageRequest(prompt.strip(), width // 8 * 8, height // 8 * 8, steps, None if seed == -1 else seed)


def _seed(request: ImageRequest) -> int:
    return random.randrange(MAX_SEED) if request.seed is None else request.seed


def _name(prompt: str) -> str:
    words = re.findall(r"\w+", prompt)[:6]
    return "-".join(words)[:60] or "picture"


def _stop_if_cancelled() -> None:
    if cancelled():
        raise ToolError("The picture was cancelled.")


def _picture_of(reply: Any, endpoint: Endpoint) -> bytes:
    """The picture in an answer: as base 64, or behind a URL, which is fetched."""
    try:
        item = reply["data"][0]
        encoded, url = item.get("b64_json"), item.get("url")
    except (KeyError, IndexError, TypeError, AttributeError):
        encoded = url = None
    if isinstance(url, str) and url.startswith("data:"):
        encoded = url.partition(",")[2]
    if isinstance(encoded, str) and encoded:
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise ToolError(f"The service at {endpoint.host} sent a picture that is not base 64.") from None
    if isinstance(url, str) and url:
        # The service chose this URL, so it may lead to the private network only where the service itself is.
        return _fetched(url, endpoint.seconds, endpoint.is_at(url))
    raise ToolError(f"The service at {endpoint.host} sent no picture.")


def _fetched(url: str, seconds: float, allow_private: bool) -> bytes:
    reply = http.fetch(url, seconds=seconds, max_bytes=images.MAX_BYTES, allow_private=allow_private)
    host = urlsplit(url).hostname
    if reply.status != 200:
        raise ToolError(f"The picture service at {host} answered {reply.status}.")
    if reply.truncated:
        raise ToolError(f"The picture from {host} has more than {images.MAX_BYTES >> 20} MiB.")
    return reply.body


def _check_template(template: str) -> None:
    try:
        fields = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError:
        fields = set()
    unknown = fields - {"prompt", "width", "height", "steps", "seed"}
    if not template.startswith(("http://", "https://")) or "prompt" not in fields or unknown:
        raise InputError(
            f"'{template}' is not a URL with {{prompt}} in it, such as https://image.pollinations.ai/prompt/{{prompt}} "
            f"({{width}}, {{height}}, {{steps}} and {{seed}} may be there too)"
        )
