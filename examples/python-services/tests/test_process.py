"""Real processes: start, log, trace, stop."""

from __future__ import annotations

import http.client
import json
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from conftest import DEADLINE, ROOT, Process, sample
from tollgate_examples.__main__ import main
from tollgate_examples.services import SERVICES

PATH = "/api/v1/fraud/assess"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"


@pytest.mark.parametrize("name", SERVICES)
def test_starts_serves_and_stops(start: Callable[..., Process], name: str) -> None:
    service = start(name)
    status, headers, body = service.request("GET", "/health")
    assert (status, headers["x-served-by"], json.loads(body)["service"]) == (200, name, name)
    assert "server" not in headers
    assert service.stop() == 0
    service.wait_for("stopped")


def test_interrupt_is_a_stop_too(start: Callable[..., Process]) -> None:
    assert start("data").stop(signal.SIGINT) == 0


def test_stop_finishes_what_is_in_flight(start: Callable[..., Process]) -> None:
    service = start("fraud", "--faults")
    service.request("POST", "/fault", {"delay_ms": 700})
    connection = service.connect()
    connection.request("POST", PATH, json.dumps(sample(PATH)), {"content-type": "application/json"})
    service.wait_until_affected()
    service.popen.send_signal(signal.SIGTERM)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["score"]) == (200, 100)
    connection.close()
    assert service.popen.wait(DEADLINE) == 0
    with pytest.raises(ConnectionError):
        service.request("GET", "/health")


def test_port_in_use_is_an_error(start: Callable[..., Process]) -> None:
    port = start("fraud").port
    command = [sys.executable, "-m", "tollgate_examples", "fraud", "--port", str(port)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")}, timeout=DEADLINE, check=False
    )
    assert done.returncode == 1
    assert "address already in use" in done.stdout


def test_connection_stays_open(start: Callable[..., Process]) -> None:
    connection = start("fraud").connect()
    for _ in range(3):
        connection.request("GET", "/health")
        connection.getresponse().read()
        sock = connection.sock
        assert sock is not None
    connection.close()


def test_malformed_http_is_a_400(start: Callable[..., Process]) -> None:
    service = start("fraud")
    for raw in (b"\x00\xff garbage\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), DEADLINE) as sock:
            sock.sendall(raw)
            answer = http.client.HTTPResponse(sock)
            answer.begin()
            assert answer.status == 400
    assert service.request("GET", "/health")[0] == 200


def test_access_log_has_ids_and_no_body(start: Callable[..., Process]) -> None:
    service = start("fraud")
    body = sample(PATH)
    body["payment"]["id"] = "very-private"
    headers = {"x-request-id": "req-1", "traceparent": SAMPLED}
    service.request("POST", PATH + "?token=query-secret", body, headers)
    line = service.wait_for("request")
    assert line["duration_ms"] >= 0
    assert line | {"time": "", "duration_ms": 0, "bytes": 0} == {
        "time": "",
        "level": "INFO",
        "msg": "request",
        "service": "fraud",
        "method": "POST",
        "path": PATH,
        "status": 200,
        "bytes": 0,
        "duration_ms": 0,
        "request_id": "req-1",
        "trace_id": TRACE,
        "span_id": PARENT,
    }
    service.request("GET", "/health")
    assert service.stop() == 0
    service.wait_for("stopped")
    log = json.dumps(service.seen)
    assert "very-private" not in log
    assert "query-secret" not in log
    assert "/health" not in log


def test_exporter_is_not_even_imported_without_an_endpoint() -> None:
    code = (
        "import sys; sys.argv = ['x']\n"
        "from fastapi.testclient import TestClient\n"
        "from tollgate_examples.app import build\n"
        "from tollgate_examples.services import SERVICES\n"
        "import tollgate_examples.server\n"
        "with TestClient(build(SERVICES['fraud'])) as c: assert c.get('/health').status_code == 200\n"
        "print(sorted(m for m in sys.modules if 'opentelemetry.sdk' in m or 'exporter' in m or m == 'numpy'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src")},
        timeout=DEADLINE,
        check=True,
    )
    assert done.stdout.strip() == "[]"


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.requests: queue.Queue[tuple[str, ExportTraceServiceRequest]] = queue.Queue()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            raw = gzip.decompress(raw)
        self.server.requests.put((self.path, ExportTraceServiceRequest.FromString(raw)))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join(DEADLINE)
    server.server_close()


@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "environment"])
def test_span_is_a_child_of_the_caller(start: Callable[..., Process], collector: Collector, by_flag: bool) -> None:
    if by_flag:
        service = start("fraud", "--otlp-endpoint", collector.url)
    else:
        service = start("fraud", env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url})
    service.request("GET", "/health", headers={"traceparent": SAMPLED})
    service.request("POST", PATH, sample(PATH), {"traceparent": UNSAMPLED})
    service.request("POST", PATH, sample(PATH), {"traceparent": SAMPLED, "x-request-id": "traced"})
    line = service.wait_for("request", request_id="traced")
    # Stopping flushes, so what was sent is all there is.
    assert service.stop() == 0
    path, exported = collector.requests.get(timeout=DEADLINE)
    assert path == "/v1/traces"
    (resource,) = exported.resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "python-fraud"
    (span,) = resource.scope_spans[0].spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert (span.name, span.kind) == (f"POST {PATH}", span.SPAN_KIND_SERVER)
    assert (line["trace_id"], line["span_id"]) == (TRACE, span.span_id.hex())
    assert collector.requests.empty()


def test_dead_collector_does_not_matter(start: Callable[..., Process]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    service = start("fraud", "--otlp-endpoint", f"http://127.0.0.1:{port}")
    assert service.request("POST", PATH, sample(PATH), {"traceparent": SAMPLED})[0] == 200


def test_openapi_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["openapi", "nlp"]) == 0
    assert "/api/v1/nlp/translate" in json.loads(capsys.readouterr().out)["paths"]


@pytest.mark.parametrize("args", [[], ["nothing"], ["ml", "--port", "70000"], ["ml", "--port", "x"], ["openapi"]])
def test_wrong_commands_say_what_is_allowed(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert re.search(r"required|choose from|not a port", capsys.readouterr().err)
