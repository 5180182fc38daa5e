"""What one client can do with the key/value store: requests that nobody reads the answers of, watchers, and wrong requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostile.clients import Client, pub
from hostile.conftest import PROGRAM, Hosts, Watch, size
from hostile.hosts import Host
from hostile.measure import MB

BUCKET = "hostile"
MAX_PENDING = 64 * MB
WRONG = {
    "no_json": b"{" * 1000,
    "deep_json": b"[" * 200_000,
    "large_json": json.dumps({"config": {"deliver_subject": "d" * 900_000}}).encode(),
    "binary": bytes(range(256)) * 1000,
    "other_types": json.dumps({"config": {"filter_subjects": [{}] * 50_000, "deliver_subject": 7}}).encode(),
}


@pytest.fixture
def store(hosts: Hosts, place: str | Path) -> Host:
    if place == PROGRAM:
        return hosts(kv={"enable": True, "buckets": [BUCKET]})
    return hosts(kv_enable=True, kv_buckets=[BUCKET])


def watcher(number: int) -> bytes:
    config = {
        "deliver_subject": f"d.{number}", "deliver_policy": "last_per_subject", "ack_policy": "none",
        "filter_subject": f"$KV.{BUCKET}.>", "idle_heartbeat": 5_000_000_000,
    }
    request = json.dumps({"stream_name": f"KV_{BUCKET}", "config": config}).encode()
    return pub(f"$JS.API.CONSUMER.CREATE.KV_{BUCKET}", request, "answers")


def test_requests_whose_answers_nobody_reads(store: Host, watch: Watch):
    """More than 4096 that wait are refused, and the answers to all of them are bounded by max_pending."""
    with watch(store) as seen:
        with Client(store.address()) as client:
            client.send(b"SUB answers 1\r\n")
            client.send_if_taken(pub(f"$JS.API.STREAM.INFO.KV_{BUCKET}", b"", "answers") * size(50_000, 500_000))
            client.send_if_taken(pub(f"$KV.{BUCKET}.k", bytes(100_000), "answers") * size(500, 5000))
        with Client(store.address()) as client:
            client.ping()
    seen.stays_below(2 * MAX_PENDING)
    seen.neighbour_is_well()


def answer(client: Client, subject: str) -> dict:
    """The next message there; others are thrown away."""
    while True:
        line = client.line()
        assert line.startswith((b"MSG ", b"HMSG ")), line
        payload = client.take(int(line.rsplit(b" ", 1)[1]) + 2)[:-2]
        if line.split(b" ")[1] == subject.encode():
            return json.loads(payload)


def test_watchers_that_nobody_reads(store: Host, place: str | Path, watch: Watch):
    """One more than a client may have is refused. A watcher that is behind costs the names of its keys."""
    most = 100 if place == PROGRAM else 250
    with watch(store) as seen:
        with Client(store.address()) as client, Client(store.address()) as writer:
            client.send(b"SUB answers 1\r\nSUB d.* 2\r\n" + b"".join(map(watcher, range(most + 1))))
            answers = [answer(client, "answers") for _ in range(most + 1)]
            assert [number for number, one in enumerate(answers) if "error" in one] == [most]
            writer.send(b"SUB stored 1\r\n")
            for turn in range(size(10, 100)):
                for key in range(100):
                    writer.send(pub(f"$KV.{BUCKET}.k{key}", b"%d" % turn * 1000, "stored"))
                for _ in range(100):
                    answer(writer, "stored")
    seen.stays_below(6 * MAX_PENDING)
    seen.neighbour_is_well()


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_requests(store: Host, kind: str):
    """Each is answered with an error, and the client is served on."""
    with Client(store.address()) as client:
        client.send(b"SUB answers 1\r\n")
        for name in (f"CONSUMER.CREATE.KV_{BUCKET}", f"STREAM.CREATE.KV_{BUCKET}", f"STREAM.MSG.GET.KV_{BUCKET}"):
            client.send(pub(f"$JS.API.{name}", WRONG[kind], "answers"))
            assert "error" in answer(client, "answers")
        client.ping()
