"""Serve the chat: on the server that CONVERSATION_STORE_DSN names, or on one of its own."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import uvicorn

from conversation_store.adapters.postgres.embedded import EmbeddedPostgres

from .bootstrap import serving
from .entrypoints.http import create_app

DIALOGUES = Path(__file__).parents[2] / "dialogues.jsonl"


def main() -> None:
    """Serve until Ctrl-C; a server of our own ends with us, whatever ends us."""
    port = int(os.environ.get("PORT") or 0)  # 0: a free one
    with ExitStack() as stack:
        try:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError as error:
            sys.exit(f"port {port}: {error.strerror}")
        dsn = os.environ.get("CONVERSATION_STORE_DSN")
        if not dsn:
            dsn = stack.enter_context(EmbeddedPostgres()).dsn
        app = create_app(serving(dsn, dialogues=DIALOGUES))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        print(f"http://127.0.0.1:{listening.getsockname()[1]}  (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
