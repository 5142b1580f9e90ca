"""The fault switch: its decisions in this process, its effects on the wire of a real one."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from conftest import DEADLINE, Process, sample
from tollgate_examples.app import build
from tollgate_examples.faults import GARBAGE, Fault, FaultSwitch
from tollgate_examples.services import SERVICES

PATH = "/api/v1/fraud/assess"
BODY = sample(PATH)


@pytest.fixture
def client() -> TestClient:
    return TestClient(build(SERVICES["fraud"], faults=True))


def test_switch_affects_what_was_named() -> None:
    switch = FaultSwitch()
    switch.set(Fault(paths=["/api/v1/ml/train"]))
    assert switch.take("/api/v1/ml/train") is not None
    assert switch.take("/api/v1/ml/predict") is None
    assert switch.take("/health") is None
    switch.set(Fault(paths=["/api/v1/ml/train"], health=True))
    assert switch.take("/health") is not None
    assert switch.take("/fault") is None
    assert switch.state().affected == 2


def test_switch_clears_itself_after_that_many_requests() -> None:
    switch = FaultSwitch()
    switch.set(Fault(requests=2))
    assert [switch.take("/x") is not None for _ in range(3)] == [True, True, False]
    assert switch.state().fault is None


def test_error_rate_is_a_rate() -> None:
    draws = iter([0.0, 0.29, 0.3, 0.99])
    switch = FaultSwitch(draw=lambda: next(draws))
    assert [switch.fails(Fault(error_rate=0.3)) for _ in range(4)] == [True, True, False, False]
    assert not FaultSwitch(draw=lambda: 0.0).fails(Fault(error_rate=0.0))
    assert FaultSwitch(draw=lambda: 0.999999).fails(Fault(error_rate=1.0))


def test_error_then_cleared(client: TestClient) -> None:
    assert client.get("/fault").json() == {"fault": None, "affected": 0}
    assert client.post("/fault", json={"error_rate": 1.0, "status": 503}).status_code == 200
    answer = client.post(PATH, json=BODY, headers={"x-request-id": "r"})
    assert (answer.status_code, answer.json()["code"], answer.json()["request_id"]) == (503, "injected_fault", "r")
    assert answer.headers["x-served-by"] == "fraud"
    assert client.get("/health").status_code == 200
    state = client.delete("/fault").json()
    assert state == {"fault": None, "affected": 1}
    assert client.post(PATH, json=BODY).status_code == 200


def test_health_can_be_affected(client: TestClient) -> None:
    client.post("/fault", json={"error_rate": 1.0, "health": True})
    assert client.get("/health").status_code == 500


def test_garbage_is_no_json(client: TestClient) -> None:
    client.post("/fault", json={"garbage": True})
    answer = client.post(PATH, json=BODY)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.content == GARBAGE
    with pytest.raises(ValueError):
        json.loads(answer.content)


def test_delay_delays_and_then_answers(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("tollgate_examples.faults.asyncio.sleep", sleep)
    client.post("/fault", json={"delay_ms": 1500})
    assert client.post(PATH, json=BODY).status_code == 200
    assert slept == [1.5]


@pytest.mark.parametrize(
    "fault", [{"delay_ms": -1}, {"delay_ms": 60_001}, {"error_rate": 1.1}, {"status": 200}, {"paths": []},
              {"paths": ["no-slash"]}, {"requests": 0}, {"hang": "yes"}, {"explode": True}]
)  # fmt: skip
def test_faulty_faults_are_refused(client: TestClient, fault: dict[str, Any]) -> None:
    assert client.post("/fault", json=fault).status_code == 422
    assert client.get("/fault").json()["fault"] is None


def test_close_mid_body_on_the_wire(start: Callable[..., Process]) -> None:
    service = start("fraud", "--faults")
    _, _, whole = service.request("POST", PATH, BODY)
    service.request("POST", "/fault", {"close_mid_body": True})
    connection = service.connect()
    connection.request("POST", PATH, json.dumps(BODY), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, int(answer.headers["content-length"])) == (200, len(whole))
    with pytest.raises(http.client.IncompleteRead) as cut:
        answer.read()
    assert cut.value.partial == whole[: len(whole) // 2]
    connection.close()
    service.request("DELETE", "/fault")
    assert service.request("POST", PATH, BODY)[2] == whole


def test_hang_on_the_wire_until_the_client_leaves(start: Callable[..., Process]) -> None:
    service = start("fraud", "--faults")
    service.request("POST", "/fault", {"hang": True})
    raw = json.dumps(BODY).encode()
    with socket.create_connection(("127.0.0.1", service.port), DEADLINE) as sock:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n"
        sock.sendall(head.encode() + b"x-request-id: hung\r\n\r\n" + raw)
        # The service has the request, says nothing, and still serves others.
        service.wait_until_affected()
        assert service.request("GET", "/health")[0] == 200
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    line = service.wait_for("request", request_id="hung")
    assert line["status"] == 499


def test_hang_does_not_hold_up_the_end(start: Callable[..., Process]) -> None:
    service = start("fraud", "--faults", "--grace", "1")
    service.request("POST", "/fault", {"hang": True})
    with socket.create_connection(("127.0.0.1", service.port), DEADLINE) as sock:
        sock.sendall(f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        service.wait_until_affected()
        assert service.stop(signal.SIGTERM) == 0
