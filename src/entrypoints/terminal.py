"""What the commands share: the event loop, errors as one line and an exit code, progress."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Self, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..domain.errors import (
    Conflict,
    ConversationStoreError,
    InvalidInput,
    NotFound,
    RuleViolation,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
)

T = TypeVar("T")

BAD_INPUT: Final = 2
"""Exit code: what was asked for cannot be done as it was asked."""
UNREACHABLE: Final = 3
"""Exit code: the server cannot be reached, or does not answer in time."""
INTERRUPTED: Final = 130

_SECONDS_TO_CONNECT: Final = "10"
_SECONDS_BETWEEN_LINES: Final = 1.0
_LONGEST_ERROR: Final = 1200
_SECRET: Final = ("://", "password")
"""What shows that an argument belongs to a connection string."""
_NOT_MIGRATED: Final = {"42P01", "3F000", "42883", "42703"}


class CommandError(click.ClickException):
    """A command cannot go on, for this reason, with this exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.code = exit_code


def prepare_process() -> None:
    """Make the process a command line: quiet drivers, patience with limits, no failing output."""
    logging.getLogger("psycopg").addHandler(logging.NullHandler())
    os.environ.setdefault("PGCONNECT_TIMEOUT", _SECONDS_TO_CONNECT)  # else about two minutes
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale cannot write, is escaped
            stream.reconfigure(errors="backslashreplace")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in the kind of event loop that psycopg needs.

    Ctrl-C is a KeyboardInterrupt wherever the coroutine is: the runner's own way, to cancel it at
    its next await, would wait for as long as a read of standard input does.
    """
    # https://www.psycopg.org/psycopg3/docs/advanced/async.html: not the proactor of Windows
    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, _interrupt)  # which the runner then leaves alone
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work)
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


# Errors -----------------------------------------------------------------------------------------


def fail(message: str, exit_code: int) -> int:
    """Write one line to standard error; return the exit code."""
    line = "".join(c if c.isprintable() else " " for c in " ".join(message.split()))
    if len(line) > _LONGEST_ERROR:
        line = line[:_LONGEST_ERROR] + " ..."
    print(f"conversation-store: {line}", file=sys.stderr)
    return exit_code


def without_secrets(message: str, arguments: Sequence[str]) -> str:
    """Return a message about arguments without those that may be of a connection string.

    Where that is not quoted, the rest of a password is in the arguments that follow.
    """
    is_secret = False
    for argument in arguments:
        is_option = argument.startswith("-")
        is_secret = any(sign in argument for sign in _SECRET) or (is_secret and not is_option)
        if is_secret and argument:
            for shown in (argument, repr(argument)[1:-1]):
                message = re.sub(rf"(?<!\w){re.escape(shown)}(?!\w)", "...", message)
    return message


def exit_code_of(error: ConversationStoreError) -> int:
    """Return the exit code of an error of the store."""
    if isinstance(error, InvalidInput | NotFound | Conflict | RuleViolation | StoreMisconfigured):
        return BAD_INPUT
    return UNREACHABLE if isinstance(error, StoreUnavailable | StoreTimeout) else 1


def describe(error: ConversationStoreError) -> str:
    """Say what went wrong, in words for the command line."""
    if isinstance(error, StoreError) and error.sqlstate in _NOT_MIGRATED:
        return f"{error} (here: conversation-store migrate)"
    return str(error)


# Progress ---------------------------------------------------------------------------------------


class Report:
    """How far long work is: a bar where standard error is a terminal, plain lines elsewhere."""

    def __init__(self, verb: str, total: int | None = None, *, bar: bool = True) -> None:
        self._verb = verb
        self._begun = self._said = time.monotonic()
        console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        if bar and console.is_terminal:
            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(
                text, BarColumn(), TimeElapsedColumn(), console=console, transient=True
            )
            self._task = self._bar.add_task(verb, total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> float:
        """How long the work has taken so far."""
        return time.monotonic() - self._begun

    def tell(self, counts: str, done: int | None = None) -> None:
        """Tell how much was done: in words, and in the unit of the total."""
        text = f"{self._verb} {counts}"
        if self._bar is not None:
            self._bar.update(self._task, description=text, completed=done)
        elif time.monotonic() - self._said >= _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            print(f"{text} so far, {self.seconds:.0f} s", file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 message`, `2,000 messages`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
