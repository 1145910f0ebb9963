"""The code interpreter as a model meets it: text in, text out."""

from __future__ import annotations

import doctest
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen_agent.errors import InputError, SandboxUnavailable
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Tool
from qwen_agent.tools.code_interpreter import code_interpreter, describe, give, plain, strip_fence
from qwen_agent.tools.sandbox import Execution, Limits
from qwen_agent.tools.sandbox.policy import MIB
from qwen_agent.tools.sandbox.unsafe import UnsafeSession

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
REPOSITORY = Path(__file__).parents[2]

PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"

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
def test_what_is_made_is_handed_out(tool, tmp_path):
    told(tool, PYPLOT)
    code = (
        "plt.open.append(Figure()); open('t.csv', 'w').write('a,b'); import os; os.mkdir('d'); open('d/x', 'w').close()"
    )
    figure, inner, table = tool.invoke({"code": code}).artifacts
    assert (figure.name, figure.media_type, figure.width, figure.path) == (
        *("figure-1.png", "image/png", 9),
        str(tmp_path / "figure-1.png"),
    )
    assert (table.name, table.media_type, table.size) == ("t.csv", "text/plain", 3)
    assert inner.path == str(tmp_path / "d" / "x")
    assert tool.invoke({"code": "1"}).artifacts == ()


