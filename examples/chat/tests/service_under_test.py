"""A model that does as it is told, and clients of the HTTP API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from urllib.parse import quote

import httpx

from chat.domain import ModelUnavailable
from chat.entrypoints.http import create_app
from chat.ports import Model
from chat.service_layer import Chat
from conversation_store import Message


class ScriptedModel(Model):
    """Says what it is told to, when it may."""

    def __init__(self) -> None:
        self.says = [["All", " is", " well."]]
        """Answers, one after the other; the last one for ever."""
        self.asked: list[tuple[list[str], str]] = []
        """What it was asked: the contents before, and the question."""
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.breaks = False

    async def answer(self, history: Sequence[Message], question: str) -> AsyncIterator[str]:
        """Say the next answer."""
        self.asked.append(([message.content for message in history], question))
        bits = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        for bit in bits:
            yield bit
            await self.may_go_on.wait()
        if self.breaks:
            raise ModelUnavailable("the model is tired")


@asynccontextmanager
async def client_of(chat: Chat, user: str | None) -> AsyncGenerator[httpx.AsyncClient]:
    """Give a client of the HTTP API, for any user or for nobody."""
    app = create_app(nullcontext(chat))
    cookies = None if user is None else {"user": quote(user)}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=transport, base_url="http://localhost", cookies=cookies
        ) as client,
    ):
        yield client
