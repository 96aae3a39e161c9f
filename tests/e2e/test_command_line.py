"""The command line, as a person uses it: in processes of its own, and inside ours."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from psycopg import sql
from store_fixtures import APPLICATION, MAINTENANCE, READER, as_role, create_roles

from conversation_store import StoreTimeout, TransactionAborted
from conversation_store.__main__ import main
from conversation_store.entrypoints.browse import Browser
from conversation_store.entrypoints.cli import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "dialogues.jsonl"

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def schema(request: pytest.FixtureRequest, dsn: str) -> Iterator[str]:
    """Give a schema name of the test's own, dropped afterwards."""
    name = f"cli {request.node.name}"[:63]
    yield name
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def clean_environment(**more: str) -> dict[str, str]:
    """Return our environment without what would change how a command behaves."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("CONVERSATION_", "PG"))}
    return ours | {"COLUMNS": "100"} | more


def command(
    *arguments: str, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command line in a process of its own, warnings being errors."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "conversation_store", *arguments],
        input=stdin,
        env=clean_environment(**environment),
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def store_command(dsn: str, schema: str) -> Run:
    """Give a way to run command lines on the server, in the schema of the test."""

    def run_it(*arguments: str, stdin: bytes = b"", **more: str) -> Any:
        names = {"CONVERSATION_STORE_DSN": dsn, "CONVERSATION_STORE_SCHEMA": schema}
        return command(*arguments, stdin=stdin, **(names | more))

    return run_it


@pytest.fixture
def here(
    dsn: str, schema: str, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any
) -> Callable[..., tuple[int, str, str]]:
    """Give a way to run command lines inside this process: exit code, output, errors."""
    for name, value in clean_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CONVERSATION_STORE_DSN", dsn)
    monkeypatch.setenv("CONVERSATION_STORE_SCHEMA", schema)
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")

    def run_it(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        sys.stdout.flush()
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return run_it


@pytest.fixture
def migrated_here(here: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """Give `here`, after `migrate`."""
    code, _, err = here("migrate")
    assert code == 0, err
    return here


def record(number: int, **more: Any) -> dict[str, Any]:
    """Return a small record."""
    messages = [{"role": "user", "content": f"hello {number}"}]
    return {"user_id": "u", "session_id": f"s-{number}", "messages": messages} | more


def write(path: Path, *lines: Any) -> str:
    """Write lines, as JSON where they are no texts; return the path."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts), "utf-8")
    return str(path)


def only_id(here: Any, user_id: str = "u") -> str:
    """Return the id of the only conversation of a user."""
    _, out, _ = here("list", user_id)
    found = [
        line.split()[0]
        for line in out.splitlines()
        if line.split()[:1] and line.split()[0].isdigit()
    ]
    assert len(found) == 1, out
    return str(found[0])


def one_line(text: bytes | str) -> str:
    """Return an error output after checking that it is one line of ours."""
    line = text.decode() if isinstance(text, bytes) else text
    assert line.startswith("conversation-store: ")
    assert line.count("\n") == 1
    assert line.endswith("\n")
    return line


# As processes -----------------------------------------------------------------------------------


def test_a_first_session_in_processes(store_command: Run) -> None:
    """Migrate, import, list, show and export work one after the other, each as a process."""
    assert store_command("migrate").stdout.startswith(b"applied 0001_")
    assert store_command("migrate").stdout == b"nothing to do: up to date\n"
    imported = store_command("import", str(EXAMPLES))
    assert imported.stdout.startswith(b"imported 7 conversations, 40 messages in ")
    listed = store_command("list", "okonkwo.adaeze").stdout.decode()
    (row,) = [line for line in listed.splitlines() if "app-311" in line]
    assert row.split()[2:5] == ["closed", "report_fault", "9"]
    shown = store_command("show", row.split()[0])
    assert shown.returncode == 0
    assert "Mill Lane. Not yet, but it rises." in shown.stdout.decode()
    exported = store_command("export")
    assert exported.stdout.count(b"\n") == 7
    assert exported.stderr.startswith(b"exported 7 conversations, 40 messages in ")


