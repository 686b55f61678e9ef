"""``/openapi.json``: every route has examples of what is sent and answered, which are as described, and work."""

import pytest
from jsonschema import Draft202012Validator
from tests.serving.test_app import client_of, good

from allrec.serving import keys

METHODS = ("get", "put", "post", "patch", "delete")
FIRST = (
    ("post", "/v1/items"), ("put", "/v1/users/{user_id}"), ("post", "/v1/events"), ("put", "/v1/scenarios/{name}"),
    ("put", "/v1/experiments/{name}"), ("post", "/v1/keys"), ("post", "/v1/models"), ("post", "/v1/models/roll-back"),
)  # fmt: skip
"""Routes whose examples make what the examples of others are about; what deletes comes last."""


@pytest.fixture(scope="module")
def client(run, system, tmp_path_factory):
    """A service in whose folder the run of the examples lies."""
    if not (run.parent / "2026-11-29").exists():
        system.save_pretrained(run.parent / "2026-11-29")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "token_hex", lambda size: "0123456789abcdef")
        with client_of(run, tmp_path_factory.mktemp("described")) as client:
            yield client


@pytest.fixture(scope="module")
def description(client):
    return good(client.get("/openapi.json"))


def operations(description):
    """(method, path, operation), those first that make what others need."""
    found = [
        (method, path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
        if method in METHODS
    ]

    def place(entry):
        key = entry[:2]
        return FIRST.index(key) if key in FIRST else len(FIRST) + (entry[0] == "delete")

    return sorted(found, key=place)


def examples_of(described, description):
    """The examples of a parameter or a media type: its own, or those of its schema."""
    schema = described.get("schema", {})
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    own = [described["example"]] if "example" in described else []
    inner = [one for part in schema.get("anyOf", []) for one in part.get("examples", [])]
    return [*own, *schema.get("examples", []), *inner]


def check(value, schema, description):
    Draft202012Validator({**schema, "components": description["components"]}).validate(value)


def asked(method, path, operation, description):
    """Every request that the examples make: a path with its parameters, and a body with its media type."""
    query = {}
    for parameter in operation.get("parameters", []):
        (example, *_) = examples_of(parameter, description)
        check(example, parameter["schema"], description)
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", str(example))
        else:
            query[parameter["name"]] = example
    content = operation.get("requestBody", {}).get("content", {})
    for media, body in content.items():
        examples = examples_of(body, description)
        assert examples, (method, path)
        for example in examples:
            check(example, body["schema"], description)
            given = {"json": example} if media == "application/json" else {"content": example}
            yield path, {"params": query, **given}
    if not content:
        yield path, {"params": query}


def test_every_example_is_as_described_and_every_request_is_answered_as_described(client, description):
    found = operations(description)
    assert len(found) >= 33
    for method, path, operation in found:
        (status,) = [status for status in operation["responses"] if status < "400"]
        (media, answered), *more = operation["responses"][status]["content"].items()
        assert more == []
        answers = examples_of(answered, description)
        assert answers, (method, path)
        for example in answers:
            check(example, answered.get("schema", {}), description)
        if (method, path) == ("delete", "/v1/scenarios/{name}"):  # which a running experiment holds
            groups = {"now": {"share": 1}, "diverse": {"share": 1, "scenario": "home"}}
            good(client.put("/v1/experiments/home", json={"groups": groups, "is_running": False}))
        for address, given in asked(method, path, operation, description):
            answer = client.request(method, address, **given)
            assert answer.status_code == int(status), (method, address, given, answer.text)
            assert answer.headers["content-type"].partition(";")[0] == media
            got = answer.json() if media == "application/json" else answer.text
            check(got, answered.get("schema", {}), description)


def test_what_is_refused_is_described_as_a_problem(description):
    for method, path, operation in operations(description):
        for status, response in operation["responses"].items():
            if status >= "400":
                ((media, described),) = response["content"].items()
                assert media == "application/problem+json", (method, path)
                for example in examples_of(described, description):
                    check(example, described["schema"], description)


def test_keys_are_described_where_they_are_needed(run, tmp_path, description):
    assert "securitySchemes" not in description["components"]
    with client_of(run, tmp_path, needs_key=True) as client:
        described = good(client.get("/openapi.json"))
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for _, path, operation in operations(described):
        assert ("security" in operation) == path.startswith("/v1/"), path
