"""A hand-written MCP server over stdio for the tests of the client: says what it is told to, also what it must not.

    python mcp_stub.py MODE

It speaks the handshake era (2025) and knows nothing of the SDK, so it is the same under both versions of that.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import threading
import time
from typing import Any

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
NOTHING: dict[str, Any] = {"type": "object"}
TOOLS = [
    {"name": "echo", "description": "Says it again.", "inputSchema": TEXT, "annotations": {"readOnlyHint": True}},
    {"name": "sleep", "inputSchema": {"type": "object", "properties": {"seconds": {"type": "number"}}}},
    {"name": "die", "inputSchema": NOTHING},
    {"name": "environment", "inputSchema": NOTHING},
    {"name": "picture", "inputSchema": NOTHING},
    {"name": "structured", "inputSchema": NOTHING},
    {"name": "fail", "inputSchema": NOTHING},
    {"name": "refuse", "inputSchema": NOTHING},
    {"name": "garbage", "inputSchema": NOTHING},
    {"name": "flood", "inputSchema": NOTHING},
    {"name": "process", "inputSchema": NOTHING},
    {"name": "cancelled calls", "title": "What was\ncancelled", "inputSchema": NOTHING},
    {"name": "remote", "inputSchema": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}}},
]
cancelled: list[Any] = []


def say(message: dict[str, Any]) -> None:
    # One write, since calls that sleep answer from threads of their own.
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def text(value: str, **more: Any) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}], **more}


def call(number: int, name: str, given: dict[str, Any]) -> None:
    if name == "die":
        print("about to die", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "refuse":
        say({"id": number, "error": {"code": -32000, "message": "not\nnow \x1b[31mplease\u202e"}})
        return
    if name == "sleep":
        time.sleep(given["seconds"])
    results = {
        "echo": lambda: text(given["text"]),
        "sleep": lambda: text("awake"),
        "environment": lambda: text(json.dumps(dict(os.environ))),
        "picture": lambda: {
            "content": [
                {"type": "image", "data": base64.b64encode(PIXEL).decode(), "mimeType": "image/png"},
                {"type": "resource_link", "uri": "file:///a.txt", "name": "a"},
            ]
        },
        "structured": lambda: {"content": [], "structuredContent": {"degrees": 21}},
        "fail": lambda: text("The disk is full.", isError=True),
        "garbage": lambda: {"content": "neither text nor picture"},
        "flood": lambda: text("x" * 2_000_000),
        "process": lambda: text(str(os.getpid())),
        "cancelled calls": lambda: text(json.dumps(cancelled)),
    }
    say({"id": number, "result": results[name]()})


def answer(mode: str, request: dict[str, Any]) -> None:
    number, method = request.get("id"), request["method"]
    params = request.get("params", {})
    if method == "initialize":
        about = {"name": "stub", "version": "1"}
        version = params["protocolVersion"]
        say({"id": number, "result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}})
    elif method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    elif method == "tools/list":
        if mode == "silent-list":
            return
        if mode == "endless":
            page = int(params.get("cursor", 0))
            more = {"nextCursor": str(page + 1)}
            say({"id": number, "result": {"tools": [{"name": f"tool{page}", "inputSchema": NOTHING}], **more}})
        elif mode == "pages":
            page = int(params.get("cursor", 0))
            more = {"nextCursor": str(page + 1)} if page < 2 else {}
            say({"id": number, "result": {"tools": TOOLS[page : page + 1], **more}})
        else:
            say({"id": number, "result": {"tools": TOOLS}})
    elif method == "tools/call":
        work = threading.Thread(target=call, args=(number, params["name"], params.get("arguments", {})), daemon=True)
        work.start()
    elif number is not None:
        say({"id": number, "error": {"code": -32601, "message": "Method not found"}})


def main(mode: str) -> None:
    if mode == "crash":
        sys.exit("ModuleNotFoundError: no module named 'weather'")
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "junk":
        print("Welcome to my server!\n\n{not json}", flush=True)
    for line in sys.stdin:
        if mode != "silent":
            answer(mode, json.loads(line))
    while mode == "stubborn":
        time.sleep(1)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
