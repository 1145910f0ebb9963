"""Every error this package raises on purpose, in one small tree.

QwenAgentError
├── InputError            what the caller passed cannot be used (the message names it and the fix)
│   └── ContextOverflow   the prompt does not fit the model's window
├── ModelError
│   ├── ModelNotFound     no such folder, hub id or built-in name
│   ├── CheckpointError   the files are there but incomplete, damaged or do not fit each other
│   └── UnsupportedModel  a model we do not implement
├── EndpointError         an engine elsewhere cannot be reached, refused or broke off
├── ToolError             a tool's own failure, worded for the model that called it
├── SandboxUnavailable    code cannot be run safely here
├── Drift                 a run does not repeat what its log says
├── Busy                  too many requests wait already
├── Stopped               a request was ended from outside before its end
└── MissingDependency     an optional package is not installed
"""

from __future__ import annotations


class QwenAgentError(Exception):
    """Base of all errors raised on purpose. Its text is one clear sentence with the fix."""


class InputError(QwenAgentError):
    """The caller's input cannot be used."""


class ContextOverflow(InputError):
    """The prompt has more tokens than the model's window can hold."""

    def __init__(self, tokens: int, window: int) -> None:
        self.tokens = tokens
        self.window = window
        super().__init__(
            f"the prompt has {tokens} tokens but the model's window is {window}: shorten the question, "
            f"clear the history or give fewer tools"
        )


class ModelError(QwenAgentError):
    """A model cannot be loaded."""


class ModelNotFound(ModelError):
    """There is no model under this name."""


class CheckpointError(ModelError):
    """Checkpoint files are missing, damaged or do not fit the configuration."""


class UnsupportedModel(ModelError):
    """The architecture or one of its options is not implemented."""


class EndpointError(QwenAgentError):
    """An engine that answers over HTTP cannot be reached, refused a request or broke off; the message names its URL."""


class ToolError(QwenAgentError):
    """Raise this inside a tool to tell the model, in one sentence, what went wrong."""


class SandboxUnavailable(QwenAgentError):
    """Code cannot be run safely on this machine; the message names the remedy."""


class Drift(QwenAgentError):
    """A run that was to repeat its log did something else: the agent, a tool or the model is not what it was."""


class Busy(QwenAgentError):
    """A shared runtime has as many requests waiting as it may have; try again later."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        super().__init__(f"the model is busy and {waiting} requests wait for it, as many as may: try again later")


class Stopped(QwenAgentError):
    """A request was ended before its end: its time was up, nobody read what it wrote, or its runtime was closed."""


class MissingDependency(QwenAgentError):
    """An optional package is needed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'qwen-react-agent[{extra}]'")
