"""`qwen-agent chat` on a real terminal, driven by keys and seen through an emulator. The model is scripted."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CALL = 'I should use the calculator API.\nAction: calculator\nAction Input: {"expression": "12*12"}\nObservation:'
ANSWER = " I now know the final answer.\nFinal Answer: It is **144**."
POEM = "I now know the final answer.\nFinal Answer: " + "".join(f"Line {n} of the poem.\n\n" for n in range(1, 41))
Asked = Callable[[], list[dict[str, Any]]]


def test_a_step_is_folded_to_a_line_and_shown_in_full_on_demand(chat: Any) -> None:
    terminal = chat(CALL, ANSWER)
    seen = terminal.ask("What is 12*12?")
    assert '✓ I should use the calculator API. calculator(expression="12*12") → 144' in seen
    assert "It is 144." in seen  # Markdown: the stars are gone
    assert "Action Input:" not in seen
    assert "1 tool call" in seen
    terminal.send("\x0f")  # Ctrl-O
    terminal.until('Action Input: {"expression": "12*12"}')
    assert terminal.until(terminal.prompt_shown).count("Observation: 144") == 1
    assert terminal.ask(":steps").count("Observation: 144") == 2
    assert terminal.leave() == 0


def test_what_has_scrolled_away_was_printed_once(chat: Any) -> None:
    terminal = chat(POEM, delay=0.0005, lines=12)
    seen = terminal.ask("A long poem, please.")
    for line in range(1, 41):
        assert seen.count(f"Line {line} of the poem.") == 1
    assert "Ctrl-C stops" not in seen  # nothing of the region that is drawn again is left behind


def test_a_block_higher_than_the_screen_is_printed_once(chat: Any) -> None:
    code = "```python\n" + "".join(f"print({n})\n" for n in range(100, 160)) + "```\n\nThat is all."
    terminal = chat(f"I now know the final answer.\nFinal Answer: Code:\n\n{code}", delay=0.0005, lines=12)
    seen = terminal.ask("Code, please.")
    assert [seen.count(f"print({n})") for n in range(100, 160)] == [1] * 60
    assert "```" not in seen


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(chat: Any, asked: Asked) -> None:
    terminal = chat("I now know.\nFinal Answer: Four.", POEM, "I now know.\nFinal Answer: Six.", delay=0.005)
    terminal.ask("Two and two?")
    terminal.send("A long poem, please.\r")
    terminal.until("Line 2 of")
    terminal.send("\x03")
    seen = terminal.until("Stopped; this question is forgotten.")
    assert "Line 1 of the poem." in seen
    terminal.until(terminal.prompt_shown)
    assert "Six." in terminal.ask("And four and two?")
    prompt = asked()[-1]["prompt"]
    assert "Two and two?" in prompt
    assert "poem" not in prompt
    assert terminal.leave() == 0


def test_keys_typed_while_an_answer_is_written_do_not_show_and_are_not_lost(chat: Any, asked: Asked) -> None:
    terminal = chat(POEM, "I now know.\nFinal Answer: Yes.", delay=0.001)
    terminal.send("First?\r")
    terminal.until("Line 2 of")
    terminal.send("Second?")
    terminal.until("User> Second?")
    terminal.send("\r")
    terminal.until("Yes.")
    assert terminal.everything.count("Second?") == 1
    assert "Second?" in asked()[-1]["prompt"]


def test_ctrl_c_at_the_prompt_clears_the_line(chat: Any) -> None:
    terminal = chat(ANSWER)
    terminal.send("never mind")
    terminal.until("never mind")
    terminal.send("\x03")
    terminal.until(terminal.prompt_shown)
    os.kill(terminal.child.pid, signal.SIGINT)  # from elsewhere
    time.sleep(0.2)
    terminal.until(terminal.prompt_shown)
    assert terminal.leave() == 0


def test_lines_and_pastes_stay_whole(chat: Any, asked: Asked) -> None:
    terminal = chat(ANSWER)
    terminal.send("first\x1b\rsecond")
    terminal.until("... second")
    terminal.send("\x1b[200~\nthird\n:exit\x1b[201~")
    terminal.until("... :exit")
    terminal.send("\r")
    terminal.until("It is 144.")
    assert "first\nsecond\nthird\n:exit" in asked()[0]["prompt"]


def test_the_history_is_searched_also_in_the_next_session(chat: Any, state: Path) -> None:
    terminal = chat(ANSWER)
    terminal.ask("What about the zebra?")
    terminal.ask("Something else?")
    assert terminal.leave() == 0
    again = chat(ANSWER)
    again.send("\x1b[A")  # up
    again.until("User> Something else?")
    again.send("\x03")
    again.until(again.prompt_shown)
    again.send("\x12zebra")
    again.until("What about the zebra?")
    again.send("\r")
    again.until("User> What about the zebra?")
    again.send("\r")
    again.until("It is 144.")
    assert stat.S_IMODE((state / "history").stat().st_mode) == 0o600


def test_settings_take_effect_and_bad_ones_change_nothing(chat: Any, asked: Asked) -> None:
    terminal = chat(ANSWER)
    terminal.ask("Before?")
    terminal.ask(":conf temperature=0.7 seed=5")
    terminal.ask(":conf temperature=0.9 top_p=2")
    assert "top_p=2.0 cannot be used" in terminal.everything
    terminal.ask("After?")
    terminal.ask(":reset-conf")
    terminal.ask("Reset?")
    assert [each["temperature"] for each in asked()] == [0.0, 0.7, 0.0]
    assert asked()[1]["seed"] == 5
    assert asked()[0]["seed"] == asked()[2]["seed"]


def test_an_unknown_command_is_no_question(chat: Any, tmp_path: Path) -> None:
    terminal = chat(ANSWER)
    assert "There is no command :histroy; did you mean :history?" in terminal.ask(":histroy")
    assert not (tmp_path / "script.json.log").exists()


def test_commands_and_files_are_completed(chat: Any, tmp_path: Path) -> None:
    (tmp_path / "measurements.txt").write_text("1 2 3\n")
    terminal = chat(ANSWER)
    terminal.send(":att\t")
    terminal.until("User> :attach")
    terminal.send(" meas\t")
    terminal.until("User> :attach measurements.txt")
    terminal.send("\r")
    terminal.until("read_file can open it")
    terminal.until(terminal.prompt_shown)
    terminal.send("See @meas\t")
    terminal.until("See @measurements.txt")


def test_a_conversation_is_resumed(chat: Any, asked: Asked, state: Path) -> None:
    terminal = chat(CALL, ANSWER, options=("--session", "sums"))
    terminal.ask("What is 12*12?")
    assert terminal.leave() == 0
    file = state / "conversations" / "sums.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    again = chat("I now know.\nFinal Answer: Half is 72.", options=("--resume",))
    assert "sums: 1 question so far" in again.everything
    seen = again.ask(":history")
    assert "User> What is 12*12?" in seen
    assert "It is 144." in seen
    again.ask("And half of it?")
    assert "What is 12*12?" in asked()[-1]["prompt"]
    assert "Observation: 144" in asked()[-1]["prompt"]
    assert again.leave() == 0
    assert [turn["question"] for turn in json.loads(file.read_text())["turns"]] == ["What is 12*12?", "And half of it?"]


@pytest.mark.parametrize(("answer", "seen"), [("y", "→ 144"), ("n", "✗"), ("\x03", "Stopped")])
def test_a_person_is_asked_while_an_answer_is_written(chat: Any, answer: str, seen: str) -> None:
    terminal = chat(CALL, ANSWER, options=("--ask", "calculator"))
    terminal.send("What is 12*12?\r")
    terminal.until("Allow it?")
    assert "expression: 12*12" in terminal.everything
    terminal.send(answer + "\r" * (answer != "\x03"))
    terminal.until(seen)
    terminal.until(terminal.prompt_shown)
    assert terminal.leave() == 0


def test_always_holds_for_the_session_and_the_tool(chat: Any) -> None:
    terminal = chat(CALL, ANSWER, CALL, ANSWER, options=("--ask", "calculator"))
    terminal.send("What is 12*12?\r")
    terminal.until("Allow it?")
    terminal.send("a\r")
    terminal.until("It is 144.")
    assert terminal.ask("Once more?").count("Allow it?") == 1


def test_a_key_pressed_before_the_question_is_no_answer_to_it(chat: Any) -> None:
    terminal = chat(CALL, ANSWER, delay=0.01, options=("--ask", "calculator"))
    terminal.send("What is 12*12?\r")
    terminal.until("Ctrl-C stops")
    terminal.send("y\r")
    terminal.until("Allow it?")
    time.sleep(0.3)
    terminal.read()
    assert "144" not in terminal.everything
    terminal.send("n\r")
    terminal.until("✗")


def test_what_the_model_writes_cannot_touch_the_terminal(chat: Any) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x9b31m <b>bold</b> [link](http://other.example) [bold]x[/bold]"
    terminal = chat(f"I now know.\x1b[2J\nFinal Answer: {evil}")
    seen = terminal.ask("Do your worst.")
    for plain in ("red", "<b>bold</b>", "link (http://other.example)", "[bold]x[/bold]"):
        assert plain in seen
    assert b"owned" not in terminal.raw
    assert b"\x1b[2J" not in terminal.raw
    assert "\x9b".encode() not in terminal.raw
    assert b"\x1b]8;" not in terminal.raw


def test_wide_letters_and_a_narrow_screen(chat: Any) -> None:
    call = CALL.replace("I should use the calculator API.", "我应该使用计算器。" * 9)
    terminal = chat(call, " 知道了。\nFinal Answer: " + "一百四十四。" * 12, columns=40)
    seen = terminal.ask("十二乘十二？")
    assert "User> 十二乘十二？" in seen
    assert '✓ calculator(expression="12*12") → 144' in seen
    assert seen.replace("\n", "").replace(" ", "").count("一百四十四。") == 12
    wide = chat(call, ANSWER, columns=80)
    folded = next(line for line in wide.ask("Why?").splitlines() if line.startswith("✓"))
    assert "…" in folded
    assert folded.endswith("→ 144")


def test_no_color_is_honoured(chat: Any) -> None:
    terminal = chat(CALL, ANSWER, NO_COLOR="1")
    terminal.ask("What is 12*12?")
    colours = {
        int(code)
        for part in terminal.raw.split(b"\x1b[")[1:]
        if b"m" in part[:12]
        for code in part.partition(b"m")[0].split(b";")
        if code.isdigit()
    }
    assert not colours & {*range(30, 38), *range(40, 48), *range(90, 98), 38, 48}


def test_a_dumb_terminal_gets_plain_text(chat: Any) -> None:
    terminal = chat(CALL, ANSWER, TERM="dumb")
    seen = terminal.ask("What is 12*12?")
    assert "Final Answer: It is **144**." in seen
    assert b"\x1b[" not in terminal.raw.replace(b"\x1b[?2004h", b"").replace(b"\x1b[?2004l", b"")


def test_the_embedded_model_on_a_terminal(on_terminal: Any) -> None:
    terminal = on_terminal([sys.executable, "-m", "qwen_agent", "chat"])
    terminal.until(terminal.prompt_shown, 120)
    seen = terminal.ask("What is 12 * 12?", 120)
    assert "✓ I should use the calculator API. calculator(" in seen
    assert "→ 144" in seen
    assert terminal.leave() == 0
