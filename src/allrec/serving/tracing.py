"""Traces by OpenTelemetry, where it is installed: a span for each request, by its route, and for each of its steps."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

from allrec.errors import InputError

NAME = "allrec"
ASKING = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Environment variables, each of which says where traces go."""


@cache
def tracer() -> Any:
    """What makes spans; None where OpenTelemetry is not installed."""
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.trace") is None:
        return None
    from opentelemetry import trace

    return trace.get_tracer(NAME)


def begin_tracing() -> bool:
    """Sends traces by OTLP where the environment names an endpoint; returns whether it does.

    Raises:
        InputError: an endpoint is named, and what sends traces is not installed.
    """
    if not any(os.environ.get(name) for name in ASKING):
        return False
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise InputError(
            f"an endpoint for traces is named, and {error.name} is not installed. Install it: pip install "
            "'allrec[trace]'"
        ) from None
    named = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME") or NAME})
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return True


@contextmanager
def request_span(method: str, headers: Mapping[bytes, bytes]) -> Iterator[Any]:
    """The span of a request, below that of the caller where its headers name one; None without OpenTelemetry."""
    if tracer() is None:
        yield None
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    caller = extract({name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()})
    with tracer().start_as_current_span(method, context=caller, kind=SpanKind.SERVER) as span:
        yield span


def end_request(span: Any, method: str, route: str, status: int, attributes: Mapping[str, str | None]) -> None:
    """Notes what became of a request: its span is named by the route, which is known by then."""
    if span is None:
        return
    from opentelemetry.trace import StatusCode

    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if status >= 500 or status == 0:
        span.set_status(StatusCode.ERROR)


@contextmanager
def step(name: str) -> Iterator[None]:
    """A span of a step of the request that is being answered; nothing without OpenTelemetry."""
    if tracer() is None:
        yield
        return
    with tracer().start_as_current_span(name):
        yield
