"""What a conversation that many wrote to must look like, and how it is checked."""

from __future__ import annotations

from collections.abc import Sequence

from conversation_store import ConversationStore, Message, get_conversation, messages_after


async def whole_history(store: ConversationStore, conversation_id: int) -> list[Message]:
    """Read all messages of a conversation."""
    messages: list[Message] = []
    while True:
        page = await messages_after(
            store.unit_of_work(),
            conversation_id=conversation_id,
            position=len(messages),
            limit=1000,
        )
        messages += page
        if len(page) < 1000:
            return messages


async def check_history(
    store: ConversationStore,
    conversation_id: int,
    polls: Sequence[Sequence[int]],
    *,
    turns: int,
    size: int,
) -> None:
    """Check a conversation that was started empty and got `turns` turns of `size` messages.

    The content of a message is the name of its turn, a slash and its number in it, from 0. A poll
    is the ids that a reader saw, from the first message on.
    """
    messages = await whole_history(store, conversation_id)
    assert [message.position for message in messages] == list(range(1, turns * size + 1))
    names = set()
    for first in range(0, len(messages), size):
        said = [message.content.rsplit("/", 1) for message in messages[first : first + size]]
        assert [[said[0][0], str(part)] for part in range(size)] == said
        names.add(said[0][0])
    assert len(names) == turns
    times = [message.timestamp for message in messages]
    assert times == sorted(times)
    ids = [message.id for message in messages]
    assert len(set(ids)) == len(ids)
    assert polls
    for seen in polls:
        assert list(seen) == ids[: len(seen)]
        assert len(seen) % size == 0
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation_id)
    assert (found.message_count, found.version) == (turns * size, turns + 1)
    assert found.last_activity == times[-1]
