"""The benchmark of Transformers Agents: its tasks, its stand-ins for the fourteen tools, its scores to the letter.

The stand-ins and the rules are those of ``src/transformers/tools/evaluate_agent.py`` (huggingface/transformers v4.29.2
to v4.33.3, Copyright 2023 The HuggingFace Inc. team, Apache-2.0); so are the tasks in hf_agent_tasks.json. Three
scores a task, each between 0 and 1:

- tool selection: the tools that the explanation names in backticks against those of the right code, a quarter off for
  each that is missing or too many;
- tool used: the same with the names that occur anywhere in the code;
- code: 1 for the right value, 0.75 for a dictionary that holds it, and 0.30 for any other, even if nothing ran.

Where the original ended the whole run with an exception (no "Answer:", or two; in a chat an answer without a block of
code, or with one that has no end) the task is scored as if nothing had been written: no tools, 0.30.

What the code is worth is decided by our interpreter, held to the language and to the failures of that of transformers
4.30 to 4.33: code that breaks it is worth None, whatever was computed before, code that it refuses is worth what was
computed before. (4.29 had no loops.) What is left of the difference: an index into a text, a loop over what cannot be
gone through, and what is refused in a line that breaks.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_agent.errors import InputError
from qwen_agent.hf_agent_adapter.interpreter import BASE_PYTHON_TOOLS, evaluate
from qwen_agent.hf_agent_adapter.toolbox import TOOLS as TOOLBOX
from qwen_agent.hf_agent_adapter.transformers_agent import UnreadableOutput, clean_code_for_chat, clean_code_for_run

TASKS = Path(__file__).with_name("hf_agent_tasks.json")
WRONG_CODE = 0.3


# ---- the tasks


@dataclass(frozen=True, slots=True)
class Task:
    """One phrasing of a problem. ``inputs`` are its variables, ``answers`` the code of each right answer."""

    text: str
    inputs: Mapping[str, str]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Tasks that follow each other; one with a single step is a task on its own as well."""

    id: str
    steps: tuple[Task, ...]


def load(mode: str, path: Path = TASKS) -> list[Dialogue]:
    """All phrasings of the problems of a mode, "run" or "chat"; those of one problem follow each other.

    Raises InputError for a file that is missing or no such file.
    """
    try:
        problems = json.loads(path.read_text(encoding="utf-8"))[f"{mode}_tasks"]
        steps = [problem if mode == "chat" else [problem] for problem in problems]
        return [
            Dialogue(f"{mode}-{number}-{phrasing}", tuple(_task(step, phrasing - 1) for step in problem))
            for number, problem in enumerate(steps, 1)
            for phrasing in range(1, len(problem[0]["task"]) + 1)
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} is no file of tasks ({type(error).__name__}: {error}): leave --data out, or give one with "
            f'"run_tasks" and "chat_tasks" as in {TASKS.name}'
        ) from None


def digest(path: Path) -> str:
    """The SHA-256 of a file, as far as it is needed to tell it from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _task(problem: Mapping[str, Any], phrasing: int) -> Task:
    given, answer = problem["inputs"], problem["answer"]
    inputs = given if isinstance(given, dict) else {name: f"<<{name}>>" for name in given}
    return Task(problem["task"][phrasing], inputs, (answer,) if isinstance(answer, str) else tuple(answer))


# ---- the stand-ins for the tools


class StandIn:
    """A tool that says in words what the real one would have made."""

    def __init__(self, name: str, description: str, function: Callable[..., str]) -> None:
        self.name, self.description, self._function = name, description, function
        self.__signature__ = inspect.signature(function)

    def __call__(self, *args: Any, **named: Any) -> str:
        return self._function(*args, **named)


def _transcriber(audio: str) -> str:
    if "sound" not in audio:
        raise ValueError(f"`audio` ({audio}) is not a sound.")
    return f"This is the transcribed text from {audio}."


def _image_captioner(image: str) -> str:
    return f"This is a description of {_image(image)}."


def _image_transformer(image: str, prompt: str) -> str:
    return f"This is a transformation of {_image(image)} according to {prompt}."


def _image_qa(image: str, question: str) -> str:
    return f"This is the answer to {question} from {_image(image)}."


def _image(image: str) -> str:
    if "image" not in image:
        raise ValueError(f"`image` ({image}) is not an image.")
    return image


_FUNCTIONS: dict[str, Callable[..., str]] = {
    "text_classifier": lambda text, labels: f"This is the classification of {text} along {labels}.",
    "translator": lambda text, src_lang, tgt_lang: f"This is the translation of {text} from {src_lang} to {tgt_lang}.",
    "text_reader": lambda text: f"This is actually a sound reading {text}.",
    "summarizer": lambda text: f"This is a summary of {text}.",
    "transcriber": _transcriber,
    "image_generator": lambda prompt: f"This is actually an image representing {prompt}.",
    "image_captioner": _image_captioner,
    "image_transformer": _image_transformer,
    "text_qa": lambda text, question: f"This is the answer to {question} from {text}.",
    "text_downloader": lambda url: f"This is the content of {url}.",
    "image_qa": _image_qa,
    "video_generator": lambda prompt, seconds=2: f"A video of {prompt}",
    # Its description calls the first input `document`; that of the next calls the second one `label`.
    "document_qa": lambda image, question: f"This is the answer to {question} from the document {image}.",
    "image_segmenter": lambda image, prompt: f"This is the mask of {prompt} in {image}",
}

TOOLS: dict[str, StandIn] = {tool.name: StandIn(tool.name, tool.description, _FUNCTIONS[tool.name]) for tool in TOOLBOX}


# ---- the value of code


def value_of(code: str, variables: dict[str, Any]) -> Any:
    """What the code is worth, with the stand-ins as its tools; ``variables`` are changed."""
    try:
        lines = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    whole = next((number for number, line in enumerate(lines) if _breaks(line)), len(lines))
    tools = {name: _raising(tool) for name, tool in (BASE_PYTHON_TOOLS | TOOLS).items()}
    stopped: list[str] = []
    try:
        value = evaluate(_unparsed(lines[:whole]), tools, variables, log=stopped.append)
    except Exception:  # a tool's, or one of a wrong call: for the original all the same
        return None
    return value if stopped or whole == len(lines) else None


def _unparsed(lines: Sequence[ast.stmt]) -> str:
    return ast.unparse(ast.Module(list(lines), []))


def _raising(tool: Callable[..., Any]) -> Callable[..., Any]:
    """The tool without a signature that could be checked: a wrong call raises, as it did in the original."""
    if tool is print:
        return lambda *args, **named: None
    return lambda *args, **named: tool(*args, **named)


def _breaks(line: ast.stmt) -> bool:
    """Whether the original's interpreter itself failed at such a line, where it should have run or refused it."""
    return any(_breaks_at(node) for node in ast.walk(line))


