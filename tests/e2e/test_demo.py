"""The demo, run whole: it shows what it promises and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from conversation_store.adapters.postgres.embedded import EmbeddedPostgresError
from conversation_store.entrypoints import demo
from conversation_store.entrypoints.cli import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "dialogues.jsonl"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give a folder of the test's own for temporary files, short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/tmp") as path:
        Path(path).chmod(0o755)  # the server is not root
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


def processes_naming(text: str) -> list[str]:
    """Return the command lines of running processes that name a text, other than ps."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if text in line]


def test_the_demo_leaves_nothing_behind(folder: Path) -> None:
    """It imports, plays, shows, lists and counts; then neither process nor file of it is left."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "conversation_store", "demo", str(EXAMPLES)],
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    out = result.stdout.decode()
    assert result.returncode == 0, result.stderr
    assert result.stderr == b""
    for text in (
        "7 conversations, 40 messages",
        "the turn that was sent twice is stored 1 time",
        "refused: ConversationNotAcceptingMessages",
        "Booked, both of you and the bicycle.",
        "web-2041",
        "8 conversations, 49 messages",
    ):
        assert text in out
    trips = dict(re.findall(r"^(\S.*?) {2,}(\d+)\s*$", out, re.MULTILINE))
    assert trips["turn of 3 messages"] == "1"
    assert trips["the same turn, sent again"] == "1"
    assert trips["close"] == "1"
    assert list(folder.iterdir()) == []
    assert processes_naming(str(folder)) == []


def test_the_demo_needs_no_file(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file it plays its own conversation only."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "10")
    assert run(["demo"]) == 0
    out = capsys.readouterr().out
    assert "imported" not in out
    assert "1 conversation, 9 messages" in out
    assert list(folder.iterdir()) == []


def test_the_demo_speaks_for_the_busiest_user(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new conversation is one more of the user who has most, and is listed first."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "10")
    assert run(["demo", str(EXAMPLES)]) == 0
    out = capsys.readouterr().out
    assert out.index("list renée-lefèvre") < out.rindex("demo-1") < out.rindex("web-2041")


def test_the_demo_obeys_nothing_that_a_file_says(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor its name."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "10")
    record = {"user_id": "\x1b]0;a\x07\x9b31m", "session_id": "\x1b[2J", "messages": []}
    file = folder / "\x1b[1m.jsonl"
    file.write_text(json.dumps(record), "utf-8")
    assert run(["demo", str(file)]) == 0
    out = capsys.readouterr().out
    assert r"list \x1b]0;a\x07\x9b31m" in out
    assert r"imported \x1b[1m.jsonl" in out
    assert not set(out) & {"\x1b", "\x07", "\x9b"}


def test_an_interrupted_demo_leaves_nothing_behind(folder: Path) -> None:
    """Ctrl-C while dialogues are imported ends the demo with one line, and its server with it."""
    lines = folder / "endless.jsonl"
    os.mkfifo(lines)
    # Without -W error: the signal may arrive inside open(), which then leaves its file to the GC.
    # Where the tests run in the background the signal may be ignored, and so the demo would do.
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-m", "conversation_store", "demo", str(lines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        signal.signal(signal.SIGINT, usual)
        with lines.open("wb"):  # the demo has opened it too
            # A signal that comes just before a read begins is told when the read ends.
            time.sleep(1)  # until it waits for the first line
            running.send_signal(signal.SIGINT)
            assert running.stderr is not None
            assert running.stderr.read() == b"\nconversation-store: interrupted\n"
        assert running.wait(30) == 130
    assert list(folder.iterdir()) == [lines]
    assert processes_naming(f"{folder}/pg-") == []


def test_a_bad_file_ends_the_demo(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be imported is one error line, and still nothing is left."""
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "10")
    bad = folder / "bad.jsonl"
    bad.write_text("{\n", "utf-8")
    assert run(["demo", str(bad)]) == 2
    assert "line 1: " in capsys.readouterr().err
    assert list(folder.iterdir()) == [bad]


def test_a_server_that_does_not_start(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no server can be started, one line says why, with exit code 3."""

    class NoServer:
        def __init__(self, **_: Any) -> None:
            raise EmbeddedPostgresError("no PostgreSQL\nserver here")

    monkeypatch.setenv("PGCONNECT_TIMEOUT", "10")
    monkeypatch.setattr(demo, "EmbeddedPostgres", NoServer)
    assert run(["demo"]) == 3
    err = capsys.readouterr().err
    assert err == "conversation-store: the server of the demo: no PostgreSQL server here\n"