def test_export_and_import_give_the_same_bytes(store_command: Run, dsn: str, schema: str) -> None:
    """What is exported and imported into an empty store is exported again byte for byte."""
    store_command("migrate")
    store_command("import", str(EXAMPLES))
    first = store_command("export").stdout
    with psycopg.connect(dsn, autocommit=True) as connection:
        table = sql.Identifier(schema, "ai_conversations")
        connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(table))
    again = store_command("import", "-", stdin=first)
    assert again.returncode == 0, again.stderr
    assert store_command("export").stdout == first
    assert store_command("import", "-", stdin=gzip.compress(first)).returncode == 2


def test_an_unreachable_server_is_exit_code_3() -> None:
    """A port on which nothing listens is one error line within seconds, and exit code 3."""
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    began = time.monotonic()
    result = command("list", "u", "--dsn", f"postgresql://me:s3cret@127.0.0.1:{port}/db")
    assert result.returncode == 3
    assert time.monotonic() - began < 10
    line = one_line(result.stderr)
    assert "cannot be reached" in line
    assert "s3cret" not in line
    assert result.stdout == b""


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:s3c@ret-word@127.0.0.1:1/db",
        "postgresql://me:s3c/ret-word@127.0.0.1:1/db",
        "postgresql://me:ret-word@127.0.0.1:1/db?connect_timeout=ret-word",
        "host=127.0.0.1 port=1 password=ret-word no_such_option=1",
        "host=127.0.0.1 password='ret-word",
    ],
)
def test_a_password_is_never_told(dsn: str) -> None:
    """However a connection string is mistyped, no part of its password is in the error."""
    result = command("export", "--dsn", dsn)
    assert result.returncode in (2, 3)
    assert "ret-word" not in one_line(result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "u", "--dsn", "host=h", "password=s3c", "ret-word"],
        ["list", "u", "--dsn", "host=h", "password='s3c\\", "ret-word"],
        ["migrate", "postgresql://me:ret-word@h/db"],
        ["postgresql://me:ret-word@h/db"],
        ["import", "postgresql://me:ret-word@h/db"],
        ["show", "password=ret-word"],
        ["list", "u", "--status", "password='ret-word'"],
    ],
)
def test_a_connection_string_in_a_wrong_place_is_not_told(here: Any, arguments: list[str]) -> None:
    """What is not quoted, or no option, is called wrong without being called."""
    code, out, err = here(*arguments)
    assert (code, out) == (2, "")
    line = one_line(err)
    assert "ret-word" not in line
    assert "..." in line
    assert "--help" in line


def test_no_database_named_is_exit_code_2() -> None:
    """Without --dsn and its variable the error says how to name a database."""
    result = command("export")
    assert result.returncode == 2
    assert "CONVERSATION_STORE_DSN" in one_line(result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["show"],
        ["show", "x"],
        ["show", "--dsn", "postgresql://h/db", ""],
        ["list", "u", "--status", "open"],
        ["frobnicate"],
        ["export", "--x"],
        ["import", "no-such-file.jsonl"],
        ["migrate", "--id-block", "0"],
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str]) -> None:
    """What cannot be parsed is one line that points to the help, and exit code 2."""
    result = command(*arguments)
    assert result.returncode == 2
    line = one_line(result.stderr)
    assert "--help" in line
    assert "..." not in line


def test_no_command_shows_the_help() -> None:
    """Without a command the help goes to standard error, with exit code 2."""
    result = command()
    assert result.returncode == 2
    assert b"Usage: conversation-store" in result.stderr
    assert result.stdout == b""