def _breaks_at(node: ast.AST) -> bool:
    match node:
        case ast.Assign(targets=[target]):
            return not isinstance(target, ast.Name)
        case ast.For(target=target):
            return not isinstance(target, ast.Name)
        case ast.If(test=test):
            return not isinstance(test, ast.Compare)
    return False


# ---- the scores


@dataclass(frozen=True, slots=True)
class Scores:
    selection: float
    used: float
    code: float


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model wrote for a task, and what it was worth. ``unreadable`` says why the original would have ended."""

    task: str
    explanation: str
    code: str
    value: str
    scores: Scores
    unreadable: str = ""


def scored_run(task: Task, written: str) -> Scored:
    """The scores of what was written after the prompt of a run."""
    return _scored(task, written, clean_code_for_run, dict(task.inputs), [dict(task.inputs) for _ in task.answers])


class ChatScorer:
    """The scores of a dialogue, step by step: what is written uses what was computed before, as the answers do."""

    def __init__(self) -> None:
        self.variables: dict[str, Any] = {}
        self._right: list[dict[str, Any]] = []

    def scored(self, task: Task, written: str) -> Scored:
        self._right = self._right or [{} for _ in task.answers]
        for variables in (self.variables, *self._right):
            variables.update(task.inputs)
        return _scored(task, written, _read_chat, self.variables, self._right)


def _read_chat(written: str) -> tuple[str, str]:
    explanation, code = clean_code_for_chat(written)
    if code is None:
        raise UnreadableOutput("there is no block of code", written)
    return explanation, code


def _scored(
    task: Task,
    written: str,
    read: Callable[[str], tuple[str, str]],
    variables: dict[str, Any],
    right_variables: Sequence[dict[str, Any]],
) -> Scored:
    unreadable = ""
    try:
        explanation, code = read(written)
    except UnreadableOutput as error:
        explanation = code = ""
        unreadable = str(error).partition(";")[0]
    value = value_of(code, variables)
    right = [value_of(answer, each) for answer, each in zip(task.answers, right_variables, strict=False)]
    scores = score(explanation, code, value, right, task.answers)
    return Scored(task.text, explanation, code, str(value), scores, unreadable)


def score(explanation: str, code: str, value: Any, right: Sequence[Any], answers: Sequence[str]) -> Scores:
    """The three scores; ``right`` are the values of the ``answers``."""
    wanted = _named(_answer_meant(value, right, answers))
    selected = {name for name in TOOLS if f"`{name}`" in explanation}
    return Scores(_overlap(selected, wanted), _overlap(_named(code), wanted), _worth(value, right))


def _answer_meant(value: Any, right: Sequence[Any], answers: Sequence[str]) -> str:
    """The right code whose tools are asked for: of several the one whose value was found, else the first."""
    found = list(value.values()) if isinstance(value, dict) else []
    pairs = list(zip(answers, right, strict=False))
    return next(
        (answer for answer, each in pairs if each in found),
        next((answer for answer, each in pairs if value == each), answers[0]),
    )


def _named(code: str) -> set[str]:
    return {name for name in TOOLS if name in code}


def _overlap(found: set[str], wanted: set[str]) -> float:
    return max(0.0, 1.0 - 0.25 * len(found ^ wanted))


def _worth(value: Any, right: Sequence[Any]) -> float:
    if value in right:
        return 1.0
    if isinstance(value, dict) and any(each in right for each in value.values()):
        return 0.75
    return WRONG_CODE
