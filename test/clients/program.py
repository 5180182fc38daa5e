"""Runs a client program scenario by scenario, and talks with it in lines."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE = 20.0


@dataclass(frozen=True)
class Program:
    """`command SCENARIO JSON`: exit status 0 means that the scenario saw what it expects."""

    command: list[str]
    directory: Path

    def run(self, scenario: str, deadline: float = DEADLINE, **arguments: Any) -> None:
        with self.start(scenario, **arguments) as talk:
            talk.finished(deadline)

    def start(self, scenario: str, **arguments: Any) -> Talk:
        return Talk(scenario, [*self.command, scenario, json.dumps(arguments)], self.directory)


class Talk:
    """A running scenario. It writes `{"event": ...}` lines, and reads JSON lines."""

    def __init__(self, scenario: str, command: list[str], directory: Path):
        self._scenario = scenario
        self._events: queue.Queue[dict | None] = queue.Queue()
        self._errors: list[str] = []
        self._process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._readers = [
            threading.Thread(target=read, args=(stream,), daemon=True)
            for read, stream in ((self._read_events, self._process.stdout), (self._read_errors, self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()

    def say(self, **line: Any) -> None:
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def expect(self, event: str, deadline: float = DEADLINE) -> dict:
        """The next line is this event."""
        try:
            line = self._events.get(timeout=deadline)
        except queue.Empty:
            raise AssertionError(f"{self._scenario}: no {event!r} within {deadline} s{self._said()}") from None
        if line is None:
            self._process.wait(DEADLINE)
            raise AssertionError(f"{self._scenario}: ended before {event!r}{self._said()}")
        assert line["event"] == event, f"{self._scenario}: {line} instead of {event!r}{self._said()}"
        return line

    def finished(self, deadline: float = DEADLINE) -> None:
        until = time.monotonic() + deadline
        try:
            status = self._process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._scenario}: still running after {deadline} s{self._said()}") from None
        for reader in self._readers:
            reader.join(max(0.1, until - time.monotonic()))
        assert status == 0, f"{self._scenario}: exit status {status}{self._said()}"

    def _said(self) -> str:
        return "".join(f"\n  {line}" for line in self._errors[-40:])

    def _read_events(self, stream) -> None:
        for line in stream:
            self._events.put(json.loads(line))
        self._events.put(None)

    def _read_errors(self, stream) -> None:
        for line in stream:
            self._errors.append(line.rstrip())
