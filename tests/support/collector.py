"""A collector of spans: what `opentelemetry-instrument` exports to by OTLP over HTTP, read back as values."""

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1 import trace_pb2

from demo.processes import BIN, LOOPBACK
from tests.support.stack import Stack

LAUNCHER = (str(BIN / "opentelemetry-instrument"),)


@dataclass(frozen=True)
class Span:
    """One span of one process. ``kind`` is as in ``server``; ``links`` are span ids."""

    service: str
    name: str
    kind: str
    trace_id: str
    id: str
    parent: str
    failed: bool
    began: int
    attributes: Mapping[str, Any]
    links: tuple[str, ...]

    @classmethod
    def read(cls, service: str, span: Any) -> "Span":
        """A span of the protocol."""
        kind = trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower()
        return cls(
            *(service, span.name, kind, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()),
            span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
            span.start_time_unix_nano,
            attributes_of(span.attributes),
            tuple(link.span_id.hex() for link in span.links),
        )


def attributes_of(pairs: Iterable[Any]) -> dict[str, Any]:
    """The attributes by name."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "string_value") for pair in pairs}


class Collector:
    """Listens at ``url``, and keeps all spans. As a context manager it ends with its block."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []
        received = self._bodies.append

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
        self.url = f"http://{LOOPBACK}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def settings(self, service: str) -> dict[str, str]:
        """The environment with which that service exports here."""
        return {
            "OTEL_SERVICE_NAME": service,
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    @property
    def raw(self) -> bytes:
        """All that came, in bytes."""
        return b"".join(self._bodies)

    def spans(self, trace_id: str | None = None) -> list[Span]:
        """All spans, or those of a trace, in the order in which they began."""
        spans = [
            Span.read(str(attributes_of(process.resource.attributes)["service.name"]), span)
            for body in list(self._bodies)
            for process in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in process.scope_spans
            for span in scope.spans
        ]
        return sorted((one for one in spans if trace_id in (None, one.trace_id)), key=lambda one: one.began)


class TracedStack(Stack):
    """The demo's stack, with registry and services started by ``opentelemetry-instrument``."""

    def __init__(self, root: Any, collector: Collector) -> None:
        super().__init__(root)
        self._collector = collector
        self.launcher = LAUNCHER
        self.settings["PEERSEAL_LOG_FORMAT"] = "json"
        self.registry_settings |= {**collector.settings("registry"), "REGISTRY_LOG_FORMAT": "json"}

    def service_settings(self, service: str, *, host: str = "host") -> dict[str, str]:
        """See Stack."""
        return super().service_settings(service, host=host) | self._collector.settings(service)


def tree(spans: Iterable[Span]) -> list[str]:
    """One line for each span, indented below its parent."""
    spans = list(spans)
    ids = {span.id for span in spans}

    def lines(parent: Span | None, depth: int) -> list[str]:
        found = []
        for span in spans:
            if (span.parent == parent.id) if parent is not None else (span.parent not in ids):
                found += [f"{span.service:17}{'  ' * depth}{span.name} ({span.kind})", *lines(span, depth + 1)]
        return found

    return lines(None, 0)