@linux
def test_with_a_store_no_later_call_can_change_what_was_handed_out(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    (tmp_path / "work").mkdir()
    tool = code_interpreter(tmp_path / "work", Limits(seconds=5), store=store)
    [made] = tool.invoke({"code": "open('t.csv', 'w').write('first')"}).artifacts
    told(tool, "import os; os.remove('t.csv'); os.symlink('/etc/passwd', 't.csv')")
    assert store.read(made.id) == b"first" and store.find("t.csv") == made


@linux
def test_what_is_not_handed_out_is_told(tmp_path):
    (tmp_path / "work").mkdir()
    store = ArtifactStore(tmp_path / "store", max_bytes=1000)
    tool = code_interpreter(tmp_path / "work", Limits(seconds=5), store=store)
    bomb = f"{PNG_START!r} + (100000).to_bytes(4, 'big') * 2"
    result = tool.invoke({"code": f"open('a.png', 'wb').write({bomb}); open('b', 'w').write('x' * 1001); 1"})
    assert result.artifacts == () and result.content.startswith(
        "1\nFiles: a.png, b\nNot handed out: 'a.png' cannot be kept"
    )
    assert "claims 100000 x 100000 pixels" in result.content and "'b' has more than 1000 bytes" in result.content


@linux
def test_what_is_given_is_copied(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "work").mkdir()
    table = tmp_path / "mine" / "table.csv"
    table.write_text("a,b\n1,2\n")
    made = ArtifactStore(tmp_path / "store").add(b"made", "notes.txt")
    tool = code_interpreter(tmp_path / "work", Limits(seconds=5), uploads=[table, str(table), made])
    assert "Files given: table.csv, table.csv, notes.txt." in tool.description
    assert told(tool, "open('table.csv', 'a').write('3,4'); open('notes.txt').read()").startswith("'made'")
    assert table.read_text() == "a,b\n1,2\n"


def test_an_upload_is_never_written_over_another_file(tmp_path):
    work, mine = tmp_path / "work", tmp_path / "t.csv"
    work.mkdir()
    mine.write_text("mine")
    (work / "t.csv").write_text("theirs")
    if os.name != "nt":
        (work / "t-2.csv").symlink_to(tmp_path / "planted")
        assert give(work, [mine, mine]) == ["t-3.csv", "t-3.csv"]
    assert (work / "t.csv").read_text() == "theirs" and not (tmp_path / "planted").exists()


def test_an_upload_that_cannot_be_read_is_refused(tmp_path):
    store = ArtifactStore(tmp_path / "store")
    made = store.add(b"made", "notes.txt")
    Path(made.path).write_bytes(b"else")
    for upload, reason in (
        (tmp_path / "none", "is not a file"),
        (tmp_path, "is not a file"),
        (made, "no longer what it was"),
    ):
        with pytest.raises(InputError, match=reason):
            give(tmp_path, [upload])


@linux
def test_it_says_what_it_may_do(tool):
    assert (tool.untrusted, tool.side_effects, tool.approval) == (True, False, "auto")


# ---- the user's way out ----------------------------------------------------------------------------------------------


@pytest.fixture
def unsafe(tmp_path):
    with pytest.warns(UserWarning, match="WITHOUT A SANDBOX"):
        made = code_interpreter(tmp_path, Limits(seconds=1, grace=0.3), unsafe=True)
    yield made
    del made
    gc.collect()


def test_without_the_sandbox_it_says_so_and_asks(unsafe):
    assert "UNSAFE" in unsafe.name_for_human and "no network" not in unsafe.description
    assert (unsafe.untrusted, unsafe.side_effects, unsafe.approval) == (True, True, "ask")


def test_without_the_sandbox_code_behaves_alike(unsafe, tmp_path):
    assert told(unsafe, "x = 6\nprint('six')\nx * 7") == "six\n42"
    assert "ZeroDivisionError" in told(unsafe, "1 / 0", ok=False)
    assert told(unsafe, "import sys; print('w', file=sys.stderr)") == "stderr:\nw"
    told(unsafe, PYPLOT)
    result = unsafe.invoke({"code": "plt.open.append(Figure()); open('f', 'w').close()"})
    assert result.content == "Figures: figure-1.png\nFiles: f"
    assert [artifact.name for artifact in result.artifacts] == ["figure-1.png", "f"]
    assert (tmp_path / "figure-1.png").exists()
    assert told(unsafe, "import subprocess as s; s.run([sys.executable, '-c', 'print(6*7)']).returncode").startswith(
        "42"
    )


def test_without_the_sandbox_time_and_output_are_bounded(unsafe):
    told(unsafe, "x = 42")
    assert "time limit of 1 s was reached. Variables are kept." in told(unsafe, "while True: pass", ok=False)
    assert told(unsafe, "x") == "42"
    assert "printed more than 8 MiB" in told(unsafe, "while True: print('x' * 10_000)", ok=False)
    assert told(unsafe, "print(x)").endswith("42")
    stubborn = "import time\nwhile True:\n  try: time.sleep(9)\n  except KeyboardInterrupt: pass"
    assert "did not react to the interrupt" in told(unsafe, stubborn, ok=False)
    assert told(unsafe, "6 * 7") == "The interpreter was restarted; variables are lost.\n42"


def test_without_the_sandbox_a_lost_interpreter_is_announced(unsafe):
    text = told(unsafe, "import os\nprint('last words', flush=True)\nos._exit(1)", ok=False)
    assert text.startswith("last words\nThe interpreter was stopped: it ended itself with exit status 1.")
    assert told(unsafe, "6 * 7").endswith("42")


def test_without_the_sandbox_a_cancelled_run_is_interrupted(tmp_path):
    session = UnsafeSession(tmp_path, Limits(seconds=20, grace=5))
    execution = session.run("while True: pass", cancelled=lambda: True)
    assert "The code was interrupted: the run was cancelled. Variables are kept." in execution.notes
    session.close()
    with pytest.raises(InputError, match="closed"):
        session.run("1")


def test_without_the_sandbox_keys_are_not_handed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sk-secret")
    session = UnsafeSession(tmp_path, Limits())
    assert session.run("import os; 'PATH' in os.environ, 'SOME_API_KEY' in os.environ").value == "(True, False)"
    session.close()


@pytest.mark.skipif(os.name == "nt", reason="needs the process groups of Unix")
def test_without_the_sandbox_what_it_started_ends_with_it(tmp_path):
    session = UnsafeSession(tmp_path, Limits())
    pid = int(session.run("import subprocess as s; s.Popen(['sleep', '60']).pid").value)
    session.close()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # until whoever adopts orphans has waited for it
            os.kill(pid, 0)
            time.sleep(0.05)


@linux
def test_without_the_sandbox_memory_and_files_are_bounded(tmp_path):
    session = UnsafeSession(tmp_path, Limits(memory=512 * MIB, file=MIB))
    assert "MemoryError" in session.run("bytearray(1 << 30)").error
    assert "OSError" in session.run("open('big', 'wb').write(bytes(3 << 20))").error
    assert session.run("6 * 7").value == "42"
    session.close()


@linux
def test_without_the_sandbox_start_and_stop_leak_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def cycle() -> tuple[int, int]:
        session = UnsafeSession(tmp_path, Limits())
        assert session.run("6 * 7").value == "42"
        session.close()
        return len(list(Path("/proc/self/fd").iterdir())), len(list(tmp_path.iterdir()))

    first = cycle()
    for _ in range(10):
        last = cycle()
    assert last == first
    for thread in threading.enumerate():
        if "_receive" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


def test_it_is_never_chosen_without_being_asked_for(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise SandboxUnavailable("not here")

    monkeypatch.setattr("qwen_agent.tools.code_interpreter.open_sandbox", refuse)
    monkeypatch.setenv("QWEN_AGENT_UNSAFE", "1")
    with pytest.raises(SandboxUnavailable):
        code_interpreter(tmp_path)


def test_the_unsafe_session_needs_nothing_that_only_unix_has():
    """As far as that can be seen here: what it imports does without the modules that Windows lacks."""
    lacking = "resource fcntl pwd grp termios"
    script = f"import sys\nfor m in '{lacking}'.split(): sys.modules[m] = None\nimport qwen_agent.tools.sandbox.unsafe"
    script += ", qwen_agent.tools.code_interpreter"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


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
    script = "from qwen_agent.tools.code_interpreter import code_interpreter as c\nt = c()\nprint(t('print(6*7)').text)"
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


@linux
def test_the_documentation_is_true():
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    page = Path(__file__).parents[2] / "docs" / "tools" / "code_interpreter.md"
    assert doctest.testfile(str(page), module_relative=False, optionflags=doctest.ELLIPSIS).failed == 0
