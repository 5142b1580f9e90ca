"""Command line: ``python -m tollgate_examples SERVICE`` serves, ``openapi SERVICE`` prints its document."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys

from tollgate_examples import __version__
from tollgate_examples.services import SERVICES


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    args = _parser().parse_args(argv)
    # Nothing that is made while starting is garbage; server.run turns collection on again.
    gc.disable()
    # One thread: the model is tiny, and a pool of threads a core costs more at start than it saves.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if args.command == "openapi":
        from tollgate_examples.app import openapi  # noqa: PLC0415 - keeps --help fast

        json.dump(openapi(SERVICES[args.service]), sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0

    from tollgate_examples.server import run  # noqa: PLC0415 - keeps --help fast

    service = SERVICES[args.command]
    return run(
        service,
        host=args.host,
        port=service.port if args.port is None else args.port,
        faults=args.faults,
        otlp_endpoint=args.otlp_endpoint,
        level=args.log_level,
        grace=args.grace,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tollgate_examples", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for service in SERVICES.values():
        serve = commands.add_parser(service.name, help=f"serve: {service.summary}")
        serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        serve.add_argument("--port", type=_port, help=f"port to listen on, 0 for a free one (default: {service.port})")
        serve.add_argument("--faults", action="store_true", help="offer the fault switch at /fault")
        serve.add_argument(
            "--otlp-endpoint",
            default="",
            metavar="URL",
            help="OTLP/HTTP collector, such as http://127.0.0.1:4318 "
            "(default: OTEL_EXPORTER_OTLP_ENDPOINT, else nothing is exported)",
        )
        serve.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
        serve.add_argument("--grace", type=int, default=5, metavar="SECONDS", help="time to finish requests at the end")
    document = commands.add_parser("openapi", help="print the OpenAPI document of a service")
    document.add_argument("service", choices=sorted(SERVICES))
    return parser


def _port(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return number


if __name__ == "__main__":
    sys.exit(main())
