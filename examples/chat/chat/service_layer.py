"""What a user can do where the store's own service functions are not all there is to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from attrs import frozen

from conversation_store import (
    AsyncUnitOfWork,
    Conversation,
    ConversationNotAcceptingMessages,
    ConversationStore,
    Message,
    MessageDraft,
    RequestConflict,
    append_messages,
    find_conversation,
    get_or_start_conversation,
    latest_messages,
    messages_after,
    storable_text,
)

from .domain import Allowance, Charge, Hit, SessionNotFound, count_tokens, title_from, words
from .ports import ChargeRepository, MessageSearch, Model


@frozen(kw_only=True)
class Chat:
    """What the service works with; bootstrap.py puts it together."""

    store: ConversationStore
    charges: ChargeRepository
    search: MessageSearch
    model: Model
    most_tokens: int = 20_000


async def take_turn(
    uow: AsyncUnitOfWork, chat: Chat, *, session_id: str, text: str, request_id: str
) -> AsyncGenerator[str | list[Message]]:
    """Give the answer bit by bit as the model says it, and at last the messages as stored.

    While the model speaks, no connection is held. Question, answer and charge are stored together
    when it has ended; whoever stops listening before that leaves nothing behind. The same request
    again gives what is stored, and neither asks the model nor charges a second time.

    Raises, before the first bit: InvalidMessage, RequestConflict, AllowanceSpent,
    ConversationNotAcceptingMessages.
    """
    question = MessageDraft(role="user", content=text)
    history: list[Message] = []
    conversation = await find_conversation(uow, session_id=session_id)
    if conversation is not None:
        position = await chat.charges.position(uow, conversation.id, request_id)
        if position is not None:
            yield await _stored(uow, conversation.id, position, question, request_id)
            return
        if not conversation.accepts_messages:
            raise ConversationNotAcceptingMessages(
                conversation_id=conversation.id, status=conversation.status
            )
        history = await latest_messages(uow, conversation_id=conversation.id)
    (await allowance(uow, chat)).check()

    said: list[str] = []
    async for bit in chat.model.answer(history, text):
        said.append(bit)
        yield bit
    answer = MessageDraft(role="assistant", content=storable_text("".join(said)))
    try:
        turn = await _store(uow, chat, session_id, [question, answer], request_id)
    except RequestConflict as error:  # the same request was faster elsewhere: its answer counts
        turn = await _stored(uow, error.conversation_id, error.position, question, request_id)
    yield turn


async def _store(
    uow: AsyncUnitOfWork, chat: Chat, session_id: str, turn: list[MessageDraft], request_id: str
) -> list[Message]:
    """Store a turn and its charge in one transaction; the first turn starts the conversation."""
    metadata = {"title": title_from(turn[0].content)}
    async with uow:
        conversation, _ = await get_or_start_conversation(
            uow, session_id=session_id, metadata=metadata
        )
        messages = await append_messages(
            uow, conversation_id=conversation.id, drafts=turn, request_id=request_id
        )
        charge = Charge(
            conversation_id=conversation.id,
            request_id=request_id,
            position=messages[0].position,
            tokens=count_tokens(*(draft.content for draft in turn)),
        )
        await chat.charges.add(uow, charge)
    return messages


async def _stored(
    uow: AsyncUnitOfWork, conversation_id: int, position: int, question: MessageDraft, key: str
) -> list[Message]:
    """Read the turn of a request; raise RequestConflict if it asked something else."""
    turn = await messages_after(
        uow, conversation_id=conversation_id, position=position - 1, limit=2
    )
    if turn[0].content != question.content:
        raise RequestConflict(conversation_id=conversation_id, request_id=key, position=position)
    return turn


async def conversation_of(uow: AsyncUnitOfWork, *, session_id: str) -> Conversation:
    """Return a conversation of the user. Raises SessionNotFound."""
    conversation = await find_conversation(uow, session_id=session_id)
    if conversation is None:
        raise SessionNotFound("there is no such conversation")
    return conversation


async def allowance(uow: AsyncUnitOfWork, chat: Chat) -> Allowance:
    """Return what the user has spent and may spend."""
    return Allowance(spent=await chat.charges.spent(uow), most=chat.most_tokens)


async def search_messages(
    uow: AsyncUnitOfWork, chat: Chat, *, query: str, limit: int = 20
) -> list[Hit]:
    """Return the newest messages of the user that have all words of the query."""
    wanted = words(query)
    return await chat.search.find(uow, wanted, limit) if wanted else []