def test_version() -> None:
    """--version says name and version."""
    result = command("--version")
    assert result.stdout == b"conversation-store, version 0.1.0\n"
    assert result.returncode == 0


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_it_says_what_to_install(missing: str) -> None:
    """Where click or rich is not installed, one line says how to get them; exit code 2."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from conversation_store.__main__ import main; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 2
    assert "pip install 'conversation-store[cli]'" in one_line(result.stderr)


def test_a_terminal_that_knows_ascii_only(store_command: Run) -> None:
    """In a locale without UTF-8 nothing crashes; what cannot be shown is escaped."""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    store_command("migrate")
    store_command("import", str(EXAMPLES), **ascii_only)
    listed = store_command("list", "renée-lefèvre", PYTHONUTF8="1")
    (first,) = [line for line in listed.stdout.decode().splitlines() if "web-2041" in line]
    shown = store_command("show", first.split()[0], **ascii_only)
    assert shown.returncode == 0, shown.stderr
    assert rb"Caf\xe9 Lumi\xe8re has a corner table" in shown.stdout
    assert shown.stdout.isascii()
    exported = store_command("export", "--user", "u", **ascii_only)
    assert exported.returncode == 0
    assert "Café Lumière".encode() in store_command("export", **ascii_only).stdout


def test_a_reader_that_goes_away_is_no_error(
    store_command: Run, dsn: str, schema: str, tmp_path: Path
) -> None:
    """When the reader of an export closes its end, the export ends without a word."""
    store_command("migrate")
    talk = [{"role": "user", "content": "x" * 100_000}]
    lines = [record(n, messages=talk) for n in range(60)]
    store_command("import", write(tmp_path / "large.jsonl", *lines))
    names = {"CONVERSATION_STORE_DSN": dsn, "CONVERSATION_STORE_SCHEMA": schema}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "conversation_store", "export"],
        env=clean_environment(**names),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as export:
        assert export.stdout is not None
        assert export.stderr is not None
        export.stdout.read(10)
        export.stdout.close()
        assert export.stderr.read() == b""
        assert export.wait(30) == 1


# In this process --------------------------------------------------------------------------------


def test_migrate_print_needs_no_server(here: Any, dsn: str, schema: str) -> None:
    """The printed SQL, run in one transaction, leaves nothing to migrate."""
    code, out, err = here("migrate", "--print", "--id-block", "77", "--dsn", "host=nowhere.invalid")
    assert (code, err) == (0, "")
    assert "77" in out
    with psycopg.connect(dsn) as connection:
        connection.execute(out.encode())
    assert here("migrate")[1] == "nothing to do: up to date\n"


def test_migrate_switches_on_row_security_and_grants(here: Any, dsn: str, schema: str) -> None:
    """What was done is said; printed and run it is the same; a role that is not there is named."""
    create_roles(dsn)
    options = ["--application-role", APPLICATION, "--read-only-role", READER]
    options += ["--maintenance-role", MAINTENANCE, "--row-security"]
    granted = [f"granted to {role}" for role in (APPLICATION, READER, MAINTENANCE)]
    code, printed, err = here("migrate", "--print", *options)
    assert (code, err) == (0, "")
    with psycopg.connect(dsn) as connection:
        connection.execute(printed.encode())
        connection.execute(printed[printed.index("REVOKE") :].encode())  # what roles need, again
    assert here("migrate", *options)[1].splitlines() == granted
    with psycopg.connect(dsn) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    code, out, err = here("migrate", *options)
    assert (code, err) == (0, "")
    assert out.splitlines()[-4:] == ["applied row_security", *granted]
    code, out, err = here("migrate", "--application-role", "nobody we know")
    assert (code, out) == (2, "")
    assert "application_role" in one_line(err)
    assert "nobody we know" in err


@pytest.mark.parametrize("name", ["talks.jsonl.gz", "talks.jsonl"])
def test_import_reads_packed_and_plain(migrated_here: Any, tmp_path: Path, name: str) -> None:
    """A file is recognised as gzip by what is in it, whatever it is called."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(EXAMPLES.read_bytes()))
    code, out, err = migrated_here("import", str(path))
    assert (code, err) == (0, "")
    assert out.startswith("imported 7 conversations, 40 messages in ")


def test_import_of_nothing(migrated_here: Any, tmp_path: Path) -> None:
    """An empty file is imported without an error."""
    code, out, _ = migrated_here("import", write(tmp_path / "empty.jsonl"))
    assert code == 0
    assert out.startswith("imported 0 conversations, 0 messages in ")


