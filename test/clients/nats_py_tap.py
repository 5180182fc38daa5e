"""Unmodified nats-py as a program: reports what arrives and publishes what it is told to."""

from __future__ import annotations

import asyncio
import base64
import json
import sys

import nats
from nats.aio.msg import Msg


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


async def report(message: Msg) -> None:
    headers = [[name, value] for name, value in (message.headers or {}).items()]
    payload = base64.b64encode(message.data).decode()
    say("message", subject=message.subject, reply=message.reply or None, headers=headers, payload=payload)


async def error(problem: Exception) -> None:
    say("closed", error=repr(problem))


async def barrier(nc: nats.NATS) -> None:
    # nats-py writes the PING of a flush at once, ahead of what it has queued. That is written by the time of the PONG.
    await nc.flush()
    await nc.flush()


async def main() -> None:
    given = json.loads(sys.argv[2])
    nc = await nats.connect(given["url"], no_echo=True, allow_reconnect=False, error_cb=error)
    for pattern in given["subjects"]:
        await nc.subscribe(pattern, cb=report)
    await barrier(nc)
    say("ready")
    while True:
        line = json.loads(await asyncio.to_thread(sys.stdin.readline))
        if line["do"] == "stop":
            await nc.close()
            return
        await nc.publish(line["subject"], base64.b64decode(line["payload"]))
        await barrier(nc)
        say("published")


asyncio.run(main())
