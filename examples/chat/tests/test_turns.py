"""What becomes of a turn: stored whole with its charge, once, or not at all."""

from __future__ import annotations

import asyncio

import pytest
from attrs import evolve
from service_under_test import ScriptedModel

from chat.domain import AllowanceSpent
from chat.service_layer import Chat, allowance, conversation_of, take_turn
from conversation_store import (
    ConversationNotAcceptingMessages,
    Message,
    RequestConflict,
    close_conversation,
    delete_conversation,
    find_conversation,
    latest_messages,
    list_conversations,
)


async def take(
    chat: Chat, user: str, text: str, request_id: str, session_id: str = "s"
) -> list[Message]:
    """Take a turn to its end; return what is stored."""
    uow = chat.store.unit_of_work(user_id=user)
    turn = take_turn(uow, chat, session_id=session_id, text=text, request_id=request_id)
    items = [item async for item in turn]
    assert isinstance(items[-1], list)
    return items[-1]


async def stored(chat: Chat, user: str, session_id: str = "s") -> list[str]:
    """Return what is stored of a conversation; nothing where there is none."""
    uow = chat.store.unit_of_work(user_id=user)
    conversation = await find_conversation(uow, session_id=session_id)
    if conversation is None:
        return []
    messages = await latest_messages(uow, conversation_id=conversation.id, limit=1000)
    return [message.content for message in messages]


async def spent(chat: Chat, user: str) -> int:
    """Return what a user has spent."""
    return (await allowance(chat.store.unit_of_work(user_id=user), chat)).spent


async def test_an_answer_comes_bit_by_bit_and_is_stored_with_the_question_and_the_charge(
    chat: Chat, user: str
) -> None:
    """The last item is what is stored; the first turn starts and names the conversation."""
    uow = chat.store.unit_of_work(user_id=user)
    turn = take_turn(uow, chat, session_id="s", text="How are\n you?", request_id="r")

    *bits, messages = [item async for item in turn]

    assert bits == ["All", " is", " well."]
    assert isinstance(messages, list)
    assert [(said.position, said.content) for said in messages] == [
        (1, "How are\n you?"),
        (2, "All is well."),
    ]
    assert await stored(chat, user) == ["How are\n you?", "All is well."]
    assert await spent(chat, user) == 8
    assert (await conversation_of(uow, session_id="s")).metadata == {"title": "How are you?"}


