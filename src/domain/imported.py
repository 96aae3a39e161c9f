"""What an import stores: records that were found acceptable, in the form that is quickest to send.

Most records of most streams are plain: dicts, lists and texts of the built-in types, with known
fields and nothing odd in them. `read_plain` reads such a record column by column, without making
an object of each message. It never judges: whatever it does not take is for `check_record` to look
at closely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, TypeAlias, cast

from attrs import field, frozen

from .conversation import Status
from .errors import DuplicateSession
from .json_object import dump_plain
from .message import Role
from .text import MAX_NAME_LENGTH, is_storable

Session: TypeAlias = tuple[str, str]
"""The user_id and session_id of a conversation."""

MAX_PLAIN_CHARACTERS: Final = 1_000_000
"""A record with more content, or with more in its JSON objects, than this is looked at closely."""
MAX_PLAIN_MESSAGES: Final = 20_000
"""So is one with more messages."""


@frozen(kw_only=True)
class ImportedMessages:
    """The messages of a record, oldest first, as columns of equal length."""

    roles: Sequence[str]
    """Who spoke."""
    contents: Sequence[str] = field(repr=False)
    """The words."""
    intent_types: Sequence[str | None] = field(repr=False)
    """The intents."""
    slots: Sequence[str | None] = field(repr=False)
    """JSON texts."""
    metadata: Sequence[str | None] = field(repr=False)
    """JSON texts."""
    timestamps: Sequence[datetime]
    """One a message, or none at all: then all messages take last_activity."""

    def __len__(self) -> int:
        return len(self.contents)

    @property
    def size(self) -> int:
        """How many characters they say, as text."""
        texts = filter(None, chain(self.contents, self.slots, self.metadata))
        return sum(map(len, texts))


@frozen(kw_only=True)
class ImportedConversation:
    """A record that was read and found acceptable."""

    user_id: str
    """Whose conversation it is."""
    session_id: str
    """The host's own name for it."""
    rescue_id: str | None
    """Reference to a case in the host's world."""
    intent_type: str | None = field(repr=False)
    """The intent that it is about."""
    source: str | None
    """Where it came from."""
    metadata: str | None = field(repr=False)
    """A JSON text."""
    status: Status
    """Where it stands in its life."""
    start_time: datetime | None
    """The record's, or else its first timestamp; None: the store's clock."""
    last_activity: datetime | None
    """The record's, or else its last timestamp; None: the store's clock."""
    messages: ImportedMessages
    """What was said."""

    @property
    def size(self) -> int:
        """How many characters it holds, as text."""
        return self.messages.size + len(self.metadata or "")

    @property
    def session(self) -> tuple[str, str]:
        """Whose conversation it is, and the host's name for it."""
        return self.user_id, self.session_id


def pick_new(
    batch: Sequence[ImportedConversation], is_there: Callable[[Session], bool], *, refuses: bool
) -> list[ImportedConversation]:
    """Return the first record of each session that does not exist.

    Errors: DuplicateSession for the first of the others, where such are refused.
    """
    new: list[ImportedConversation] = []
    seen: set[Session] = set()
    for imported in batch:
        session = imported.session
        if session not in seen and not is_there(session):
            seen.add(session)
            new.append(imported)
        elif refuses:
            raise DuplicateSession(user_id=imported.user_id, session_id=imported.session_id)
    return new


_ROLES: Final[frozenset[object]] = frozenset(role.value for role in Role)
_STATUSES: Final[Mapping[object, Status]] = {status.value: status for status in Status}


