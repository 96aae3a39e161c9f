"""What `erase` and `purge` do: remove, tell how far it is, and give the receipt."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime

from attrs import asdict

from ..domain.errors import ConversationStoreError, InvalidConversation
from ..domain.json_object import dump_json
from ..domain.receipt import ErasureReceipt
from .terminal import CommandError, Report, counted, describe, exit_code_of

Remove = Callable[[Callable[[ErasureReceipt], None]], Awaitable[ErasureReceipt]]
"""A removal, given whom to tell of each batch."""


async def remove(work: Remove, report: Report) -> ErasureReceipt:
    """Remove. Errors: CommandError, saying what was removed before."""
    try:
        return await work(lambda so_far: report.tell(gone(so_far)))
    except ConversationStoreError as error:
        before = "nothing" if error.erased is None else gone(error.erased)
        message = f"{describe(error)}; removed before that: {before}"
        raise CommandError(message, exit_code_of(error)) from error


def gone(receipt: ErasureReceipt) -> str:
    """Return what a removal removed, in words."""
    conversations = counted(receipt.conversations, "conversation")
    return f"{conversations}, {counted(receipt.messages, 'message')}"


def dump_receipt(receipt: ErasureReceipt) -> str:
    """Return a receipt as a line of JSON."""
    values = asdict(receipt)
    for name in ("started_at", "finished_at"):
        values[name] = values[name].isoformat(timespec="microseconds")
    return dump_json(values)


def read_time(text: str) -> datetime:
    """Return the time that a text says. Errors: InvalidConversation."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass  # it quotes the text
    reason = "must be a time like 2026-08-30T00:00:00Z"
    raise InvalidConversation(field="inactive_since", reason=reason)
