"""What an operator sees: figures for Prometheus, and log lines as JSON, each with its request's id."""

import json
import logging
import re
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from allrec.serving.tracing import end_request, request_span

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
current_request: ContextVar[str] = ContextVar("current_request", default="")
logger = logging.getLogger("allrec.serving")


class Figures:
    """Figures of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        given: dict[str, Any] = {"registry": self.registry}
        self.seconds = Histogram(
            "allrec_request_seconds", "Time to answer, by route.", ["route", "status"], buckets=SECONDS, **given
        )
        self.step = Histogram("allrec_step_seconds", "Time of a step.", ["step"], buckets=SECONDS, **given)
        self.waiting = Gauge("allrec_queue", "Requests that wait to be ranked.", **given)
        self.kept = Gauge("allrec_rankings_kept", "Rankings that were answered from memory.", ["tenant"], **given)
        self.ranked = Gauge("allrec_rankings_made", "Rankings that were computed.", ["tenant"], **given)
        self.answers = Counter("allrec_answers", "Answers, by what ordered them.", ["scorer"], **given)
        self.fallbacks = Counter("allrec_fallbacks", "Answers that fell back.", **given)
        self.llm = Counter("allrec_llm", "Requests for the language model, by outcome.", ["outcome"], **given)
        self.items = Counter("allrec_items", "Recommended items, warm and cold.", ["kind"], **given)
        self.first_score = Histogram(
            "allrec_first_score", "Score of the first item, in logits: its drift shows in the distribution.",
            buckets=[-20.0, -10.0, -5.0, -2.0, 0.0, 2.0, 5.0, 10.0, 20.0, 50.0], **given,
        )  # fmt: skip
        self.model = Gauge("allrec_model_version", "The model version that serves.", ["tenant"], **given)
        self.unrecorded = Counter("allrec_answers_unrecorded", "Answers that were not recorded in time.", **given)

    def text(self) -> bytes:
        """The figures as Prometheus reads them."""
        return generate_latest(self.registry)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON; what a text holds cannot end the line."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        line: dict[str, Any] = {
            "time": round(record.created, 3), "level": record.levelname.lower(), "message": record.getMessage(),
        }  # fmt: skip
        if current_request.get():
            line["request_id"] = current_request.get()
        line |= {key: value for key, value in vars(record).items() if key not in STANDARD}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_json_lines(level: int = logging.INFO) -> None:
    """Lets the service's log go to the standard error as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


class Watched:
    """Outermost part of the application: request ids, the access log, the largest body, and errors without a trace.

    Args:
        app: the rest.
        figures: counts requests.
        largest_body: in bytes.
        refuse: makes the answer of a status and a detail.
    """

    def __init__(
        self, app: ASGIApp, figures: Figures, largest_body: int, refuse: Callable[[int, str], ASGIApp]
    ) -> None:
        self.app, self.figures, self.largest_body, self.refuse = app, figures, largest_body, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        token, begin, seen = current_request.set(request_id), perf_counter(), {"status": 0}

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode()), *SAFE_HEADERS]
            await send(message)

        with request_span(scope["method"], headers) as span:
            try:
                await self._answer(scope, self._limited(headers, receive), watched_send, seen)
            finally:
                self._note(scope, seen["status"], perf_counter() - begin, span)
                current_request.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, seen: dict[str, int]) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception:
            logger.exception("a request failed")
            if not seen["status"]:
                await self.refuse(500, "The service failed at this request; its id leads to the log.")(
                    scope, receive, send
                )

    def _limited(self, headers: dict[bytes, bytes], receive: Receive) -> Callable[[], Awaitable[Message]]:
        length, num_read = headers.get(b"content-length", b"0"), 0

        async def limited() -> Message:
            nonlocal num_read
            if length.isdigit() and int(length) > self.largest_body:
                raise BodyTooLargeError(self.largest_body)
            message = await receive()
            num_read += len(message.get("body", b""))
            if num_read > self.largest_body:
                raise BodyTooLargeError(self.largest_body)
            return message

        return limited

    def _note(self, scope: Scope, status: int, seconds: float, span: Any) -> None:
        route, tenant = getattr(scope.get("route"), "path", "none"), scope.get("state", {}).get("tenant")
        own = {"allrec.request_id": current_request.get(), "allrec.tenant": tenant}
        end_request(span, scope["method"], route, status, own)
        self.figures.seconds.labels(route, str(status)).observe(seconds)
        if route not in QUIET:
            noted = {"method": scope["method"], "route": route, "status": status, "ms": round(seconds * 1e3, 2)}
            logger.info("request", extra=noted | {"tenant": tenant})


QUIET = ("/healthz", "/readyz", "/metrics")
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
)


class BodyTooLargeError(HTTPException):
    """A body beyond the limit; of the framework's kind, as it turns any other that reading a body raises into 400."""

    def __init__(self, largest: int) -> None:
        super().__init__(413, f"got a body of more than {largest} bytes. Send less at once.")
