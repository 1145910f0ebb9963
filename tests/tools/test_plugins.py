"""Tools by others: entry points of a package that really is installed (in a folder of its own), and foreign formats."""

from __future__ import annotations

import doctest
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_agent.errors import InputError
from qwen_agent.prompt import ReActTemplate, describe
from qwen_agent.tools.base import Tool
from qwen_agent.tools.plugins import (
    from_langchain,
    from_openai_function,
    from_qwen_plugin,
    from_smolagents,
    installed,
    load_plugins,
)

# Qwen's own template and plugin descriptions, from react_prompt.md of the 2023 release.
TOOL_DESC = (
    "{name_for_model}: Call this tool to interact with the {name_for_human} API. What is the {name_for_human} API "
    "useful for? {description_for_model} Parameters: {parameters} Format the arguments as a JSON object."
)
SEARCH = {
    "name_for_human": "谷歌搜索",
    "name_for_model": "google_search",
    "description_for_model": "谷歌搜索是一个通用搜索引擎，可用于访问互联网、查询百科知识、了解时事新闻等。",
    "parameters": [
        {"name": "search_query", "description": "搜索关键词或短语", "required": True, "schema": {"type": "string"}}
    ],
}
IMAGE = {
    "name_for_human": "文生图",
    "name_for_model": "image_gen",
    "description_for_model": "文生图是一个AI绘画（图像生成）服务，输入文本描述，返回根据文本作画得到的图片的URL",
    "parameters": [
        {
            "name": "prompt",
            "description": "英文关键词，描述了希望图像具有什么内容",
            "required": True,
            "schema": {"type": "string"},
        }
    ],
}
MODULE = """
import sys
sys.modules["qwen_plugin_was_imported"] = sys
from qwen_agent.tools.base import tool

@tool
def forecast(city: str) -> str:
    '''The weather.'''
    return f"rain in {city}"

@tool
def tides(place: str) -> str:
    return "high"

several = [tides, forecast]

def build():
    return (tides,)

def ends():
    sys.exit("no licence")

def fails():
    raise RuntimeError("no\\nnetwork")

nothing = 3
numbers = [1, 2]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package with entry points: name -> what it points to."""

    def write(**points: str) -> None:
        (tmp_path / "weather_for_agents.py").write_text(MODULE)
        about = tmp_path / "weather_for_agents-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: weather-for-agents\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        (about / "entry_points.txt").write_text("\n".join(["[qwen_agent.tools]", *lines]))
        monkeypatch.syspath_prepend(str(tmp_path))
        for name in ("weather_for_agents", "qwen_plugin_was_imported"):
            monkeypatch.delitem(sys.modules, name, raising=False)

    return write


# ---- entry points


def test_nothing_runs_unasked(install: Install) -> None:
    install(weather="weather_for_agents:forecast", broken="weather_for_agents:fails")
    assert installed() == {"broken": "weather-for-agents", "weather": "weather-for-agents"}
    assert load_plugins([]).tools == ()
    assert "qwen_plugin_was_imported" not in sys.modules
    loaded = load_plugins(["weather"])
    assert [tool.name for tool in loaded.tools] == ["forecast"]
    assert loaded.tools[0].invoke({"city": "Oslo"}).content == "rain in Oslo"
    assert loaded.problems == ()


@pytest.mark.parametrize(
    ("target", "names"), [("forecast", ["forecast"]), ("several", ["tides", "forecast"]), ("build", ["tides"])]
)
def test_a_tool_a_sequence_or_a_function(install: Install, target: str, names: list[str]) -> None:
    install(it=f"weather_for_agents:{target}")
    assert [tool.name for tool in load_plugins(["it"]).tools] == names


def test_a_broken_plugin_is_only_skipped(install: Install) -> None:
    broken = {
        "fails": "RuntimeError: no network",
        "ends": "SystemExit: no licence",
        "nothing": "neither a Tool nor a sequence",
        "numbers": "neither a Tool nor a sequence",
        "missing": "AttributeError",
    }
    install(
        good="weather_for_agents:forecast", away="no_such_module:x", **{n: f"weather_for_agents:{n}" for n in broken}
    )
    loaded = load_plugins(["all"])
    assert [tool.name for tool in loaded.tools] == ["forecast"]
    told = {problem.split("'")[1]: problem for problem in loaded.problems}
    assert told.keys() == broken.keys() | {"away"}
    assert "ModuleNotFoundError: No module named 'no_such_module'" in told["away"]
    for name, words in broken.items():
        assert words in told[name]
        assert "\n" not in told[name]


