"""The HTTP API: what is asked for, by whom, and how it is refused."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from attrs import evolve
from service_under_test import ScriptedModel, client_of

from chat.domain import AllowanceSpent, ModelUnavailable, SessionNotFound
from chat.entrypoints.http import told
from chat.service_layer import Chat
from conversation_store import (
    CommitOutcomeUnknown,
    ConversationNotFound,
    ConversationStoreError,
    MessageDraft,
    StoreClosed,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWorkMisuse,
    close_conversation,
    find_conversation,
    start_conversation,
)


async def say(
    client: httpx.AsyncClient, text: str, request_id: str = "r", session_id: str = "s"
) -> httpx.Response:
    """Take a turn."""
    turn = json.dumps({"text": text, "request_id": request_id})
    headers = {"Content-Type": "application/json"}
    return await client.post(f"/api/conversations/{session_id}", content=turn, headers=headers)


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Return the events of a stream."""
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    pairs = [block.split("\n", 1) for block in blocks]
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in pairs
    ]


async def test_a_turn_is_a_stream_of_events(client: httpx.AsyncClient) -> None:
    """Bits, then the turn as it is stored, which is then read as it was told."""
    response = await say(client, "Hello")

    assert response.status_code == 200
    *bits, (last, messages) = events(response)
    assert bits == [("bit", "All"), ("bit", " is"), ("bit", " well.")]
    assert last == "stored"
    assert messages == [
        {"position": 1, "role": "user", "content": "Hello"},
        {"position": 2, "role": "assistant", "content": "All is well."},
    ]
    read = (await client.get("/api/conversations/s")).json()
    assert read == {"title": "Hello", "open": True, "messages": messages}
    assert (await client.get("/api/allowance")).json() == {"spent": 6, "most": 20_000}


