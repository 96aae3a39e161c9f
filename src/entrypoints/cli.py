"""The commands of `conversation-store`.

demo, migrate, doctor, import, export, show, list, browse, erase, purge.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypedDict, TypeVar, Unpack

import click

from ..bootstrap import ConversationStore
from ..domain.conversation import Status
from ..domain.errors import ConversationStoreError
from ..domain.page import ConversationPage
from ..domain.repository import OnDuplicate
from ..service_layer.conversations import get_conversation, list_conversations
from ..service_layer.removal import erase_user, purge_conversations
from .json_lines import RecordReader, counts, dump, load
from .removal import Remove, dump_receipt, gone, read_time, remove
from .show import new_console, print_conversation, print_list
from .terminal import (
    BAD_INPUT,
    INTERRUPTED,
    CommandError,
    Report,
    describe,
    exit_code_of,
    fail,
    prepare_process,
    run_async,
    without_secrets,
)

F = TypeVar("F", bound=Callable[..., Any])

PROGRAM = "conversation-store"


class _Wanted(TypedDict):
    """The options of `migrate` that `ConversationStore.migrate` has as well."""

    id_block: int
    row_security: bool
    application_role: str | None
    read_only_role: str | None
    maintenance_role: str | None


_ROLES: Final = ("application_role", "read_only_role", "maintenance_role")

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return its exit code. Errors are one line on standard error."""
    prepare_process()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        code = commands.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx else ""
        return fail(without_secrets(error.format_message(), given) + hint, BAD_INPUT)
    except CommandError as error:
        return fail(error.message, error.code)
    except click.ClickException as error:
        return fail(without_secrets(error.format_message(), given), BAD_INPUT)
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


def _named(dsn: str | None) -> str:
    """Return the connection string. Errors: click's, where there is none."""
    if dsn is None:
        reason = "which database? Name it by --dsn or by CONVERSATION_STORE_DSN"
        raise click.UsageError(reason, click.get_current_context())
    return dsn


@asynccontextmanager
async def _open_store(dsn: str | None, schema: str) -> AsyncGenerator[ConversationStore, None]:
    async with ConversationStore.connect(
        _named(dsn), schema=schema, min_size=1, max_size=2, timeout=10.0
    ) as store:
        yield store


@click.group(invoke_without_command=True)
@click.version_option(package_name=PROGRAM, prog_name=PROGRAM)
@click.pass_context
def commands(context: click.Context) -> None:
    """Conversations and messages, kept in order, whole and once, on PostgreSQL."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(BAD_INPUT)


@commands.command("demo", short_help="Show the store at work, on a server of its own.")
@click.argument("file", required=False, type=_FILE)
def demo_command(file: str | None) -> None:
    """Show the store at work, on a PostgreSQL server that is started for it and removed.

    Imports the dialogues of FILE first, where it is given.
    """
    from .demo import run_demo  # the only command that starts a server

    run_demo(file, new_console())


@commands.command("migrate", short_help="Bring the database to this version.")
@click.option("--print", "print_only", is_flag=True, help="Write the SQL to stdout; no server.")
@click.option(
    "--id-block",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    help="How many ids a process draws at a time; counts on the first migration.",
)
@click.option("--row-security", is_flag=True, help="Let PostgreSQL, too, keep users apart.")
@click.option("--application-role", help="Role to grant what the service functions need.")
@click.option("--read-only-role", help="Role to grant reading.")
@click.option("--maintenance-role", help="The same as the application's; it needs BYPASSRLS.")
@_store_options
def migrate_command(
    *, print_only: bool, dsn: str | None, schema: str, **wanted: Unpack[_Wanted]
) -> None:
    """Bring the database to what this version needs.

    Roles have to exist; each that is named has afterwards what it needs there, and no more.
    """

    async def migrate() -> list[str]:
        async with _open_store(dsn, schema) as store:
            return await store.migrate(**wanted)

    if print_only:
        _write_bytes(ConversationStore.migration_sql(schema=schema, **wanted).encode())
        return
    done = [f"applied {name}" for name in run_async(migrate())]
    done += [f"granted to {wanted[role]}" for role in _ROLES if wanted[role] is not None]
    click.echo("\n".join(done) or "nothing to do: up to date")


@commands.command("doctor", short_help="Look at a server, and say what to mend.")
@click.option(
    "--no-prepare", is_flag=True, help="The application connects with prepare_threshold=None."
)
@_store_options
def doctor_command(*, no_prepare: bool, dsn: str | None, schema: str) -> int:
    """Look at all that the store needs of a server, and say what to do about what is missing.

    As the role that connects, so name the application's. Nothing is written. Exits with 1 where
    something has to be mended; advice alone is no reason.
    """
    from ..adapters.postgres.examination import examine, has_problem
    from .doctor import print_findings

    found = run_async(examine(_named(dsn), schema, prepares=not no_prepare))
    print_findings(new_console(), found)
    return int(has_problem(found))


@commands.command("import", short_help="Import the conversations of a file.")
@click.argument("file", type=_FILE)
@click.option(
    "--on-duplicate",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="What to do with a session that its user has already.",
)
@_store_options
def import_command(file: str, on_duplicate: OnDuplicate, dsn: str | None, schema: str) -> None:
    """Import the conversations of FILE: .jsonl, .jsonl.gz, or - for standard input."""

    async def import_file() -> str:
        with RecordReader.open(file) as records, Report("imported", records.size) as report:
            async with _open_store(dsn, schema) as store:
                receipt = await load(store, records, on_duplicate, report)
            return f"imported {counts(receipt)} in {report.seconds:.1f} s"

    click.echo(run_async(import_file()))


@commands.command("export", short_help="Write conversations to standard output.")
@click.option("--user", "user_id", metavar="USER_ID", help="Only this user's conversations.")
@_store_options
def export_command(user_id: str | None, dsn: str | None, schema: str) -> None:
    """Write conversations to standard output as JSON Lines, by user and session."""

    async def export() -> str:
        with Report("exported", bar=not sys.stdout.isatty()) as report:
            async with _open_store(dsn, schema) as store:
                written = await dump(store, user_id, sys.stdout.buffer, report)
            return f"exported {counts(written)} in {report.seconds:.1f} s"

    click.echo(run_async(export()), err=True)


@commands.command("show", short_help="Print a conversation as a transcript.")
@click.argument("conversation_id", type=int)
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the newest N messages.")
@_store_options
def show_command(conversation_id: int, last: int | None, dsn: str | None, schema: str) -> None:
    """Print a conversation as a transcript; times are UTC."""

    async def show() -> None:
        async with _open_store(dsn, schema) as store:
            uow = store.unit_of_work()
            conversation = await get_conversation(uow, conversation_id=conversation_id)
            await print_conversation(new_console(), uow, conversation, last)

    run_async(show())


@commands.command("list", short_help="List a user's conversations.")
@click.argument("user_id")
@click.option("--status", type=click.Choice([status.value for status in Status]))
@click.option("--limit", type=int, default=20, show_default=True, help="At most so many, 1..1000.")
@_store_options
def list_command(
    user_id: str, status: str | None, limit: int, dsn: str | None, schema: str
) -> None:
    """List a user's conversations, the most recent activity first; times are UTC."""

    async def read() -> ConversationPage:
        async with _open_store(dsn, schema) as store:
            return await list_conversations(
                store.unit_of_work(), user_id=user_id, status=status, limit=limit
            )

    print_list(new_console(), run_async(read()))


