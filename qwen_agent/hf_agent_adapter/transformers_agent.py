"""Transformers Agents (2023) on our runtime: ``run(task)`` and ``chat(task)`` as in transformers 4.29 to 4.51.

    agent = QwenAgent(load_runtime("Qwen/Qwen-7B-Chat"))
    agent.run("Caption the following `image`.", image=picture)

A task goes into the original prompt; the model explains which tools it will use and writes a few lines of Python; these
are evaluated (`interpreter`), and the value of the last line is the result. Pictures and sounds travel between tools
as objects. Subclass it and write ``generate_one(prompt, stop)`` to let something else write, as before.

What has changed: variables of ``kwargs`` that are no picture or model can be computed with, in the sandbox; a model's
text without code is an `UnreadableOutput` and no ValueError about unpacking; ``return_code`` gives code that runs
today; the inference endpoints of ``remote=True`` are gone, and a template is a text, not a repository's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from qwen_agent.errors import InputError, QwenAgentError, ToolError
from qwen_agent.hf_agent_adapter import called_by_code
from qwen_agent.hf_agent_adapter.code_grammar import code_grammar
from qwen_agent.hf_agent_adapter.interpreter import BASE_PYTHON_TOOLS, InterpretorError, PlainPython, evaluate
from qwen_agent.hf_agent_adapter.sandboxed import SandboxedPython
from qwen_agent.hf_agent_adapter.templates import CHAT_MESSAGE_PROMPT, CHAT_PROMPT_TEMPLATE, RUN_PROMPT_TEMPLATE
from qwen_agent.hf_agent_adapter.toolbox import default_toolbox, tool_creation_code
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime, text_of
from qwen_agent.loop.calls import Approve
from qwen_agent.prompt import DEFAULT_SYSTEM, chatml
from qwen_agent.tools.base import Tool

RUN_STOP = ("Task:",)
CHAT_STOP = ("Human:", "=====")
# Qwen's agent renamed these, which its model took for turns of its own.
_RENAMED = (("Human:", "_HUMAN_:"), ("Assistant:", "_ASSISTANT_:"))


class UnreadableOutput(QwenAgentError, ValueError):
    """The model did not write what the prompt asks for, so there is no code to run; ``output`` is what it wrote."""

    def __init__(self, problem: str, output: str) -> None:
        self.output = output
        super().__init__(f"{problem}; the model wrote: {output.strip()[:500]!r}")


class AgentTool(Protocol):
    """A tool as the prompt and the code see it."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