async def test_a_turn_sent_again_streams_what_is_stored(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    """It has no bits, for nothing is said again."""
    model.says = [["one"], ["another"]]
    [*_, first] = events(await say(client, "Hello"))

    assert events(await say(client, "Hello")) == [first]


async def test_what_breaks_off_is_told_at_the_end_of_the_stream(
    client: httpx.AsyncClient, model: ScriptedModel
) -> None:
    """The status was sent already; the event has it, and nothing is stored."""
    model.breaks = True

    [*bits, (last, body)] = events(await say(client, "Hello"))

    assert len(bits) == 3
    assert last == "error"
    expected = {"error": "ModelUnavailable", "detail": "the model is tired", "status": 503}
    assert body == expected
    assert (await client.get("/api/conversations/s")).status_code == 404


async def test_what_fails_before_the_first_word_has_a_status(
    chat: Chat, client: httpx.AsyncClient, user: str, model: ScriptedModel
) -> None:
    """A stream does not hide that it has nothing to say."""
    await say(client, "Hello")
    model.says, model.breaks = [[]], True

    assert (await say(client, "Else", "r2")).status_code == 503
    assert (await say(client, "Another text, the same key")).status_code == 409
    assert (await say(client, "NUL \0")).status_code == 422
    assert (await say(client, "")).status_code == 422
    half = await say(client, "secret half \ud83d")
    assert half.status_code == 422
    assert half.json()["detail"].startswith("text: ")
    assert "secret" not in half.text
    assert (await say(client, "no key", "")).status_code == 422
    assert (await say(client, "no key", "r\0")).status_code == 422
    assert (await say(client, "no such session", session_id="%00")).status_code == 422
    async with client_of(evolve(chat, most_tokens=0), user) as poor:
        assert (await say(poor, "More", "r2")).status_code == 429
    uow = chat.store.unit_of_work(user_id=user)
    conversation = await find_conversation(uow, session_id="s")
    assert conversation is not None
    await close_conversation(uow, conversation_id=conversation.id)
    refused = await say(client, "More", "r2")
    assert refused.status_code == 409
    assert refused.json()["error"] == "ConversationNotAcceptingMessages"


@pytest.mark.parametrize("name", ["birds/s-1", "/", "a/../b", "%2F", "?#", "über"])
async def test_a_conversation_has_any_name(client: httpx.AsyncClient, name: str) -> None:
    """Others that share the store name theirs as they like: each can be opened."""
    path = quote(name, safe="")
    await say(client, "Hello", session_id=path)

    listed = (await client.get("/api/conversations")).json()["conversations"]
    assert [each["session_id"] for each in listed] == [name]
    read = (await client.get(f"/api/conversations/{path}")).json()
    assert [message["position"] for message in read["messages"]] == [1, 2]
    assert (await client.delete(f"/api/conversations/{path}")).status_code == 204


async def test_conversations_are_listed_by_pages_the_newest_first(
    client: httpx.AsyncClient,
) -> None:
    """The cursor of a page gives the next; a damaged one is refused."""
    for n in range(3):
        await say(client, f"Question {n}", session_id=f"s-{n}")

    first = (await client.get("/api/conversations?limit=2")).json()
    params = {"limit": 2, "after": first["next"]}
    second = (await client.get("/api/conversations", params=params)).json()

    titles = [each["title"] for each in first["conversations"] + second["conversations"]]
    assert titles == ["Question 2", "Question 1", "Question 0"]
    assert second["next"] is None
    assert (await client.get("/api/conversations?after=nonsense")).status_code == 422
    assert (await client.get("/api/conversations?limit=0")).status_code == 422


async def test_messages_are_read_from_any_position(
    chat: Chat, client: httpx.AsyncClient, user: str
) -> None:
    """The newest, those before, those after."""
    drafts = [MessageDraft(role="user", content=str(n)) for n in range(1, 8)]
    await start_conversation(chat.store.unit_of_work(user_id=user), session_id="s", drafts=drafts)

    async def positions(query: str) -> list[int]:
        read = (await client.get(f"/api/conversations/s?limit=3&{query}")).json()
        return [message["position"] for message in read["messages"]]

    assert await positions("") == [5, 6, 7]
    assert await positions("before=5") == [2, 3, 4]
    assert await positions("after=2") == [3, 4, 5]
    assert await positions("after=7") == []


async def test_an_export_holds_the_conversations_of_the_user_line_by_line(
    chat: Chat, client: httpx.AsyncClient
) -> None:
    """It is a file to keep, and none is there for somebody who said nothing: that is empty."""
    await say(client, "Über <b>\n")

    async with client_of(chat, "somebody else") as other:
        assert (await other.get("/api/export")).text == ""
    response = await client.get("/api/export")

    assert response.headers["content-disposition"].endswith('filename="conversations.jsonl"')
    [record] = map(json.loads, response.text.splitlines())
    assert [said["content"] for said in record["messages"]] == ["Über <b>\n", "All is well."]


async def test_a_deleted_conversation_is_gone(client: httpx.AsyncClient) -> None:
    """It is not found any more."""
    await say(client, "Hello")

    assert (await client.delete("/api/conversations/s")).status_code == 204
    assert (await client.get("/api/conversations/s")).status_code == 404
    assert (await client.delete("/api/conversations/s")).status_code == 404


async def test_what_belongs_to_others_does_not_exist(
    chat: Chat, client: httpx.AsyncClient, user: str
) -> None:
    """Another user finds, reads and deletes nothing, and pays for nothing."""
    await say(client, "Hello")

    async with client_of(chat, f"not {user}") as other:
        assert (await other.get("/api/conversations")).json()["conversations"] == []
        assert (await other.get("/api/conversations/s")).status_code == 404
        assert (await other.delete("/api/conversations/s")).status_code == 404
        assert (await other.get("/api/search?q=hello")).json() == []
        assert (await other.get("/api/allowance")).json()["spent"] == 0
        await say(other, "The same key and session")
        assert len((await other.get("/api/conversations/s")).json()["messages"]) == 2
    assert len((await client.get("/api/conversations/s")).json()["messages"]) == 2
    assert [hit["position"] for hit in (await client.get("/api/search?q=hello")).json()] == [1]


async def test_nobody_is_nobody(chat: Chat) -> None:
    """Without a user there is no unit of work; the page and the health are for all."""
    async with client_of(chat, None) as client:
        refused = await client.get("/api/conversations")
        assert refused.status_code == 401
        assert refused.json()["error"] == "NobodyAsks"
        assert (await say(client, "Hello")).status_code == 401
        assert (await client.get("/health")).status_code == 200
        assert "<title>Chat</title>" in (await client.get("/")).text
    async with client_of(chat, "u" * 256) as client:
        assert (await client.get("/api/conversations")).status_code == 422


async def test_another_name_leads_nowhere(client: httpx.AsyncClient) -> None:
    """A page of another site, whose name was made to lead here, reads nothing."""
    await say(client, "Hello")
    for path in ("/", "/api/export", "/api/conversations/s"):
        answer = await client.get(path, headers={"Host": "elsewhere.example:8000"})
        assert (answer.status_code, "Hello" in answer.text) == (400, False)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConversationNotFound(conversation_id=1), 404),
        (SessionNotFound(), 404),
        (AllowanceSpent(), 429),
        (ModelUnavailable(), 503),
        (StoreUnavailable(reason="gone"), 503),
        (StoreClosed(reason="closed"), 503),
        (StoreTimeout(reason="slow"), 503),
        (TransactionAborted(reason="deadlock"), 503),
        (CommitOutcomeUnknown(reason="lost"), 503),
        (StoreMisconfigured(reason="no table"), 500),
        (UnitOfWorkMisuse(reason="no way"), 500),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int) -> None:
    """What a caller can do about it is in the status; of what only we can mend nothing is told."""
    assert told(error)["status"] == status
    assert (status == 500) == (told(error)["detail"] == "something is wrong here")
    if isinstance(error, ConversationStoreError) and error.retryable:
        assert status == 503