@commands.command("browse", short_help="Read a user's conversations on the whole terminal.")
@click.argument("user_id")
@_store_options
def browse_command(user_id: str, dsn: str | None, schema: str) -> None:
    """Read a user's conversations on the whole terminal, and search in them.

    Needs the extra `browse`. Changes nothing.
    """
    try:
        from .browse import Browser
    except ModuleNotFoundError as error:
        hint = "pip install 'conversation-store[browse]'"
        raise CommandError(f"browse needs {error.name}: {hint}", BAD_INPUT) from error

    async def browse() -> None:
        async with _open_store(dsn, schema) as store:
            await list_conversations(store.unit_of_work(), user_id=user_id, limit=1)  # or tell why
            browser = Browser(store, user_id)
            await browser.run_async()
            if browser.error is not None:
                raise browser.error

    run_async(browse())


@commands.command("erase", short_help="Remove all that a user has, for good.")
@click.argument("user_id")
@_store_options
def erase_command(user_id: str, dsn: str | None, schema: str) -> None:
    """Remove all that USER_ID has, for good, and write the receipt to standard output.

    In batches, so that others can write meanwhile. Interrupted it is gone on with by calling it
    again. Keep the user out first.
    """
    _remove(
        "erased",
        dsn,
        schema,
        lambda store: lambda tell: erase_user(store.unit_of_work(), user_id=user_id, progress=tell),
    )


@commands.command("purge", short_help="Remove what has been inactive since a time, for good.")
@click.option(
    "--inactive-since",
    metavar="TIME",
    required=True,
    help="Only conversations last active before this time, like 2026-08-30T00:00:00Z.",
)
@click.option("--status", type=click.Choice([status.value for status in Status]))
@click.option("--source", metavar="SOURCE", help="Only conversations that came from there.")
@click.option("--user", "user_id", metavar="USER_ID", help="Only this user's conversations.")
@click.option("--dry-run", is_flag=True, help="Remove nothing; count what would go.")
@_store_options
def purge_command(
    *,
    inactive_since: str,
    status: str | None,
    source: str | None,
    user_id: str | None,
    dry_run: bool,
    dsn: str | None,
    schema: str,
) -> None:
    """Remove what has been inactive since a time, and write the receipt to standard output.

    In batches, so that others can write meanwhile. Interrupted it is gone on with by calling it
    again.
    """
    since = read_time(inactive_since)
    _remove(
        "would purge" if dry_run else "purged",
        dsn,
        schema,
        lambda store: (
            lambda tell: purge_conversations(
                store.unit_of_work(),
                inactive_since=since,
                status=status,
                source=source,
                user_id=user_id,
                dry_run=dry_run,
                progress=tell,
            )
        ),
    )


def _remove(
    verb: str, dsn: str | None, schema: str, removal: Callable[[ConversationStore], Remove]
) -> None:
    async def work() -> str:
        with Report(verb) as report:
            async with _open_store(dsn, schema) as store:
                receipt = await remove(removal(store), report)
            click.echo(f"{verb} {gone(receipt)} in {report.seconds:.1f} s", err=True)
        return dump_receipt(receipt)

    click.echo(run_async(work()))


def _write_bytes(content: bytes) -> None:
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()
