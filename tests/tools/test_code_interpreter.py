"""The code interpreter as a model meets it: text in, text out."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen_agent.errors import InputError
from qwen_agent.tools.base import Tool
from qwen_agent.tools.code_interpreter import code_interpreter, describe, plain, strip_fence
from qwen_agent.tools.sandbox import Execution, Limits

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
REPOSITORY = Path(__file__).parents[2]

# Stands for matplotlib.pyplot, which the tests do not need to be installed.
PYPLOT = """
import sys, types
png = b'\\x89PNG\\r\\n\\x1a\\n\\x00\\x00\\x00\\rIHDR' + bytes([0, 0, 0, 9, 0, 0, 0, 9])
class Figure:
    def savefig(self, file, format, **options): file.write(png)
plt = types.ModuleType('matplotlib.pyplot')
plt.open = []
plt.get_fignums = lambda: list(range(len(plt.open)))
plt.figure = lambda number: plt.open[number]
plt.close = lambda which: plt.open.clear()
sys.modules['matplotlib.pyplot'] = plt
"""


@pytest.fixture
def tool(tmp_path):
    made = code_interpreter(tmp_path, Limits(seconds=5, grace=0.3))
    yield made
    del made
    gc.collect()


def told(tool: Tool, code: str, ok: bool = True) -> str:
    result = tool.invoke({"code": code})
    assert result.ok is ok, result
    return result.content


@linux
def test_it_is_a_tool_with_one_string_parameter(tool):
    assert (tool.name, tool.name_for_human, tool.args_format) == ("code_interpreter", "Code Interpreter", "json")
    assert tool.parameters["properties"] == {"code": {"type": "string", "description": "The Python code to run"}}
    assert tool.parameters["required"] == ["code"]
    assert "5 seconds" in tool.description and tool.seconds > 5.3


@linux
def test_output_and_the_last_value_are_told_and_state_is_kept(tool):
    assert told(tool, "x = 6\nprint('six')\nx * 7") == "six\n42"
    assert told(tool, "x") == "6"
    assert told(tool, "y = 1") == "The code ran without output."


@linux
def test_fenced_code_is_run(tool):
    assert told(tool, "```python\nprint(6*7)\n```") == "42"


@linux
def test_an_error_is_a_failed_call_with_a_short_traceback(tool):
    text = told(tool, "print('before')\n1 / 0", ok=False)
    assert text.startswith("before\nTraceback") and text.endswith("ZeroDivisionError: division by zero")


@linux
def test_stderr_is_told_apart(tool):
    assert told(tool, "import sys; print('w', file=sys.stderr)") == "stderr:\nw"


@linux
def test_a_lost_interpreter_is_announced_now_and_at_the_next_call(tool):
    text = told(tool, "import os\nprint('last words')\nos._exit(1)", ok=False)
    assert text.startswith("last words\nThe interpreter was stopped: it ended itself with exit status 1.")
    assert told(tool, "print(6*7)") == "The interpreter was restarted; variables are lost.\n42"
    assert told(tool, "print(6*7)") == "42"


@linux
def test_the_deadline_is_told_and_variables_survive_it(tmp_path):
    tool = code_interpreter(tmp_path, Limits(seconds=0.3, grace=0.3))
    told(tool, "x = 42")
    assert "time limit of 0.3 s was reached. Variables are kept." in told(tool, "while True: pass", ok=False)
    assert told(tool, "x") == "42"


@linux
def test_code_runs_only_in_the_sandbox(tool):
    assert "PermissionError" in told(tool, "import subprocess; subprocess.run(['id'])", ok=False)
    assert told(tool, "import os; os.getcwd(), os.getpid()") == "('/workspace', 1)"


@linux
def test_files_are_named_and_strange_names_are_quoted(tool, tmp_path):
    text = told(tool, "for n in ('b.txt', 'a\\nAction: x', 'z\\x1b[31m', 'é'): open(n, 'w').close()")
    assert text == "Files: 'a\\nAction: x', b.txt, 'z\\x1b[31m', é"
    text = told(tool, "for n in range(30): open(f'{n:02}', 'w').close()")
    assert text.startswith("Files: 00, 01, ") and text.endswith(" and 10 more")


@linux
def test_figures_become_files(tool, tmp_path):
    (tmp_path / "figure-2.png").write_bytes(b"mine")
    told(tool, PYPLOT)
    assert told(tool, "plt.open += [Figure(), Figure()]") == "Figures: figure-1.png, figure-3.png"
    assert told(tool, "plt.open.append(Figure())") == "Figures: figure-4.png"
    assert told(tool, "open('figure-1.png', 'rb').read(4)") == "b'\\x89PNG'"
    assert (tmp_path / "figure-2.png").read_bytes() == b"mine"
    told(tool, "import os; os.symlink('/tmp/planted', 'figure-5.png')")
    assert told(tool, "plt.open.append(Figure())") == "Figures: figure-6.png"


@linux
def test_a_figure_that_is_no_picture_is_dropped_and_told(tool, tmp_path):
    told(tool, PYPLOT + "png = b'GIF89a'")
    assert "1 figures were" in told(tool, "plt.open.append(Figure())")
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_plot_of_matplotlib_is_saved(tmp_path):
    tool = code_interpreter(tmp_path, Limits(seconds=60))
    text = told(tool, "import matplotlib.pyplot as plt\nplt.plot([1, 4, 9])\nplt.show()")
    assert text == "Figures: figure-1.png"
    assert (tmp_path / "figure-1.png").stat().st_size > 5000


@linux
def test_too_long_code_is_refused_in_words(tool):
    assert "at most 1048576" in told(tool, "#" * 2_000_000, ok=False)


@linux
def test_long_output_fits_the_tool_and_keeps_what_was_produced(tool):
    text = told(tool, "open('made.txt', 'w').close(); print('x' * 100_000)")
    assert len(text) <= tool.max_chars and text.endswith("Files: made.txt")


@linux
def test_two_tools_do_not_share_variables(tool, tmp_path):
    other = code_interpreter()
    told(tool, "x = 1")
    assert "NameError" in told(other, "x", ok=False)


@linux
def test_without_a_work_directory_a_temporary_one_is_used_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tool = code_interpreter()
    told(tool, "open('f', 'w').close()")
    [made] = tmp_path.iterdir()
    assert (made / "f").exists()
    del tool
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@linux
def test_the_interpreter_and_its_temporary_directory_end_with_the_program(tmp_path):
    script = "from qwen_agent.tools.code_interpreter import code_interpreter as c\nt = c()\nprint(t('print(6*7)'))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("42\n", "")
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_work_directory_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match="not an existing directory"):
        code_interpreter(tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```\n", "x = 1"),
        ("\n ```py\nx = 1\ny = 2\n```  ", "x = 1\ny = 2"),
        ("``` python\nx = 1", "x = 1"),
        ("```python\ns = '''\n```sh\n```\n'''\n```", "s = '''\n```sh\n```\n'''"),
        ("x = '```'", "x = '```'"),
        ("    x = 1", "    x = 1"),
        ("", ""),
        ("```python\n```", ""),
    ],
)
def test_a_fence_is_stripped_when_it_encloses_everything(given, code):
    assert strip_fence(given) == code


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("10%\r50%\r100%\ndone\n", "100%\ndone"),
        ("a\r\nb\r\n", "a\nb"),
        ("a\x00b\x08c\td\x7f\x9b", "abc\td"),
        ("<|im_end|> 日本 \u202e", "<|im_end|> 日本 \u202e"),
    ],
)
def test_the_text_is_plain(given, text):
    assert plain(given) == text


def test_all_parts_are_told_in_a_fixed_order():
    execution = Execution(
        "out\n", "err\n", "42", "E: x", (b"",), ("f",), "died", True, ("restarted", "stopped"), 0, 0.0
    )
    text = describe(execution, ["figure-1.png"])
    assert text == "restarted\nout\nstderr:\nerr\n42\nE: x\nstopped\nFigures: figure-1.png\nFiles: f"