class QwenAgent:
    """An agent that answers with Python over a toolbox.

    ``additional_tools`` (one, a sequence, or a dict by name) are anything with a name, a description and a call: our
    tools, smolagents', those written for 2023. They replace default ones of the same name. ``tools`` are the default
    ones; without it, the fourteen of `default_toolbox`. A template has ``<<all_tools>>``, that of ``run`` also
    ``<<prompt>>``. With ``plain_python`` False only the language of 2023 is evaluated, and nothing runs in the sandbox.
    ``constrained`` holds the model to `code_grammar`: a small model then writes code that can be run, though not
    always the right one; the original, and its published results, did nothing of the kind.

    Our tools that ask a person first need ``approve``.

    One agent holds one conversation: do not share it between threads. Raises InputError for a template that is a name,
    for ``constrained`` without a runtime, and for one of our tools that may not be called.
    """

    def __init__(
        self,
        runtime: Runtime | None,
        chat_prompt_template: str | None = None,
        run_prompt_template: str | None = None,
        additional_tools: AgentTool | Sequence[AgentTool] | Mapping[str, AgentTool] | None = None,
        *,
        tools: Mapping[str, AgentTool] | None = None,
        generation: GenerationConfig = GenerationConfig(),
        plain_python: bool = True,
        constrained: bool = False,
        approve: Approve | None = None,
    ) -> None:
        if constrained and runtime is None:
            raise InputError(
                "constrained=True needs a runtime that can be held to a grammar: give one, or leave it out"
            )
        self.runtime = runtime
        self.chat_prompt_template = _template(chat_prompt_template, CHAT_PROMPT_TEMPLATE)
        self.run_prompt_template = _template(run_prompt_template, RUN_PROMPT_TEMPLATE)
        self.generation = generation
        self.constrained = constrained
        self.log: Callable[[str], object] = print
        self._toolbox = {**(default_toolbox() if tools is None else tools), **_by_name(additional_tools)}
        self._python: PlainPython | None = SandboxedPython(lambda text: self.log(text)) if plain_python else None
        self._approve = approve
        for tool in self._toolbox.values():
            if isinstance(tool, Tool):
                called_by_code.check_approval(tool, approve)
        self.chat_history = ""  # the whole text of the conversation so far
        self.chat_state: dict[str, Any] = {}  # its variables

    @property
    def toolbox(self) -> dict[str, AgentTool]:
        """All tools by name, in the order of the prompt; it may be changed."""
        return self._toolbox

    def set_stream(self, streamer: Callable[[str], object]) -> None:
        """Have explanations, code and errors go to this function instead of ``print``."""
        self.log = streamer

    def format_prompt(self, task: str, chat_mode: bool = False) -> str:
        """The whole text that a model continues: with what was said so far, in a chat."""
        described = "\n".join(f"- {name}: {tool.description}" for name, tool in self.toolbox.items())
        if not chat_mode:
            return self.run_prompt_template.replace("<<all_tools>>", described).replace("<<prompt>>", task)
        begun = self.chat_history or self.chat_prompt_template.replace("<<all_tools>>", described)
        return begun + CHAT_MESSAGE_PROMPT.replace("<<task>>", task)

    def run(self, task: str, *, return_code: bool = False, remote: bool = False, **kwargs: Any) -> Any:
        """Do a task on its own; ``kwargs`` are the variables that it speaks of.

        The result is the value of the last line that has one; None where the code failed, which is logged. With
        ``return_code`` it is the code, and nothing is run. Raises UnreadableOutput where the model wrote no code, and
        whatever a tool raises.
        """
        _refuse_remote(remote)
        result = self._written("run", self.format_prompt(task), RUN_STOP, kwargs)
        explanation, code = clean_code_for_run(result)
        self.log(f"==Explanation from the agent==\n{explanation}")
        return self._evaluated(code, kwargs.copy(), return_code, chat_mode=False)

    def chat(self, task: str, *, return_code: bool = False, remote: bool = False, **kwargs: Any) -> Any:
        """The same as a turn of a conversation: what was said, and the variables, are kept for the next.

        None where the model answered without code.
        """
        _refuse_remote(remote)
        prompt = self.format_prompt(task, chat_mode=True)
        result = self._written("chat", prompt, CHAT_STOP, self.chat_state | kwargs)
        self.chat_history = prompt + result.strip() + "\n"
        explanation, code = clean_code_for_chat(result)
        self.log(f"==Explanation from the agent==\n{explanation}")
        if code is None:
            return None
        if not return_code:
            self.chat_state.update(kwargs)
        return self._evaluated(code, self.chat_state, return_code, chat_mode=True)

    def prepare_for_new_chat(self) -> None:
        """Forget what was said in `chat`, and its variables."""
        self.chat_history = ""
        self.chat_state = {}

    def generate_one(self, prompt: str, stop: Sequence[str]) -> str:
        """What the model writes after the prompt, up to a stop string. Write this anew for another model.

        Raises ContextOverflow if the prompt does not fit the window.
        """
        return self._generate(prompt, stop, self.generation)

    def generate_many(self, prompts: Iterable[str], stop: Sequence[str]) -> list[str]:
        """`generate_one` for each prompt."""
        return [self.generate_one(prompt, stop) for prompt in prompts]

    def _written(self, form: Literal["run", "chat"], prompt: str, stop: Sequence[str], variables: Iterable[str]) -> str:
        if not self.constrained:
            return self.generate_one(prompt, stop=list(stop))
        grammar = code_grammar(form, self.toolbox, variables)
        return self._generate(prompt, stop, replace(self.generation, grammar=grammar))

    def _generate(self, prompt: str, stop: Sequence[str], generation: GenerationConfig) -> str:
        if self.runtime is None:
            raise InputError("this agent has no runtime: give one, or write generate_one(prompt, stop) in a subclass")
        config = replace(generation, stop=tuple(dict.fromkeys([*map(_renamed, stop), *stop])))
        *_, last = self.runtime.stream(chatml(_renamed(prompt), (), DEFAULT_SYSTEM), config)
        return _named_back(text_of(last.output))

    def _evaluated(self, code: str, state: dict[str, Any], return_code: bool, chat_mode: bool) -> Any:
        self.log(f"\n\n==Code generated by the agent==\n{code}")
        if return_code:
            return f"{tool_creation_code(code, self.toolbox)}\n{code}"
        self.log("\n\n==Result==")
        tools = {name: _checked(tool, self._approve) for name, tool in self.toolbox.items()} | BASE_PYTHON_TOOLS
        return evaluate(code, tools, state, chat_mode, python=self._python, log=lambda text: self.log(text))


