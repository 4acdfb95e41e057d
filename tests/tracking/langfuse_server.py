"""A receiver for Langfuse's client: keeps the spans that are sent to it, decoded."""

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LangfuseServer:
    """As a context manager; `spans` are what has come in. `status` is what it answers."""

    def __init__(self, status: int = 200):
        self.spans: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.requests = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.requests += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if status == 200 and self.path == "/api/public/otel/v1/traces":
                    receiver.authorizations.add(self.headers.get("Authorization"))
                    receiver.spans += _spans(body)
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LangfuseServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._server.server_close()


def _spans(body: bytes) -> list[dict[str, Any]]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    request.ParseFromString(body)
    return [
        {
            "trace": span.trace_id.hex(),
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "name": span.name,
            "began": span.start_time_unix_nano / 1e9,
            "ended": span.end_time_unix_nano / 1e9,
            **{attribute.key: _value(attribute.value) for attribute in span.attributes},
        }
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _value(value: Any) -> Any:
    found = getattr(value, value.WhichOneof("value"))
    return (
        json.loads(found) if isinstance(found, str) and found[:1] in '"{[-0123456789tfn' and _is_json(found) else found
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
