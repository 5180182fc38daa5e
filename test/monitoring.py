"""The monitoring port of a gateway, as those ask it who watch it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

from ports import HOST


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def answers(port: int) -> bool:
    """OTP's httpd may answer with 500 before it has read all of its settings: until then the gateway does not say that
    the port is open."""
    try:
        return get(port, "/subsz")[0] == 200
    except OSError:
        return False


def get_json(port: int, path: str) -> dict:
    status, body = get(port, path)
    assert status == 200, body
    return json.loads(body)


def connections(port: int, query: str = "") -> list[dict]:
    return get_json(port, f"/connz{query}")["connections"]


def metrics(port: int) -> dict[str, float]:
    status, body = get(port, "/metrics")
    assert status == 200
    return samples(body)


def samples(text: str) -> dict[str, float]:
    """The value of each sample in the text for Prometheus, by its name with its labels."""
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}
