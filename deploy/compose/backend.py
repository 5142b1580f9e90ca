"""Stands where your own backend goes: answers every request with what reached it."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    """Answers with method, path, headers and the length of the body, as JSON."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Read the request, say what it was."""
        length = int(self.headers.get("content-length") or 0)
        size = len(self.rfile.read(length))
        if self.headers.get("transfer-encoding"):
            self.close_connection = True  # the body is not read, so the connection cannot be used again
        seen = {"method": self.command, "path": self.path, "headers": dict(self.headers.items()), "body_bytes": size}
        body = (json.dumps(seen, indent=2) + "\n").encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, *args: object) -> None:
        """Say nothing: Envoy's access log has it."""


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8080), Echo).serve_forever()
