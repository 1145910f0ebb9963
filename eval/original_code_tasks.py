"""The code interpreter benchmark of Qwen-Agent 0.0.1 (``benchmark/``): its file, its loop, its executable rate.

A row of ``eval_code_interpreter_v1.jsonl`` has ``query``, ``lang`` ("zh" or "en"), ``tags`` ("all_ci" and one of math,
visualization, general) and ``input_file_path``, names of files in a folder of uploads. A query may end with a first
action, written out with ``<|im_start|>``; such an item of visualization is called easy, the others hard.

The loop: up to three executions for visualization, one for the others (one more after an action in the query), and
none after an error. Executable is an answer with code whose parts (the first one only, but for math), run again in a
fresh interpreter after a few imports, end without an error, in ten seconds but for general.

What is different: everything runs in the sandbox, and no package is installed because code wants it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_agent.arguments import read_arguments
from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.runtime import Runtime, text_of
from qwen_agent.parser import StepParser
from qwen_agent.prompt import ReActTemplate, build, observation
from qwen_agent.tools.base import Tool
from qwen_agent.tools.code_interpreter import plain
from qwen_agent.tools.sandbox import Execution, Sandbox
from qwen_agent.types import IM_END, IM_START, Prompt, Segment, Text

TEMPLATE = ReActTemplate("tools", ", ")
STOPS = ("Observation:", "Observation:\n")
TAGS = ("math", "visualization", "general")
SECONDS = 30.0  # of one execution in the loop
LIMITED_SECONDS = 10.0  # of one that is judged
_PREPARED = {"sns": "seaborn", "plt": "matplotlib.pyplot", "np": "numpy", "pd": "pandas"}
_PREPARED |= {name: name for name in ("os", "re", "json", "math")}
IM_START_TEXT = "<|im_start|>"
_CONTROLS = {IM_START_TEXT: IM_START, "<|im_end|>": IM_END}
_SPLIT = re.compile("(" + "|".join(map(re.escape, _CONTROLS)) + ")")


@dataclass(frozen=True, slots=True)
class Item:
    """A row. ``tag`` is one of TAGS."""

    id: str
    query: str
    lang: str
    tag: str
    files: tuple[str, ...]

    @property
    def begun(self) -> bool:
        """Whether the query ends with an action."""
        return IM_START_TEXT in self.query

    @property
    def group(self) -> str:
        if self.tag != "visualization":
            return self.tag
        return "visualization-easy" if self.begun else "visualization-hard"


def load(path: Path, uploads: Path) -> list[Item]:
    """The rows of a file, whose uploads must be there. Raises InputError."""
    items = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            names = tuple(Path(name).name for name in row.get("input_file_path", ()))
            [tag] = [tag for tag in row["tags"].split(",") if tag.strip() in TAGS]
            items.append(Item(f"row-{number}", row["query"], row.get("lang", "en"), tag.strip(), names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no eval_code_interpreter_v1.jsonl: {type(error).__name__}: {error}") from None
    for item in items:
        for name in item.files:
            if not (uploads / name).is_file():
                raise InputError(f"{item.id} of {path.name} needs {name!r}, which is not in {uploads}: see --uploads")
    return items


def tool() -> Tool:
    """The tool as the benchmark describes it. It is never called: the loop runs the code itself."""
    return Tool(
        name="code_interpreter",
        name_for_human="代码解释器",
        description="代码解释器，可用于执行Python代码。",
        parameters={
            "type": "object",
            "properties": {"code": {"type": "string", "description": "待执行的代码"}},
            "required": ["code"],
        },
        function=lambda code: "",
        args_format="code",
    )


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What was written for an item, with the observations; the code of its actions, and what came of each."""

    text: str
    codes: tuple[str, ...]
    executions: tuple[Execution, ...]


