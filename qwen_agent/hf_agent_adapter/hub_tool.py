"""What the tools of the 2023 toolbox share: a checkpoint that is loaded when it is first needed."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from qwen_agent.errors import MissingDependency, ToolError
from qwen_agent.tools.local_models import check_package, device_and_dtype, first_line, quiet_transformers

EXTRA = "hf"


class HubTool(ABC):
    """A model of the hub as a function. Making one costs nothing; the first call loads ``checkpoint``.

    ``checkpoint`` is a hub id or a folder, by default the one of 2023; ``device`` the best there is. ``name``,
    ``description`` and ``task`` (what `load_tool` takes) are the original's; ``packages`` is what must be installed.
    A call raises MissingDependency with the command that installs it, ToolError for a checkpoint that cannot be loaded
    and for inputs that cannot be used.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    description: ClassVar[str]
    checkpoint: str
    packages: ClassVar[tuple[str, ...]] = ("transformers",)

    def __init__(self, checkpoint: str | None = None, *, device: str = "") -> None:
        self.checkpoint = checkpoint or type(self).checkpoint
        self._device = device
        self._lock = threading.Lock()
        self._parts: Any = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.checkpoint!r})"

    @abstractmethod
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the tool does; the parameters are those of its description."""

    @abstractmethod
    def _load(self, device: str, dtype: Any) -> Any:
        """The parts that are needed for a call, on the device."""

    def _loaded(self) -> Any:
        """The parts, loaded by the first call. Calls wait their turn only while loading."""
        with self._lock:
            if self._parts is None:
                for package in self.packages:
                    check_package(package, EXTRA)
                if "transformers" in self.packages:
                    quiet_transformers()
                try:
                    self._parts = self._load(*device_and_dtype(self._device))
                except MissingDependency:
                    raise
                except Exception as error:  # a border: the libraries raise whatever they like
                    text = f"`{self.name}` needs the checkpoint '{self.checkpoint}', which cannot be loaded"
                    raise ToolError(f"{text} ({first_line(error)}).") from error
            return self._parts


def loaded(model_class: Any, checkpoint: str, device: str, dtype: Any) -> Any:
    """A model of transformers, ready to be asked. No code that comes with a checkpoint is run."""
    return model_class.from_pretrained(checkpoint, dtype=dtype).to(device).eval()


def on_device(inputs: Any, model: Any) -> dict[str, Any]:
    """Encoded inputs where the model is, its numbers in the model's format."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
