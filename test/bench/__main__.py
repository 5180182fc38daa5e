"""`python -m bench [--quick] [--docs] [--only GROUPS]`: measures, judges, and writes results.json, chart.svg and tables.md.

Everything that is compared is measured in this run, in turns, several times; what counts is the median of the ratios of
each turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from bench import contention, kv, report
from bench.group import Run
from bench.peers import EmqxPeers, MeasurementFailed, Peer, standalone_peers
from bench.scenarios import (
    BARE,
    BUILT_IN,
    CONNECTS,
    GROWTH,
    GROWTH_MESSAGES,
    IDLE_STEPS,
    IDLE_STEPS_QUICK,
    KV_KEYS,
    KV_REQUESTS,
    MQTT,
    OURS,
    PUBLISHED,
    SCENARIOS,
    STANDALONE_PEERS,
    STANDALONE_SCENARIOS,
    Scenario,
)
from emqx.node import emqx_homes
from wire.servers import REPOSITORY

OUT = REPOSITORY / "_build" / "bench"
SOURCES = REPOSITORY / "native" / "bench"
# An idle connection gives memory back after some time, ours after 5 seconds, EMQX's own after about 30.
SETTLE_SECONDS = {OURS: 12.0, MQTT: 34.0, BUILT_IN: 34.0}
SETTLE_AT_MOST_SECONDS = 48.0
SETTLE_POLL_SECONDS = 4.0
# The built-in gateway needs several times as long for the same work.
BUILT_IN_SHARE = 0.25
QUICK_SHARE = 0.3

# Bounds the rounds of a slow machine. The rest (idle connections, growth, standalone) takes some eight minutes.
ROUNDS, ROUNDS_AT_LEAST, ROUNDS_SECONDS = 5, 3, 200.0


# What has nothing to do with a group is in one run, because its ratios are.
PARTS = (COMPARISON := "comparison", KV := "kv", MICROBENCHMARKS := "microbenchmarks", *report.GROUPS)


def _parts(text: str) -> tuple[str, ...]:
    parts = tuple(text.split(","))
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}, only {', '.join(PARTS)}")
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--quick", action="store_true", help="less of everything: shows that it works, not how fast")
    parser.add_argument("--docs", action="store_true", help="write docs/performance.* and README.md's ratios, too")
    parser.add_argument("--rounds", type=int, help="how often each measurement is made")
    parser.add_argument("--scenarios", help="a regular expression: scenarios of EMQX to measure, and nothing else")
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"one or more of {','.join(PARTS)}, and nothing else")
    arguments = parser.parse_args()
    if arguments.docs and (arguments.quick or arguments.scenarios):
        parser.error("--docs needs all measurements")
    began = time.monotonic()
    bench = Bench(arguments)
    bench.run()
    results = {
        "machine": machine(),
        "quick": arguments.quick,
        "rounds": bench.rounds,
        "seconds": round(time.monotonic() - began),
        "only": arguments.only,
        **bench.results,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report.write(results, OUT)
    if arguments.docs:
        report.write_docs(results, REPOSITORY, arguments.only)
    print(report.text(results))
    print(f"\nin {results['seconds']} s; written: {OUT.relative_to(REPOSITORY)}/results.json, tables.md, chart.svg")
    for failure in bench.results["failures"]:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if bench.results["failures"] else 0


class Bench:
    def __init__(self, arguments: argparse.Namespace):
        self._quick = arguments.quick
        self._scenarios = re.compile(arguments.scenarios) if arguments.scenarios else None
        self._parts = (COMPARISON,) if arguments.scenarios else arguments.only
        self._rounds = arguments.rounds or (1 if arguments.quick else ROUNDS)
        self.rounds = 0
        # Before a later group it is that of the earlier ones.
        self._load = os.getloadavg()[0]
        # Of each EMQX, and what has nothing to do with one.
        self.results: dict[str, Any] = {
            "nodes": [],
            "measurements": [],
            "kv": [],
            "microbenchmarks": {},
            "groups": {},
            "failures": [],
            "seconds_per_part": {},
        }

    def run(self) -> None:
        homes = sorted(emqx_homes())
        if not homes:
            self._say("EMQX: skipped with all its peers, there is no node (EMQX_HOME)")
        if COMPARISON in self._parts:
            for home in homes:
                self._part(home.name, lambda: self._emqx(home, is_first=home == homes[0]))
            if self._scenarios is None:
                self._part("standalone", self._standalone)
        if KV in self._parts:
            self._part("key/value store", lambda: self._kv(homes))
        for name, group in report.GROUPS.items():
            if name in self._parts:
                self._part(name, lambda: self._group(name, group, homes[0] if homes else None))
        if MICROBENCHMARKS in self._parts:
            self._part("microbenchmarks", self._microbenchmarks)

    def _group(self, name: str, group: Any, home: Path | None) -> None:
        self._say(f"{group.TITLE}:")
        run = Run(home, package(), self._quick, min(self._rounds, ROUNDS_AT_LEAST), self.results["failures"])
        began = time.monotonic()
        group.measure(run)
        about = {"rounds": run.rounds_made, "seconds": round(time.monotonic() - began), "emqx": home.name if home else None}
        about["load_before"] = self._load
        self.results["groups"][name] = run.results | about | {"machine": machine()}

    def _part(self, name: str, run) -> None:
        began = time.monotonic()
        run()
        self.results["seconds_per_part"][name] = round(time.monotonic() - began)

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)

    # --- EMQX --------------------------------------------------------------------------------------------------------

    def _emqx(self, home: Path, is_first: bool) -> None:
        """What grows with a quantity, and the calls of the NIFs, are the same in each version."""
        self._say(f"EMQX: starting a node of {home.name}")
        with EmqxPeers(home, package()) as emqx:
            about = {"version": emqx.version(), "otp": emqx.otp()}
            node: dict[str, Any] = {"emqx": about, "measurements": [], "idle": [], "growth": [], "nif_calls": {}, "shared": []}
            self.results["nodes"].append(node)
            for module in ("publish_loop", "nif_calls", "shared_state"):
                emqx.load_module(SOURCES / f"{module}.erl")
            scenarios = [one for one in SCENARIOS if self._wanted(one)]
            began = time.monotonic()
            for turn in range(self._rounds):
                if turn >= ROUNDS_AT_LEAST and time.monotonic() - began > ROUNDS_SECONDS:
                    break
                self.rounds = max(self.rounds, turn + 1)
                for names in ((OURS, MQTT, BARE), (BUILT_IN,)):
                    for scenario in scenarios:
                        for name in names:
                            self._emqx_measure(emqx, node, scenario, name, turn)
            if self._scenarios is None:
                self._idle(emqx, node)
                node["shared"] = contention.measure(emqx)
                if is_first:
                    self._nif_calls(emqx, node)
                if is_first and not self._quick:
                    self._growth(emqx, node)

    def _wanted(self, scenario: Scenario) -> bool:
        if self._scenarios is not None:
            return self._scenarios.search(scenario.name) is not None
        return scenario.quick or not self._quick

    def _emqx_measure(self, emqx: EmqxPeers, node: dict[str, Any], scenario: Scenario, name: str, turn: int) -> None:
        if name == BARE:
            if scenario.name == "publish":
                messages = self._messages(scenario, name)
                rate = float(emqx.node.eval(f"publish_loop:run({messages}, {scenario.specification['payload']})."))
                self._keep(node, scenario, name, turn, {PUBLISHED: rate})
        elif name in scenario.peers:
            self._measure(emqx.peer(name), node, scenario, turn)

    def _messages(self, scenario: Scenario, name: str) -> int:
        share = (BUILT_IN_SHARE if name == BUILT_IN else 1.0) * (QUICK_SHARE if self._quick else 1.0)
        return max(1, int(scenario.specification.get("messages", scenario.specification.get("requests")) * share))

    def _measure(self, peer: Peer, results: dict[str, Any], scenario: Scenario, turn: int) -> None:
        counted = "messages" if scenario.specification["measure"] == "flow" else "requests"
        specification = scenario.specification | {counted: self._messages(scenario, peer.name)}
        try:
            outcome = peer.measure(specification)
        except MeasurementFailed as failure:
            self.results["failures"].append(f"{scenario.name}: {failure}")
            self._say(f"  FAILED {scenario.name}: {failure}")
            return
        self._keep(results, scenario, peer.name, turn, outcome)

    def _keep(
        self, results: dict[str, Any], scenario: Scenario, name: str, turn: int, outcome: dict[str, float]
    ) -> None:
        results["measurements"].append(
            {"scenario": scenario.name, "peer": name, "round": turn} | {"outcome": outcome}
        )
        self._say(f"  {turn + 1}/{self._rounds} {scenario.name:20} {name:24} {outcome[scenario.figure]:12.0f}")

    def _nif_calls(self, emqx: EmqxPeers, node: dict[str, Any]) -> None:
        emqx.peer(OURS)
        lines = emqx.node.eval('[io:format("~s: ~.1f~n", [Name, Us]) || {Name, Us} <- nif_calls:run(25)], ok').splitlines()
        found = (re.fullmatch(r"(.*): ([\d.]+)", line) for line in lines)
        node["nif_calls"] = {match.group(1): float(match.group(2)) for match in found if match}

    def _idle(self, emqx: EmqxPeers, node: dict[str, Any]) -> None:
        """Memory of connections that have one subscription and no traffic; and how fast they come."""
        for name in (OURS, MQTT, BUILT_IN):
            try:
                self._idle_peer(emqx, node, emqx.peer(name))
            except MeasurementFailed as failure:
                self.results["failures"].append(f"idle connections: {failure}")

    def _idle_peer(self, emqx: EmqxPeers, node: dict[str, Any], peer: Peer) -> None:
        for _ in range(1 if self._quick else 3):
            with peer.connections() as connections:
                outcome = connections.open(CONNECTS // (4 if self._quick else 1))
            node["measurements"].append({"scenario": "connect", "peer": peer.name, "round": 0, "outcome": outcome})
        before = _settled(emqx, SETTLE_SECONDS[OURS]) | {"resident": peer.resident()}
        with peer.connections() as connections:
            for count in IDLE_STEPS_QUICK if self._quick else IDLE_STEPS:
                connections.open(count)
                after = _settled(emqx, SETTLE_SECONDS[peer.name]) | {"resident": peer.resident()}
                each = {key: (after[key] - before[key]) / count for key in before}
                node["idle"].append({"peer": peer.name, "connections": count} | each)
                self._say(f"  idle {count:6} {peer.name:24} {each['total']:8.0f} B each, {each['processes']:.0f} in processes")

    def _growth(self, emqx: EmqxPeers, node: dict[str, Any]) -> None:
        peer = emqx.peer(OURS)
        for growth in GROWTH:
            for step in growth.steps:
                quantity = dict.fromkeys(growth.fields, step)
                total = growth.messages.get(step, GROWTH_MESSAGES)
                many = quantity.get("publishers", 1) * quantity.get("subscribers", 1)
                specification = {"measure": "flow", "subscribers": 1} | growth.specification | quantity
                for turn in range(3):
                    try:
                        outcome = peer.measure(specification | {"messages": max(1, total // many)})
                    except MeasurementFailed as failure:
                        self.results["failures"].append(f"growth of {growth.name}: {failure}")
                        continue
                    node["growth"].append(
                        {"growth": growth.name, "step": step, "round": turn, "outcome": outcome}
                    )
            self._say(f"  growth of {growth.name}")

    # --- Standalone --------------------------------------------------------------------------------------------------

    def _standalone(self) -> None:
        with standalone_peers() as peers:
            rounds = min(self._rounds, ROUNDS_AT_LEAST)
            self.rounds = self.rounds or rounds
            for turn in range(rounds):
                for scenario in STANDALONE_SCENARIOS:
                    for name in STANDALONE_PEERS:
                        if name in peers:
                            self._measure(peers[name], self.results, scenario, turn)

    # --- The key/value store -----------------------------------------------------------------------------------------

    def _kv(self, homes: list[Path]) -> None:
        requests, keys = (50, 1000) if self._quick else (KV_REQUESTS, KV_KEYS)
        with (
            tempfile.TemporaryDirectory(prefix="nats-gateway-bench-") as directory,
            kv.peers(Path(directory), homes, package() if homes else None) as peers,
        ):
            rounds = self._rounds if self._parts == (KV,) else min(self._rounds, ROUNDS_AT_LEAST)
            self.rounds = self.rounds or rounds
            for turn in range(rounds):
                for name, url in peers.items():
                    outcome = kv.measure(url, turn, requests, keys)
                    self.results["kv"].append({"peer": name, "round": turn, "keys": keys, "outcome": outcome})
                    self._say(f"  key/value store {name:24} put {outcome['put']:8.0f} µs")

    # --- Microbenchmarks ---------------------------------------------------------------------------------------------

    def _microbenchmarks(self) -> None:
        self._say("microbenchmarks")
        options = ["--warm-up-time", "0.2", "--measurement-time", "0.5"] if self._quick else []
        done = subprocess.run(
            ["cargo", "bench", "--locked", "-p", "nats-protocol", "--", "--noplot", *options],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            self.results["failures"].append(f"microbenchmarks: {done.stdout[-2000:]}")
            return
        for estimates in sorted((REPOSITORY / "target" / "criterion").glob("*/*/new/estimates.json")):
            group, name = estimates.parts[-4:-2]
            nanoseconds = json.loads(estimates.read_text())["median"]["point_estimate"]
            self.results["microbenchmarks"][f"{group}/{name}"] = nanoseconds
        self.results["nats_server_parser"] = nats_server_parser() if not self._quick else None


def package() -> Path:
    packages = sorted((REPOSITORY / "_build" / "package").glob("nats_gateway-*.tar.gz"))
    if not packages:
        sys.exit("no package: run `make package-here`")
    return packages[-1]


def _settled(emqx: EmqxPeers, seconds: float) -> dict[str, int]:
    """The node's memory when it falls no more."""
    until = time.monotonic() + SETTLE_AT_MOST_SECONDS
    time.sleep(seconds)
    memory = emqx.memory()
    while time.monotonic() < until:
        time.sleep(SETTLE_POLL_SECONDS)
        before, memory = memory, emqx.memory()
        if memory["processes"] > 0.99 * before["processes"]:
            break
    return memory