def test_import_takes_a_byte_order_mark_and_empty_lines(migrated_here: Any, tmp_path: Path) -> None:
    """What Windows editors leave in a file is no hindrance."""
    path = tmp_path / "windows.jsonl"
    text = f"\ufeff{json.dumps(record(1))}\r\n\r\n{json.dumps(record(2))}\r\n\r\n"
    path.write_bytes(text.encode())
    code, out, _ = migrated_here("import", str(path))
    assert code == 0
    assert "2 conversations" in out


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"user_id": "u", ', "is not JSON"),
        (b"[" * 200_000, "nests too deep"),
        (b'{"user_id": ' + b"9" * 5000 + b"}", "number"),
        (b'{"user_id": "\xff"}', "is not UTF-8"),
        (b"[]", "must be a JSON object, not list"),
        (b'{"user_id": "u", "session_id": "s"}', "messages: is missing"),
        (b'{"user_id": ["u"], "session_id": "s", "messages": []}', "user_id: must be a text"),
        (
            b'{"user_id":"u","session_id":"s","messages":[{"role":"king","content":""}]}',
            "messages[0].role: must be one of user, assistant, system, tool",
        ),
        (
            b'{"user_id":"u","session_id":"s","messages":[{"role":"user","content":"a\\u0000"}]}',
            "(at offset 1)",
        ),
    ],
)
def test_a_bad_line_is_named(migrated_here: Any, tmp_path: Path, line: bytes, why: str) -> None:
    """A line that is no record is named with its number, counting empty ones, and the reason."""
    good = json.dumps(record(1)).encode()
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([good, b"", line, good]) + b"\n")
    code, out, err = migrated_here("import", str(path))
    assert (code, out) == (2, "")
    assert one_line(err).startswith("conversation-store: line 3: ")
    assert why in err
    assert err.endswith("; nothing was stored\n")
    assert migrated_here("export")[1] == ""


def test_a_bad_line_after_good_batches(migrated_here: Any, tmp_path: Path) -> None:
    """The error says what was stored for good before the bad line, and that is there."""
    lines = [record(number) for number in range(1, 1101)]
    code, _, err = migrated_here("import", write(tmp_path / "late.jsonl", *lines, "{"))
    assert code == 2
    assert one_line(err).startswith("conversation-store: line 1101: ")
    assert err.endswith("; stored before that: 1,000 conversations, 1,000 messages\n")
    assert migrated_here("export")[1].count("\n") == 1000


def test_a_damaged_gzip_file(migrated_here: Any, tmp_path: Path) -> None:
    """A gzip file that was cut off is an error in a line, not a crash."""
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(EXAMPLES.read_bytes())[:-200])
    code, _, err = migrated_here("import", str(path))
    assert code == 2
    assert "gzip file is damaged" in one_line(err)


def test_a_duplicate_is_refused_or_skipped(migrated_here: Any, tmp_path: Path) -> None:
    """A session that is there is refused by its line; --on-duplicate skip leaves it out."""
    path = write(tmp_path / "twice.jsonl", record(1), record(2))
    assert migrated_here("import", path)[0] == 0
    more = write(tmp_path / "more.jsonl", record(3), record(2))
    code, _, err = migrated_here("import", more)
    assert code == 2
    assert one_line(err).startswith(
        "conversation-store: line 2: user 'u' already has a conversation for session 's-2'"
    )
    code, out, _ = migrated_here("import", more, "--on-duplicate", "skip")
    assert code == 0
    assert out.startswith("imported 1 conversation, 1 message, 1 skipped in ")


def test_a_schema_that_was_not_migrated(here: Any) -> None:
    """Without its tables a command says which one makes them; exit code 2."""
    for arguments in (["list", "u"], ["import", str(EXAMPLES)]):
        code, _, err = here(*arguments)
        assert code == 2
        assert "conversation-store migrate" in one_line(err)


@pytest.mark.parametrize("conversation_id", ["4711", str(2**63), "9" * 40])
def test_show_of_an_unknown_conversation(migrated_here: Any, conversation_id: str) -> None:
    """An id that is not there, or beyond 64 bits, is one line and exit code 2."""
    code, out, err = migrated_here("show", conversation_id)
    assert (code, out) == (2, "")
    one_line(err)


