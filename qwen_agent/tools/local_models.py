"""What the tools that load a model of their own share: which device, in which number format, and from where."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from qwen_agent.errors import InputError, MissingDependency


def check_package(module: str, extra: str) -> None:
    """Raises MissingDependency for a package that is not installed, without importing it."""
    if importlib.util.find_spec(module) is None:
        raise MissingDependency(module, extra)


def check_checkpoint(model: str, index: str) -> str:
    """The model as its library takes it: a folder that holds the file ``index``, else a hub id. Raises InputError."""
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        if not (folder / index).is_file():
            raise InputError(f"'{folder}' holds no {index}: give the folder of a whole checkpoint, or its hub id")
        return str(folder)
    if model.count("/") != 1 or model.startswith((".", "~", "/")):
        raise InputError(f"'{model}' is neither an existing folder nor a hub id of the form owner/name")
    return model


def device_and_dtype(device: str) -> tuple[str, Any]:
    """The device asked for, or the best there is, and the torch dtype that suits it."""
    import torch

    if not device:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda"):
        return device, torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return device, torch.float16 if device == "mps" else torch.float32


def quiet_transformers() -> None:
    """Keep progress bars and advice on its own options off the terminal: they would run into the agent's output."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def first_line(error: BaseException) -> str:
    """An error of a library, as a clause of a sentence: such errors run over many lines."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
