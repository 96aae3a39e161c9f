"""Spans and metrics of a store by OpenTelemetry: the extra `otel`.

Told are names of functions, numbers, outcomes and classes of errors. Nothing that is stored is
told, no id, no user, no text of an error.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Final

from attrs import define, field

from .extra import Extra

with Extra("otel"):
    from opentelemetry import context, metrics, trace
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider
    from opentelemetry.metrics import Observation as Measured
    from opentelemetry.trace import Span, StatusCode, TracerProvider
    from opentelemetry.util.types import AttributeValue

from ..domain.errors import Conflict
from ..service_layer.observer import Observation, PoolState, Tally
from ..service_layer.outcome import Outcome

_NAME: Final = "conversation_store"
_POOL: Final = {"db.client.connection.pool.name": "conversation-store"}

Attributes = dict[str, AttributeValue]


class OpenTelemetryObserver:
    """An observer that makes a span of each call of a service function and each unit of work.

        store = ConversationStore.connect(dsn, observer=OpenTelemetryObserver())

    Without providers it takes those of the process. One may serve several stores.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        self._instruments = _Instruments(meter)
        self._pools: list[Callable[[], PoolState]] = []
        _watch_pools(meter, self._pools)

    def call_began(self, function: str, unit: Observation | None, *, stream: bool) -> Observation:
        """Begin the span of a call. It is the current one, unless it is of a stream."""
        around = unit if isinstance(unit, _Observation) else None
        if around is not None and trace.get_current_span() is around.outer:
            span = self._tracer.start_span(
                f"{_NAME}.{function}", context=trace.set_span_in_context(around.span)
            )
        else:
            links = [] if around is None else [trace.Link(around.span.get_span_context())]
            span = self._tracer.start_span(f"{_NAME}.{function}", links=links)
        call = _Observation(span, self._instruments, {f"{_NAME}.function": function})
        if not stream:
            call.token = context.attach(trace.set_span_in_context(span))
        return call

    def unit_began(self) -> Observation:
        """Begin the span of a unit of work. It does not become the current one.

        Units are entered in one context and left in another, where they are dependencies of a web
        framework.
        """
        outer = trace.get_current_span()
        span = self._tracer.start_span(f"{_NAME}.unit_of_work")
        return _Observation(span, self._instruments, {}, outer)

    def tried_again(self) -> None:
        """Count another try of `run`."""
        self._instruments.retries.add(1)

    def waited(self, seconds: float) -> None:
        """Record how long a connection was waited for."""
        self._instruments.wait.record(seconds, _POOL)

    def pool_opened(self, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Show a pool in the gauges, until the end."""
        self._pools.append(read)
        return partial(self._pools.remove, read)


class _Instruments:
    def __init__(self, meter: Meter) -> None:
        self.calls = meter.create_histogram(
            f"{_NAME}.call.duration", "s", "How long calls of service functions took."
        )
        self.units = meter.create_histogram(
            f"{_NAME}.unit.duration", "s", "How long units of work were entered."
        )
        self.statements = meter.create_counter(
            f"{_NAME}.statements", "{statement}", "Statements that units of work sent."
        )
        self.round_trips = meter.create_counter(
            f"{_NAME}.round_trips", "{round_trip}", "Times that units waited for the server."
        )
        self.rows = meter.create_counter(
            f"{_NAME}.rows", "{row}", "Rows that the server answered units of work with."
        )
        self.retries = meter.create_counter(
            f"{_NAME}.retries", "{try}", "Tries after the first, and questions about lost answers."
        )
        self.conflicts = meter.create_counter(
            f"{_NAME}.conflicts", "{conflict}", "Units of work that ended with a Conflict."
        )
        self.wait = meter.create_histogram(
            "db.client.connection.wait_time", "s", "How long a connection was waited for."
        )


@define(eq=False)
class _Observation:
    """A span, and what is measured when it ends."""

    span: Span
    instruments: _Instruments
    attributes: Attributes
    outer: Span | None = None
    """Of a unit: the span that was the current one when it was entered."""
    token: contextvars.Token[context.Context] | None = None
    """Where the span is the current one."""
    began: float = field(factory=perf_counter)

    def end(self, tally: Tally, error: BaseException | None, outcome: Outcome | None) -> None:
        """End the span, and measure."""
        seconds = perf_counter() - self.began
        told = self.attributes
        if error is not None:
            told["error.type"] = type(error).__qualname__
            self.span.set_status(StatusCode.ERROR)
        try:
            if outcome is None:
                self.instruments.calls.record(seconds, told)
            else:
                told[f"{_NAME}.outcome"] = outcome.value
                self._measure_unit(seconds, tally, error)
            if self.span.is_recording():
                self.span.set_attributes({**told, **_numbers(tally)})
        finally:  # whatever providers raise, the span does not stay the current one
            if self.token is not None:
                context.detach(self.token)
            self.span.end()

    def _measure_unit(self, seconds: float, tally: Tally, error: BaseException | None) -> None:
        instruments = self.instruments
        instruments.units.record(seconds, self.attributes)
        instruments.statements.add(tally.statements)
        instruments.round_trips.add(tally.round_trips)
        instruments.rows.add(tally.rows)
        if tally.retries:
            instruments.retries.add(tally.retries)
        if isinstance(error, Conflict):
            instruments.conflicts.add(1, {"error.type": type(error).__qualname__})


def _numbers(tally: Tally) -> Attributes:
    return {
        f"{_NAME}.statements": tally.statements,
        f"{_NAME}.round_trips": tally.round_trips,
        f"{_NAME}.rows": tally.rows,
        f"{_NAME}.retries": tally.retries,
        f"{_NAME}.connection_wait": tally.waited,
    }


def _watch_pools(meter: Meter, pools: list[Callable[[], PoolState]]) -> None:
    """Show the sum over all pools that are open."""

    def total(number: Callable[[PoolState], int]) -> int:
        return sum(number(read()) for read in list(pools))

    def connections(_: CallbackOptions) -> Iterable[Measured]:
        yield Measured(total(lambda now: now.used), {**_POOL, "db.client.connection.state": "used"})
        yield Measured(total(lambda now: now.idle), {**_POOL, "db.client.connection.state": "idle"})

    def waiting(_: CallbackOptions) -> Iterable[Measured]:
        yield Measured(total(lambda now: now.waiting), _POOL)

    def most(_: CallbackOptions) -> Iterable[Measured]:
        yield Measured(total(lambda now: now.most), _POOL)

    for name, read, unit, description in (
        ("count", connections, "{connection}", "Connections of the store's own pools."),
        ("pending_requests", waiting, "{request}", "How many wait for a connection."),
        ("max", most, "{connection}", "How many connections there can be."),
    ):
        meter.create_observable_up_down_counter(
            f"db.client.connection.{name}", [read], unit, description
        )