def test_show_prints_all_that_belongs_to_it(migrated_here: Any, tmp_path: Path) -> None:
    """A transcript has ids, status, times, roles, positions, intents, slots; tools in brief."""
    moments = ["2026-01-01T23:59:58Z", "2026-01-02T00:00:01Z", "2026-01-02T00:00:02Z"]
    talk: list[dict[str, object]] = [
        {
            "role": "user",
            "content": "Book it.\nNow.",
            "intent_type": "book",
            "slots": {"seats": ["two", "2"], "window": True, "deep": {"a": [1]}},
        },
        {"role": "tool", "content": '{"rows": "' + "long " * 200 + '"}'},
        {"role": "assistant", "content": ""},
    ]
    for message, moment in zip(talk, moments, strict=True):
        message["timestamp"] = moment
    line = record(1, messages=talk, status="closed", rescue_id="CASE-9", metadata={"k": "v"})
    migrated_here("import", write(tmp_path / "one.jsonl", line))
    conversation_id = only_id(migrated_here)
    code, out, _ = migrated_here("show", conversation_id)
    assert code == 0
    for text in (
        f"conversation {conversation_id} closed",
        "CASE-9",
        '{"k": "v"}',
        "2026-01-01 23:59:58 UTC",
        "2026-01-02 00:00:02 UTC",
        "─ 2026-01-02 ─",
        "23:59:58",
        "1  user",
        "2  tool",
        "3  assistant",
        "Book it.",
        "Now.",
        "(no words)",
        'book · deep: {"a": [1]} · seats: two / 2 · window: true',
    ):
        assert text in out
    assert "long ..." in out or "..." in out
    assert out.count("long") < 60
    assert max(len(row) for row in out.splitlines()) <= 100


@pytest.mark.parametrize("columns", ["44", "55", "71", "72", "80"])
def test_show_takes_no_name_apart(
    migrated_here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, columns: str
) -> None:
    """In the part of a terminal that `browse` has for it, too, names stay on their lines."""
    line = record(1, user_id="renée-lefèvre", session_id="reserve-1")
    migrated_here("import", write(tmp_path / "one.jsonl", line))
    conversation_id = only_id(migrated_here, "renée-lefèvre")
    monkeypatch.setenv("COLUMNS", columns)

    _, out, _ = migrated_here("show", conversation_id)

    assert re.search(r"user +renée-lefèvre", out)
    assert re.search(r"session +reserve-1", out)
    assert re.search(r"last activity +\S+ \S+ UTC", out)


