"""Fixtures: services in this process (fast), and as real processes with a real uvicorn."""

from __future__ import annotations

import http.client
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tollgate_examples.app import build
from tollgate_examples.services import SERVICES

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
MANIFEST: list[dict[str, Any]] = json.loads((SAMPLES / "manifest.json").read_text("utf-8"))
DEADLINE = 60.0
"""Seconds until a test gives up on something that should have happened."""


def sample(path: str) -> Any:
    """Read the sample body of a route."""
    (entry,) = [e for e in MANIFEST if e["path"] == path]
    return json.loads((SAMPLES / entry["file"]).read_text("utf-8"))


@pytest.fixture(scope="session")
def clients() -> dict[str, TestClient]:
    """One in-process client a service. Tests that change a service's state build their own."""
    return {name: TestClient(build(service), raise_server_exceptions=False) for name, service in SERVICES.items()}


class Process:
    """A service started as a user would start it, on a free port."""

    def __init__(self, service: str, *args: str, env: dict[str, str] | None = None) -> None:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tollgate_examples", service, "--port", "0", *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean | {"PYTHONPATH": str(ROOT / "src")} | (env or {}),
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.seen: list[dict[str, Any]] = []
        self.port: int = self.wait_for("serving")["port"]

    def _read(self) -> None:
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            self._lines.put(line)

    def wait_for(self, message: str, **fields: Any) -> dict[str, Any]:
        """Read the log up to a line with this message and these fields."""
        while True:
            line = json.loads(self._lines.get(timeout=DEADLINE))
            self.seen.append(line)
            if line["msg"] == message and all(line.get(k) == v for k, v in fields.items()):
                return line

    def connect(self, timeout: float = DEADLINE) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = self.connect()
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"content-type": "application/json"} | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def wait_until_affected(self) -> None:
        """Wait until a request has met the fault in force."""
        give_up = time.monotonic() + DEADLINE
        while json.loads(self.request("GET", "/fault")[2])["affected"] == 0:
            assert time.monotonic() < give_up, "no request met the fault"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask the process to stop and return its exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(DEADLINE)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start real services; they end with the test."""
    running: list[Process] = []

    def _start(service: str, *args: str, env: dict[str, str] | None = None) -> Process:
        running.append(Process(service, *args, env=env))
        return running[-1]

    yield _start
    for process in running:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait(DEADLINE)
        process._reader.join(DEADLINE)
        if process.popen.stdout is not None:
            process.popen.stdout.close()
