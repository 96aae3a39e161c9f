"""Conversations in files: one record a line, in UTF-8, packed by gzip or not."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Final, Self, cast

from ..bootstrap import ConversationStore
from ..domain.errors import ConversationStoreError, DuplicateSession, InvalidInput, InvalidRecord
from ..domain.receipt import ImportReceipt
from ..domain.record import ConversationRecord, dump_record
from ..domain.repository import OnDuplicate
from ..service_layer.transfer import export_conversations, import_conversations
from .show import as_escapes
from .terminal import CommandError, Report, counted, describe, exit_code_of

MAX_LINE_BYTES: Final = 1_000_000_000
"""Longest line; a record of the largest size has less, however much of it is escaped."""

_GZIP: Final = b"\x1f\x8b"


class RecordReader:
    """The records of a stream of JSON Lines, and the lines they stand in."""

    def __init__(self, raw: io.BufferedReader[Any], size: int | None) -> None:
        self.line = 0
        """The line that was read last, from 1."""
        self.size = size
        """How many bytes there are to read, where that is known."""
        self.users: Counter[str] | None = None
        """How many records each user has, so far; counted where it is given a counter."""
        self._raw = raw
        self._number = 0
        self._unstored: dict[int, tuple[int, object]] = {}
        """Number of a record: its line, and its user and session where it names them."""

    @classmethod
    @contextmanager
    def open(cls, path: str) -> Generator[Self, None, None]:
        """Open the file of that path, standard input for `-`."""
        if path == "-":
            buffered = io.BufferedReader(cast("Any", sys.stdin.buffer))
            try:
                yield cls(buffered, None)
            finally:
                buffered.detach()  # standard input is not ours to close
            return
        with Path(path).open("rb") as raw:
            yield cls(raw, os.fstat(raw.fileno()).st_size)

    def __iter__(self) -> Iterator[ConversationRecord]:
        """Give one record after the other; empty lines are passed over. Errors: InvalidRecord."""
        for raw_line in self._lines():
            self.line += 1
            line = raw_line.removeprefix(codecs.BOM_UTF8) if self.line == 1 else raw_line
            if line.strip():
                record = self._parsed(line)
                self._remember(record)
                yield record

    def _lines(self) -> Iterator[bytes]:
        lines: io.BufferedReader[Any] | gzip.GzipFile = self._raw
        if self._raw.peek(len(_GZIP))[: len(_GZIP)] == _GZIP:
            lines = gzip.GzipFile(fileobj=self._raw)
        try:
            while line := lines.readline(MAX_LINE_BYTES + 1):
                if len(line) > MAX_LINE_BYTES:
                    self.line += 1
                    reason = f"has more than {MAX_LINE_BYTES} bytes"
                    raise InvalidRecord(record=self._number + 1, field="record", reason=reason)
                yield line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            reason = f"the gzip file is damaged ({error})"
            raise InvalidRecord(record=self._number + 1, field="record", reason=reason) from error

    def _parsed(self, line: bytes) -> Any:
        offset = None
        try:
            return json.loads(line.decode())
        except UnicodeDecodeError as error:
            reason, offset = f"is not UTF-8 ({error.reason})", error.start
        except json.JSONDecodeError as error:
            reason, offset = f"is not JSON ({error.msg})", error.pos
        except RecursionError:
            reason = "is JSON that nests too deep"
        except ValueError:
            reason = "holds a number that is too long"
        raise InvalidRecord(record=self._number + 1, field="record", reason=reason, offset=offset)

    def _remember(self, record: Any) -> None:
        self._number += 1
        session = None
        with suppress(KeyError, TypeError):  # whatever it is, the store refuses it
            session = record["user_id"], record["session_id"]
            if self.users is not None:
                self.users[record["user_id"]] += 1
        self._unstored[self._number] = self.line, session

    def position(self) -> int | None:
        """Return how many bytes were read, where the total is known."""
        return None if self.size is None else self._raw.tell()

    def forget(self, stored: ImportReceipt) -> None:
        """Forget the records that were stored or skipped so far; what is read ahead stays."""
        done = stored.conversations + stored.skipped
        self._unstored = {n: place for n, place in self._unstored.items() if n > done}

    def place(self, error: ConversationStoreError) -> str:
        """Say what is wrong and in which line, for an error of an import of this stream."""
        if isinstance(error, InvalidRecord):
            line, _ = self._unstored.get(error.record, (self.line or 1, None))
            return f"line {line}: {InvalidInput.__str__(error)}"
        if isinstance(error, DuplicateSession):
            session = error.user_id, error.session_id
            lines = [line for line, named in self._unstored.values() if named == session]
            return (
                f"{f'line {lines[-1]}: ' if lines else ''}user {error.user_id!r} already has a "
                f"conversation for session {error.session_id!r} (--on-duplicate skip leaves "
                "such records out)"
            )
        return describe(error)


async def load(
    store: ConversationStore, records: RecordReader, on_duplicate: OnDuplicate, report: Report
) -> ImportReceipt:
    """Import all records. Errors: CommandError, saying what was stored before."""

    def tell(so_far: ImportReceipt) -> None:
        records.forget(so_far)
        report.tell(counts(so_far), records.position())

    try:
        return await import_conversations(
            store.unit_of_work(), records=records, on_duplicate=on_duplicate, progress=tell
        )
    except ConversationStoreError as error:
        stored = error.imported or ImportReceipt()
        before = "nothing was stored"
        if stored != ImportReceipt():
            before = f"stored before that: {counts(stored)}"
        raise CommandError(f"{records.place(error)}; {before}", exit_code_of(error)) from error


async def dump(
    store: ConversationStore, user_id: str | None, output: IO[bytes], report: Report
) -> ImportReceipt:
    """Write all conversations, or a user's, as JSON Lines; return how many.

    A terminal gets the same JSON, with escapes for what would command it.
    """
    escapes = as_escapes() if output.isatty() else {}
    written = ImportReceipt()
    async for record in export_conversations(store.unit_of_work(), user_id=user_id):
        output.write(dump_record(record).translate(escapes).encode() + b"\n")
        written += ImportReceipt(conversations=1, messages=len(record["messages"]))
        report.tell(counts(written))
    output.flush()
    return written


def counts(receipt: ImportReceipt) -> str:
    """Return what an import or export moved, in words."""
    conversations = counted(receipt.conversations, "conversation")
    text = f"{conversations}, {counted(receipt.messages, 'message')}"
    return f"{text}, {receipt.skipped:,} skipped" if receipt.skipped else text
