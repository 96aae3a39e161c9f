"""The commands: `conversation-store demo | migrate | import | export | show | list`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from ..bootstrap import ConversationStore
from ..domain.conversation import Status
from ..domain.errors import ConversationStoreError, StoreUnavailable
from ..domain.repository import OnDuplicate
from ..service_layer.conversations import get_conversation, list_conversations
from .json_lines import RecordReader, counts, dump, load
from .show import conversation_table, new_console, print_conversation
from .terminal import (
    BAD_INPUT,
    INTERRUPTED,
    UNREACHABLE,
    CommandError,
    Report,
    describe,
    exit_code_of,
    fail,
    may_tell_password,
    prepare_process,
    run_async,
)

F = TypeVar("F", bound=Callable[..., Any])

PROGRAM = "conversation-store"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code. Errors are one line on standard error."""
    prepare_process()
    try:
        code = commands.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return fail(error.format_message() + hint, BAD_INPUT)
    except click.ClickException as error:
        return fail(error.format_message(), error.exit_code)
    except click.Abort:
        return fail("interrupted", INTERRUPTED)
    except ConversationStoreError as error:
        return fail(describe(error), exit_code_of(error))
    except UnicodeError:
        return fail("an argument is not readable as text: is it UTF-8?", BAD_INPUT)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}", BAD_INPUT)
    return code if isinstance(code, int) else 0


def _store_options(command: F) -> F:
    schema = click.option(
        "--schema",
        default="operational",
        show_default=True,
        envvar="CONVERSATION_STORE_SCHEMA",
        show_envvar=True,
        help="Schema of the store's tables.",
    )
    dsn = click.option(
        "--dsn",
        envvar="CONVERSATION_STORE_DSN",
        show_envvar=True,
        help="Connection string or URL of the database; '' takes libpq's defaults.",
    )
    return dsn(schema(command))


def _new_store(dsn: str | None, schema: str) -> ConversationStore:
    if dsn is None:
        raise click.UsageError(
            "which database? Name it by --dsn or by CONVERSATION_STORE_DSN",
            click.get_current_context(),
        )
    return _DiscreetStore.connect(dsn, schema=schema, min_size=1, max_size=2, timeout=10.0)


class _DiscreetStore(ConversationStore):
    """A store that does not tell its password."""