def test_a_name_that_is_taken_is_left_out(install: Install) -> None:
    install(first="weather_for_agents:build", second="weather_for_agents:several")
    loaded = load_plugins(["first", "second", "first"], taken={"forecast"})
    assert [tool.name for tool in loaded.tools] == ["tides"]
    assert [problem.split("'")[1] for problem in loaded.problems] == ["tides", "forecast"]


def test_an_unknown_name_is_refused(install: Install) -> None:
    with pytest.raises(InputError, match="there is no plugin 'weather': none is installed"):
        load_plugins(["weather"])
    assert load_plugins(["all"]).tools == ()
    install(tides="weather_for_agents:tides")
    with pytest.raises(InputError, match="installed are tides"):
        load_plugins(["weather"])


# ---- Qwen's plugin descriptions


def original(spec: dict[str, Any]) -> str:
    return TOOL_DESC.format(**{**spec, "parameters": json.dumps(spec["parameters"], ensure_ascii=False)})


@pytest.mark.parametrize("spec", [SEARCH, IMAGE])
def test_a_qwen_plugin_reads_as_in_2023(spec: dict[str, Any]) -> None:
    tool = from_qwen_plugin(spec, print)
    assert describe(tool) == original(spec)


def test_the_whole_prompt_is_the_originals() -> None:
    tools = [from_qwen_plugin(spec, print) for spec in (SEARCH, IMAGE)]
    text = ReActTemplate().render(tools, "hi")
    assert f"\n\n{original(SEARCH)}\n\n{original(IMAGE)}\n\n" in text
    assert "one of [google_search,image_gen]" in text


words = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12)
schemas = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer", "minimum": 0, "default": 3},
        {"type": "array", "items": {"type": "string", "description": "one"}},
        {"enum": ["a", "b"], "type": "string"},
        {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]},
        {},
    ]
)
KEYS = ("name", "description", "required", "schema")  # in the order of the originals
entries = st.lists(
    st.tuples(words, st.one_of(st.just(""), words), st.booleans(), schemas).map(
        lambda values: dict(zip(KEYS, values, strict=True))
    ),
    max_size=4,
    unique_by=lambda entry: str(entry["name"]),
)


@given(words, words, entries)
def test_any_plugin_reads_as_in_2023(human: str, description: str, parameters: list[dict[str, Any]]) -> None:
    spec = {
        "name_for_human": human,
        "name_for_model": "plugin_1",
        "description_for_model": description,
        "parameters": parameters,
    }
    assert describe(from_qwen_plugin(spec, print)) == original(spec)


def test_a_qwen_plugin_is_called_by_keyword_and_checked() -> None:
    tool = from_qwen_plugin(SEARCH, lambda search_query: f"found {search_query}", untrusted=True)
    assert tool.invoke({"search_query": "x"}).content == "found x"
    assert not tool.invoke({}).ok
    assert (tool.untrusted, tool.side_effects) == (True, False)


