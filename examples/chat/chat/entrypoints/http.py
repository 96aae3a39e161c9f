"""HTTP: a request becomes a call, what is given becomes JSON, what is raised becomes a status."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import unquote

from attrs import asdict
from fastapi import APIRouter, Cookie, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    Conflict,
    ConversationStoreError,
    InvalidInput,
    Message,
    NotFound,
    RuleViolation,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    delete_conversation,
    dump_record,
    export_conversations,
    latest_messages,
    list_conversations,
    messages_after,
)

from ..domain import AllowanceSpent, ChatError, ModelUnavailable, SessionNotFound, title_of
from ..service_layer import Chat, allowance, conversation_of, search_messages, take_turn

PAGE: Final = Path(__file__).parent / "page"
THIS_MACHINE: Final = ("127.0.0.1", "localhost")
api: Final = APIRouter()
T = TypeVar("T")

# Errors -------------------------------------------------------------------------------------------


class NobodyAsks(ChatError):
    """The request does not say who asks."""


STATUS: Final[dict[type[Exception], int]] = {
    NobodyAsks: 401,
    NotFound: 404,
    SessionNotFound: 404,
    Conflict: 409,
    RuleViolation: 409,
    InvalidInput: 422,
    RequestValidationError: 422,
    AllowanceSpent: 429,
    ModelUnavailable: 503,
    StoreUnavailable: 503,
    StoreTimeout: 503,
    TransactionAborted: 503,
    CommitOutcomeUnknown: 503,  # with the same request_id it may be tried again
}


def told(error: Exception) -> dict[str, Any]:
    """Return what is told of an error, its status within; nothing quotes what was said."""
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 500)
    detail = str(error)
    if status == 500:  # nothing that the caller could mend
        logging.getLogger("chat").error("a request failed", exc_info=error)
        detail = "something is wrong here"
    if isinstance(error, RequestValidationError):
        detail = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return {"error": type(error).__name__, "detail": detail, "status": status}


async def answer_error(_request: Request, error: Exception) -> JSONResponse:
    """Answer an error that came before the answer began."""
    body = told(error)
    return JSONResponse(body, body["status"])


# Who asks -----------------------------------------------------------------------------------------


def get_chat(request: Request) -> Chat:
    """Return what bootstrap.py put together."""
    chat: Chat = request.app.state.chat
    return chat


Wired = Annotated[Chat, Depends(get_chat)]


def unit_of_work(chat: Wired, user: Annotated[str, Cookie()] = "") -> AsyncUnitOfWork:
    """Return a unit of work that acts for the user who asks, and for nobody else.

    NOT AUTHENTICATION: it believes a cookie. Put yours in its place.
    """
    if not user:
        raise NobodyAsks("the cookie `user` has to say who you are")
    return chat.store.unit_of_work(user_id=unquote(user))


Unit = Annotated[AsyncUnitOfWork, Depends(unit_of_work)]
Limit = Annotated[int, Query(ge=1, le=100)]

# Streams ------------------------------------------------------------------------------------------


async def begun(stream: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """Return a stream whose first item is there: what fails before it still gets a status."""
    first = await anext(stream, None)

    async def whole() -> AsyncGenerator[T]:
        async with aclosing(stream):
            if first is not None:
                yield first
            async for item in stream:
                yield item

    return whole()


def event(name: str, data: object) -> str:
    """Write a server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


async def events(turn: AsyncGenerator[str | list[Message]]) -> AsyncGenerator[str]:
    """Write a turn as events: `bit` by `bit`, then `stored`; or `error`, and nothing is stored."""
    try:
        async for item in turn:
            yield event("bit", item) if isinstance(item, str) else event("stored", shown(item))
    except (ConversationStoreError, ChatError) as error:
        yield event("error", told(error))


async def lines(uow: AsyncUnitOfWork) -> AsyncGenerator[str]:
    """Write the conversations of a user as JSON Lines."""
    async with aclosing(export_conversations(uow)) as records:
        async for record in records:
            yield f"{dump_record(record)}\n"


# What can be asked --------------------------------------------------------------------------------


class NewTurn(BaseModel):
    """What the user says, and the key that the client gave it."""

    text: str = Field(min_length=1, max_length=20_000)
    request_id: str = Field(pattern=r"^[^\x00]+$", max_length=255)  # SQL of ours takes no NUL


def shown(messages: list[Message]) -> list[dict[str, Any]]:
    """Return what the page shows of messages."""
    return [{"position": m.position, "role": m.role, "content": m.content} for m in messages]


@api.get("/health")
async def health(chat: Wired) -> None:
    await chat.store.ping()


@api.get("/api/allowance")
async def read_allowance(uow: Unit, chat: Wired) -> dict[str, int]:
    return asdict(await allowance(uow, chat))


@api.get("/api/conversations")
async def list_page(uow: Unit, limit: Limit = 20, after: str | None = None) -> dict[str, Any]:
    page = await list_conversations(uow, limit=limit, after=after)
    listed = [
        {"session_id": c.session_id, "title": title_of(c), "last_activity": c.last_activity}
        for c in page.conversations
    ]
    return {"conversations": listed, "next": page.next_cursor}


@api.get("/api/conversations/{session_id:path}")
async def read(
    uow: Unit, session_id: str, limit: Limit = 50, before: int | None = None, after: int = 0
) -> dict[str, Any]:
    """Read the newest messages, or those before a position, or those after one."""
    conversation = await conversation_of(uow, session_id=session_id)
    which = {"conversation_id": conversation.id, "limit": limit}
    if after:
        messages = await messages_after(uow, position=after, **which)
    else:
        messages = await latest_messages(uow, before=before, **which)
    described = {"title": title_of(conversation), "open": conversation.accepts_messages}
    return described | {"messages": shown(messages)}


@api.post("/api/conversations/{session_id:path}")
async def say(uow: Unit, chat: Wired, session_id: str, turn: NewTurn) -> StreamingResponse:
    bits = take_turn(uow, chat, session_id=session_id, text=turn.text, request_id=turn.request_id)
    return StreamingResponse(
        events(await begun(bits)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@api.delete("/api/conversations/{session_id:path}", status_code=204)
async def delete(uow: Unit, session_id: str) -> None:
    conversation = await conversation_of(uow, session_id=session_id)
    await delete_conversation(uow, conversation_id=conversation.id)


@api.get("/api/search")
async def search(uow: Unit, chat: Wired, q: str, limit: Limit = 20) -> list[dict[str, Any]]:
    return [asdict(hit) for hit in await search_messages(uow, chat, query=q, limit=limit)]


@api.get("/api/export")
async def export(uow: Unit) -> StreamingResponse:
    headers = {"Content-Disposition": 'attachment; filename="conversations.jsonl"'}
    stream = await begun(lines(uow))
    return StreamingResponse(stream, media_type="application/jsonl", headers=headers)


def create_app(
    opening: AbstractAsyncContextManager[Chat], *, hosts: Sequence[str] = THIS_MACHINE
) -> FastAPI:
    """Return the application; what `opening` gives is there as long as it runs.

    It answers at the names of `hosts` alone: else any page that somebody opens could have its own
    name lead here, and read what is stored.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with opening as app.state.chat:
            yield

    # FastAPI's own pages load scripts from elsewhere.
    app = FastAPI(title="Chat", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    for kind in (ConversationStoreError, ChatError, RequestValidationError):
        app.add_exception_handler(kind, answer_error)
    app.include_router(api)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app