def read_plain(
    record: object, conversation_fields: frozenset[str], message_fields: frozenset[str]
) -> ImportedConversation | None:
    """Read a record that is acceptable beyond doubt; return None where a closer look is needed."""
    if type(record) is not dict:
        return None
    values = cast("dict[str, Any]", record)
    try:
        if not conversation_fields.issuperset(values):
            return None
        messages = _plain_messages(values["messages"], message_fields)
        start_time = _plain_time(values.get("start_time"))
        last_activity = _plain_time(values.get("last_activity"))
        [metadata] = _plain_jsons([values], "metadata", {"metadata"})
        status = _STATUSES[values.get("status", Status.ACTIVE.value)]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        return None
    names = [values.get(name) for name in ("user_id", "session_id")]
    references = [values.get(name) for name in ("rescue_id", "intent_type", "source")]
    if not all(map(_is_plain_name, names)) or not all(
        reference is None or _is_plain_name(reference) for reference in references
    ):
        return None
    timestamps = messages.timestamps
    times = [time for time in (start_time, *timestamps, last_activity) if time is not None]
    if times != sorted(times):
        return None
    return ImportedConversation(
        user_id=values["user_id"],
        session_id=values["session_id"],
        rescue_id=values.get("rescue_id"),
        intent_type=values.get("intent_type"),
        source=values.get("source"),
        metadata=metadata,
        status=status,
        start_time=start_time or (timestamps[0] if timestamps else None),
        last_activity=last_activity or (timestamps[-1] if timestamps else None),
        messages=messages,
    )


def _plain_messages(value: object, known: frozenset[str]) -> ImportedMessages:
    """Return the columns of plain messages; raise one of the errors above where they are not."""
    if type(value) is not list:
        raise TypeError
    messages = cast("list[dict[str, Any]]", value)
    if not messages:
        return _NO_MESSAGES
    if len(messages) > MAX_PLAIN_MESSAGES:
        raise ValueError
    _check_types(messages, dict)
    if max(map(len, messages)) > len(known):
        raise ValueError
    fields = set(chain.from_iterable(messages))
    roles = [message["role"] for message in messages]
    contents = [message["content"] for message in messages]
    intent_types = [message.get("intent_type") for message in messages]
    _check_types(roles, str)
    _check_types(contents, str)
    together = "".join(contents) if sum(map(len, contents)) <= MAX_PLAIN_CHARACTERS else "\0"
    if (
        not (known.issuperset(fields) and _ROLES.issuperset(roles) and is_storable(together))
        or not all(map(_is_plain_name, {*intent_types} - {None}))
        or ("position" in fields and not _are_counted(messages))
    ):
        raise ValueError
    timestamps: list[datetime] = []
    if "timestamp" in fields:
        given = [message.get("timestamp") for message in messages]
        if given.count(None) != len(given):
            timestamps = _plain_times(given)
    return ImportedMessages(
        roles=roles,
        contents=contents,
        intent_types=intent_types,
        slots=_plain_jsons(messages, "slots", fields),
        metadata=_plain_jsons(messages, "metadata", fields),
        timestamps=timestamps,
    )


_NO_MESSAGES: Final = ImportedMessages(
    roles=(), contents=(), intent_types=(), slots=(), metadata=(), timestamps=()
)


def _check_types(values: Iterable[object], kind: type) -> None:
    if set(map(type, values)) != {kind}:
        raise TypeError


def _is_plain_name(value: object) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_NAME_LENGTH and is_storable(value)


def _are_counted(messages: Sequence[Mapping[str, Any]]) -> bool:
    positions = [message["position"] for message in messages]
    _check_types(positions, int)
    return positions == list(range(1, len(messages) + 1))


def _plain_jsons(
    messages: Sequence[Mapping[str, Any]], name: str, fields: set[str]
) -> Sequence[str | None]:
    if name not in fields:
        return [None] * len(messages)
    texts: list[str | None] = []
    left = MAX_PLAIN_CHARACTERS
    for message in messages:
        value = message.get(name)
        text = None if value is None else dump_plain(value)
        if text is not None:
            left -= len(text)
        if left < 0 or (text is None and value is not None):
            raise ValueError
        texts.append(text)
    return texts


def _plain_time(value: Any) -> datetime | None:
    return None if value is None else _plain_times([value])[0]


def _plain_times(values: list[Any]) -> list[datetime]:
    """Return times that say that they are in UTC."""
    _check_types(values, str)
    times = list(map(datetime.fromisoformat, values))
    if any(time.tzinfo is not UTC for time in times):
        raise ValueError
    return times
