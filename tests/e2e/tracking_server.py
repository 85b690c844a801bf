"""As much of an MLflow server as a run needs: it keeps what it is told, and dies or stalls when a test asks it to."""

from __future__ import annotations

import json
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class TrackingServer(ThreadingHTTPServer):
    """Answers on a port of its own until it is told otherwise."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, bytes]] = []
        """Path, headers aside, and body of each request that was answered."""
        self.runs: dict[str, str] = {}
        """The status of each run."""
        self.is_silent = threading.Event()
        self.goes_on = threading.Event()
        self.answers_left = float("inf")

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> TrackingServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.goes_on.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: TrackingServer
    MODEL: ClassVar[dict[str, Any]] = {
        "model_id": "m-1", "experiment_id": "1", "name": "model", "artifact_uri": "mlflow-artifacts:/1/models/m-1/artifacts"
    }  # fmt: skip
    ANSWERS: ClassVar[dict[str, Any]] = {
        "experiments/create": {"experiment_id": "1"},
        "logged-models": {"model": {"info": MODEL}},
        "logged-models/m-1": {"model": {"info": MODEL}},
        "model-versions/create": {"model_version": {"name": "har", "version": "1", "status": "READY"}},
        "model-versions/search": {"model_versions": [{"name": "har", "version": "1"}]},
    }

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server = self.server
        if server.answers_left <= 0:
            if server.is_silent.is_set():
                server.goes_on.wait(60)
            self.close_connection = True
            return
        server.answers_left -= 1
        server.requests.append((self.path, body))
        status, answer = self._result(self.path.split("?")[0].partition("/mlflow/")[2], body)
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = _answer

    def _result(self, call: str, body: bytes) -> tuple[int, Any]:
        runs = self.server.runs
        if call == "experiments/get-by-name":
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}
        if call == "runs/create":
            run_id = uuid.uuid4().hex  # MLflow remembers where the artifacts of a run's address go
            runs[run_id] = "RUNNING"
            return 200, _run(run_id)
        if call == "runs/get":
            return 200, _run(self.path.partition("run_id=")[2].split("&")[0])
        if call == "runs/update":
            update = json.loads(body)
            runs[update["run_id"]] = update["status"]
        return 200, self.ANSWERS.get(call, {})


def _run(run_id: str) -> dict[str, Any]:
    info = {"run_id": run_id, "run_uuid": run_id, "experiment_id": "1", "status": "RUNNING"}
    return {"run": {"info": info | {"artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts"}, "data": {}}}
