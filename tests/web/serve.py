"""The page with a runtime that answers by rules, on a port of its choice, until it is interrupted: python serve.py."""

from __future__ import annotations

import json
import socket

import uvicorn
from fastapi import FastAPI
from talker import Talker, make_tools

from qwen_agent.web.page import PageOptions, mount


def main() -> None:
    app = FastAPI()
    conversations = mount(app, Talker(delay=0.004), PageOptions(make_tools=make_tools))
    listening = socket.create_server(("127.0.0.1", 0))

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(json.dumps({"port": listening.getsockname()[1], "root": str(conversations.root)}), flush=True)

    Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)).run(sockets=[listening])


if __name__ == "__main__":
    main()
