"""EMQX's REST API, over the standard library."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass
from typing import Any

DEADLINE = 30.0
USER, PASSWORD = "admin", "public"


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any

    def __str__(self) -> str:
        return f"{self.status} {json.dumps(self.body) if not isinstance(self.body, str) else self.body}"


class RestError(AssertionError):
    """An answer other than the one the test went on from."""

    def __init__(self, what: str, answer: Answer):
        super().__init__(f"{what}: {answer}")
        self.answer = answer


class Rest:
    def __init__(self, url: str, password: str = PASSWORD):
        self._url = url
        self._password = password
        self._token: str | None = None

    def login(self) -> None:
        self._token = None
        self._token = self.post("/login", {"username": USER, "password": self._password})["token"]

    def get(self, path: str, **query: Any) -> Any:
        return self._expect("GET", path, None, query)

    def post(self, path: str, body: Any = None) -> Any:
        return self._expect("POST", path, body)

    def put(self, path: str, body: Any = None) -> Any:
        return self._expect("PUT", path, body)

    def delete(self, path: str) -> Any:
        return self._expect("DELETE", path)

    def upload(self, path: str, field: str, name: str, content: bytes) -> Answer:
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
        body = f"{head}Content-Type: application/gzip\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return self._send("POST", path, body, f"multipart/form-data; boundary={boundary}")

    def call(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> Answer:
        """Whatever the status is."""
        if query:
            path = f"{path}?{urllib.parse.urlencode(query)}"
        return self._send(method, path, None if body is None else json.dumps(body).encode(), "application/json")

    def _expect(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        answer = self.call(method, path, body, query)
        if not 200 <= answer.status < 300:
            raise RestError(f"{method} {path}", answer)
        return answer.body

    def _send(self, method: str, path: str, body: bytes | None, content_type: str) -> Answer:
        headers = {"Content-Type": content_type} if body is not None else {}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        request = urllib.request.Request(self._url + path, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as response:
                return Answer(response.status, _decoded(response.read()))
        except urllib.error.HTTPError as error:
            return Answer(error.code, _decoded(error.read()))


def _decoded(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def quoted(part: str) -> str:
    """One segment of a path."""
    return urllib.parse.quote(part, safe="")
