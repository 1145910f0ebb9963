"""Hold a conversation with the embedded model on a real terminal, and draw what is then on the screen.

    PYTHONPATH=. python tests/terminal/picture.py docs/images/terminal.svg

Nothing is drawn but what the program wrote; the keys that are pressed are below.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import pyte.graphics
from conftest import PACKAGE, Terminal  # this folder is where the script is started from
from rich.console import Console
from rich.text import Text

KEYS = (
    "How tall is the Eiffel Tower multiplied by 3?",
    "Read the file @notes.txt: when is the meeting?",
    ":steps",
    ":confg temperature=0.3",
)
COLUMNS, LINES = 92, 44


def main(file: Path) -> None:
    pyte.graphics.TEXT[2] = "+blink"  # pyte does not know dim text, and nothing here blinks
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "notes.txt").write_text("The meeting is on Tuesday.\n")
        os.environ["XDG_STATE_HOME"] = folder
        command = [sys.executable, "-m", "qwen_agent", "chat", "--docs", str(PACKAGE / "examples" / "docs")]
        terminal = Terminal(command, {"COLORTERM": "truecolor"}, COLUMNS, LINES, Path(folder))
        for keys in KEYS:
            terminal.ask(keys, 600)
        draw(terminal, file)
        terminal.leave()


def draw(terminal: Terminal, file: Path) -> None:
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    for row in range(terminal.screen.cursor.y + 1):
        line = Text()
        for column in range(COLUMNS):
            cell = terminal.screen.buffer[row][column]
            style = " ".join(name for name, on in (("bold", cell.bold), ("italic", cell.italics), ("dim", cell.blink),
                                                   ("underline", cell.underscore)) if on)  # fmt: skip
            colour = {"brown": "yellow"}.get(cell.fg, cell.fg).replace("bright", "bright_")
            colour = f"#{colour}" if re.fullmatch(r"[0-9a-f]{6}", colour) else colour
            line.append(cell.data, f"{style} {colour}" if colour != "default" else style)
        line.rstrip()
        console.print(line)
    svg = console.export_svg(title="qwen-agent chat --docs examples/docs")
    file.write_text(re.sub(r"@font-face \{[^}]*\}\s*", "", svg), encoding="utf-8")  # they are loaded from elsewhere


if __name__ == "__main__":
    main(Path(sys.argv[1]))
