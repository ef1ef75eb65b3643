"""Spans for OpenTelemetry: what a request led to, and how long each part of a write took.

    POST /v1/models/incremental_update
      weightledger.updated
        weightledger.propose     worked out, judged, encoded; waiting for a turn is part of it
        weightledger.append      the database's transaction
        weightledger.publish     until it was visible

Inference of text models has a span of its own by the conventions for generative AI. This file is
imported where an endpoint is configured, and nowhere else: without one nothing is done.
"""

import os
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightledger.api.rest.inferred import Inferred
from weightledger.ledger.writing.showing import Committed

_NAME = "weightledger"
_TRACES = "/v1/traces"

# Asked for by machines, again and again.
_UNTRACED = frozenset({"/livez", "/readyz", "/health", "/metrics"})


class Tracing:
    """Makes spans and sends them to `endpoint`, on a thread of its own; safe to use from any.

    Headers, sampling and the service's name are read from OTEL_* variables by the SDK.
    """

    def __init__(self, endpoint: str) -> None:
        own = {"service.version": version(_NAME)}
        if "service.name" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
            own["service.name"] = os.environ.get("OTEL_SERVICE_NAME", _NAME)
        self._provider = TracerProvider(resource=Resource.create(own))
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + _TRACES)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_NAME, version(_NAME))
        self._incoming = TraceContextTextMapPropagator()
        self._open: dict[int, tuple[Mapping[str, Any], Context]] = {}

    def close(self) -> None:
        """Send what there is, and no more."""
        self._provider.shutdown()

    # Requests

    def began(self, scope: Scope, state: dict[str, Any]) -> Span:
        """The span of a request; events that it leads to are below it."""
        headers = dict(Headers(scope=scope).items())
        span = self._tracer.start_span(
            scope["method"],
            context=self._incoming.extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": scope["method"],
                "url.path": scope["path"],
                "url.scheme": scope.get("scheme", "http"),
            },
        )
        self._open[id(state)] = (state, set_span_in_context(span))
        return span

    def ended(
        self, span: Span, scope: Scope, state: dict[str, Any], told: Mapping[str, Any]
    ) -> None:
        """Its reply is sent; `told` are attributes of the reply."""
        _, context = self._open.pop(id(state))
        route = getattr(scope.get("route"), "path_format", None)
        if route is not None:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        for name, value in told.items():
            span.set_attribute(name, value)
        if "request_id" in state:
            span.set_attribute("weightledger.request_id", state["request_id"])
        if told.get("http.response.status_code", 500) >= 500:
            span.set_status(StatusCode.ERROR)
        inferred = state.get("inferred")
        if isinstance(inferred, Inferred):
            self._inferred(inferred, span, context, told)
        span.end()

    def _inferred(
        self, one: Inferred, request: Span, context: Context, told: Mapping[str, Any]
    ) -> None:
        facts: dict[str, Any] = {
            "gen_ai.operation.name": one.operation,
            "gen_ai.provider.name": _NAME,
            "gen_ai.request.model": one.asked,
            "gen_ai.response.model": one.answered,
            "gen_ai.usage.input_tokens": one.input_tokens,
            "gen_ai.usage.output_tokens": one.output_tokens,
        }
        facts |= {name: value for name, value in told.items() if name.startswith(_NAME)}
        self._tracer.start_span(
            f"{one.operation} {one.asked}",
            context,
            attributes={name: value for name, value in facts.items() if value is not None},
            start_time=getattr(request, "start_time", None),
        ).end()

    # Events

    def committed(self, written: Committed) -> None:
        """The spans of an event that this process appended, on the writer's thread."""
        event, end = written.event, time.time_ns()
        shown = end - int(1e9 * written.publish_s)
        began = end - int(1e9 * written.total_s)
        parts: list[tuple[str, int, int]] = []
        if written.append_s is not None:
            appended = shown - int(1e9 * written.append_s)
            began = min(appended, began)
            parts = [
                ("propose", began, appended),
                ("append", appended, shown),
                ("publish", shown, end),
            ]
        span = self._tracer.start_span(
            f"{_NAME}.{event.kind}",
            self._context_of(event.request_id),
            start_time=began,
            attributes={
                "weightledger.model": event.model,
                "weightledger.event": event.name,
                "weightledger.kind": event.kind,
                "weightledger.seq": event.seq,
                "weightledger.payload_bytes": event.payload_size,
            },
        )
        within = set_span_in_context(span)
        for name, start, stop in parts:
            part = self._tracer.start_span(f"{_NAME}.{name}", within, start_time=start)
            part.end(stop)
        span.end(end)

    def _context_of(self, request_id: str | None) -> Context | None:
        """That of the request which led to an event; None when it has been answered."""
        if request_id is None:
            return None
        for state, context in list(self._open.values()):
            if state.get("request_id") == request_id:
                return context
        return Context()


class Traced:
    """ASGI middleware: a span for each request."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED:
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        span = self._tracing.began(scope, state)
        told: dict[str, Any] = {}

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                told["http.response.status_code"] = message["status"]
                headers = Headers(raw=message["headers"])
                if "x-weights-seq" in headers:
                    told["weightledger.seq"] = int(headers["x-weights-seq"])
                    told["weightledger.digest"] = headers.get("x-weights-digest", "")
            await send(message)

        try:
            await self.app(scope, receive, send_noted)
        except Exception as error:
            span.record_exception(error)
            raise
        finally:
            self._tracing.ended(span, scope, state, told)
