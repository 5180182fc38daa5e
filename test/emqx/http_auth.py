"""A tiny HTTP service for EMQX's HTTP authenticator and authorizer."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"


class HttpAuthority:
    """Answers by user name; remembers what it was asked."""

    def __init__(self, delay: float = 0.0):
        """delay: seconds before each answer."""
        self.answers: dict[str, dict] = {}
        self.requests: list[dict] = []
        authority = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                authority.requests.append(request)
                time.sleep(delay)
                answer = json.dumps(authority.answers.get(request.get("username"), {"result": "deny"})).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_) -> None:
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    def __enter__(self) -> HttpAuthority:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def authenticator(self) -> dict:
        return self._service | {
            "mechanism": "password_based",
            "backend": "http",
            "body": {
                "username": "${username}",
                "password": "${password}",
                "clientid": "${clientid}",
                "peerhost": "${peerhost}",
            },
        }

    @property
    def authorizer(self) -> dict:
        return self._service | {"type": "http", "enable": True, "body": {"username": "${username}", "topic": "${topic}"}}

    @property
    def _service(self) -> dict:
        return {
            "method": "post",
            "url": f"http://{HOST}:{self._server.server_port}/ask",
            "headers": {"content-type": "application/json"},
            "pool_size": 1,
        }
