"""What clients do with the key/value store: with nats-py and the command `nats`, before EMQX and standalone."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.js.errors import (
    APIError,
    BucketNotFoundError,
    KeyDeletedError,
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    NoKeysError,
)
from nats.js.kv import KeyValue

from emqx.mqtt import Mqtt, user_properties

DEADLINE = 10.0
WRITERS, TURNS = 20, 10


@asynccontextmanager
async def connected(url: str, **options: object) -> AsyncIterator[Client]:
    client = await nats.connect(url, connect_timeout=int(DEADLINE), **options)
    try:
        yield client
    finally:
        await client.close()


async def initial(watcher: KeyValue.KeyWatcher) -> list[KeyValue.Entry]:
    """What a watcher is told before what happens from now on."""
    entries = []
    while (entry := await watcher.updates(timeout=DEADLINE)) is not None:
        entries.append(entry)
    return entries


async def everything(url: str, bucket: str) -> None:
    """All that nats-py can do with an empty bucket."""
    async with connected(url) as client:
        jetstream = client.jetstream()
        kv = await jetstream.key_value(bucket)
        with pytest.raises(NoKeysError):
            await kv.keys()
        first = await kv.put("a.b", b"one")
        assert 0 < first < 2**53
        entry = await kv.get("a.b")
        assert (entry.value, entry.revision) == (b"one", first)
        assert (await kv.get("a.b")).revision == first
        second = await kv.update("a.b", b"two", last=first)
        assert second > first
        for stale in (first, second + 1, 1):
            with pytest.raises(KeyWrongLastSequenceError):
                await kv.update("a.b", b"lost", last=stale)
        with pytest.raises(KeyWrongLastSequenceError):
            await kv.create("a.b", b"lost")
        assert (await kv.get("a.b")).value == b"two"
        third = await kv.create("c", b"1")
        assert third > second
        assert sorted(await kv.keys()) == ["a.b", "c"]
        assert await kv.keys(filters=["a."]) == ["a.b"]

        watcher = await kv.watchall()
        entries = await initial(watcher)
        assert [(e.key, e.value, e.revision, e.delta) for e in entries] == [
            ("a.b", b"two", second, 1),
            ("c", b"1", third, 0),
        ]
        live = await kv.put("d", b"live")
        entry = await watcher.updates(timeout=DEADLINE)
        assert (entry.key, entry.value, entry.revision, entry.operation) == ("d", b"live", live, None)
        await kv.delete("c")
        entry = await watcher.updates(timeout=DEADLINE)
        assert (entry.key, entry.value, entry.operation) == ("c", b"", "DEL")
        assert entry.revision > live
        await kv.purge("d")
        entry = await watcher.updates(timeout=DEADLINE)
        assert (entry.key, entry.operation) == ("d", "PURGE")
        await watcher.stop()

        with pytest.raises(KeyNotFoundError):
            await kv.get("c")
        fourth = await kv.create("c", b"again")
        assert fourth > entry.revision
        with pytest.raises(APIError, match="wrong last sequence"):
            await kv.delete("c", last=third)
        await kv.delete("c", last=fourth)
        with pytest.raises((KeyNotFoundError, KeyDeletedError)):
            await kv.get("c")

        history = await kv.history("a.b")
        assert [(e.value, e.revision) for e in history] == [(b"two", second)]
        about = await kv.watch("a.*", meta_only=True)
        assert [(e.key, e.value) for e in await initial(about)] == [("a.b", b"")]
        await about.stop()
        nothing = await kv.watch("x.>")
        assert await initial(nothing) == []
        await kv.put("x.y", b"1")
        await kv.put("x", b"no child of x")
        await kv.put("x.z", b"2")
        assert [(await nothing.updates(timeout=DEADLINE)).key for _ in range(2)] == ["x.y", "x.z"]
        await nothing.stop()

        status = await kv.status()
        assert (status.bucket, status.values, status.history) == (bucket, 4, 1)
        with pytest.raises(BucketNotFoundError):
            await jetstream.key_value("no-such-bucket")
        with pytest.raises(APIError, match="cannot be removed"):
            await jetstream.delete_key_value(bucket)
        for key in await kv.keys():
            await kv.delete(key)


async def refusals(url: str, bucket: str) -> None:
    """Each is answered at once, and nothing is half done."""
    async with connected(url) as client:
        jetstream = client.jetstream()
        kv = await jetstream.key_value(bucket)
        await kv.put("k", b"1")
        with pytest.raises(APIError, match="retains no empty value"):
            await kv.put("k", b"")
        for headers, text in (
            ({"Nats-Expected-Last-Sequence": "1"}, "not supported"),
            ({"Nats-Expected-Last-Subject-Sequence": "x"}, "bad request"),
            ({"Nats-Expected-Stream": "KV_other"}, "expected stream does not match"),
            ({"Nats-Rollup": "all"}, "rollup not permitted"),
            ({"Nats-TTL": "0"}, "invalid per-message TTL"),
            ({"Nats-TTL": "999ms"}, "invalid per-message TTL"),
            ({"KV-Operation": "?"}, "bad request"),
        ):
            with pytest.raises(APIError, match=text):
                await jetstream.publish(f"$KV.{bucket}.k", b"2", headers=headers)
        with pytest.raises(APIError, match="no bucket of the gateway's settings"):
            await jetstream.create_key_value(bucket="no-such-bucket")
        with pytest.raises(APIError, match="different configuration"):
            await jetstream.create_key_value(bucket=bucket, history=2)
        with pytest.raises(APIError, match="push consumers"):
            await jetstream.pull_subscribe(f"$KV.{bucket}.>", durable="d", stream=f"KV_{bucket}")
        with pytest.raises(APIError, match="bad request|invalid JSON"):
            await jetstream._api_request(f"$JS.API.CONSUMER.CREATE.KV_{bucket}", b"[]")
        with pytest.raises(APIError, match="not implemented"):
            await jetstream._api_request("$JS.API.META.LEADER.STEPDOWN", b"")
        with pytest.raises(nats.errors.NoRespondersError):
            await client.request("$KV.no-such-bucket.k", b"x", timeout=DEADLINE)
        assert (await kv.get("k")).value == b"1"
        await kv.delete("k")


async def bridge(url: str, bucket: str, topic: str, mqtt: Callable[[], Mqtt]) -> None:
    """What MQTT clients retain are values, and the other way round. `topic` is that of the bucket."""
    with mqtt() as device:
        device.publish(f"{topic}/t/1", b"20", retain=True, UserProperty=[("unit", "C"), ("KV-Operation", "DEL")])
        device.publish(f"{topic}/t/2", b"not retained")
        async with connected(url) as client:
            kv = await client.jetstream().key_value(bucket)
            first = await kv.get("t.1")
            assert first.value == b"20" and 0 < first.revision < 2**53
            assert (await kv.get("t.1")).revision == first.revision
            with pytest.raises(KeyNotFoundError):
                await kv.get("t.2")
            watcher = await kv.watch("t.>")
            assert [(e.key, e.value, e.operation) for e in await initial(watcher)] == [("t.1", b"20", None)]
            device.publish(f"{topic}/t/1", b"21", retain=True)
            device.publish(f"{topic}/t/1", b"only a message")
            device.publish(f"{topic}/t/3", b"5", retain=True)
            device.publish(f"{topic}/t/3", b"", retain=True)
            seen = [await watcher.updates(timeout=DEADLINE) for _ in range(3)]
            assert [(e.key, e.value, e.operation) for e in seen] == [
                ("t.1", b"21", None),
                ("t.3", b"5", None),
                ("t.3", b"", "DEL"),
            ]
            assert first.revision < seen[0].revision < seen[1].revision < seen[2].revision
            with pytest.raises(KeyWrongLastSequenceError):
                await kv.update("t.1", b"lost", last=first.revision)
            await kv.update("t.1", b"22", last=seen[0].revision)
            await client.jetstream().publish(f"$KV.{bucket}.t.4", b"1", headers={"unit": "K", "Nats-TTL": "1h"})
        with mqtt() as other:
            other.subscribe(f"{topic}/t/#")
            got = {m.topic: m for m in other.messages(2)}
            assert {t: m.payload for t, m in got.items()} == {f"{topic}/t/1": b"22", f"{topic}/t/4": b"1"}
            assert all(message.retain for message in got.values())
            assert ("unit", "K") in user_properties(got[f"{topic}/t/4"])
            assert "Nats-TTL" not in dict(user_properties(got[f"{topic}/t/4"]))
            assert 3500 < got[f"{topic}/t/4"].properties.MessageExpiryInterval <= 3600
        for number in (1, 4):
            device.publish(f"{topic}/t/{number}", b"", retain=True)


async def expiry(url: str, bucket: str) -> None:
    async with connected(url) as client:
        kv = await client.jetstream().key_value(bucket)
        await client.jetstream().publish(f"$KV.{bucket}.soon", b"1", headers={"Nats-TTL": "1s"})
        assert (await kv.get("soon")).value == b"1"
        until = time.monotonic() + DEADLINE
        while True:
            try:
                await kv.get("soon")
            except KeyNotFoundError:
                return
            assert time.monotonic() < until
            await asyncio.sleep(0.2)


async def denied(url: str, login: dict) -> None:
    """All keys of the bucket `closed` are refused by the broker, at once, and those of `open` are not."""
    async with connected(url, **login) as client:
        jetstream = client.jetstream()
        closed, free = await jetstream.key_value("closed"), await jetstream.key_value("open")
        for request in (closed.put("k", b"1"), closed.create("k", b"1"), closed.delete("k"), closed.get("k"), closed.watchall()):
            with pytest.raises(APIError, match="the broker refuses it: not_authorized"):
                await request
        assert (await closed.status()).values == 0
        await free.put("k", b"1")
        assert (await free.get("k")).value == b"1"
        assert await free.keys() == ["k"]
        await free.delete("k")


async def reconnect(url: str, bucket: str) -> None:
    """A watcher whose connection is cut goes on where it was, as soon as its client is there again."""
    gone, connected_again = asyncio.Event(), asyncio.Event()

    async def note_end() -> None:
        gone.set()

    async def note() -> None:
        connected_again.set()

    options = {"reconnect_time_wait": 0.1, "disconnected_cb": note_end, "reconnected_cb": note}
    async with connected(url, **options) as client, connected(url) as writing:
        kv = await client.jetstream().key_value(bucket)
        own = await writing.jetstream().key_value(bucket)
        for key in ("r.a", "r.gone"):
            await own.put(key, b"0")
        watcher = await kv.watch("r.>")
        assert {e.value for e in await initial(watcher)} == {b"0"}
        latencies = []
        for turn in range(1, 4):
            gone.clear()
            connected_again.clear()
            # The client hears of the end when the gateway has: values that are on their way then would be lost.
            client._transport._io_writer.get_extra_info("socket").shutdown(socket.SHUT_WR)
            await asyncio.wait_for(gone.wait(), DEADLINE)
            values = [(key, f"{turn} {n}".encode()) for n in range(20) for key in ("r.a", "r.b")]
            for key, value in values:
                await own.put(key, value)
            if turn == 1:
                await own.delete("r.gone")
            await asyncio.wait_for(connected_again.wait(), DEADLINE)
            since = time.monotonic()
            await own.put("r.c", b"last")
            seen = []
            while (entry := await watcher.updates(timeout=DEADLINE)).key != "r.c":
                seen.append((entry.key, entry.value, entry.operation))
            latencies.append(time.monotonic() - since)
            deleted = [("r.gone", None, "DEL")] if turn == 1 else []
            assert [(k, v or None, o) for k, v, o in seen] == [(k, v, None) for k, v in values] + deleted
        print(f"the next value after {[f'{s * 1000:.0f} ms' for s in latencies]}")
        assert max(latencies) < 2.0
        for key in ("r.a", "r.b", "r.c"):
            await own.delete(key)


async def written_elsewhere(writes_at: str, reads_at: str, bucket: str) -> None:
    """What is acknowledged at one node is read, listed and watched at another at once."""
    async with connected(writes_at) as writing, connected(reads_at) as reading:
        own = await writing.jetstream().key_value(bucket)
        kv = await reading.jetstream().key_value(bucket)
        for number in range(250):
            key = f"elsewhere.{number}"
            revision = await own.put(key, b"1")
            if number % 10 == 0:
                assert (await kv.get(key)).revision == revision
                assert len(await kv.keys()) == number + 1
        watcher = await kv.watch("elsewhere.>")
        found = await initial(watcher)
        await watcher.stop()
        assert {entry.key for entry in found} == {f"elsewhere.{number}" for number in range(250)} and len(found) == 250
        for number in range(250):
            await own.delete(f"elsewhere.{number}")
            if number % 50 == 0:
                assert len(await kv.keys()) == 249 - number
        with pytest.raises(NoKeysError):
            await kv.keys()


async def writers(urls: list[str], bucket: str) -> None:
    """Each adds to one number, and tries again when somebody else was first. No addition is lost."""

    async def add(url: str) -> int:
        async with connected(url) as client:
            kv = await client.jetstream().key_value(bucket)
            refused = 0
            for _ in range(TURNS):
                while True:
                    entry = await kv.get("sum")
                    try:
                        await kv.update("sum", str(int(entry.value) + 1).encode(), last=entry.revision)
                        break
                    except KeyWrongLastSequenceError:
                        refused += 1
            return refused

    async def create(url: str) -> bool:
        async with connected(url) as client:
            try:
                await (await client.jetstream().key_value(bucket)).create("once", url.encode())
                return True
            except KeyWrongLastSequenceError:
                return False

    async with connected(urls[0]) as client:
        kv = await client.jetstream().key_value(bucket)
        await kv.put("sum", b"0")
        refused = await asyncio.gather(*(add(urls[n % len(urls)]) for n in range(WRITERS)))
        assert int((await kv.get("sum")).value) == WRITERS * TURNS
        # otherwise they have not met
        assert sum(refused) > 0
        created = await asyncio.gather(*(create(urls[n % len(urls)]) for n in range(WRITERS)))
        assert sum(created) == 1
        await kv.delete("sum")
        await kv.delete("once")


async def no_gap(url: str, bucket: str, topic: str, mqtt: Callable[[], Mqtt]) -> None:
    """Watchers that come while others write see the last value of each key, in order, and nothing twice."""
    keys, rounds = 40, 25
    with mqtt() as device:
        async with connected(url) as client, connected(url) as writing:
            kv = await client.jetstream().key_value(bucket)
            own = await writing.jetstream().key_value(bucket)
            seen: list[list[KeyValue.Entry]] = []

            async def watch() -> None:
                watcher = await kv.watchall()
                entries: list[KeyValue.Entry] = []
                seen.append(entries)
                ended = set()
                while len(ended) < keys:
                    entry = await watcher.updates(timeout=DEADLINE)
                    if entry is not None:
                        entries.append(entry)
                        if entry.value == b"end":
                            ended.add(entry.key)
                await watcher.stop()

            watching = []
            for number in range(rounds):
                for key in range(keys):
                    if key % 4 == 0:
                        await own.put(f"k.{key}", str(number).encode())
                    else:
                        device.publish(f"{topic}/k/{key}", str(number).encode(), qos=0, retain=True)
                if number % 5 == 0:
                    watching.append(asyncio.create_task(watch()))
                await asyncio.sleep(0)
            for key in range(keys):
                device.publish(f"{topic}/k/{key}", b"end", retain=True)
            await asyncio.gather(*watching)
            for entries in seen:
                versions = [(entry.key, entry.revision) for entry in entries]
                assert len(set(versions)) == len(versions)
                for key in range(keys):
                    values = [e for e in entries if e.key == f"k.{key}"]
                    assert [e.revision for e in values] == sorted(e.revision for e in values)
                    numbers = [int(e.value) for e in values if e.value != b"end"]
                    assert numbers == sorted(set(numbers)) and values[-1].value == b"end"
            for key in await kv.keys():
                await kv.delete(key)


TOOLS = Path(__file__).resolve().parents[1] / ".tools" / "bin"


def command(url: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    cli = os.environ.get("NATS_CLI") or shutil.which("nats", path=str(TOOLS)) or shutil.which("nats")
    assert cli, "no command `nats`: run bin/install-missing test"

    def run(*arguments: str, deadline: float = 20.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [cli, "-s", url, "--no-context", "kv", *arguments],
            capture_output=True,
            text=True,
            timeout=deadline,
            stdin=subprocess.DEVNULL,
        )

    return run


def with_the_command(url: str, bucket: str) -> None:
    kv = command(url)

    def said(*arguments: str) -> str:
        done = kv(*arguments)
        assert done.returncode == 0, done
        return done.stdout

    def refused(*arguments: str) -> str:
        done = kv(*arguments)
        assert done.returncode != 0, done
        return done.stdout + done.stderr

    assert bucket in said("ls", "--names").split()
    assert "retained messages" in said("status", bucket)
    said("add", bucket)
    assert "only these are there" in refused("add", "no-such-bucket")
    said("put", bucket, "x.y", "hello")
    assert said("get", bucket, "x.y", "--raw") == "hello"
    assert "key not found" in refused("get", bucket, "nope")
    said("create", bucket, "c.d", "new")
    assert "key exists" in refused("create", bucket, "c.d", "again")
    revision = said("get", bucket, "x.y").split("revision: ")[1].split()[0]
    said("update", bucket, "x.y", "hello2", revision)
    assert "wrong last sequence" in refused("update", bucket, "x.y", "hello3", revision)
    assert "hello2" in said("history", bucket, "x.y")
    assert said("ls", bucket).split() == ["c.d", "x.y"]
    said("del", bucket, "c.d", "-f")
    said("purge", bucket, "x.y", "-f")
    assert "key not found" in refused("get", bucket, "x.y")
    assert "cannot be removed" in refused("del", bucket, "-f")


def retain(broker: tuple[str, int], topics: Iterable[str], payload: bytes) -> None:
    """Publishes as fast as the broker takes it."""

    def packet(first: int, body: bytes) -> bytes:
        length, rest = b"", len(body)
        while not length or rest:
            length, rest = length + bytes([rest % 128 | (128 if rest >= 128 else 0)]), rest // 128
        return bytes([first]) + length + body

    with socket.create_connection(broker, DEADLINE) as connection:
        connection.sendall(packet(0x10, b"\0\4MQTT\5\2\0\0\0\0\0"))
        assert connection.recv(1) == b"\x20"
        with connection.makefile("wb", 1 << 20) as out:
            for topic in topics:
                name = topic.encode()
                out.write(packet(0x31, struct.pack(">H", len(name)) + name + b"\0" + payload))
            out.write(b"\xc0\0")
        answers = b""
        while not answers.endswith(b"\xd0\0"):
            answers += connection.recv(4096)


async def large(url: str, bucket: str, count: int, size: int, watch: bool) -> None:
    async with connected(url) as client:
        # All keys are looked at before the first answer, on a machine that has other things to do.
        kv = await client.jetstream(timeout=60).key_value(bucket)
        assert (await kv.status()).values == count
        keys = await kv.keys()
        assert (len(keys), len(set(keys))) == (count, count)
        if watch:
            values = await initial(await kv.watchall())
            assert len({entry.key for entry in values if len(entry.value) == size}) == len(values) == count
