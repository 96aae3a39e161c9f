"""The search that the host brings is the same on PostgreSQL and in memory."""

from __future__ import annotations

from chat.service_layer import Chat, search_messages
from conversation_store import (
    MessageDraft,
    append_messages,
    delete_conversation,
    redact_message,
    start_conversation,
)

TEXTS = [
    "A corner table in Zürich, please!",
    "Le CAFÉ “Lumière”—c'est fermé…",
    "At 20:15, for 118.40 € (2 people)",
    "snake_case and kebab-case",
    "東京 タワー、何時?",
    "see https://example.org/a/b?c=d or mail a.b@example.org",
    "word" * 1000,
    "<b>bold</b> & 'quoted' \\ | ! :*",
    "",
]

QUERIES = {
    "zürich": [0],
    "ZÜRICH table": [0],
    "table zurich": [],
    "tabl": [],
    "café": [1],
    "lumière fermé": [1],
    "20": [2],
    "118.40": [2],
    "snake": [3],
    "case kebab": [3],
    "タワー": [4],
    "example": [5],
    "example.org": [5],
    "bold": [7],
    "b quoted": [7],
    "!": [],
    ":*": [],
    "  ": [],
    "a": [0, 5],
}


async def test_all_words_of_a_query_are_in_what_is_found(chat: Chat, user: str) -> None:
    """Words count whole, in any order and case; what stands between them does not."""
    uow = chat.store.unit_of_work(user_id=user)
    drafts = [MessageDraft(role="user", content=text) for text in TEXTS]
    await start_conversation(uow, session_id="s", drafts=drafts)

    found = {
        query: sorted(hit.position - 1 for hit in await search_messages(uow, chat, query=query))
        for query in QUERIES
    }

    assert found == QUERIES


async def test_the_newest_messages_are_found_first(chat: Chat, user: str) -> None:
    """And no more of them than were asked for."""
    uow = chat.store.unit_of_work(user_id=user)
    draft = MessageDraft(role="user", content="again")
    for session in ("a", "b"):
        await start_conversation(uow, session_id=session, drafts=[draft, draft])

    hits = await search_messages(uow, chat, query="again", limit=3)

    assert [(hit.session_id, hit.position) for hit in hits] == [("b", 2), ("b", 1), ("a", 2)]


async def test_an_excerpt_shows_what_was_sought(chat: Chat, user: str) -> None:
    """However far down it stands."""
    uow = chat.store.unit_of_work(user_id=user)
    draft = MessageDraft(role="user", content=f"{'far ' * 100}needle {'on ' * 100}")
    await start_conversation(uow, session_id="s", drafts=[draft])

    [hit] = await search_messages(uow, chat, query="NEEDLE")

    assert "needle" in hit.excerpt
    assert hit.excerpt.startswith("… ")
    assert hit.excerpt.endswith(" …")
    assert len(hit.excerpt) < 200


async def test_what_is_redacted_or_deleted_or_of_others_is_not_found(chat: Chat, user: str) -> None:
    """The index is on the table of the store, so it knows what the store knows."""
    uow = chat.store.unit_of_work(user_id=user)
    drafts = [MessageDraft(role="user", content=f"secret number {n}") for n in range(3)]
    _, messages = await start_conversation(uow, session_id="s", drafts=drafts)
    second, _ = await start_conversation(uow, session_id="t", drafts=drafts)
    other = chat.store.unit_of_work(user_id=f"not {user}")

    await redact_message(uow, message_id=messages[1].id)
    await delete_conversation(uow, conversation_id=second.id)

    assert await search_messages(other, chat, query="secret") == []
    found = await search_messages(uow, chat, query="secret")
    assert [(hit.session_id, hit.position) for hit in found] == [("s", 3), ("s", 1)]


async def test_the_index_refuses_no_message(chat: Chat, user: str) -> None:
    """The largest content is stored: of what is too long only the beginning can be found."""
    uow = chat.store.unit_of_work(user_id=user)
    text = "".join(f"w{n} " for n in range(1_000_000))
    draft = MessageDraft(role="user", content=text)
    chat_, _ = await start_conversation(uow, session_id="s", drafts=[draft])
    long_words = MessageDraft(role="user", content="\U00020000" * 2_000_000)
    await append_messages(uow, conversation_id=chat_.id, drafts=[long_words])

    assert len(await search_messages(uow, chat, query="w0 w9")) == 1