def nats_server_parser() -> dict[str, float] | None:
    """Nanoseconds per PUB of nats-server's own parser by payload size, where Go and its module are."""
    if shutil.which("go") is None:
        return None
    cache = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    modules = sorted(Path(cache, "github.com", "nats-io", "nats-server").glob("v2@v2.10.*"))
    if not modules:
        return None
    with tempfile.TemporaryDirectory(prefix="nats-gateway-bench-") as directory:
        sources = Path(directory) / "nats-server"
        shutil.copytree(modules[-1], sources, ignore=shutil.ignore_patterns("*_test.go"))
        subprocess.run(["chmod", "-R", "u+w", str(sources)], check=True)
        shutil.copy(SOURCES / "parser_test.go", sources / "server")
        done = subprocess.run(
            ["go", "test", "-run", "^$", "-bench", "BenchmarkParser", "-benchtime", "300ms", "-count", "5", "./server"],
            cwd=sources,
            capture_output=True,
            text=True,
        )
    found: dict[str, list[float]] = {}
    for size, nanoseconds in re.findall(r"^BenchmarkParser/(\d+)\S*\s+\d+\s+([\d.]+) ns/op", done.stdout, re.M):
        found.setdefault(size, []).append(float(nanoseconds) / report.OPS)
    return {size: median(values) for size, values in found.items()} or None


def machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    memory = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text(), re.M)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True)
    return {
        "processor": model.group(1) if model else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory.group(1)) / 1024**2) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg()[0],
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    sys.exit(main())