def follow(item: Item, runtime: Runtime, sandbox: Sandbox, generation: GenerationConfig) -> Trajectory:
    """Go through the benchmark's loop, with the files of the item in the sandbox."""
    left = 3 if item.tag == "visualization" else 1
    text, codes, executions = "", list[str](), list[Execution]()
    for code in codes_in(item.query) if item.begun else ():
        executions.append(sandbox.run(code, seconds=SECONDS))
    while left and not (executions and _failed(executions[-1])):
        written = _written(runtime, (*prompt_for(item), Text(text)) if text else prompt_for(item), generation)
        text += written
        if not (found := codes_in(written)):
            break
        codes.append(found[0])
        executions.append(sandbox.run(found[0], seconds=SECONDS))
        text = text.rstrip("\n") + "\n" + text_of(observation(blocks(executions[-1])))
        left -= 1
    return Trajectory(text, tuple(codes), tuple(executions))


def _written(runtime: Runtime, prompt: Prompt, generation: GenerationConfig) -> str:
    *_, last = runtime.stream(prompt, generation)
    return text_of(last.output)


def _failed(execution: Execution) -> bool:
    return bool(execution.error) or execution.state != "ok"


def prompt_for(item: Item) -> Prompt:
    """The benchmark's prompt: uploads are named before the query, and turns inside of the query are turns."""
    names = ",".join(item.files)
    named = f"[上传文件{names}]" if item.lang == "zh" else f"[Upload file {names}]"
    prompt = build(f"{named}{item.query}" if names else item.query, tools=(tool(),), template=TEMPLATE)
    return tuple(each for segment in prompt for each in _with_turns(segment))


def _with_turns(segment: Segment) -> Prompt:
    if not isinstance(segment, Text):
        return (segment,)
    return tuple(_CONTROLS.get(piece) or Text(piece) for piece in _SPLIT.split(segment.content) if piece)


def codes_in(text: str) -> list[str]:
    """The code of the actions in a text, each from its fence, its backticks, its JSON, or as it is."""
    schema, codes = tool().parameters, []
    for part in text.rpartition(IM_START_TEXT)[2].split("\nObservation:"):
        parser = StepParser()
        parser.feed(part)
        _, parsed = parser.finish()
        if parsed.action:
            found = read_arguments(parsed.action_input, schema, "code")
            codes.append(str((found.values or {}).get("code", parsed.action_input)))
    return codes


def blocks(execution: Execution) -> str:
    """What came of an execution, in the benchmark's form: titled blocks, then the figures."""
    parts = {
        "stdout": execution.stdout,
        "stderr": execution.stderr,
        "execute_result": execution.value,
        "error": execution.error or (" ".join(execution.notes) if execution.state != "ok" else ""),
    }
    shown = [f"{title}:\n\n```\n{plain(text)}\n```" for title, text in parts.items() if plain(text)]
    figures = [f"![fig-{number:03}](fig-{number:03}.png)" for number in range(1, len(execution.images) + 1)]
    return "\n\n".join([*shown, *figures]) or "Finished execution."


@dataclass(frozen=True, slots=True)
class Judged:
    """``problem`` is why the code is not executable; "" if it is. ``pictures`` are what running it made."""

    executable: bool
    pictures: int
    problem: str = ""


def judge(item: Item, codes: Sequence[str], fresh: Callable[[], Sandbox]) -> Judged:
    """Whether the code of an answer can be run, in a fresh sandbox with the item's files."""
    if not codes:
        return Judged(False, 0, "no code")
    judged = codes if item.tag == "math" else codes[:1]
    source = "\n".join([*(codes_in(item.query) if item.begun else ()), *judged])
    if "def solution()" in source:
        source += "\nsolution()"
    sandbox = fresh()
    try:
        for name, module in _PREPARED.items():
            if re.search(rf"\b{name}\b", source):
                sandbox.run(f"import {module} as {name}")  # a module that is missing is the code's own error
        execution = sandbox.run(source, seconds=SECONDS if item.tag == "general" else LIMITED_SECONDS)
    finally:
        sandbox.close()
    said = execution.error or " ".join(execution.notes)
    problem = said.strip().splitlines()[-1][:300] if _failed(execution) else ""
    return Judged(not problem, len(execution.images) + sum(name.endswith(".png") for name in execution.files), problem)
