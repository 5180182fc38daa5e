"""NATS's key/value store with nats-py: the gateway before Mosquitto, and a nats-server that keeps the bucket in memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import nats
from nats.js.api import KeyValueConfig, StorageType
from nats.js.errors import BucketNotFoundError
from nats.js.kv import KeyValue

from bench.scenarios import NATS_SERVER, STANDALONE
from clients.stack import Stack, gateway_in_front_of, mosquitto, nats_server
from wire.servers import nats_server_path

BUCKET = "bench"
VALUE = bytes(128)
# Requests under way while the keys are written.
TOGETHER = 100
DEADLINE = 60.0


@contextmanager
def peers(directory: Path) -> Iterator[dict[str, str]]:
    """The address of each."""
    with ExitStack() as stack:
        broker = mosquitto(directory / "broker", "allow_anonymous true\n")
        settings = {"kv": {"enable": True, "buckets": [BUCKET]}}
        gateway = stack.enter_context(Stack(gateway_in_front_of(broker.address, directory, settings), broker))
        found = {STANDALONE: gateway.url}
        if nats_server_path() is not None:
            store = json.dumps(str(directory / "jetstream"))
            server = nats_server(directory / "server", f"jetstream {{ store_dir: {store} }}\n")
            found[NATS_SERVER] = stack.enter_context(Stack(server, None)).url
        yield found


def measure(url: str, turn: int, requests: int, keys: int) -> dict[str, float]:
    return asyncio.run(_measure(url, turn, requests, keys))


async def _measure(url: str, turn: int, requests: int, keys: int) -> dict[str, float]:
    """Medians of one request at a time in microseconds; and the seconds for a list of all keys."""
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        try:
            kv = await jetstream.key_value(BUCKET)
        except BucketNotFoundError:
            kv = await jetstream.create_key_value(KeyValueConfig(bucket=BUCKET, storage=StorageType.MEMORY))
        found = {
            "put": await _median(requests, lambda number: kv.put(f"put.{number % 100}", VALUE)),
            "get": await _median(requests, lambda number: kv.get(f"put.{number % 100}")),
            "create": await _median(requests, lambda number: kv.create(f"create.{turn}.{number}", VALUE)),
            "watch": await _watch(kv, requests),
        }
        for first in range(0, keys, TOGETHER):
            await asyncio.gather(*(kv.put(f"keys.{turn}.{number}", VALUE) for number in range(first, first + TOGETHER)))
        began = time.perf_counter()
        listed = [key for key in await kv.keys() if key.startswith(f"keys.{turn}.")]
        found["keys"] = time.perf_counter() - began
        if len(set(listed)) != keys:
            raise ValueError(f"{len(set(listed))} of {keys} keys were listed")
        return found
    finally:
        await client.close()


async def _median(requests: int, request: Callable[[int], Awaitable[object]]) -> float:
    times = []
    for number in range(requests):
        began = time.perf_counter()
        await request(number)
        times.append(time.perf_counter() - began)
    return sorted(times)[requests // 2] * 1e6


async def _watch(kv: KeyValue, requests: int) -> float:
    """From a put until the watcher has the value."""
    watcher = await kv.watch("watched")
    while await watcher.updates(timeout=DEADLINE) is not None:
        pass

    async def told(number: int) -> None:
        writing = asyncio.ensure_future(kv.put("watched", b"%d" % number))
        entry = await watcher.updates(timeout=DEADLINE)
        if entry.value != b"%d" % number:
            raise ValueError(f"{entry.value} instead of {number}")
        await writing

    try:
        return await _median(requests, told)
    finally:
        await watcher.stop()
