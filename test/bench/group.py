"""What the groups of measurements share that `make bench ONLY=name` makes alone.

A group is a module with `measure(run)` and `tables(results)`. It ends by itself: `Run.another_round` bounds its rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers import MeasurementFailed, Peer

Rows = list[list[str]]


@dataclass
class Run:
    # The EMQX whose peers are measured, if there is one, and the plugin's package.
    home: Path | None
    package: Path | None
    quick: bool
    rounds: int
    failures: list[str]
    results: dict[str, Any] = field(default_factory=lambda: {"measurements": []})
    rounds_made: int = 0
    _began: float = field(default_factory=time.monotonic)

    def another_round(self, seconds: float) -> Iterator[int]:
        """Numbers of rounds; after `seconds` none begins."""
        began = time.monotonic()
        for turn in range(self.rounds):
            if turn and time.monotonic() - began > seconds:
                return
            self.rounds_made = max(self.rounds_made, turn + 1)
            yield turn

    def measure(self, peer: Peer, work: str, specification: dict[str, Any], turn: int = 0, where: str = "") -> None:
        with self.failing(f"{work} {where}"):
            self.keep(peer.name, work, peer.measure(specification), turn, where)

    def smaller(self, specification: dict[str, Any]) -> dict[str, Any]:
        """A tenth of the messages or requests, where it is only shown that it works."""
        counted = "messages" if "messages" in specification else "requests"
        return specification | ({counted: max(10, specification[counted] // 10)} if self.quick else {})

    def keep(self, peer: str, work: str, outcome: dict[str, Any], turn: int = 0, where: str = "") -> None:
        one = {"scenario": key(work, where), "peer": peer, "round": turn, "outcome": outcome}
        self.results["measurements"].append(one)
        shown = "  ".join(f"{name} {value:,.6g}" for name, value in outcome.items() if name in SHOWN and value)
        self.say(f"  {turn + 1} {one['scenario']:42} {peer:24} {shown}")

    @contextmanager
    def failing(self, what: str) -> Iterator[None]:
        """A measurement that fails is reported at the end; the others go on."""
        try:
            yield
        except MeasurementFailed as failure:
            self.failures.append(f"{what}: {failure}")
            self.say(f"  FAILED {what}: {failure}")

    @staticmethod
    def say(text: str) -> None:
        print(text, flush=True)


SHOWN = (
    "published_per_second", "delivered_per_second", "connected_per_second", "p50", "p99", "bytes_each",
    "served_seconds", "longest_pause_ms", "cpu_percent", "replies_per_second", "milliseconds", "bytes",
)


def key(work: str, where: str) -> str:
    return f"{where}: {work}" if where else work


class Outcomes:
    """Of a group, by work and peer."""

    def __init__(self, results: dict[str, Any]):
        self._by: dict[tuple[str, str], list[dict[str, float]]] = {}
        for one in results["measurements"]:
            self._by.setdefault((one["scenario"], one["peer"]), []).append(one["outcome"])

    def values(self, work: str, peer: str, figure: Callable[[dict[str, float]], float | None]) -> list[float]:
        found = (figure(outcome) for outcome in self._by.get((work, peer), []))
        return [value for value in found if value is not None]


def figure(name: str, factor: float = 1.0) -> Callable[[dict[str, float]], float | None]:
    return lambda outcome: outcome[name] * factor if outcome.get(name) is not None else None


def cpu_per_message(outcome: dict[str, float]) -> float | None:
    """Microseconds of the peer's processors per delivery, or per message if nobody subscribes."""
    moved = outcome.get("delivered") or outcome.get("published")
    return outcome["peer_cpu_seconds"] / moved * 1e6 if moved and "peer_cpu_seconds" in outcome else None


def cell(values: list[float], form: str = ",.0f", spread: bool = False) -> str:
    if not values:
        return ""
    middle = median(values)
    half = (max(values) - min(values)) / 2 / middle if middle else 0
    return format(middle, form) + (f" ± {half:.0%}" if spread and len(values) > 1 else "")


def table(head: str, peers: Iterable[str], lines: Iterable[tuple[str, list[str]]]) -> Rows:
    """Lines without any figure are left out."""
    return [[head, *peers], *([title, *cells] for title, cells in lines if any(cells))]
