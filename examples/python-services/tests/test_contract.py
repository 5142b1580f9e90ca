"""What all services promise: samples, OpenAPI, errors, headers, bounds."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from fastapi.testclient import TestClient

from conftest import MANIFEST, ROOT, SAMPLES, sample
from tollgate_examples.app import MAX_BODY, build, openapi
from tollgate_examples.services import SERVICES

ROUTES = {
    ("ml", "POST", "/api/v1/ml/predict"),
    ("ml", "POST", "/api/v1/ml/train"),
    ("nlp", "POST", "/api/v1/nlp/translate"),
    ("nlp", "POST", "/api/v1/nlp/detect"),
    ("nlp", "POST", "/api/v1/nlp/translate/batch"),
    ("nlp", "GET", "/api/v1/nlp/languages"),
    ("fraud", "POST", "/api/v1/fraud/assess"),
    ("data", "POST", "/api/v1/data/validate/blockchain-event"),
    ("data", "POST", "/api/v1/data/validate/market-data"),
    ("data", "POST", "/api/v1/data/process"),
    ("data", "POST", "/api/v1/data/aggregate"),
    ("blockchain", "POST", "/api/v1/blockchain/contracts/analyze"),
    ("blockchain", "POST", "/api/v1/blockchain/mev/detect"),
    ("blockchain", "POST", "/api/v1/blockchain/wallets/cluster"),
    ("blockchain", "POST", "/api/v1/blockchain/transactions/graph"),
} | {(name, "GET", "/health") for name in SERVICES}

POSTS = [e for e in MANIFEST if e["method"] == "POST"]
by_name = pytest.mark.parametrize("entry", MANIFEST, ids=lambda e: f"{e['service']}-{e['name']}")
posts = pytest.mark.parametrize("entry", POSTS, ids=lambda e: e["path"])


def test_manifest_has_every_route_once() -> None:
    listed = [(e["service"], e["method"], e["path"]) for e in MANIFEST]
    assert len(listed) == len(set(listed))
    assert set(listed) == ROUTES


def test_manifest_has_every_file() -> None:
    files = {str(f.relative_to(SAMPLES)) for f in SAMPLES.glob("*/*.json")}
    assert files == {e["file"] for e in MANIFEST if e["file"]}


@by_name
def test_sample(clients: dict[str, TestClient], entry: dict[str, Any]) -> None:
    body = sample(entry["path"]) if entry["file"] else None
    answer = clients[entry["service"]].request(entry["method"], entry["path"], json=body)
    assert answer.status_code == entry["status"], answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-served-by"] == entry["service"]
    assert answer.json()


@pytest.mark.parametrize("name", SERVICES)
def test_openapi_is_what_is_committed(name: str) -> None:
    committed = (ROOT / "openapi" / f"{name}.json").read_text("utf-8")
    again = f"python -m tollgate_examples openapi {name} > openapi/{name}.json"
    assert json.loads(committed) == openapi(SERVICES[name]), f"out of date; run: {again}"


@pytest.mark.parametrize("name", SERVICES)
def test_openapi_has_every_route(name: str) -> None:
    document = openapi(SERVICES[name])
    described = {(name, m.upper(), p) for p, operations in document["paths"].items() for m in operations}
    assert described == {r for r in ROUTES if r[0] == name}


@pytest.mark.parametrize("name", SERVICES)
def test_fault_switch_is_not_there_by_default(clients: dict[str, TestClient], name: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        assert clients[name].request(method, "/fault", json={} if method == "POST" else None).status_code == 404


@pytest.mark.parametrize("name", SERVICES)
def test_health(name: str) -> None:
    now = [100.0]
    client = TestClient(build(SERVICES[name], clock=lambda: now[0]))
    now[0] = 107.5
    assert client.get("/health").json() == {
        "status": "ok",
        "service": name,
        "version": "0.1.0",
        "uptime_seconds": 7.5,
    }


def test_request_id_comes_back(clients: dict[str, TestClient]) -> None:
    answer = clients["ml"].get("/health", headers={"x-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "é"])
def test_unusable_request_id_is_replaced(clients: dict[str, TestClient], given: str) -> None:
    answer = clients["ml"].get("/health", headers={"x-request-id": given.encode()})
    assert len(answer.headers["x-request-id"]) == 36


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", "/api/v1/ml/predict", 405, "method_not_allowed")],
)
def test_errors_are_problems(clients: dict[str, TestClient], method: str, path: str, status: int, code: str) -> None:
    answer = clients["ml"].request(method, path, headers={"x-request-id": "r1"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"], problem["request_id"]) == (status, code, "r1")


def test_an_unexpected_exception_is_a_500_problem_without_its_text() -> None:
    app = build(SERVICES["fraud"])

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a secret of the inside")

    answer = TestClient(app).get("/broken", headers={"x-request-id": "r2"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "r2"


def test_validation_names_the_field_and_keeps_the_input_out(clients: dict[str, TestClient]) -> None:
    body = sample("/api/v1/data/aggregate")
    body["trades"][3]["price"] = "private-text"
    answer = clients["data"].post("/api/v1/data/aggregate", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"field": "body.trades[3].price", "message": "Input should be a valid number", "type": "float_type"}
    ]
    assert "private-text" not in answer.text


def test_validation_errors_are_bounded(clients: dict[str, TestClient]) -> None:
    body = {"trades": [{"x" * 5000: 1}] * 100}
    answer = clients["data"].post("/api/v1/data/aggregate", json=body)
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 20
    assert len(answer.content) < 10_000


@posts
def test_body_must_be_json(clients: dict[str, TestClient], entry: dict[str, Any]) -> None:
    client = clients[entry["service"]]
    too_deep = b'{"a":' * 20_000 + b"1" + b"}" * 20_000
    for raw in (b"", b"{", b"\xff\xfe", b"[]", b"null", b'"text"', b"[" * 100_000, too_deep, b"9" * 100_000):
        answer = client.post(entry["path"], content=raw, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), raw[:20]
        assert answer.headers["content-type"] == "application/problem+json"


@posts
def test_body_may_not_be_too_large(clients: dict[str, TestClient], entry: dict[str, Any]) -> None:
    raw = b'{"padding": "' + b"x" * MAX_BODY + b'"}'
    answer = clients[entry["service"]].post(entry["path"], content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 413


@posts
def test_unknown_fields_are_refused(clients: dict[str, TestClient], entry: dict[str, Any]) -> None:
    answer = clients[entry["service"]].post(entry["path"], json=sample(entry["path"]) | {"surprise": 1})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "body.surprise"


# Raw JSON, since json.dumps would not write some of it.
NASTY = [
    "NaN", "Infinity", "-Infinity", "1e999", "-0.0", "1e-320", "0", "-1", "null", "true", "[]", "{}", '""',
    '"\\ud800"', '"\\u0000"', '"Zürich 日本 🏠"', "9" * 400, "1" + "0" * 30, '"' + "x" * 70_000 + '"', '"-5"', '"0x"',
]  # fmt: skip


@posts
def test_nasty_values_never_break_the_service(clients: dict[str, TestClient], entry: dict[str, Any]) -> None:
    """Put each nasty value in the place of each value of the sample: any answer but a failure."""
    body = sample(entry["path"])
    rng = random.Random(entry["path"])
    places = list(_places(body))
    for nasty in NASTY:
        for place in rng.sample(places, min(len(places), 12)):
            raw = json.dumps(_replaced(body, place)).replace('"@@"', nasty).encode()
            answer = clients[entry["service"]].post(
                entry["path"], content=raw, headers={"content-type": "application/json"}
            )
            assert answer.status_code in (200, 400, 422), (place, nasty[:30], answer.text[:200])
            answer.json()


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...]) -> Any:
    copy = json.loads(json.dumps(value))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = "@@"
    return copy
