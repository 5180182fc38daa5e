"""NATS's key/value store with nats-py: the gateway before Mosquitto, the plugin in each EMQX, and a nats-server that
keeps the bucket in memory.
"""

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

from bench.peers import EmqxPeers
from bench.scenarios import NATS_SERVER, OURS, STANDALONE
from clients.stack import Stack, gateway_in_front_of, mosquitto, nats_server
from emqx.node import name_vsn
from emqx.page import Page
from wire.servers import nats_server_path

BUCKET = "bench"
VALUE = bytes(128)
# Requests under way while the keys are written.
TOGETHER = 100
DEADLINE = 60.0


@contextmanager
def peers(directory: Path, homes: list[Path], package: Path | None) -> Iterator[dict[str, str]]:
    """The address of each. They all run at the same time, and one of them is measured."""
    with ExitStack() as stack:
        broker = mosquitto(directory / "broker", "allow_anonymous true\n")
        settings = {"kv": {"enable": True, "buckets": [BUCKET]}}
        gateway = stack.enter_context(Stack(gateway_in_front_of(broker.address, directory, settings), broker))
        found = {STANDALONE: gateway.url}
        for home in homes:
            emqx = stack.enter_context(EmqxPeers(home, package))
            found[f"{OURS} in EMQX {emqx.version()}"] = _store_of(emqx, package)
        if nats_server_path() is not None:
            store = json.dumps(str(directory / "jetstream"))
            server = nats_server(directory / "server", f"jetstream {{ store_dir: {store} }}\n")
            found[NATS_SERVER] = stack.enter_context(Stack(server, None)).url
        yield found


def _store_of(emqx: EmqxPeers, package: Path) -> str:
    # EMQX would retain 1000 messages per second, and drop the others.
    retainer = emqx.node.rest.get("/mqtt/retainer")
    emqx.node.rest.put("/mqtt/retainer", retainer | {"max_publish_rate": "1000000/s"})
    # EMQX 5.10 takes the rate that held before the change.
    emqx.node.eval("emqx_retainer_limiter:update().")
    host, port = emqx.peer(OURS).address
    Page(emqx.node, name_vsn(package)).change(kv_enable=True, kv_buckets=[BUCKET])
    return f"nats://{host}:{port}"


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
