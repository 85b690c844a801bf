"""A reverse proxy as nginx is one by default: it takes the prefix off, renames the host, and tells the client's address."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "host", "content-length")


@contextmanager
def reverse_proxy(port: int, prefix: str = "/har", *, strips: bool = True) -> Iterator[int]:
    """Forward requests below the prefix to a port of this machine; yield the proxy's port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as upstream:
                upstream.request(self.command, self.path.removeprefix(prefix if strips else ""), body, self._headers())
                self._answer(upstream.getresponse())

        do_POST = do_GET

        def _headers(self) -> dict[str, str]:
            kept = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            return kept | {"X-Forwarded-For": self.headers.get("Client", self.client_address[0]), "X-Forwarded-Proto": "http"}

        def _answer(self, answer: http.client.HTTPResponse) -> None:
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
