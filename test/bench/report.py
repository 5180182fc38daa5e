"""Tables and the chart of a run's results. Nobody types a number."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from bench import connections, contention, footprint, locks, many, round_trip, schedulers, transports
from bench.peers import release
from bench.scenarios import (
    BARE,
    BUDGETS,
    BUILT_IN,
    DELIVERED,
    MOSQUITTO,
    MQTT,
    NATS_SERVER,
    OURS,
    PUBLISHED,
    SCENARIOS,
    STANDALONE,
    STANDALONE_PEERS,
    STANDALONE_SCENARIOS,
    Budget,
)

Results = dict[str, Any]

# Each has its own place in docs/performance.md, and is measured alone by `make bench ONLY=name`.
GROUPS = {
    "transports": transports, "many": many, "connections": connections, "footprint": footprint, "round_trip": round_trip,
    "schedulers": schedulers, "locks": locks,
}

NO_NODE = {"emqx": None, "measurements": [], "idle": [], "growth": [], "nif_calls": {}}

# Operations in one buffer of the microbenchmarks.
OPS = 64
DECODE = "decode/64 x PUB of 128 B"


class Table:
    """Measurements by scenario and peer, each by round."""

    def __init__(self, results: Results):
        self._by: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
        for one in results["measurements"]:
            rounds = self._by.setdefault((one["scenario"], one["peer"]), {})
            rounds[one["round"] if one["round"] not in rounds else len(rounds)] = one["outcome"]

    def values(self, scenario: str, peer: str, figure: str) -> dict[int, float]:
        rounds = self._by.get((scenario, peer), {})
        return {turn: value for turn, outcome in rounds.items() if (value := _figure(outcome, figure)) is not None}

    def ratios(self, ours: tuple[str, str], other: tuple[str, str], figure: str) -> list[float]:
        """Of each round."""
        mine, theirs = self.values(*ours, figure), self.values(*other, figure)
        return [mine[turn] / theirs[turn] for turn in sorted(mine.keys() & theirs.keys())]


def _figure(outcome: dict[str, float], figure: str) -> float | None:
    if figure == "seconds per byte":
        # The payload is not in the outcome; the scenarios that are compared differ only in it.
        return None
    return outcome.get(figure)


# --- Budgets ---------------------------------------------------------------------------------------------------------


def nodes(results: Results) -> list[Results]:
    """The results as each EMQX has them; there is one without any."""
    return [results | node for node in results["nodes"] or [NO_NODE]]


def where(results: Results) -> str:
    emqx = results["emqx"]
    return f"EMQX {emqx['version']} on OTP {emqx['otp']}" if emqx else "no EMQX"


def judge(budget: Budget, results: Results, table: Table) -> dict[str, Any] | None:
    values = _values(budget, results, table)
    if not values:
        return None
    value = median(values)
    if budget.at_least is not None:
        met, limit = value >= budget.at_least, f">= {budget.at_least:g}"
    else:
        met, limit = value <= budget.at_most, f"<= {budget.at_most:g}"
    return {"work": budget.work, "limit": limit, "value": value, "spread": (min(values), max(values)), "met": met}


def _values(budget: Budget, results: Results, table: Table) -> list[float]:
    if budget.ours == "idle":
        # The smaller number of connections has more of what does not grow with them.
        sizes = [one["total"] for one in results["idle"] if one["peer"] == OURS]
        return sizes[-1:]
    if budget.ours == "nif":
        return [max(results["nif_calls"].values())] if results["nif_calls"] else []
    if budget.ours == "decode":
        nanoseconds = results["microbenchmarks"].get(DECODE)
        parser = (results.get("nats_server_parser") or {}).get("128")
        if nanoseconds is None or budget.other and parser is None:
            return []
        return [nanoseconds / OPS / (parser if budget.other else 1.0)]
    if budget.figure == "seconds per byte":
        large, small = (_bytes_per_second(side, results, table) for side in (budget.ours, budget.other))
        return [small[turn] / large[turn] for turn in sorted(small.keys() & large.keys())]
    return table.ratios(budget.ours, budget.other, budget.figure)


def _bytes_per_second(side: tuple[str, str], results: Results, table: Table) -> dict[int, float]:
    payload = next(one.specification["payload"] for one in SCENARIOS if one.name == side[0])
    return {turn: rate * payload for turn, rate in table.values(*side, DELIVERED).items()}


# --- Text ------------------------------------------------------------------------------------------------------------


def text(results: Results) -> str:
    return "\n\n".join(f"{title}\n{_aligned(rows)}" for title, rows in _tables(results) + _group_tables(results) if len(rows) > 1)


def write(results: Results, directory: Path) -> None:
    (directory / "tables.md").write_text(markdown(_tables(results) + _group_tables(results)))
    (directory / "chart.svg").write_text(chart(results))


def markdown(tables: list[tuple[str, list[list[str]]]]) -> str:
    parts = []
    for title, rows in tables:
        if len(rows) > 1:
            head, *body = (f"| {' | '.join(row)} |" for row in rows)
            parts.append("\n".join([f"### {title}", "", head, "|---" * len(rows[0]) + "|", *body]))
    return "\n\n".join(parts) + "\n"


def _tables(results: Results) -> list[tuple[str, list[list[str]]]]:
    standalone = Table(results)
    return [
        *chain.from_iterable(map(_emqx_tables, nodes(results))),
        ("Messages per second, standalone", _rate_rows(standalone, STANDALONE_SCENARIOS, STANDALONE_PEERS)),
        ("Round trip, standalone, µs", _round_trip_rows(standalone, STANDALONE_PEERS)),
        ("Key/value store with nats-py", _kv_rows(results)),
        *((title, rows) for node in nodes(results)[:1] for title, rows in _tables_of_the_first(node)),
        ("Decode and encode, ns per operation", _micro_rows(results)),
    ]


def _group_tables(results: Results) -> list[tuple[str, list[list[str]]]]:
    return [table for name, found in results["groups"].items() for table in GROUPS[name].tables(found)]


def _emqx_tables(results: Results) -> list[tuple[str, list[list[str]]]]:
    table, place = Table(results), where(results)
    return [
        (f"Budgets, {place}", _budget_rows(results, table)),
        (f"Messages per second in {place}", _rate_rows(table, SCENARIOS, (OURS, MQTT, BUILT_IN, BARE))),
        (f"Processor time of the node per message, µs, in {place}", _cpu_rows(table)),
        (f"Round trip in {place}, µs", _round_trip_rows(table, (OURS, MQTT, BUILT_IN))),
        (f"Idle connections with one subscription, bytes each, in {place}", _idle_rows(results)),
        (f"Connections opened per second in {place}", _connect_rows(table)),
        (f"What all schedulers share: calls per message in {place}", _shared_rows(results)),
    ]


def _tables_of_the_first(results: Results) -> list[tuple[str, list[list[str]]]]:
    place = where(results)
    return [
        (f"Growth: processor time of the node per message, µs, in {place}", _growth_rows(results)),
        ("Longest NIF call of a kind of work, µs", _nif_rows(results)),
    ]


def _budget_rows(results: Results, table: Table) -> list[list[str]]:
    rows = [["work", "budget", "measured", "lowest to highest round", ""]]
    for budget in BUDGETS:
        found = judge(budget, results, table)
        if found is None:
            rows.append([budget.work, "", "not measured", "", ""])
            continue
        low, high = found["spread"]
        spread = f"{_number(low)} to {_number(high)}" if low != high else ""
        rows.append([found["work"], found["limit"], _number(found["value"]), spread, "met" if found["met"] else "MISSED"])
    return rows if any(row[2] != "not measured" for row in rows[1:]) else rows[:1]


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _rate(values: dict[int, float]) -> str:
    if not values:
        return ""
    every = list(values.values())
    middle = median(every)
    spread = (max(every) - min(every)) / 2 / middle if len(every) > 1 else 0
    return f"{middle:,.0f}" + (f" ± {spread:.0%}" if len(every) > 1 else "")


def _rate_rows(table: Table, scenarios, peers: tuple[str, ...]) -> list[list[str]]:
    rows = [["", *peers]]
    for scenario in scenarios:
        if scenario.figure in (PUBLISHED, DELIVERED):
            cells = [_rate(table.values(scenario.name, peer, scenario.figure)) for peer in peers]
            if any(cells):
                rows.append([scenario.title, *cells])
    return rows


def _cpu_rows(table: Table) -> list[list[str]]:
    peers = (OURS, MQTT, BUILT_IN)
    rows = [["", *peers]]
    for scenario in SCENARIOS:
        cells = []
        for peer in peers:
            spent = table.values(scenario.name, peer, "peer_cpu_seconds")
            moved = table.values(scenario.name, peer, "delivered")
            published = table.values(scenario.name, peer, "published")
            each = [spent[turn] / (moved[turn] or published[turn]) * 1e6 for turn in spent]
            cells.append(f"{median(each):.1f}" if each else "")
        if any(cells):
            rows.append([scenario.title, *cells])
    return rows


def _round_trip_rows(table: Table, peers: tuple[str, ...]) -> list[list[str]]:
    rows = [["", "p50", "p99", "p99.9"]]
    for peer in peers:
        cells = [list(table.values("round trip", peer, name).values()) for name in ("p50", "p99", "p999")]
        if all(cells):
            rows.append([peer, *(f"{median(values):.0f}" for values in cells)])
    return rows


def _kv_rows(results: Results) -> list[list[str]]:
    """With the median of the ratios of each round, because the rounds of a machine that has other work differ."""
    kinds = {"put": 1, "get": 1, "create": 1, "watch": 1, "keys": 1e3}
    size = results["kv"][0]["keys"] if results["kv"] else 0
    rows = [["and its ratio to nats-server", "put, µs", "get, µs", "create, µs", "put until a watcher has it, µs", f"list of keys, {size:,} more each round, ms"]]
    by_peer: dict[str, list[dict[str, float]]] = {}
    for one in results["kv"]:
        by_peer.setdefault(one["peer"], []).append(one["outcome"])
    yardstick = by_peer.get(NATS_SERVER, [])
    for peer, outcomes in by_peer.items():
        cells = []
        for kind, factor in kinds.items():
            cell = f"{median([one[kind] for one in outcomes]) * factor:,.0f}"
            if peer != NATS_SERVER and yardstick:
                ratios = [one[kind] / other[kind] for one, other in zip(outcomes, yardstick, strict=True)]
                cell += f" ({median(ratios):.1f})"
            cells.append(cell)
        rows.append([peer, *cells])
    return rows


def _idle_rows(results: Results) -> list[list[str]]:
    rows = [["", "connections", "memory of the VM", "of it in processes", "resident memory"]]
    for one in results["idle"]:
        sizes = [f"{one[key]:,.0f}" for key in ("total", "processes", "resident")]
        rows.append([one["peer"], f"{one['connections']:,}", *sizes])
    return rows


def _connect_rows(table: Table) -> list[list[str]]:
    rows = [["", "per second"]]
    for peer in (OURS, MQTT, BUILT_IN):
        values = table.values("connect", peer, "connected_per_second")
        if values:
            rows.append([peer, _rate(values)])
    return rows


def _shared_rows(results: Results) -> list[list[str]]:
    rows = [["", *contention.KINDS]]
    for one in results.get("shared", []):
        rows.append([f"{one['peer']}, {one['case']}", *(f"{one[kind]:.2f}" for kind in contention.KINDS)])
    return rows


def _growth_rows(results: Results) -> list[list[str]]:
    rows = [["what grows", "", "", "", "", "", ""]]
    steps: dict[str, dict[int, list[float]]] = {}
    for one in results["growth"]:
        outcome = one["outcome"]
        each = outcome["peer_cpu_seconds"] / outcome["delivered"] * 1e6
        steps.setdefault(one["growth"], {}).setdefault(one["step"], []).append(each)
    for name, found in steps.items():
        cells = [f"{step:,}: {median(values):.1f}" for step, values in found.items()]
        rows.append([name, *cells, *[""] * (6 - len(cells))])
    return rows


def _nif_rows(results: Results) -> list[list[str]]:
    return [["", "µs"], *([name, f"{microseconds:.0f}"] for name, microseconds in results["nif_calls"].items())]


def _micro_rows(results: Results) -> list[list[str]]:
    rows = [["", "ns"]]
    for name, nanoseconds in results["microbenchmarks"].items():
        if name.startswith(("decode/", "encode/")):
            rows.append([name.replace(f"{OPS} x ", ""), f"{nanoseconds / OPS:.1f}"])
    for size, nanoseconds in (results.get("nats_server_parser") or {}).items():
        rows.append([f"nats-server's parser: PUB of {size} B", f"{nanoseconds:.1f}"])
    return rows


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


# --- Chart -----------------------------------------------------------------------------------------------------------

BARS = [("publish", PUBLISHED, "publish only"), ("1:1", DELIVERED, "1 to 1"), ("1:8", DELIVERED, "1 to 8")]
# What each line of the chart shows, and how its values are written.
LINES = [*((scenario, figure, title, "{:,.0f}/s") for scenario, figure, title in BARS), ("round trip", "p50", "round trip", "{:,.0f} µs")]
COLORS = {
    OURS: "#2f6fdb", MQTT: "#8a94a6", BUILT_IN: "#c9a25b", STANDALONE: "#2f6fdb", MOSQUITTO: "#8a94a6", NATS_SERVER: "#6aa37a",
}
LABELS = {
    OURS: "this plugin", MQTT: "EMQX's MQTT listener", BUILT_IN: "EMQX's built-in NATS gateway",
    STANDALONE: "this gateway, Mosquitto", MOSQUITTO: "Mosquitto, MQTT clients", NATS_SERVER: "nats-server",
}
WIDTH, LEFT, RIGHT, BAR, GAP = 720, 100, 90, 18, 12


def _release(node: Results) -> str:
    return release(node["emqx"]["version"])


def chart(results: Results) -> str:
    """Messages of 128 B per second and round trips, in each place, with the peers there. Each line has a scale of its own."""
    places = [(f"In EMQX {_release(node)}", Table(node), (OURS, MQTT, BUILT_IN)) for node in nodes(results) if node["emqx"]]
    places.append(("Standalone", Table(results), STANDALONE_PEERS))
    parts, y = ['<text x="0" y="16">Messages of 128 B per second (longer is better), and the time of a request and its reply (shorter is better)</text>'], 30
    for place, table, peers in places:
        lines = [(line, found) for line in LINES if (found := _medians(table, line, peers))]
        if not lines:
            continue
        parts.append(f'<text x="0" y="{y + 24}" style="font-weight: bold">{place}</text>')
        x = LEFT
        for peer in peers:
            parts.append(f'<rect x="{x}" y="{y + 13}" width="12" height="12" rx="2" fill="{COLORS[peer]}"/>')
            parts.append(f'<text x="{x + 18}" y="{y + 24}">{LABELS[peer]}</text>')
            x += 200
        y += 38
        for (_, _, title, form), found in lines:
            parts.append(f'<text x="{LEFT - 12}" y="{y + len(found) * BAR / 2 + 4:.0f}" text-anchor="end">{title}</text>')
            for peer, value in found.items():
                length = value / max(found.values()) * (WIDTH - LEFT - RIGHT)
                parts.append(f'<rect x="{LEFT}" y="{y + 2}" width="{length:.1f}" height="{BAR - 4}" rx="2" fill="{COLORS[peer]}"/>')
                parts.append(f'<text x="{LEFT + length + 8:.1f}" y="{y + 13}">{form.format(value)}</text>')
                y += BAR
            y += GAP
    style = "text { font: 13px sans-serif; fill: #24292f } @media (prefers-color-scheme: dark) { text { fill: #d0d7de } }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" viewBox="0 0 {WIDTH} {y}" role="img" '
        f'aria-label="Messages per second and round trips">\n<style>{style}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _medians(table: Table, line: tuple[str, str, str, str], peers: tuple[str, ...]) -> dict[str, float]:
    scenario, figure, _, _ = line
    return {peer: median(values.values()) for peer in peers if (values := table.values(scenario, peer, figure))}


# --- Documents -------------------------------------------------------------------------------------------------------


def write_docs(results: Results, repository: Path, parts: tuple[str, ...]) -> None:
    """Of the parts that were measured: all that is compared with each other in a run, and each group for itself."""
    docs = repository / "docs"
    page, stored = docs / "performance.md", docs / "performance.json"
    before = json.loads(stored.read_text())
    # What could not be measured here keeps its place.
    measured = {name: found for name, found in results["groups"].items() if found["measurements"]}
    groups = before.get("groups", {}) | measured
    if {"comparison", "kv", "microbenchmarks"} <= set(parts):
        before = results
        (docs / "performance.svg").write_text(chart(results))
        _replace(page, "machine", _machine_text(results))
        _replace(page, "tables", markdown(_tables(results)))
    _replace(repository / "README.md", "ratios", _ratio_text(before, groups))
    for name, found in measured.items():
        _replace(page, name, f"{_group_text(name, found)}\n\n{markdown(GROUPS[name].tables(found))}")
    stored.write_text(json.dumps(before | {"groups": groups}, indent=1) + "\n")


def _replace(path: Path, name: str, content: str) -> None:
    """Between <!-- name --> and <!-- end of name -->."""
    before = path.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    after, count = pattern.subn(lambda _: f"{begin}\n{content.strip()}\n{end}", before)
    if count != 1:
        raise ValueError(f"{path.name} has {count} places between {begin} and {end}")
    path.write_text(after)


def _machine_text(results: Results) -> str:
    machine = results["machine"]
    return (
        f"{machine['date']}, commit {machine['commit']}: {machine['processor']}, {machine['cores']} cores shared by server and "
        f"load generator, {machine['memory_gib']} GiB, {machine['system']}; {', '.join(map(where, nodes(results)))}; "
        f"{results['rounds']} rounds, {results['seconds']} seconds in all."
    )


def _group_text(name: str, found: Results) -> str:
    machine = found["machine"]
    emqx = f", {found['emqx']}" if found["emqx"] else ""
    # Above one there was other work than this.
    load = found["load_before"]
    busy = f" The machine was shared with other work (load {load:.0f} before it), so only large differences count." if load > 1 else ""
    return (
        f"`make bench ONLY={name}`: {machine['date']}, commit {machine['commit']}, {machine['processor']}, {machine['cores']} cores, "
        f"{machine['system']}{emqx}; rounds: {found['rounds']}, {found['seconds']} seconds.{busy}"
    )


def _ratio_text(results: Results, groups: dict[str, Results]) -> str:
    found = [(_release(node), Table(node)) for node in nodes(results) if node["emqx"]]
    peers = ((MQTT, "to its MQTT listener"), (BUILT_IN, "to its built-in NATS gateway"))
    head = [f"{title}, {release}" for release, _ in found for _, title in peers]
    rows = [["in one EMQX node, 128 B messages", *head], ["---"] * (1 + len(head))]
    figures = [(f"messages per second, {title}", scenario, figure, ".1f") for scenario, figure, title in BARS]
    for title, scenario, figure, form in [*figures, ("time of a request and its reply", "round trip", "p50", ".2f")]:
        ratios = [table.ratios((scenario, OURS), (scenario, peer), figure) for _, table in found for peer, _ in peers]
        rows.append([title, *(format(median(values), form) if values else "" for values in ratios)])
    if "round_trip" in groups:
        one_core = [round_trip.ratio(groups["round_trip"], release, peer) for release, _ in found for peer, _ in peers]
        rows.append(["the same, where no idle core has to be woken up", *(format(value, ".2f") if value else "" for value in one_core)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
