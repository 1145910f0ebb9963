import asyncio
import dataclasses
import importlib
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen_agent.errors import InputError, ToolError
from qwen_agent.tools import Tool, tool, toolbox


def returning(value: Any, **options: Any) -> Tool:
    return tool(name="give", **options)(lambda: value)


def raising(error: BaseException) -> Tool:
    def fail():
        raise error

    return tool(fail)


class Hostile:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class BrokenError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


@tool
def repeat(text: str, times: int = 2) -> str:
    """Repeat a text."""
    return text * times


def test_the_bare_decorator_takes_everything_from_the_function():
    assert (repeat.name, repeat.description, repeat.name_for_human) == ("repeat", "Repeat a text.", "Repeat")
    assert repeat.args_format == "json" and repeat.seconds == 30.0 and repeat.max_chars == 6000
    assert repeat("ab", times=3) == "ababab"


def test_the_decorator_with_options():
    @tool(name="image_gen", description="Draw.", seconds=5, max_chars=200)
    def draw(prompt: str):
        return prompt

    assert (draw.name, draw.name_for_human, draw.description) == ("image_gen", "Image Gen", "Draw.")
    assert (draw.seconds, draw.max_chars) == (5, 200)


def test_a_mistyped_option_is_an_error():
    with pytest.raises(TypeError):
        tool(nmae="x")  # type: ignore[call-overload]


def test_without_a_docstring_the_name_describes_the_tool():
    assert tool(name="web_search.fast")(lambda q: q).description == "Web Search Fast"


@pytest.mark.parametrize("name", ["", "9lives", "two words", "a\nb", "a[b]", "é", "x\n"])
def test_a_bad_name_is_refused(name):
    with pytest.raises(InputError, match="name"):
        Tool(name, "", {}, lambda: 1)


@pytest.mark.parametrize(
    "options", [{"seconds": 0}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"max_chars": 5}]
)
def test_bad_limits_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        returning(1, **options)


def test_a_lambda_needs_a_name():
    with pytest.raises(InputError, match="name="):
        tool(lambda x: x)


def test_code_tools_take_exactly_one_string():
    assert tool(args_format="code", name="run")(lambda code: code).invoke({"code": "1"}).content == "1"
    with pytest.raises(InputError, match="exactly one parameter"):
        tool(args_format="code", name="run")(lambda code, other: code)


def test_arguments_are_coerced():
    assert repeat.invoke({"text": 4, "times": "3"}).content == "444"


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({}, "the argument 'text' is missing, nothing was given"),
        ({"text": "a", "n": 1}, 'there is no argument "n", but 1 was given for it'),
        ({"text": "a", "times": "many"}, "'times' should be a valid integer, but \"many\" was given"),
    ],
)
def test_wrong_arguments_are_one_sentence_with_the_expected_call(arguments, problem):
    result = repeat.invoke(arguments)
    assert not result.ok
    assert result.content == f"Wrong arguments: {problem}; expected repeat(text: string, times: integer = 2)."


def test_huge_wrong_arguments_make_a_short_sentence():
    result = repeat.invoke({"text": "a", "times": "x" * 1_000_000})
    assert not result.ok and len(result.content) < 300


@pytest.mark.parametrize(
    "value, text",
    [
        ("plain", "plain"),
        (None, "(no output)"),
        ("", "(empty result)"),
        ({"url": "图片", "n": [1, True, None]}, '{"url": "图片", "n": [1, true, null]}'),
        (3, "3"),
        (Decimal("1.50"), "1.50"),
        ({1: {2}}, '{"1": [2]}'),
        ([], "[]"),
        (dataclasses.make_dataclass("D", ["x"])(1), '{"x": 1}'),
        ("bad \ud800 text", "bad ? text"),
    ],
)
def test_return_values_become_text(value, text):
    assert returning(value).invoke({}).content == text