def test_show_obeys_nothing_that_was_said(migrated_here: Any, tmp_path: Path) -> None:
    """Markup is shown as it is, and control characters are spelled out."""
    talk = [
        {"role": "user", "content": "[bold red]no[/] [/nonsense] :smile: \x1b[2J\x07 a\r\nb"},
        {"role": "tool", "content": "[link=http://x]\x9b31m", "slots": {"[b]": "\x1b]0;t\x07"}},
        {"role": "user", "content": "\u202eback\u2066 \u200f\u05d0\u2028"},
    ]
    line = record(1, messages=talk, metadata={"[i]": "\x1b"}, intent_type="[u]\x1b[1m")
    migrated_here("import", write(tmp_path / "hostile.jsonl", line))
    _, out, _ = migrated_here("show", only_id(migrated_here))
    assert r"[bold red]no[/] [/nonsense] :smile: \x1b[2J\x07 a" in out
    assert r"[link=http://x]\x9b31m" in out
    assert r"[b]: \x1b]0;t\x07" in out
    assert "\\u202eback\\u2066 \u200f\u05d0\\u2028" in out  # what only marks a direction stays
    assert r"[u]\x1b[1m" in migrated_here("list", "u")[1]
    assert not set(out) & {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2066", "\u2028"}


def test_export_to_a_terminal_obeys_nothing_that_was_said(
    store_command: Run, schema: str, dsn: str
) -> None:
    """It gets the same JSON; a file has it as it always is."""
    said = "\x9b31m\x7f\u202e \x1b[2J \\ é"
    line = record(1, messages=[{"role": "user", "content": said}])
    assert store_command("migrate").returncode == 0
    assert store_command("import", "-", stdin=json.dumps(line).encode()).returncode == 0
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        subprocess.run(
            [sys.executable, "-m", "conversation_store", "export", "--dsn", dsn],
            env=clean_environment(CONVERSATION_STORE_SCHEMA=schema),
            stdout=theirs,
            timeout=60,
            check=True,
        )
        os.close(theirs)
        shown = terminal.read(100_000)
    written = store_command("export").stdout
    assert not set(shown.decode().strip()) & {"\x9b", "\x7f", "\u202e", "\x1b"}
    assert json.loads(shown) == json.loads(written)
    assert "\x9b31m\x7f\u202e".encode() in written


def test_show_of_more_than_a_page(migrated_here: Any, tmp_path: Path) -> None:
    """Conversations of more than 1,000 messages are shown whole, or their newest ones."""
    talk = [{"role": "user", "content": f"number {n};"} for n in range(1, 2502)]
    migrated_here("import", write(tmp_path / "long.jsonl", record(1, messages=talk)))
    conversation_id = only_id(migrated_here)
    _, out, _ = migrated_here("show", conversation_id)
    assert [n for n in range(1, 2502) if f"number {n};" not in out] == []
    _, out, _ = migrated_here("show", conversation_id, "--last", "1200")
    assert "1,301 earlier messages are not shown" in out
    assert "number 1301;" not in out
    assert "number 1302;" in out
    assert out.count("number ") == 1200


def test_list_filters_and_limits(migrated_here: Any) -> None:
    """A list shows one status if asked, says when there are more, and refuses a wrong limit."""
    migrated_here("import", str(EXAMPLES))
    _, out, _ = migrated_here("list", "佐藤-ゆき", "--status", "archived")
    assert "line-91" in out
    assert "line-88" not in out
    _, out, _ = migrated_here("list", "佐藤-ゆき", "--limit", "1")
    assert "there are more" in out
    assert migrated_here("list", "nobody")[1].strip() == "no conversations"
    code, _, err = migrated_here("list", "u", "--limit", "1001")
    assert code == 2
    assert "1..1000" in one_line(err)


def test_long_work_shows_a_bar_on_a_terminal(
    migrated_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal, import and export draw a bar on standard error."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, _, err = migrated_here("import", str(EXAMPLES))
    assert "imported 7 conversations" in err
    assert "━" in err
    _, out, err = migrated_here("export")
    assert "exported 7 conversations" in err
    assert all(json.loads(line) for line in out.splitlines())


def test_long_work_tells_lines_elsewhere(
    migrated_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere, long work tells on standard error how far it is, line by line."""
    monkeypatch.setattr("conversation_store.entrypoints.terminal._SECONDS_BETWEEN_LINES", 0.0)
    _, _, err = migrated_here("import", str(EXAMPLES))
    assert err.startswith("imported 7 conversations, 40 messages so far, 0 s\n")


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["export", "--dsn", "host=127.0.0.1 port=1"], 3, "cannot be reached"),
        (["export", "--dsn", "postgresql://u:a@b@127.0.0.1:1/d"], 2, "percent-encoded"),
        (["export", "--dsn", "no such thing"], 2, "cannot be read"),
        (["export", "--dsn", "host=\udc80"], 2, "cannot be read"),
        (["export", "--schema", "s" * 64], 2, "1..63 bytes"),
        (["list", ""], 2, "user_id"),
        (["list"], 2, "Missing argument"),
        ([], 2, "Usage"),
    ],
)
def test_refusals_in_this_process(
    migrated_here: Any, arguments: list[str], code: int, why: str
) -> None:
    """Every refusal has its exit code and its reason, and nothing on standard output."""
    got, out, err = migrated_here(*arguments)
    assert (got, out) == (code, "")
    assert why in err


def test_no_dsn_in_this_process(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty variable names no database."""
    monkeypatch.setenv("CONVERSATION_STORE_DSN", "")
    code, _, err = here("export")
    assert code == 2
    assert "--dsn" in one_line(err)


def test_import_of_standard_input(migrated_here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file `-` is standard input, which stays open."""
    standard_input = io.TextIOWrapper(io.BytesIO(EXAMPLES.read_bytes()))
    monkeypatch.setattr(sys, "stdin", standard_input)
    code, out, _ = migrated_here("import", "-")
    assert code == 0
    assert "7 conversations" in out
    assert not standard_input.buffer.closed


@pytest.mark.parametrize(
    ("trouble", "code", "why"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (PermissionError(13, "Permission denied", "talks.jsonl"), 2, "talks.jsonl: Permission"),
        (TransactionAborted(reason="given up"), 1, "given up"),
        (StoreTimeout(reason="too slow\n\x1b[1m" + "x" * 2000), 3, "too slow [1mx"),
        (click.ClickException("odd"), 2, "odd"),
    ],
)
def test_trouble_is_one_line(
    here: Any, monkeypatch: pytest.MonkeyPatch, trouble: BaseException, code: int, why: str
) -> None:
    """Whatever ends a command is one line, of bearable length, and its exit code."""

    def fail(work: Any) -> None:
        work.close()
        raise trouble

    monkeypatch.setattr("conversation_store.entrypoints.cli.run_async", fail)
    got, _, err = here("migrate")
    assert got == code
    assert why in " ".join(one_line(err.lstrip()).split())  # the ^C has a line
    assert len(err) < 1300


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_one_line(store_command: Run, dsn: str, schema: str) -> None:
    """An export that cannot be written says so."""
    store_command("migrate")
    store_command("import", str(EXAMPLES))
    names = {"CONVERSATION_STORE_DSN": dsn, "CONVERSATION_STORE_SCHEMA": schema}
    with Path("/dev/full").open("wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "conversation_store", "export"],
            env=clean_environment(**names),
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert result.returncode == 2
    assert b"No space left" in result.stderr.splitlines()[0]
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("missing", ["click", "rich", "psycopg"])
def test_main_in_this_process(
    here: Any, monkeypatch: pytest.MonkeyPatch, capsysbinary: Any, missing: str
) -> None:
    """The entry point runs the command line; what is missing is told, unless it is no extra."""
    monkeypatch.setattr(sys, "argv", ["conversation-store", "--version"])
    assert main() == 0
    assert b"version" in capsysbinary.readouterr().out

    class Missing:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "conversation_store.entrypoints.cli":
                raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.delitem(sys.modules, "conversation_store.entrypoints.cli")
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    if missing == "psycopg":
        with pytest.raises(ModuleNotFoundError):
            main()
    else:
        assert main() == 2
        assert "[cli]" in one_line(capsysbinary.readouterr().err)


@pytest.mark.data
def test_the_dialogues_go_through(
    migrated_here: Any, dialogues: list[dict[str, Any]], tmp_path: Path
) -> None:
    """All 2,000 dialogues are imported once; a second import stores nothing."""
    path = write(tmp_path / "dialogues.jsonl", *dialogues)
    code, out, _ = migrated_here("import", path)
    assert code == 0
    assert out.startswith("imported 2,000 conversations, 41,970 messages in ")
    code, _, err = migrated_here("import", path)
    assert code == 2
    assert "nothing was stored" in err
    _, out, _ = migrated_here("import", path, "--on-duplicate", "skip")
    assert out.startswith("imported 0 conversations, 0 messages, 2,000 skipped in ")


# Removing -----------------------------------------------------------------------------------------


def test_erase_gives_a_receipt(migrated_here: Any, tmp_path: Path) -> None:
    """As a line of JSON on standard output, for whoever keeps it; in words on the other."""
    migrated_here("import", write(tmp_path / "in.jsonl", record(1), record(2)))
    code, out, err = migrated_here("erase", "u")
    assert code == 0, err
    receipt = json.loads(out)
    assert (receipt["conversations"], receipt["messages"]) == (2, 2)
    assert receipt["started_at"] <= receipt["finished_at"]
    assert len(receipt["digest"]) == 64
    assert "erased 2 conversations, 2 messages" in err
    code, out, _ = migrated_here("erase", "u")
    assert (code, json.loads(out)["conversations"]) == (0, 0)


def test_purge_removes_what_was_inactive(migrated_here: Any, tmp_path: Path) -> None:
    """What a dry run counts, goes; what was active since stays."""
    old = {"start_time": "2001-01-01T00:00:00Z", "last_activity": "2001-01-01T00:00:00Z"}
    records = [record(1, **old), record(2, status="closed", source="phone", **old), record(3)]
    migrated_here("import", write(tmp_path / "in.jsonl", *records))
    purge = ("purge", "--inactive-since", "2010-01-01T00:00:00Z")
    code, dry, err = migrated_here(*purge, "--status", "closed", "--dry-run")
    assert code == 0, err
    assert "would purge 1 conversation, 1 message" in err
    code, out, _ = migrated_here(*purge, "--source", "web")
    assert (code, json.loads(out)["conversations"]) == (0, 0)
    code, real, err = migrated_here(*purge, "--source", "phone", "--user", "u")
    assert code == 0, err
    assert json.loads(real)["digest"] == json.loads(dry)["digest"]
    code, out, err = migrated_here(*purge)
    assert (code, json.loads(out)["conversations"]) == (0, 1)
    assert only_id(migrated_here)


@pytest.mark.parametrize("time", ["2010-01-01", "2010-01-01T00:00:00", "soon"])
def test_purge_refuses_a_time_without_a_zone(here: Any, time: str) -> None:
    """It names the option and removes nothing."""
    code, out, err = here("purge", "--inactive-since", time)
    assert (code, out) == (2, "")
    assert "inactive_since" in err


def test_a_removal_that_fails_says_what_it_had_removed(here: Any) -> None:
    """On a database without the store's tables: nothing."""
    code, _, err = here("erase", "u")
    assert code == 2
    assert "here: conversation-store migrate" in err
    assert "removed before that: nothing" in err


# Looking at a server ------------------------------------------------------------------------------


def test_doctor_says_what_to_mend(here: Any, dsn: str) -> None:
    """Before `migrate` there is a problem and a command, afterwards none; nothing is written."""
    code, out, err = here("doctor")
    assert (code, err) == (1, "")
    assert "there is no schema" in out
    assert "conversation-store migrate --schema" in out
    assert "1 problem, " in out.splitlines()[-1]
    assert here("migrate")[0] == 0
    code, out, err = here("doctor", "--no-prepare")
    assert (code, err) == (0, "")
    assert "are applied" in out
    assert out.splitlines()[-1].startswith("0 problems, ")


@pytest.mark.parametrize(
    ("text", "code"), [("host=127.0.0.1 port=1 password=s3cret", 3), ("no such thing", 2)]
)
def test_doctor_of_no_server(here: Any, text: str, code: int) -> None:
    """It ends as other commands do, and says no password."""
    got, out, err = here("doctor", "--dsn", text)
    assert (got, out) == (code, "")
    assert "s3cret" not in one_line(err)


def test_doctor_says_no_password(store_command: Run, dsn: str) -> None:
    """Not even one that was right."""
    create_roles(dsn)
    result = store_command("doctor", CONVERSATION_STORE_DSN=as_role(dsn, APPLICATION))
    assert result.returncode == 1
    assert b"secret" not in result.stdout + result.stderr


def test_browse_reads_and_tells_what_ended_it(
    migrated_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as other commands do, whether a key ended it or a failure."""
    users: list[str] = []

    async def read(self: Browser) -> None:
        users.append(self._user_id)
        self.error = None if len(users) == 1 else StoreTimeout(reason="too slow")

    monkeypatch.setattr(Browser, "run_async", read)
    assert migrated_here("browse", "ada") == (0, "", "")
    code, _, err = migrated_here("browse", "ada")
    assert code == 3
    assert "too slow" in one_line(err)
    assert users == ["ada", "ada"]


def test_browse_needs_tables(here: Any) -> None:
    """What is wrong is said before the screen is taken."""
    code, out, err = here("browse", "ada")
    assert (code, out) == (2, "")
    assert "conversation-store migrate" in one_line(err)


# Completion ---------------------------------------------------------------------------------------


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., str]:
    """Give a way to ask for completion as a shell does; the answer is what it reads."""

    def ask(instruction: str, **words: str) -> str:
        for name, value in {"_CONVERSATION_STORE_COMPLETE": instruction, **words}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            run([])
        assert ended.value.code == 0
        return str(capsys.readouterr().out)

    return ask


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(complete: Callable[..., str], shell: str) -> None:
    """Click writes what the shell has to read."""
    assert f"_CONVERSATION_STORE_COMPLETE={shell}_complete" in complete(f"{shell}_source")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("conversation-store do", ["plain,doctor"]),
        ("conversation-store list u --status a", ["plain,active", "plain,archived"]),
        ("conversation-store migrate --ro", ["plain,--row-security"]),
    ],
)
def test_words_are_completed(complete: Callable[..., str], typed: str, offered: list[str]) -> None:
    """Commands, options and what options take."""
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    assert complete("bash_complete", **words).splitlines() == offered