def _checked(tool: AgentTool, approve: Approve | None) -> Callable[..., Any]:
    """A tool of ours with its checks and limits, asking first, and its failures as the code's; others as they are."""
    if not isinstance(tool, Tool):
        return tool

    def call(*args: Any, **named: Any) -> str:
        try:
            return called_by_code.call(tool, args, named, approve)
        except ToolError as error:
            raise InterpretorError(str(error)) from None

    return call


def clean_code_for_run(result: str) -> tuple[str, str]:
    """Explanation and code of what a model wrote after the prompt of `QwenAgent.run`. Raises UnreadableOutput."""
    parts = f"I will use the following {result}".split("Answer:")
    if len(parts) != 2:
        found = "no 'Answer:'" if len(parts) == 1 else "more than one 'Answer:'"
        raise UnreadableOutput(f"there is {found}, so it is not clear what the code is", result)
    lines = parts[1].strip().split("\n")
    if lines[0] in ("```", "```py", "```python"):
        lines = lines[1:]
    if lines and lines[-1] == "```":
        lines = lines[:-1]
    return parts[0].strip(), "\n".join(lines)


def clean_code_for_chat(result: str) -> tuple[str, str | None]:
    """Explanation and code (None if there is none) of an answer in `QwenAgent.chat`. Raises UnreadableOutput."""
    lines = result.split("\n")
    fences = [number for number, line in enumerate(lines) if line.lstrip().startswith("```")]
    if not fences:
        return result.strip(), None
    if len(fences) == 1:
        raise UnreadableOutput("the block of code has no end (raise max_new_tokens if it was cut off)", result)
    return "\n".join(lines[: fences[0]]).strip(), "\n".join(lines[fences[0] + 1 : fences[1]]).strip()


def _template(given: str | None, default: str) -> str:
    if given is not None and not any(map(str.isspace, given)):
        raise InputError(f"{given!r} is a repository's name: give the text of the template itself")
    return default if given is None else given


def _by_name(tools: AgentTool | Sequence[AgentTool] | Mapping[str, AgentTool] | None) -> dict[str, AgentTool]:
    if tools is None:
        return {}
    if isinstance(tools, Mapping):
        return dict(tools)
    return {tool.name: tool for tool in (tools if isinstance(tools, Sequence) else [tools])}


def _refuse_remote(remote: bool) -> None:
    if remote:
        raise InputError(
            "remote=True asks for Hugging Face's inference endpoints of 2023, which are gone: leave it out"
        )


def _renamed(text: str) -> str:
    for name, other in _RENAMED:
        text = text.replace(name, other)
    return text


def _named_back(text: str) -> str:
    for name, other in _RENAMED:
        text = text.replace(other, name)
    return text
