"""The official MCP conformance suite against our server and our client, scenario by scenario.

    npm install --prefix DIR @modelcontextprotocol/conformance@0.2.0-alpha.12      Node 22 or newer
    python eval/mcp_conformance.py --suite DIR [--node NODE] [--json OUT]

Runs every scenario that a revision of the specification requires, or only reports, on that revision's wire. Scenarios,
and single checks ("scenario:check"), that do not apply to what we offer are listed with the reason in
mcp_conformance_baseline.json; they are not run, unless with --all. The exit code is 1 if one failed that applies.

The tools that the suite asks a server for are ordinary tools of ours, served by `qwen_agent.mcp_server.serve`. The
client is `qwen_agent.tools.mcp.mcp_tools`: it lists the tools and calls each of them, as an agent would.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_agent.errors import ToolError
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.base import Tool, ToolOutput, tool

REVISIONS = ("2025-11-25", "2026-07-28")
BASELINE = Path(__file__).with_name("mcp_conformance_baseline.json")
_BY_SDK_1 = ("2025-11-25",)  # the revisions that version 1 of the SDK speaks
_SECONDS = 60


@dataclass(frozen=True)
class Verdict:
    """What came of a scenario: "passed", "failed" or "not applicable"."""

    side: str
    scenario: str
    revision: str
    verdict: str
    passed: int = 0
    failed: int = 0
    why: str = ""


def main() -> int:
    args = _arguments()
    if args.serve:
        _serve(Path(args.serve))
        return 0
    if args.client:
        return _client(args.client)
    suite = [args.node, str(Path(args.suite) / "node_modules/@modelcontextprotocol/conformance/dist/index.js")]
    sdk = importlib.metadata.version("mcp")
    revisions = [each for each in REVISIONS if each in _BY_SDK_1 or not sdk.startswith("1.")]
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    print(f"mcp {sdk}, {_suite_version(args.suite)}, Python {sys.version.split()[0]}")
    verdicts = []
    with tempfile.TemporaryDirectory() as scratch, _server(Path(scratch)) as url:
        for revision in revisions:
            for side, scenario in _scenarios(suite, revision):
                why = _excused(baseline[side], scenario)
                if why and not args.all:
                    verdict = Verdict(side, scenario, revision, "not applicable", why=why)
                else:
                    checks = _run(suite, side, scenario, revision, url, Path(scratch))
                    verdict = _judge(side, scenario, revision, checks, baseline[side])
                verdicts.append(verdict)
                _show(verdict)
    _summary(verdicts)
    if args.json:
        args.json.write_text(json.dumps([asdict(verdict) for verdict in verdicts], indent=1), encoding="utf-8")
    return int(any(verdict.verdict == "failed" for verdict in verdicts))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", help="where npm installed the suite")
    parser.add_argument("--node", default="node", help="Node 22 or newer")
    parser.add_argument("--all", action="store_true", help="also run what does not apply")
    parser.add_argument("--json", type=Path, help="write the verdicts here")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.suite or args.serve or args.client):
        parser.error("--suite is needed")
    return args


def _suite_version(suite: str) -> str:
    about = json.loads((Path(suite) / "node_modules/@modelcontextprotocol/conformance/package.json").read_text())
    return f"{about['name']} {about['version']}"


def _scenarios(suite: list[str], revision: str) -> Iterator[tuple[str, str]]:
    """Server and client scenarios of a revision, required or not, in the order of the suite's list."""
    command = [*suite, "list", "--requirements", revision]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout
    side = ""
    for line in listed.splitlines():
        if heading := re.match(r"(Server|Client) scenarios", line):
            side = heading[1].lower()
        elif entry := re.match(r"\s+- (\S+)(?: \[(server|client)\])?$", line):
            yield entry[2] or side, entry[1]


def _excused(baseline: Mapping[str, str], scenario: str) -> str:
    """Why a scenario does not apply; an entry that ends in "*" stands for all that begin so."""
    for name, why in baseline.items():
        if scenario == name or (name.endswith("*") and scenario.startswith(name[:-1])):
            return why
    return ""


def _run(suite: list[str], side: str, scenario: str, revision: str, url: str, scratch: Path) -> list[dict[str, Any]]:
    """What the suite found, check by check."""
    results = scratch / f"{side}-{revision}-{scenario.replace('/', '-')}"
    ours = f"{shlex.quote(sys.executable)} {shlex.quote(__file__)} --client"
    target = ["--url", url] if side == "server" else ["--command", ours]
    command = [*suite, side, *target, "--scenario", scenario, "--spec-version", revision, "-o", str(results)]
    subprocess.run(command, capture_output=True, text=True, timeout=4 * _SECONDS, check=False)
    return [check for file in results.rglob("checks.json") for check in json.loads(file.read_text(encoding="utf-8"))]


