"""What ``/openapi.json`` says: the routes, what they answer and refuse, and which key they want."""

from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from allrec.serving import replies
from allrec.serving.problems import MEDIA_TYPE

DESCRIPTION = "Recommendations of a trained run: for users, sessions and texts, fresh with the next request."
KEY = {"type": "http", "scheme": "bearer", "description": "An API key."}


def _examples_of(model: Any) -> Any:
    return model.model_config["json_schema_extra"]["examples"]


EXAMPLES = {
    name: _examples_of(model)
    for name, model in vars(replies).items()
    if isinstance(model, type) and issubclass(model, BaseModel) and model is not BaseModel
}
"""Of every body of an answer, by its name."""


def describe(app: FastAPI, needs_key: bool) -> None:
    """Lets an application describe itself.

    Args:
        app: with all its routes.
        needs_key: whether requests need an API key.
    """

    @cache
    def description() -> dict[str, Any]:
        made: dict[str, Any] = get_openapi(
            title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes
        )
        for methods in made["paths"].values():
            for operation in methods.values():
                _refuse_by_problem(operation["responses"])
                if needs_key and "operate" not in operation["tags"]:
                    operation["security"] = [{"key": []}]
        schemas = made["components"]["schemas"]
        # FastAPI leaves out what is null, which an answer's example needs.
        schemas.update({name: schemas[name] | {"examples": [*shown]} for name, shown in EXAMPLES.items()})
        if needs_key:
            made["components"]["securitySchemes"] = {"key": KEY}
        return made

    app.openapi = description  # type: ignore[method-assign]


def _refuse_by_problem(responses: dict[str, Any]) -> None:
    """FastAPI describes every answer as of the route's own media type; what is refused has one of its own."""
    for status, response in responses.items():
        if status >= "400":
            response["content"] = {MEDIA_TYPE: next(iter(response["content"].values()))}
