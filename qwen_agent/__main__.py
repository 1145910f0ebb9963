"""The `qwen-agent` command. Nothing heavy is imported before Ctrl-C is handled."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from qwen_agent.cli import main as run

        code = run()
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted.\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
