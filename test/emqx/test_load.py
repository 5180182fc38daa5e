"""A node under load: nothing lost, nobody starved, no scheduler held up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from clients import load
from emqx.gateway import Gateway
from emqx.node import Node

pytestmark = pytest.mark.timeout(3 * load.DEADLINE, func_only=True)

LONG_MS = 20
ATTEMPTS = 8
MIB = 1024 * 1024


def test_burst_to_one_reader(gateway: Gateway, name: str):
    load.burst_to_one_reader(gateway.address, name)


def test_flood_and_listen(gateway: Gateway, name: str):
    load.flood_and_listen(gateway.address, name)


def test_a_publisher_that_waits_for_its_last_messages_is_not_held_back(gateway: Gateway, name: str):
    """The subscriber says nothing, because the publisher is told in another way; it gets many messages, but few at a time."""
    frame, count = f"MSG {name} 1 1\r\nx\r\n", 4
    with gateway.nats() as subscriber, gateway.nats() as publisher:
        subscriber.subscribe(name)
        subscriber.ping()
        times = []
        for _ in range(1500):
            began = time.monotonic()
            publisher.send(f"PUB {name} 1\r\nx\r\n" * count)
            subscriber.read(count * len(frame))
            times.append(time.monotonic() - began)
    # Messages that are collected wait for a millisecond or two. A busy machine makes most of them late, but not the fastest ones
    # of the second half, in which the gateway has learned that collecting does not help.
    assert sorted(times[750:])[75] < 0.001, f"{1000 * statistics.median(times):.1f} ms"


# Collects what schedulers ran for too long without a break. Beside it a process that does nothing but let others run:
# where it is found, too, the machine has stopped the scheduler's thread.
WATCHER = """
spawn(fun() ->
    register(long_schedules, self()),
    Control = spawn_link(fun() -> (fun Spin() -> erlang:yield(), Spin() end)() end),
    Before = erlang:system_monitor(self(), [{long_schedule, LONG_MS}]),
    Collect = fun Collect(Seen) ->
        receive
            {monitor, Control, long_schedule, Info} ->
                Collect([{control, Info} | Seen]);
            {monitor, Who, long_schedule, Info} ->
                Collect([{is_pid(Who) andalso proc_lib:translate_initial_call(Who), Info} | Seen]);
            {finish, From} ->
                erlang:system_monitor(Before),
                unlink(Control),
                exit(Control, kill),
                From ! {long_schedules, Seen}
        end
    end,
    Collect([])
end),
(fun Wait() -> case whereis(long_schedules) of undefined -> timer:sleep(5), Wait(); _ -> ok end end)()
""".replace("LONG_MS", str(LONG_MS)).strip()
FINISH = (
    "long_schedules ! {finish, self()}, "
    "receive {long_schedules, Seen} -> [io:format(\"~0p~n\", [One]) || One <- Seen], io:nl() end"
)


def long_schedules(node: Node, work: Callable[[], None]) -> list[str]:
    """Those of processes that did the work, or of any if the machine itself was late."""
    node.eval(WATCHER)
    try:
        work()
    finally:
        seen = node.eval(FINISH).splitlines()
    return [one for one in seen if one.startswith("{")]


def tiny_messages(gateway: Gateway, name: str) -> None:
    """Many operations in each read, to a subscriber that gets them all."""
    line = f"PUB {name}.tiny 1\r\nx\r\n".encode()
    count = 20_000
    with gateway.nats() as subscriber, gateway.nats() as publisher:
        subscriber.subscribe(f"{name}.tiny")
        with load.sending(publisher, line * count):
            subscriber.read(count * len(f"MSG {name}.tiny 1 1\r\nx\r\n"))


def large_messages(gateway: Gateway, name: str) -> None:
    payload = b"x" * MIB
    with gateway.nats() as subscriber, gateway.nats() as publisher:
        subscriber.subscribe(f"{name}.large")
        with load.sending(publisher, (f"PUB {name}.large {MIB}\r\n".encode() + payload + b"\r\n") * 20):
            subscriber.read(20 * (len(f"MSG {name}.large 1 {MIB}\r\n") + MIB + 2))


def many_sids(gateway: Gateway, name: str) -> None:
    """One delivery of the broker is many messages."""
    sids = range(1, 20_001)
    with gateway.nats() as subscriber, gateway.nats() as publisher:
        subscriber.send("".join(f"SUB {name}.many {sid}\r\n" for sid in sids))
        subscriber.ping()
        publisher.send(f"PUB {name}.many 1\r\nx\r\n" * 3)
        subscriber.read(3 * sum(len(f"MSG {name}.many {sid} 1\r\nx\r\n") for sid in sids))


def many_subscribers(gateway: Gateway, name: str) -> None:
    line = f"PUB {name}.all 4\r\nabcd\r\n".encode()
    count = 3_000
    with ExitStack() as stack:
        subscribers = [stack.enter_context(gateway.nats()).subscribe(f"{name}.all") for _ in range(8)]
        publisher = stack.enter_context(gateway.nats())
        with load.sending(publisher, line * count):
            for subscriber in subscribers:
                subscriber.read(count * len(f"MSG {name}.all 1 4\r\nabcd\r\n"))


@pytest.mark.plugin
@pytest.mark.parametrize("work", [tiny_messages, large_messages, many_sids, many_subscribers])
def test_no_scheduler_is_held_up(gateway: Gateway, node: Node, name: str, work: Callable[[Gateway, str], None]):
    found = []
    for attempt in range(ATTEMPTS):
        seen = long_schedules(node, lambda: work(gateway, f"{name}a{attempt}"))
        if not any("nats_gateway" in one for one in seen):
            return
        found.append(seen)
    # Where one process that does nothing but yield was held up, too, an attempt says nothing.
    undisturbed = [seen for seen in found if not any(one.startswith("{control") for one in seen)]
    if len(undisturbed) < ATTEMPTS / 2:
        pytest.skip("the machine is too busy: it stops every process for more than 20 ms")
    pytest.fail(f"more than {LONG_MS} ms in each of {ATTEMPTS} attempts: {undisturbed}")


def test_the_watcher_sees_what_holds_up(node: Node):
    """Or the test above could not fail."""
    seen = long_schedules(
        node,
        lambda: node.eval(
            "{P, M} = spawn_monitor(fun() -> erts_debug:set_internal_state(available_internal_state, true), "
            f"erts_debug:set_internal_state(block, {3 * LONG_MS}) end), receive {{'DOWN', M, _, P, _}} -> ok end"
        ),
    )
    assert any("set_internal_state" in one for one in seen), seen
