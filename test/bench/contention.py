"""What the schedulers of a node share, and how often a message touches it: what grows with cores is not to wait for it."""

from __future__ import annotations

import re
from typing import Any

from bench.peers import EmqxPeers
from bench.scenarios import BARE, BUILT_IN, MQTT, OURS

PEERS = (OURS, MQTT, BUILT_IN)
# Name, subscribers, messages. Counts do not depend on how busy the machine is, so one run will do.
CASES = (("publish", 0, 20_000), ("1:1", 1, 20_000), ("1:8", 8, 5000))
BUILT_IN_SHARE = 4
PAYLOAD = 128

# Readers never wait for each other. A counter takes no lock, but its cache line moves between cores.
KINDS = {
    "reads of persistent terms": r"persistent_term:get",
    "reads of tables": r"ets:(lookup|lookup_element|member|next|first|select|match|info|fold)",
    "counters written": r"(counters|atomics):(add|sub|put)",
    "writes to tables": r"ets:(insert|insert_new|update_counter|update_element|delete|delete_object|take|select_delete|select_replace)",
    "persistent terms written": r"persistent_term:(put|erase)",
}


def measure(emqx: EmqxPeers) -> list[dict[str, Any]]:
    """Calls per message, for each peer and case."""
    rows = []
    for name in PEERS:
        peer = emqx.peer(name)
        for case, subscribers, most in CASES:
            messages = most // (BUILT_IN_SHARE if name == BUILT_IN else 1)
            flow = {"measure": "flow", "payload": PAYLOAD, "subscribers": subscribers}
            # Caches are filled, and what is only done at the beginning is done.
            peer.measure(flow | {"messages": messages // 4})
            calls = _counted(emqx, lambda: peer.measure(flow | {"messages": messages}))
            rows.append({"peer": name, "case": case} | _per_message(calls, messages))
    case, _, messages = CASES[0]
    calls = _counted(emqx, lambda: emqx.node.eval(f"publish_loop:run({messages}, {PAYLOAD})."))
    return [*rows, {"peer": BARE, "case": case} | _per_message(calls, messages)]


def _counted(emqx: EmqxPeers, run) -> dict[str, int]:
    assert emqx.node.eval("shared_state:start().") == "ok"
    run()
    calls = emqx.node.eval('[io:format("~s:~s ~b~n", [M, F, N]) || {M, F, _, N} <- shared_state:stop()], ok.')
    found: dict[str, int] = {}
    for function, count in re.findall(r"^(\w+:\w+) (\d+)$", calls, re.M):
        found[function] = found.get(function, 0) + int(count)
    return found


def _per_message(calls: dict[str, int], messages: int) -> dict[str, float]:
    return {
        kind: round(sum(count for function, count in calls.items() if re.fullmatch(pattern, function)) / messages, 2)
        for kind, pattern in KINDS.items()
    }