def test_the_newer_spelling_is_read() -> None:
    spec = {
        "name_for_model": "code_interpreter",
        "description_for_model": "Runs code",
        "args_format": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
        "parameters": [{"name": "code", "type": "string", "description": "the code", "required": True}],
    }
    tool = from_qwen_plugin(spec, lambda code: code)
    assert tool.args_format == "code"
    assert tool.parameters["properties"] == {"code": {"type": "string", "description": "the code"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name_for_model": ""}, "name_for_model"),
        ({"name_for_model": "谷歌"}, "cannot be the name"),
        ({"parameters": {"a": 1}}, "must be a list"),
        ({"parameters": ["a"]}, "is no parameter"),
        ({"parameters": [{"name": "a"}, {"name": "a"}]}, "two parameters"),
        ({"parameters": [{"name": "a", "schema": "string"}]}, "must be an object"),
        ({"parameters": [{"name": "a", "schema": {"type": "strin"}}]}, "not a valid JSON Schema"),
    ],
)
def test_a_qwen_plugin_that_cannot_be_read(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_qwen_plugin({**SEARCH, **change}, print)


# ---- OpenAI's function JSON

FUNCTION = {
    "name": "get_weather",
    "description": "Get the weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "City"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.mark.parametrize(
    "spec", [FUNCTION, {"type": "function", "function": FUNCTION}, {"type": "function", **FUNCTION}]
)
def test_an_openai_function_is_accepted_as_it_is(spec: dict[str, Any]) -> None:
    tool = from_openai_function(spec, lambda city: f"rain in {city}", side_effects=True)
    assert isinstance(tool, Tool)
    assert (tool.name, tool.description, tool.parameters) == ("get_weather", "Get the weather", FUNCTION["parameters"])
    assert tool.invoke({"city": "Oslo"}).content == "rain in Oslo"
    assert (tool.untrusted, tool.side_effects) == (False, True)


def test_an_openai_function_without_parameters() -> None:
    assert from_openai_function({"name": "now"}, lambda: "noon").invoke({}).content == "noon"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"type": "web_search"}, "'web_search'"),
        ({"type": "function", "function": "get"}, "must be an object"),
        ({"type": "function", "function": {}}, "'name'"),
        ({"name": 3}, "'name'"),
        ({"name": "a", "parameters": {"type": "string"}}, "type 'object'"),
    ],
)
def test_an_openai_function_that_cannot_be_read(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_openai_function(spec, print)


def test_the_page_about_plugins_is_true() -> None:
    page = Path(__file__).parents[2] / "docs" / "tools" / "plugins.md"
    if not page.exists():
        pytest.skip("the tests were installed without the documentation")
    failed, tried = doctest.testfile(str(page), module_relative=False, verbose=False)
    assert (failed, tried > 5) == (0, True)


# ---- tools of other frameworks


class LikeLangChain:
    """What of LangChain's BaseTool is used here."""

    name, description = "multiply", "Multiplies."
    tool_call_schema: ClassVar[Any] = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }

    def invoke(self, arguments: dict[str, int]) -> int:
        return arguments["a"] * arguments["b"]


class LikeSmolagents:
    name, description = "greet", "Greets."
    inputs: ClassVar[Any] = {
        "who": {"type": "string", "description": "a name"},
        "how": {"type": "any", "nullable": True, "description": "a word"},
        "face": {"type": "image", "nullable": True, "description": "a picture"},
    }

    def __call__(self, who: str, how: str = "Hello") -> str:
        return f"{how}, {who}"


def test_tools_of_other_frameworks_are_taken_as_they_are() -> None:
    multiply, greet = from_langchain(LikeLangChain()), from_smolagents(LikeSmolagents())
    assert multiply.invoke({"a": 6, "b": "7"}).content == "42"
    assert "'b' is missing" in multiply.invoke({"a": 6}).content
    assert greet.invoke({"who": "Ada"}).content == "Hello, Ada"
    assert greet.parameters["required"] == ["who"]
    assert "type" not in greet.parameters["properties"]["how"]
    assert greet.parameters["properties"]["face"]["type"] == "string"
    assert (greet.untrusted, greet.side_effects) == (True, True)
    for make in (from_langchain, from_smolagents):
        with pytest.raises(InputError, match=r"is no (LangChain|smolagents) tool"):
            make("search")


def test_a_real_langchain_tool() -> None:
    tools = pytest.importorskip("langchain_core.tools")

    @tools.tool
    def multiply(a: int, b: int = 2) -> int:
        """Multiplies two numbers."""
        return a * b

    made = from_langchain(multiply)
    assert made.invoke({"a": 21}).content == "42"
    assert made.parameters["required"] == ["a"]
    assert not made.invoke({"a": "many"}).ok


@pytest.mark.filterwarnings("ignore:Function 'greet' has decorators")  # its name for a module prefix
def test_a_real_smolagents_tool() -> None:
    smolagents = pytest.importorskip("smolagents")

    @smolagents.tool
    def greet(who: str, how: str = "Hello") -> str:
        """Greets.

        Args:
            who: a name
            how: a word
        """
        return f"{how}, {who}"

    made = from_smolagents(greet)
    assert made.invoke({"who": "Ada"}).content == "Hello, Ada"
    assert made.parameters["properties"]["who"]["description"] == "a name"
