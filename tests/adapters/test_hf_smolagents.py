"""smolagents' agents on our runtime: the scenarios of its own tests, with a runtime that says what its models say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from qwen_agent.errors import ContextOverflow, InputError, ToolError
from qwen_agent.tools.base import Tool
from qwen_agent.tools.base import tool as our_tool
from qwen_agent.tools.calculator import calculator

smolagents = pytest.importorskip("smolagents")
from PIL import Image  # noqa: E402
from smolagents import CodeAgent, ToolCallingAgent, models, tool  # noqa: E402
from smolagents.agents import AgentGenerationError, AgentParsingError, AgentToolExecutionError  # noqa: E402
from smolagents.default_tools import FinalAnswerTool, PythonInterpreterTool  # noqa: E402

from qwen_agent.hf_agent_adapter import QwenModel, from_smolagents, to_smolagents  # noqa: E402

QUIET = {"verbosity_level": 0}
TASK = "What is 2 multiplied by 3.6452?"
CALL = 'Thought: I will call it.\nAction: python_interpreter\nAction Input: {"code": "2*3.6452"}\nObservation: 9'
ANSWER = " I now know the final answer.\nFinal Answer: 7.2904"


def calls(agent: Any) -> list[tuple[str, Any]]:
    steps = [step for step in agent.memory.steps[1:] if getattr(step, "tool_calls", None)]
    return [(call.name, call.arguments) for step in steps for call in step.tool_calls]


@tool
def get_weather(city: str, celsius: bool = True) -> str:
    """Get the weather of a city.

    Args:
        city: the name of the city
        celsius: whether in degrees Celsius
    """
    return f"18 degrees in {city}"


# ---- ToolCallingAgent


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_the_answer_is_final(scripted, stream):
    runtime = scripted(CALL, ANSWER)
    agent = ToolCallingAgent([PythonInterpreterTool()], QwenModel(runtime=runtime), stream_outputs=stream, **QUIET)
    assert agent.run(TASK) == "7.2904"
    assert calls(agent) == [("python_interpreter", {"code": "2*3.6452"}), ("final_answer", {"answer": "7.2904"})]
    first, second = agent.memory.steps[1:]
    assert "7.2904" in first.observations and first.model_output == CALL.partition("Observation:")[0]
    assert second.model_output == ANSWER and second.is_final_answer
    assert first.token_usage.input_tokens > 100 and first.token_usage.output_tokens > 5
    assert len({call.id for step in (first, second) for call in step.tool_calls}) == 2


def test_a_step_is_written_as_react_with_the_tools_and_their_results(scripted):
    runtime = scripted(CALL, ANSWER)
    ToolCallingAgent([PythonInterpreterTool()], QwenModel(runtime=runtime), **QUIET).run(TASK)
    first, second = runtime.prompts
    assert "You are an expert assistant who can solve any task using tool calls." in first
    assert "python_interpreter: Call this tool to interact with the Python Interpreter API." in first
    assert "should be one of [python_interpreter]" in first and "final_answer: Call this tool" not in first
    assert first.endswith(f"Begin!\n\nQuestion: New task:\n{TASK}\nassistant\n")
    assert second.startswith(first + CALL.partition("Observation:")[0] + "Observation: ")
    assert "7.2904\nThought:" in second and "Calling tools:" not in second.partition("Begin!")[2]
    assert runtime.configs[0].stop == ("Observation:", "Calling tools:")
    assert '"python_interpreter\\nAction Input: "' in runtime.configs[0].grammar.lark.replace('" python', '"python')


def test_a_picture_of_one_step_is_the_answer_of_the_next(scripted):
    @tool
    def draw(prompt: str) -> Image.Image:
        """Draw a picture.

        Args:
            prompt: what it shows
        """
        return Image.new("RGB", (4, 4))

    runtime = scripted(
        'Thought: I draw.\nAction: draw\nAction Input: {"prompt": "a cat"}\n', " Done.\nFinal Answer: image.png"
    )
    agent = ToolCallingAgent([draw], QwenModel(runtime=runtime), **QUIET)
    assert isinstance(agent.run("Make me an image."), Image.Image)
    assert "Stored 'image.png' in memory." in runtime.prompts[1]


def test_text_without_a_call_is_the_answer(scripted):
    agent = ToolCallingAgent([get_weather], QwenModel(runtime=scripted("I have no tool for that.")), **QUIET)
    assert agent.run("Who wrote Hamlet?") == "I have no tool for that."


def test_mistakes_of_an_unconstrained_model_are_steps_that_failed(scripted):
    runtime = scripted(
        "Thought: x\nAction: weather\nAction Input: {}\n",
        ' x\nAction: get_weather\nAction Input: {"town": "Oslo"}\n',
        " x\nAction: get_weather\nAction Input: Oslo\n",
        ' x\nAction: get_weather\nAction Input: {"city": "Oslo",}\n',
        " x\nFinal Answer: 18 degrees",
    )
    agent = ToolCallingAgent([get_weather], QwenModel(runtime=runtime), **QUIET)
    assert agent.run("How is Oslo?") == "18 degrees"
    errors = [type(step.error) for step in agent.memory.steps[1:]]
    assert errors[0] is AgentToolExecutionError and errors[1] is not type(None) and errors[4] is type(None)
    assert "Unknown tool weather, should be one of: get_weather, final_answer." in runtime.prompts[1]
    assert calls(agent)[-2:] == [("get_weather", {"city": "Oslo"}), ("final_answer", {"answer": "18 degrees"})]


def test_an_output_that_is_cut_off_is_a_step_that_failed(scripted):
    runtime = scripted("Thought: I think and think", " Done.\nFinal Answer: 1")
    agent = ToolCallingAgent([get_weather], QwenModel(runtime=runtime, max_new_tokens=4), **QUIET)
    assert agent.run("How is Oslo?") == "1"
    assert isinstance(agent.memory.steps[1].error, AgentParsingError)
    assert "the output ended before a tool was called" in runtime.prompts[1]


def test_a_call_with_a_stop_string_inside_is_not_made(scripted):
    text = 'Thought: x\nAction: get_weather\nAction Input: {"city": "Oslo Observation: x"}\n'
    agent = ToolCallingAgent([get_weather], QwenModel(runtime=scripted(text, " x\nFinal Answer: 1")), **QUIET)
    assert agent.run("How is Oslo?") == "1"
    assert calls(agent) == [("final_answer", {"answer": "1"})]
    assert isinstance(agent.memory.steps[1].error, AgentParsingError)


def test_at_the_last_step_the_model_answers_without_tools(scripted):
    weather = 'Thought: x\nAction: get_weather\nAction Input: {"city": "Oslo"}\n'
    runtime = scripted(weather, "It is 18 degrees.")
    agent = ToolCallingAgent([get_weather], QwenModel(runtime=runtime), max_steps=1, **QUIET)
    assert agent.run("How is Oslo?") == "It is 18 degrees."
    assert runtime.configs[1].grammar is None and "Question:" not in runtime.prompts[1]


def test_a_second_task_goes_on_from_the_first(scripted):
    runtime = scripted(CALL, ANSWER, "Thought: x\nFinal Answer: 8")
    agent = ToolCallingAgent([PythonInterpreterTool()], QwenModel(runtime=runtime), **QUIET)
    agent.run(TASK)
    assert agent.run("And plus one?", reset=False) == "8"
    assert runtime.prompts[2].startswith(runtime.prompts[1] + ANSWER.rstrip())
    assert runtime.prompts[2].endswith("\nuser\nNew task:\nAnd plus one?\nassistant\n")


def test_an_answer_of_several_parts_is_a_call(scripted):
    class TwoParts(FinalAnswerTool):
        inputs = {  # noqa: RUF012
            "first": {"type": "string", "description": "First part."},
            "second": {"type": "string", "description": "Second part."},
        }

        def forward(self, first: str, second: str) -> str:
            return f"{first} and {second}"

    runtime = scripted('Thought: x\nAction: final_answer\nAction Input: {"first": "1", "second": "2"}\n')
    agent = ToolCallingAgent([get_weather, TwoParts()], QwenModel(runtime=runtime), **QUIET)
    assert agent.run("x") == "1 and 2"
    assert "should be one of [get_weather,final_answer]" in runtime.prompts[0]
    assert "to_answer" not in runtime.configs[0].grammar.lark


def test_agents_of_agents(scripted):
    inner = scripted("Thought: x\nFinal Answer: Report on the weather")
    outer = scripted(
        'Thought: x\nAction: search_agent\nAction Input: {"task": "How is Oslo?"}\n', " x\nFinal Answer: Final report."
    )
    searcher = ToolCallingAgent(
        [get_weather], QwenModel(runtime=inner), name="search_agent", description="Searches.", **QUIET
    )
    manager = ToolCallingAgent([], QwenModel(runtime=outer), managed_agents=[searcher], **QUIET)
    assert manager.run("x") == "Final report."
    assert "How is Oslo?" in inner.prompts[0] and "Report on the weather" in outer.prompts[1]


def test_plans_are_plain_chat(scripted):
    runtime = scripted("1. Multiply.", CALL, ANSWER)
    agent = ToolCallingAgent([PythonInterpreterTool()], QwenModel(runtime=runtime), planning_interval=5, **QUIET)
    assert agent.run(TASK) == "7.2904"
    assert runtime.configs[0].grammar is None and runtime.configs[0].stop == ("<end_plan>",)
    assert "1. Multiply." in runtime.prompts[1] and "carry out this plan" in runtime.prompts[1]


def test_a_prompt_that_does_not_fit_is_raised(scripted):
    class Full(scripted):
        def stream(self, prompt: Any, config: Any) -> Any:
            raise ContextOverflow(9000, 8192)

    agent = ToolCallingAgent([get_weather], QwenModel(runtime=Full()), **QUIET)
    with pytest.raises(AgentGenerationError, match="the prompt has 9000 tokens but the model's window is 8192"):
        agent.run("x")


# ---- CodeAgent


def code(thought: str, *lines: str) -> str:
    return f"Thought: {thought}\n<code>\n{chr(10).join(lines)}\n</code>\nObservation: made up"


@pytest.mark.parametrize("stream", [False, True])
def test_code_is_run_and_the_answer_is_final(scripted, stream):
    runtime = scripted(code("multiply", "result = 2**3.6452"), code("answer", "final_answer(7.2904)"))
    agent = CodeAgent([PythonInterpreterTool()], QwenModel(runtime=runtime), stream_outputs=stream, **QUIET)
    assert agent.run(TASK) == 7.2904
    assert calls(agent) == [
        *(("python_interpreter", "result = 2**3.6452"), ("python_interpreter", "final_answer(7.2904)"))
    ]
    assert runtime.configs[0].stop == ("Observation:", "Calling tools:", "</code>")
    assert agent.memory.steps[1].model_output.endswith("result = 2**3.6452\n</code>")
    assert "Last output from code snippet:\n12.5" in runtime.prompts[1]
    assert "made up" not in runtime.prompts[1]


@pytest.mark.parametrize(
    ("lines", "seen"),
    [
        (["print('Flag!')", "def f():", "    raise ValueError('error')", "f()"], "Flag!"),
        (["a = 2", "    print('x')"], "IndentationError"),
        (["import numpy"], "Import of numpy is not allowed"),
    ],
)
def test_what_fails_in_code_is_shown_to_the_model(scripted, lines, seen):
    runtime = scripted(code("try", *lines), code("failed", 'final_answer("got an error")'))
    agent = CodeAgent([], QwenModel(runtime=runtime), **QUIET)
    assert agent.run("x") == "got an error"
    assert seen in runtime.prompts[1]


def test_text_without_code_is_a_step_that_failed(scripted):
    runtime = scripted("I would rather chat.", code("well", "final_answer(1)"))
    agent = CodeAgent([], QwenModel(runtime=runtime), **QUIET)
    assert agent.run("x") == 1
    assert "was not found in it" in runtime.prompts[1]


def test_functions_last_from_step_to_step(scripted):
    runtime = scripted(code("define", "def twice(x):", "    return 2 * x"), code("use", "final_answer(twice(4))"))
    assert CodeAgent([], QwenModel(runtime=runtime), **QUIET).run("x") == 8


@pytest.mark.parametrize("tags", ["markdown", ("<py>", "</py>")])
def test_other_tags_for_code(scripted, tags):
    opening, closing = ("```python", "```") if tags == "markdown" else tags
    runtime = scripted(f"Thought: x\n{opening}\nfinal_answer(3)\n{closing}")
    agent = CodeAgent([], QwenModel(runtime=runtime), code_block_tags=tags, **QUIET)
    assert agent.run("x") == 3
    assert (closing in runtime.configs[0].stop) == (tags != "markdown")


def test_thought_and_code_as_json(scripted):
    runtime = scripted(json.dumps({"thought": "x", "code": "final_answer(5)"}))
    agent = CodeAgent([], QwenModel(runtime=runtime), use_structured_outputs_internally=True, **QUIET)
    assert agent.run("x") == 5
    assert '"required": ["thought", "code"]' in runtime.configs[0].grammar.lark


def test_our_tools_in_code(scripted):
    runtime = scripted(code("calculate", 'x = calculator("37*43")', "final_answer(calculator(expression=x + '+1'))"))
    agent = CodeAgent([to_smolagents(calculator)], QwenModel(runtime=runtime), **QUIET)
    assert agent.run("x") == "1592"
    assert "def calculator(expression: string) -> string:" in runtime.prompts[0]


# ---- the model alone


def said(content: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": content}


def test_messages_are_text_or_parts_of_text_and_sides_are_merged(scripted):
    runtime = scripted("Hi.")
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]
    messages = [said("Be kind.", "system"), said(parts), said("again"), said("Yes?", "assistant"), said("Bye")]
    answer = QwenModel(runtime=runtime)(messages, stop_sequences=["END"])
    assert (answer.role, answer.content, answer.tool_calls) == ("assistant", "Hi.", None)
    assert runtime.prompts == ["system\nBe kind.\nuser\nHello\nthere\nagain\nassistant\nYes?\nuser\nBye\nassistant\n"]


def test_calls_of_another_model_are_kept(scripted):
    runtime = scripted("Thought: x\nFinal Answer: 1")
    called = "Calling tools:\n[{'id': 'a', 'type': 'function', 'function': {'name': 'get_weather', 'arguments': {}}}]"
    messages = [said("How is Oslo?"), said("Let me see.", "assistant"), said(called, "tool-call")]
    messages.append(said("Observation:\n18 degrees", "tool-response"))
    QwenModel(runtime=runtime).generate(messages, tools_to_call_from=[get_weather, FinalAnswerTool()])
    assert runtime.prompts[0].endswith(f"assistant\nLet me see.\n{called}\nObservation: 18 degrees\nThought:")


def test_pictures_are_refused(scripted):
    with pytest.raises(InputError, match="this model reads text only"):
        QwenModel(runtime=scripted("x")).generate([said([{"type": "image", "image": object()}])])


def test_a_stream_is_the_same_in_pieces(scripted):
    model = QwenModel(runtime=scripted("Hello END more"))
    whole = models.agglomerate_stream_deltas(list(model.generate_stream([said("x")], stop_sequences=["END"])))
    assert whole.content == "Hello " and whole.token_usage.output_tokens == 1
    pieces = QwenModel(runtime=scripted(CALL)).generate_stream(
        [said("x")], tools_to_call_from=[PythonInterpreterTool()]
    )
    [call] = models.agglomerate_stream_deltas(list(pieces)).tool_calls
    assert json.loads(call.function.arguments) == {"code": "2*3.6452"} and call.id


@pytest.mark.parametrize(
    ("response_format", "lark"),
    [
        ({"type": "json_object"}, '"type": "object"'),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}, '"type": "integer"'),
    ],
)
def test_formats_are_held_to(scripted, response_format, lark):
    runtime = scripted("1")
    QwenModel(runtime=runtime).generate([said("x")], response_format=response_format)
    assert lark in runtime.configs[0].grammar.lark


def test_formats_that_are_not_known_are_refused(scripted):
    model = QwenModel(runtime=scripted("1"))
    assert model.generate([said("x")], response_format={"type": "text"}).content == "1"
    with pytest.raises(InputError, match="response_format 'regex' is not known"):
        model.generate([said("x")], response_format={"type": "regex"})
    with pytest.raises(InputError, match="together with tools"):
        model.generate([said("x")], response_format={"type": "json_object"}, tools_to_call_from=[get_weather])


def test_options_are_those_of_a_generation(scripted):
    runtime = scripted("a", "b")
    model = QwenModel(runtime=runtime, max_tokens=7, temperature=0.5)
    model.generate([said("x")])
    model.generate([said("x")], max_new_tokens=9)
    assert [(c.max_new_tokens, c.temperature) for c in runtime.configs] == [(7, 0.5), (9, 0.5)]
    with pytest.raises(InputError, match="'max_length' is not known: give max_new_tokens, "):
        QwenModel(runtime=runtime, max_length=3)
    with pytest.raises(InputError, match="max_tokens is another name of max_new_tokens"):
        model.generate([said("x")], max_tokens=3, max_new_tokens=4)


def test_an_agent_can_be_saved_and_loaded(monkeypatch, scripted, tmp_path):
    loaded: list[str] = []
    monkeypatch.setattr(
        "qwen_agent.llm.local.load_runtime", lambda name: loaded.append(name) or scripted("Thought: x\nFinal Answer: 1")
    )
    agent = ToolCallingAgent([get_weather], QwenModel("owner/model", max_new_tokens=64), **QUIET)
    agent.save(tmp_path)
    again = ToolCallingAgent.from_folder(tmp_path)
    assert loaded == ["owner/model"] * 2 and again.model.generation.max_new_tokens == 64
    assert again.run("x") == "1"
    assert models.MODEL_REGISTRY["QwenModel"] is QwenModel


def test_the_embedded_model_calls_tools_by_construction(embedded):
    """Its text may be anything; what it calls is a tool that there is, with arguments that fit."""
    model = QwenModel(runtime=embedded, max_new_tokens=60)
    answer = model.generate([said("What's the weather like in Oslo?")], tools_to_call_from=[get_weather])
    [call] = answer.tool_calls
    assert (call.function.name, call.function.arguments["city"]) == ("get_weather", "Oslo")
    assert set(call.function.arguments) <= {"city", "celsius"}


# ---- tools, both ways


def test_our_tool_as_theirs():
    @our_tool
    def add(a: int, b: int = 1, note: str | None = None) -> int:
        """Add two numbers.

        Args:
            a: the first
        """
        return a + b

    theirs = to_smolagents(add)
    assert (theirs.name, theirs.description, theirs.output_type) == ("add", "Add two numbers.", "string")
    assert theirs.inputs["a"] == {"type": "integer", "description": "the first"}
    assert theirs.inputs["b"] == {"type": "integer", "description": "b", "nullable": True}
    assert (theirs(2), theirs("2", b=5), theirs({"a": 3})) == ("3", "7", "4")
    with pytest.raises(ToolError, match="Wrong arguments: "):
        theirs("x")
    with pytest.raises(ToolError, match="add was given 4 arguments by place, but it takes 3: a, b, note"):
        theirs(1, 2, "x", 4)
    with pytest.raises(ToolError, match="add was given 'a' twice"):
        theirs(1, a=2)
    with pytest.raises(InputError, match="add cannot be saved: smolagents saves source code"):
        theirs.to_dict()
    back = from_smolagents(theirs)
    assert isinstance(back, Tool) and back.invoke({"a": 4}).content == "5"


def test_a_tool_that_asks_is_asked_for():
    for approval in ("ask", "deny"):
        with pytest.raises(InputError, match=f"the tool calculator has approval='{approval}': give approve="):
            to_smolagents(dataclasses.replace(calculator, approval=approval))
    careful = dataclasses.replace(calculator, approval="ask")
    seen: list[Any] = []
    with pytest.raises(ToolError, match="the user does not allow this call of calculator"):
        to_smolagents(careful, lambda call: bool(seen.append(call.arguments)))("1+1")
    assert seen == [{"expression": "1+1"}]
    assert to_smolagents(careful, lambda call: True)("1+1") == "2"


def test_a_name_that_smolagents_does_not_take_is_refused():
    with pytest.raises(InputError, match="'web-page' is no Python identifier"):
        to_smolagents(Tool("web-page", "x", {"type": "object", "properties": {}}, lambda: ""))


def test_their_tool_as_ours():
    ours = from_smolagents(get_weather)
    assert ours.invoke({"city": "Oslo"}).content == "18 degrees in Oslo"


# ---- without the extra


def test_without_smolagents_the_command_is_named():
    script = (
        "import sys; sys.modules['smolagents'] = None\n"
        "import qwen_agent.hf_agent_adapter as adapter\n"
        "adapter.QwenAgent, adapter.evaluate, adapter.load_tool\n"
        "try:\n    adapter.QwenModel\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "MissingDependency smolagents is not installed: pip install 'qwen-react-agent[smolagents]'",
        "False False",
    ]
