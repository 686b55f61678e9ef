"""Traces: a span for each request by its route, one for each step below it, and none where nothing is installed."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.llm.test_llm_advice import extra
from tests.remedies import refused
from tests.serving.test_app import client_of, good, ids

from allrec.serving import tracing
from allrec.serving.tracing import ASKING, begin_tracing

CALLER = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}


@pytest.fixture
def spans(monkeypatch):
    """What was exported, asked for when a request is done."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    return exporter.get_finished_spans


@pytest.fixture
def client(run, tmp_path):
    with client_of(run, tmp_path) as client:
        yield client


def test_a_request_has_a_span_by_its_route_with_its_steps_below_it(client, spans, system):
    user = system.model.catalogue.user_ids[0]
    asked = {"user_id": user, "with_reason": True, "budget_ms": 100}
    answer = client.post("/v1/recommendations", json=asked, headers=CALLER)
    assert ids(good(answer))
    *steps, request = spans()
    assert [one.name for one in steps] == ["ranking", "language model", "reasons"]
    assert request.name == "POST /v1/recommendations"
    assert request.kind is SpanKind.SERVER
    assert dict(request.attributes) == {
        "http.request.method": "POST", "http.route": "/v1/recommendations", "http.response.status_code": 200,
        "allrec.request_id": answer.headers["x-request-id"], "allrec.tenant": "default",
    }  # fmt: skip
    assert {one.parent.span_id for one in steps} == {request.context.span_id}
    assert {one.context.trace_id for one in (*steps, request)} == {int("ab" * 16, 16)}
    assert request.parent.span_id == int("cd" * 8, 16)


def test_an_id_in_the_address_is_no_part_of_a_spans_name(client, spans, system):
    good(client.get(f"/v1/users/{system.model.catalogue.user_ids[0]}/recommendations"))
    assert client.get("/v1/nothing").status_code == 404
    assert [one.name for one in spans()] == ["ranking", "GET /v1/users/{user_id:path}/recommendations", "GET none"]


def test_an_error_of_the_service_marks_its_span_and_a_refusal_does_not(client, spans, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(client.app.state.store, "popular", fail)
    client.get("/v1/popular")
    client.post("/v1/recommendations", json={"k": 0})
    assert [one.status.status_code for one in spans()] == [StatusCode.ERROR, StatusCode.UNSET]


def test_without_opentelemetry_the_same_is_answered(client, monkeypatch):
    monkeypatch.setattr(tracing, "tracer", lambda: None)
    assert ids(good(client.post("/v1/recommendations", json={"query": "rose cream", "with_reason": True})))


def test_the_tracer_is_none_where_nothing_is_installed(monkeypatch):
    tracing.tracer.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "find_spec", lambda name: None)
        assert tracing.tracer() is None
    tracing.tracer.cache_clear()
    assert tracing.tracer() is not None


class Collector(BaseHTTPRequestHandler):
    """Takes whatever is sent, and keeps the addresses."""

    def do_POST(self):
        self.server.seen.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_traces_go_where_the_environment_says(monkeypatch):
    collector = HTTPServer(("127.0.0.1", 0), Collector)
    collector.seen = []
    threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    providers = []
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", providers.append)
    for name in ASKING:
        monkeypatch.delenv(name, raising=False)
    assert not begin_tracing()
    monkeypatch.setenv(ASKING[0], f"http://127.0.0.1:{collector.server_port}")
    assert begin_tracing()
    (provider,) = providers
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("test"))
    with tracing.step("a step to be seen"):
        pass
    provider.shutdown()
    collector.shutdown()
    collector.server_close()
    ((path, body),) = collector.seen
    assert path == "/v1/traces"
    assert b"a step to be seen" in body
    assert b"allrec" in body


def test_what_sends_traces_is_installed(monkeypatch):
    monkeypatch.setenv(ASKING[0], "http://127.0.0.1:1")
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda provider: provider.shutdown())
    with monkeypatch.context() as lacking:
        lacking.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
        with refused("Install it: pip install 'allrec[trace]'"):
            begin_tracing()
    assert {"opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"} == extra("trace")
    assert begin_tracing()
