"""Spans and metrics, as exporters in memory got them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from attrs import define
from store_fixtures import draft, open_store, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConversationNotFound,
    ConversationStore,
    DuplicateSession,
    RequestConflict,
    TransactionAborted,
    append_messages,
    export_conversations,
    get_conversation,
    get_or_start_conversation,
    list_conversations,
    start_conversation,
)

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk (the extra `test`)")

from opentelemetry.metrics import NoOpHistogram, NoOpMeter, NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer, get_current_span

from conversation_store.adapters.otel import OpenTelemetryObserver

SECRET = "my PIN is 4711"
SPAN_ATTRIBUTES = [
    "function", "outcome", "statements", "round_trips", "rows", "retries", "connection_wait"
]  # fmt: skip
"""None of them is an id."""


@define
class Telemetry:
    """A store, and what it told."""

    store: ConversationStore
    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracer: Tracer
    """The host's."""

    def spans(self) -> dict[str, ReadableSpan]:
        """Return the spans that ended, by name; of several with one name the last."""
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def points(self, name: str) -> list[Any]:
        """Return the data points of a metric."""
        data = self.reader.get_metrics_data()
        return [
            point
            for of_resource in (data.resource_metrics if data is not None else ())
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def value(self, name: str) -> float:
        """Return the sum over all that a metric tells apart."""
        return sum(getattr(point, "value", None) or 0 for point in self.points(name))


def telemetry_of(tracers: TracerProvider, meters: MeterProvider) -> OpenTelemetryObserver:
    """Return an observer with providers of its own."""
    return OpenTelemetryObserver(tracer_provider=tracers, meter_provider=meters)


@pytest.fixture
async def told(dsn: str, migrated: set[str]) -> AsyncIterator[Telemetry]:
    """Give a store on PostgreSQL with exporters in memory."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(), MeterProvider([reader])
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    observer = telemetry_of(tracers, meters)
    options: dict[str, Any] = {"max_size": 3, "observer": observer}
    async with open_store(dsn, "operational", migrated, **options) as store:
        yield Telemetry(store, exporter, reader, tracers.get_tracer("host"))
    assert get_current_span().get_span_context().span_id == 0, "no span is left as the current one"
    tracers.shutdown()
    meters.shutdown()


async def test_a_call_is_a_span_around_that_of_its_unit(told: Telemetry) -> None:
    """Host, call, unit; with numbers, and with nothing that was said."""
    with told.tracer.start_as_current_span("host") as host:
        await start_conversation(
            told.store.unit_of_work(user_id="ada"), session_id="s-1", drafts=[draft(SECRET)]
        )
    spans = told.spans()
    call, unit = (
        spans["conversation_store.start_conversation"],
        spans["conversation_store.unit_of_work"],
    )
    assert call.parent is not None
    assert call.parent.span_id == host.get_span_context().span_id
    assert unit.parent is not None
    assert unit.parent.span_id == call.context.span_id
    assert unit.attributes is not None
    numbers = dict(unit.attributes)
    assert 0 <= numbers.pop("conversation_store.connection_wait") < 60  # type: ignore[operator]
    assert numbers == {
        "conversation_store.outcome": "committed",
        "conversation_store.statements": 1,
        "conversation_store.round_trips": 1,
        "conversation_store.rows": 1,
        "conversation_store.retries": 0,
    }
    assert call.attributes is not None
    assert call.attributes["conversation_store.function"] == "start_conversation"
    assert call.attributes["conversation_store.round_trips"] == 1


async def test_nothing_that_is_stored_is_told(told: Telemetry) -> None:
    """No content, no user, no session, no id: not in attributes, events, or texts of errors."""
    uow = told.store.unit_of_work()
    chat, _ = await start_conversation(
        uow, user_id="ada-user", session_id="ada-session", drafts=[draft(SECRET)], request_id="r-9"
    )
    with pytest.raises(DuplicateSession):
        await start_conversation(uow, user_id="ada-user", session_id="ada-session")
    with pytest.raises(RequestConflict):
        await append_messages(
            uow, conversation_id=chat.id, drafts=[draft("other")], request_id="r-9"
        )
    with pytest.raises(ValueError, match="PIN"):
        async with told.store.unit_of_work() as uow:
            await append_messages(uow, conversation_id=chat.id, drafts=[draft(SECRET)])
            raise ValueError(SECRET)
    data = told.reader.get_metrics_data()
    text = "".join(span.to_json() for span in told.exporter.get_finished_spans())
    text += "" if data is None else data.to_json()
    assert "RequestConflict" in text
    for hidden in (SECRET, "ada-user", "ada-session", "r-9"):
        assert hidden not in text
    told_of = {key for span in told.exporter.get_finished_spans() for key in span.attributes or ()}
    assert told_of == {"error.type"} | {f"conversation_store.{name}" for name in SPAN_ATTRIBUTES}


async def test_errors_are_classes(told: Telemetry) -> None:
    """A span that failed has the status ERROR and the name of the class, and no event."""
    with pytest.raises(ConversationNotFound):
        await get_conversation(told.store.unit_of_work(), conversation_id=4_000_000_000)
    for span in told.exporter.get_finished_spans():
        assert span.status.status_code.name == "ERROR"
        assert span.status.description is None
        assert span.events == ()
        assert span.attributes is not None
        assert span.attributes["error.type"] == "ConversationNotFound"


async def test_calls_inside_a_block_are_children_of_the_unit(told: Telemetry) -> None:
    """Unless the host has begun a span of its own meanwhile: then that is the parent, with a link.

    The unit's own span is never the current one: it may be left in another context.
    """
    with told.tracer.start_as_current_span("host") as host:
        async with told.store.unit_of_work() as uow:
            assert get_current_span() is host
            await start_conversation(uow, user_id="u", session_id="s")
            with told.tracer.start_as_current_span("inner") as inner:
                await list_conversations(uow, user_id="u")
    spans = told.spans()
    unit = spans["conversation_store.unit_of_work"]
    inside, linked = (
        spans[f"conversation_store.{name}"] for name in ("start_conversation", "list_conversations")
    )
    assert unit.parent is not None
    assert unit.parent.span_id == host.get_span_context().span_id
    assert inside.parent is not None
    assert inside.parent.span_id == unit.context.span_id
    assert linked.parent is not None
    assert linked.parent.span_id == inner.get_span_context().span_id
    assert [link.context.span_id for link in linked.links] == [unit.context.span_id]
    assert unit.attributes is not None
    assert unit.attributes["conversation_store.round_trips"] == 4  # BEGIN, start, read, COMMIT


async def test_a_unit_that_is_left_in_another_context(
    told: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """As a dependency of a web framework is: its span ends, and nobody complains."""
    uow = told.store.unit_of_work()

    async def enter_and_call() -> None:
        await uow.__aenter__()
        await get_or_start_conversation(uow, user_id="u", session_id="s")

    await asyncio.create_task(enter_and_call())
    await uow.__aexit__(None, None, None)
    assert "conversation_store.unit_of_work" in told.spans()
    assert caplog.records == []


async def test_a_stream_is_never_the_current_span(
    told: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    """Its consumer runs between its records, and may close it in another task."""
    for number in range(3):
        await start_conversation(
            told.store.unit_of_work(), user_id="u", session_id=f"s-{number}", drafts=turn(1)
        )
    stream = export_conversations(told.store.unit_of_work())
    await anext(stream)
    assert get_current_span().get_span_context().span_id == 0
    await asyncio.create_task(close(stream))
    export = told.spans()["conversation_store.export_conversations"]
    assert export.status.status_code.name == "UNSET"
    assert export.attributes is not None
    assert export.attributes["conversation_store.rows"] == 6
    assert caplog.records == []


async def close(stream: Any) -> None:
    """Close a stream."""
    await stream.aclose()


async def test_metrics(told: Telemetry) -> None:
    """Latency, what was sent, conflicts, retries, and the pool."""
    uow = told.store.unit_of_work()
    chat, _ = await start_conversation(uow, user_id="u", session_id="s")
    for _ in range(2):
        with pytest.raises(DuplicateSession):
            await start_conversation(uow, user_id="u", session_id="s")

    tries = 0

    async def work(unit: AsyncUnitOfWork) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise TransactionAborted(reason="a deadlock")
        await get_conversation(unit, conversation_id=chat.id)

    await told.store.run(work)
    latency = told.points("conversation_store.call.duration")
    assert {
        (point.attributes["conversation_store.function"], point.attributes.get("error.type")):
            point.count
        for point in latency
    } == {
        ("start_conversation", None): 1,
        ("start_conversation", "DuplicateSession"): 2,
        ("get_conversation", None): 1,
    }  # fmt: skip
    assert sum(point.count for point in told.points("conversation_store.unit.duration")) == 6
    assert told.value("conversation_store.round_trips") == 4
    assert told.value("conversation_store.statements") == 4
    assert told.value("conversation_store.conflicts") == 2
    assert told.value("conversation_store.retries") == 2
    assert sum(point.count for point in told.points("db.client.connection.wait_time")) == 4
    async with told.store.unit_of_work() as unit:
        await unit.connection()
        states = {
            point.attributes["db.client.connection.state"]: point.value
            for point in told.points("db.client.connection.count")
        }
        await unit.rollback()
    assert states["used"] == 1
    assert told.value("db.client.connection.max") == 3
    assert told.value("db.client.connection.pending_requests") == 0


async def test_the_twin_tells_spans_too() -> None:
    """So a host's tests can look at them; without providers those of the process are taken."""
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    observer = OpenTelemetryObserver(tracer_provider=tracers)
    async with ConversationStore.in_memory(observer=observer) as store:
        await start_conversation(store.unit_of_work(), user_id="u", session_id="s")
    assert [span.name for span in exporter.get_finished_spans()] == [
        "conversation_store.unit_of_work",
        "conversation_store.start_conversation",
    ]


class BrokenHistogram(NoOpHistogram):
    """One that cannot be recorded in."""

    def record(self, *_: Any, **__: Any) -> None:
        """Fail."""
        raise LookupError


class BrokenMeters(NoOpMeterProvider):
    """Gives meters of such histograms."""

    def get_meter(self, name: str, *_: Any, **__: Any) -> NoOpMeter:
        """Return one."""
        meter = NoOpMeter(name)
        meter.create_histogram = lambda name, *_, **__: BrokenHistogram(name)  # type: ignore[method-assign]
        return meter


async def test_metrics_that_cannot_be_recorded() -> None:
    """Spans end all the same, and what the host does next is no part of them."""
    exporter, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    observer = OpenTelemetryObserver(tracer_provider=tracers, meter_provider=BrokenMeters())
    async with ConversationStore.in_memory(observer=observer) as store:
        await start_conversation(store.unit_of_work(), user_id="u", session_id="s")
        assert get_current_span().get_span_context().span_id == 0
    assert len(exporter.get_finished_spans()) == 2


def test_without_the_extra_all_else_works() -> None:
    """A store is used and no module of OpenTelemetry is loaded, as if there were none."""
    program = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from conversation_store import ConversationStore, start_conversation
import conversation_store.adapters.postgres.store
asyncio.run(start_conversation(
    ConversationStore.in_memory().unit_of_work(), user_id="u", session_id="s"))
try:
    import conversation_store.adapters.otel
except ImportError:
    print("absent", [name for name in sys.modules if name.startswith("opentelemetry.")])
"""
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], check=True, capture_output=True, text=True
    )
    assert said.stdout == "absent []\n"
