"""What went wrong, as problem documents (RFC 9457): the field's path, and never a trace."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from allrec.errors import InputError
from allrec.serving.expressions import ExpressionError
from allrec.serving.monitoring import current_request

TITLES = {
    400: "The request cannot be answered as it is",
    401: "No valid API key",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "In conflict with what is stored",
    413: "The body is too large",
    422: "A field is not as expected",
    429: "Too many requests",
    500: "An error of the service",
    503: "The service is not ready",
}
MEDIA_TYPE = "application/problem+json"
LONGEST_DETAIL = 2_000
logger = logging.getLogger("allrec.serving")


class ProblemError(Exception):
    """A request that is answered by a problem document.

    Args:
        status: of HTTP.
        detail: what was got, what was expected, what to do.
        headers: of the answer.
        errors: pointers to fields at fault, each with its detail.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: dict[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.errors = status, detail, headers, errors


def unknown_item(item_id: str) -> ProblemError:
    """The error for an item that neither the run nor the store has."""
    return ProblemError(404, f"unknown item {item_id!r}. Add it: POST /v1/items.")


def problem(
    status: int, detail: str, errors: list[dict[str, str]] | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """A problem document."""
    body: dict[str, Any] = {
        "type": "about:blank", "title": TITLES.get(status, "A problem"), "status": status,
        "detail": detail[:LONGEST_DETAIL], "request_id": current_request.get(), "errors": errors or [],
    }  # fmt: skip
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)


def pointer(place: tuple[Any, ...]) -> str:
    """A field's path: ``("body", "items", 3, "price")`` is ``/body/items/3/price``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in place)


def handle_problems(app: FastAPI) -> None:
    """Lets an application answer every error by a problem document."""

    @app.exception_handler(ProblemError)
    async def _own(request: Request, error: ProblemError) -> Response:
        if error.status == 401 and request.url.path == "/" and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("/login", 303)
        return problem(error.status, error.detail, error.errors, headers=error.headers)

    @app.exception_handler(ExpressionError)
    async def _expression(request: Request, error: ExpressionError) -> JSONResponse:
        place = f"/{'query' if request.method == 'GET' else 'body'}/{error.kind}"
        return problem(400, str(error), [{"pointer": place, "detail": str(error)}])

    @app.exception_handler(InputError)
    async def _input(_: Request, error: InputError) -> JSONResponse:
        return problem(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def _validation(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"pointer": pointer(one["loc"]), "detail": one["msg"]} for one in error.errors()[:20]]
        return problem(422, f"{errors[0]['pointer']}: {errors[0]['detail']}", errors)

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(SQLAlchemyError)
    async def _store(_: Request, error: SQLAlchemyError) -> JSONResponse:
        logger.error("the store failed", exc_info=error)
        return problem(503, "The store could not be reached or was busy. Try again.", headers={"Retry-After": "1"})