async def test_the_model_is_told_what_was_said_before(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """A conversation is resumed with its history."""
    await take(chat, user, "One", "r1")
    await take(chat, user, "Two", "r2")

    assert model.asked == [([], "One"), (["One", "All is well."], "Two")]


async def test_the_same_request_again_is_answered_by_what_is_stored(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """A retry asks no model, stores nothing and costs nothing."""
    model.says = [["first"], ["second"]]
    first = await take(chat, user, "Hello", "r")
    await take(chat, user, "More", "r2")
    cost = await spent(chat, user)

    assert await take(chat, user, "Hello", "r") == first
    assert len(model.asked) == 2
    assert len(await stored(chat, user)) == 4
    assert await spent(chat, user) == cost


async def test_of_the_same_request_at_the_same_moment_one_answer_counts(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """A double click meets the model twice, is stored and charged once, and ends the same."""
    model.says = [["one"], ["another"]]
    model.may_go_on.clear()
    both = [asyncio.create_task(take(chat, user, "Hello", "r")) for _ in range(2)]
    while len(model.asked) < 2:
        await asyncio.sleep(0.01)
    model.may_go_on.set()

    first, second = await asyncio.gather(*both)

    assert first == second
    assert await stored(chat, user) == [message.content for message in first]
    once = await spent(chat, user)
    await take(chat, user, "Hello", "r")
    assert await spent(chat, user) == once


async def test_a_key_for_another_question_is_a_conflict(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """A key stands for one question; the model is not asked."""
    await take(chat, user, "Hello", "r")

    with pytest.raises(RequestConflict):
        await take(chat, user, "Something else", "r")
    assert len(model.asked) == 1


async def test_who_stops_listening_leaves_nothing(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """A turn that was not heard to its end is not stored and not charged, and may be sent again."""
    uow = chat.store.unit_of_work(user_id=user)
    turn = take_turn(uow, chat, session_id="s", text="Hello", request_id="r")

    assert await anext(turn) == "All"
    await turn.aclose()

    assert await stored(chat, user) == []
    assert await spent(chat, user) == 0
    assert len(await take(chat, user, "Hello", "r")) == 2


async def test_who_is_cancelled_while_the_model_speaks_leaves_nothing(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """That is what the web server does when the connection is gone."""
    model.may_go_on.clear()
    turn = asyncio.create_task(take(chat, user, "Hello", "r"))
    while not model.asked:
        await asyncio.sleep(0.01)
    turn.cancel()

    with pytest.raises(asyncio.CancelledError):
        await turn
    assert await stored(chat, user) == []
    assert await spent(chat, user) == 0


async def test_no_turn_is_stored_without_its_charge(
    chat: Chat, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the charge fails the turn is gone, too, and the conversation that it started."""

    async def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(chat.charges, "add", fail)
    with pytest.raises(MemoryError):
        await take(chat, user, "Hello", "r")

    uow = chat.store.unit_of_work(user_id=user)
    assert (await list_conversations(uow)).conversations == []


async def test_no_charge_is_stored_without_its_turn(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """Where the conversation was closed while the model spoke, nobody pays."""
    await take(chat, user, "Hello", "r1")
    before = await spent(chat, user)
    model.may_go_on.clear()
    turn = asyncio.create_task(take(chat, user, "And now?", "r2"))
    while len(model.asked) < 2:
        await asyncio.sleep(0.01)
    uow = chat.store.unit_of_work(user_id=user)
    conversation = await conversation_of(uow, session_id="s")
    await close_conversation(uow, conversation_id=conversation.id)
    model.may_go_on.set()

    with pytest.raises(ConversationNotAcceptingMessages):
        await turn
    assert await spent(chat, user) == before
    assert len(await stored(chat, user)) == 2

    with pytest.raises(ConversationNotAcceptingMessages):  # now it is known before
        await take(chat, user, "And now?", "r3")
    assert len(model.asked) == 2


async def test_who_has_spent_all_is_refused_before_the_model_is_asked(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """What is over is over, but a turn that is stored can still be read again."""
    poor = evolve(chat, most_tokens=1)
    turn = await take(poor, user, "Hello", "r1")

    with pytest.raises(AllowanceSpent):
        await take(poor, user, "More", "r2")
    assert await take(poor, user, "Hello", "r1") == turn
    assert len(model.asked) == 1


async def test_what_was_spent_stays_spent_when_a_conversation_is_deleted(
    chat: Chat, user: str
) -> None:
    """The charge outlives what was said; the session may begin anew, with the same key, too."""
    await take(chat, user, "Hello", "r")
    before = await spent(chat, user)
    uow = chat.store.unit_of_work(user_id=user)
    conversation = await conversation_of(uow, session_id="s")
    await delete_conversation(uow, conversation_id=conversation.id)

    assert await spent(chat, user) == before
    assert len(await take(chat, user, "Hello", "r")) == 2
    assert await spent(chat, user) == 2 * before


async def test_no_connection_is_held_while_models_speak(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """More turns wait for the model than the pool has connections, and all others go on."""
    model.may_go_on.clear()
    turns = [
        asyncio.create_task(take(chat, user, "Hello", "r", session_id=f"s-{n}")) for n in range(12)
    ]
    while len(model.asked) < 12:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        assert await stored(chat, user, "s-0") == []
    model.may_go_on.set()
    await asyncio.gather(*turns)

    uow = chat.store.unit_of_work(user_id=user)
    assert len((await list_conversations(uow)).conversations) == 12


async def test_what_postgres_cannot_store_of_an_answer_is_replaced(
    chat: Chat, user: str, model: ScriptedModel
) -> None:
    """A turn is not lost for one character that a model emits."""
    model.says = [["20\x00", " \ud800degrees"]]

    turn = await take(chat, user, "How warm?", "r")

    assert turn[1].content == "20\ufffd \ufffddegrees"
