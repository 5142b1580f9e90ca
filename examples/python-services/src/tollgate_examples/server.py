"""Runs one service under uvicorn: logs as JSON lines, stops gracefully."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import uvicorn

from tollgate_examples import __version__
from tollgate_examples.app import build

if TYPE_CHECKING:
    from types import FrameType

    from tollgate_examples.services import Service

KEEP_ALIVE_SECONDS = 75
"""Longer than a proxy keeps idle connections, so that it is never the service that closes a reused one."""


class JSONLines(logging.Formatter):
    """One JSON object a line; what the call passes as ``extra={"fields": …}`` is added."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Write the record as one line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "msg": record.getMessage(),
            "service": self._service,
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class _Server(uvicorn.Server):
    """Says where it serves once it does (the port may have been 0)."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            fields = {"host": host, "port": port, "version": __version__}
            logging.getLogger("tollgate_examples").info("serving", extra={"fields": fields})


def run(service: Service, *, host: str, port: int, faults: bool, otlp_endpoint: str, level: str, grace: int) -> int:
    """Serve until SIGTERM or SIGINT, then finish what is in flight for up to ``grace`` seconds.

    Returns the exit code: 0 after a stop that was asked for, 1 where it could not listen.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JSONLines(service.name))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    log = logging.getLogger("tollgate_examples")

    if otlp_endpoint:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = otlp_endpoint
    os.environ.setdefault("OTEL_SERVICE_NAME", f"python-{service.name}")
    os.environ.setdefault("OTEL_BSP_SCHEDULE_DELAY", "1000")
    if faults:
        log.warning("the fault switch is on: whoever reaches this port can break the service")

    server = _Server(
        uvicorn.Config(
            build(service, faults=faults),
            host=host,
            port=port,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=grace,
        )
    )
    gc.freeze()
    gc.enable()
    # uvicorn raises the signal again after it has drained: let that end the process normally.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        server.run()
    except SystemExit:
        if not server.started:
            return 1
    log.info("stopped")
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