def _judge(
    side: str, scenario: str, revision: str, checks: list[dict[str, Any]], baseline: Mapping[str, str]
) -> Verdict:
    judged = [check for check in checks if f"{scenario}:{check['id']}" not in baseline]
    wrong = [check for check in judged if check["status"] in ("FAILURE", "WARNING")]
    passed = sum(check["status"] == "SUCCESS" for check in judged)
    failed = sum(check["status"] == "FAILURE" for check in judged)
    left_out = [f"{len(checks) - len(judged)} checks do not apply"] if len(judged) < len(checks) else []
    why = [*left_out, *(f"{check['id']}: {check.get('errorMessage', '')}" for check in wrong)]
    return Verdict(
        side, scenario, revision, "passed" if passed and not failed else "failed", passed, failed, " | ".join(why)
    )


def _show(verdict: Verdict) -> None:
    counts = "" if verdict.verdict == "not applicable" else f"{verdict.passed}/{verdict.passed + verdict.failed}"
    print(f"{verdict.revision} {verdict.side:6} {verdict.verdict:14} {counts:>5} {verdict.scenario}", end="")
    print(f"  ({verdict.why})" if verdict.why else "", flush=True)


def _summary(verdicts: list[Verdict]) -> None:
    for kind in ("passed", "failed", "not applicable"):
        print(f"{kind}: {sum(verdict.verdict == kind for verdict in verdicts)}")


# ---- the server that the suite looks at


@contextlib.contextmanager
def _server(scratch: Path) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", str(scratch / "artifacts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _serve(folder: Path) -> None:
    from qwen_agent.mcp_server import serve

    serve(_tools(ArtifactStore(folder)), transport="http", port=0, ready=lambda url: print(url, flush=True))


def _tools(store: ArtifactStore) -> list[Tool]:
    """What the suite asks of a server, as tools of ours."""
    png = _png()
    silence = _wav()

    @tool
    def test_simple_text() -> str:
        return "This is a simple text response for testing."

    @tool
    def test_image_content() -> ToolOutput:
        return ToolOutput("A red pixel.", (store.add(png, "red.png", "image/png"),))

    @tool
    def test_audio_content() -> ToolOutput:
        return ToolOutput("Silence.", (store.add(silence, "silence.wav", "audio/wav"),))

    @tool
    def test_embedded_resource() -> ToolOutput:
        return ToolOutput("A file.", (store.add(b"This is an embedded resource.", "note.txt", "text/plain"),))

    @tool
    def test_multiple_content_types() -> ToolOutput:
        files = store.add(png, "red.png", "image/png"), store.add(b'{"a": 1}', "data.json", "application/json")
        return ToolOutput("Multiple content types test:", files)

    @tool
    def test_error_handling() -> str:
        raise ToolError("This tool intentionally returns an error for testing")

    @tool
    def test_tool_with_progress() -> str:
        time.sleep(4)
        return "done"

    @tool
    def test_logging_tool() -> str:
        return "nothing of this is logged to the client"

    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    }
    whole = Tool("json_schema_2020_12_tool", "Tool with JSON Schema 2020-12 features", schema, lambda **given: "ok")
    named = [each for each in locals().values() if isinstance(each, Tool) and each is not whole]
    return [*named, whole]


def _png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0\xff\0\0"))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def _wav() -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8)
    data = struct.pack("<4sI", b"data", 80) + b"\x80" * 80
    return struct.pack("<4sI4s", b"RIFF", 4 + len(form) + len(data), b"WAVE") + form + data


# ---- the client that the suite looks at


def _client(url: str) -> int:
    from qwen_agent.tools.mcp import mcp_tools

    wanted = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}").get("toolCalls")
    with mcp_tools(url, seconds=15) as server:
        tools = {each.name: each for each in server.tools}
        print("tools:", ", ".join(tools) or "none", *server.warnings, sep="\n")
        for call in wanted or [{"name": each.name, "arguments": _sample(each)} for each in server.tools]:
            # An argument that is null is one that was not given: our tools refuse null where the schema does.
            arguments = {name: value for name, value in call["arguments"].items() if value is not None}
            print(call["name"], tools[call["name"]].invoke(arguments) if call["name"] in tools else "is not offered")
    return 0


def _sample(each: Tool) -> dict[str, Any]:
    values: dict[str, Any] = {"string": "x", "number": 1.5, "integer": 2, "boolean": True, "array": [], "object": {}}
    required = each.parameters.get("required", ())
    properties = each.parameters.get("properties", {})
    return {name: values[properties[name].get("type", "string")] for name in required}


if __name__ == "__main__":
    sys.exit(main())