def test_coroutine_functions_work():
    async def fetch(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    assert tool(fetch).invoke({"n": 1}).content == "2"


def test_a_tool_error_is_passed_on_as_it_is():
    result = raising(ToolError("The page was not found.")).invoke({})
    assert (result.content, result.ok) == ("The page was not found.", False)


@pytest.mark.parametrize(
    "error, text",
    [
        (ValueError("bad\n  value"), "Error: ValueError: bad value"),
        (KeyError(), "Error: KeyError"),
        (SystemExit(3), "Error: SystemExit: 3"),
        (KeyboardInterrupt(), "Error: KeyboardInterrupt"),
        (StopIteration(1), "Error: StopIteration: 1"),
        (TimeoutError("slow"), "Error: TimeoutError: slow"),
        (BrokenError(), "Error: BrokenError"),
        (asyncio.CancelledError(), "Error: CancelledError"),
    ],
)
def test_any_other_exception_is_one_line_without_traceback(error, text):
    result = raising(error).invoke({})
    assert (result.content, result.ok) == (text, False)


def test_runaway_recursion_is_an_error_observation():
    @tool
    def deep():
        return deep.function()

    assert deep.invoke({}).content.startswith("Error: RecursionError")


@pytest.mark.parametrize("value", [Hostile(), [Hostile()], {"a": Hostile()}])
def test_an_object_that_cannot_be_text_does_not_escape(value):
    result = returning(value).invoke({})
    assert not result.ok and result.content.startswith("Error: ")


def test_a_circular_result_does_not_escape():
    loop: list[Any] = []
    loop.append(loop)
    assert returning(loop).invoke({}).content.startswith("Error: ValueError")


def test_a_long_result_loses_its_middle_and_says_how_much():
    result = returning("x" * 5000 + "y" * 5000, max_chars=1000).invoke({})
    assert len(result.content) <= 1000
    assert result.content.startswith("xxx") and result.content.endswith("yyy")
    assert f"({result.dropped_chars} characters left out)" in result.content
    assert result.content.count("x") + result.content.count("y") + result.dropped_chars == 10_000


def test_a_result_of_exactly_the_limit_is_whole():
    result = returning("x" * 1000, max_chars=1000).invoke({})
    assert (len(result.content), result.dropped_chars) == (1000, 0)


@pytest.mark.parametrize("value", ["é" * 10_000_000, ["word"] * 1_250_000])
def test_ten_megabytes_are_cut_cheaply(value):
    result = returning(value).invoke({})
    assert result.ok and len(result.content) <= 6000 and result.dropped_chars > 9_900_000
    assert result.seconds < 2


def test_a_hang_becomes_an_error_after_the_limit():
    release = threading.Event()
    result = tool(name="wait", seconds=0.2)(lambda: release.wait(20)).invoke({})
    release.set()
    assert (result.content, result.ok) == ("wait timed out after 0.2 s.", False)
    assert 0.2 <= result.seconds < 1


def test_text_that_takes_for_ever_is_under_the_limit_too():
    class Slow:
        def __str__(self):
            time.sleep(1)
            return "late"

    assert "timed out" in returning(Slow(), seconds=0.1).invoke({}).content


HANGING = """
import time
from qwen_agent.tools import tool

@tool
def hang():
    print("hanging", flush=True)
    time.sleep(60)

try:
    hang.invoke({})
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_gets_through_a_hanging_tool():
    with subprocess.Popen([sys.executable, "-c", HANGING], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=5)
    assert (out, process.returncode) == ("interrupted\n", 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


EMPTY: list[float] = []
NONE: dict[str, int] = {}


@tool
def everything(text: str, n: int = 0, xs: list[float] = EMPTY, flag: bool | None = None, more: dict[str, int] = NONE):
    """Take anything."""
    assert isinstance(text, str) and type(n) is int and all(isinstance(x, int | float) for x in xs)
    return text


explicit = Tool("explicit", "", everything.parameters, everything.function)


@settings(deadline=None, max_examples=60)
@given(st.one_of(json_values, st.fixed_dictionaries({"text": json_values, "n": json_values, "xs": json_values})))
def test_invoke_never_raises_on_any_json(arguments):
    for each in (everything, explicit):
        result = each.invoke(arguments)
        assert "AssertionError" not in result.content
        result.content.encode()


def test_an_explicit_schema_is_checked_and_copied():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    double = Tool("double", "Double.", schema, lambda n: 2 * n)
    schema["properties"].clear()  # type: ignore[attr-defined]
    assert double.invoke({"n": "4"}).content == "8"
    assert "'n' should be of type integer" in double.invoke({"n": "x"}).content
    for bad in ({"type": "array"}, {"properties": {"n": {"type": 3}}}, [], {"default": {1, 2}}):
        with pytest.raises(InputError):
            Tool("bad", "", bad, lambda: 1)  # type: ignore[arg-type]


def test_a_toolbox_wraps_functions_and_keeps_the_order():
    def shout(text: str):
        return text.upper()

    box = toolbox([shout, repeat])
    assert list(box) == ["shout", "repeat"] and box["repeat"] is repeat
    with pytest.raises(InputError, match="two tools are called 'repeat'"):
        toolbox([repeat, repeat])
    with pytest.raises(InputError, match="not a function"):
        toolbox([3])  # type: ignore[list-item]


def test_tools_are_values():
    assert hash(repeat) == hash(dataclasses.replace(repeat)) and repeat == dataclasses.replace(repeat)
    assert dataclasses.replace(repeat, name="again").invoke({"text": "a"}).content == "aa"
    with pytest.raises(dataclasses.FrozenInstanceError):
        repeat.name = "x"  # type: ignore[misc]


def test_importing_tools_stays_cheap():
    heavy = ("torch", "pydantic", "jsonschema", "docstring_parser", "asyncio", "qwen_agent.react")
    code = f"import sys, qwen_agent.tools; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_calculator_is_the_tool_and_not_its_module():
    importlib.import_module("qwen_agent.tools.calculator")
    tools = importlib.import_module("qwen_agent.tools")
    assert isinstance(tools.calculator, Tool)
    assert all(hasattr(tools, name) for name in tools.__all__)
