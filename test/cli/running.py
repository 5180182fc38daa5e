"""bin/nats_gateway with a settings file that a test writes."""

from __future__ import annotations

import base64
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from emqx.nats import Nats
from ports import HOST, free_port
from wire.servers import REPOSITORY, accepts, mosquitto_path, toml

GATEWAY = REPOSITORY / "bin" / "nats_gateway"
STARTED = 30.0
STOPPED = 15.0


@contextmanager
def started_mosquitto(directory: Path, settings: str = "allow_anonymous true\n") -> Iterator[int]:
    """The port of a broker that is there from the beginning."""
    port = free_port()
    config = directory / f"mosquitto-{port}.conf"
    config.write_text(f"listener {port} {HOST}\npersistence false\n{settings}")
    process = subprocess.Popen([mosquitto_path(), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while not accepts((HOST, port)):
            assert process.poll() is None and time.monotonic() < end, "Mosquitto did not start"
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Running:
    """A gateway with a settings file that a test changes."""

    def __init__(self, directory: Path, broker: int, program: Path = GATEWAY, environment: dict[str, str] | None = None):
        """environment: all that the process gets of it, unless it is that of the test."""
        self._program = program
        self._environment = environment
        self._directory = directory
        self._broker = broker
        self._log = directory / "gateway.log"
        self.port = free_port()
        self.file = directory / "gateway.toml"
        self.process: subprocess.Popen | None = None

    def write(self, listeners: dict[str, int] | None = None, **settings: object) -> None:
        self.file.write_text(
            "".join(f"{name} = {toml(value)}\n" for name, value in settings.items())
            + f'[upstream]\nurl = "mqtt://{HOST}:{self._broker}"\n'
            + "".join(
                f'[listeners.tcp.{name}]\nbind = "{HOST}:{port}"\n'
                for name, port in (listeners or {"default": self.port}).items()
            )
        )

    def start(self) -> None:
        with self._log.open("wb") as log:
            # Whoever runs the tests in the background of a shell ignores SIGINT, and so would all that they start.
            self.process = subprocess.Popen(
                [self._program, "-c", self.file], cwd=self._directory, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        self.until(lambda: "listening on" in self.log, "it listens", STARTED)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], bool], what: str, deadline: float = STOPPED) -> None:
        end = time.monotonic() + deadline
        while not condition():
            assert time.monotonic() < end, f"not within {deadline} s: {what}\n{self.log}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def reload(self, said: str) -> None:
        before = self.log.count(said)
        self.signal(signal.SIGHUP)
        self.until(lambda: self.log.count(said) > before, said)

    def ended(self, deadline: float = STOPPED) -> int:
        status = self.process.wait(deadline)
        assert not list(self._directory.glob("*.dump")), "a crash dump was written"
        return status

    def client(self, **fields: object) -> Nats:
        nats = Nats((HOST, self.port)).connect(**fields)
        nats.ping()
        return nats


@contextmanager
def started_gateway(directory: Path, broker: int, **settings: object) -> Iterator[Running]:
    """One that several tests use, because none of them changes it."""
    gateway = Running(directory, broker)
    gateway.write(**settings)
    try:
        gateway.start()
        yield gateway
    finally:
        if gateway.process is not None:
            gateway.process.kill()
            gateway.process.wait()


# What the program does before it starts anything; it would write the text behind its name and end with the status.
READ_SETTINGS = """
    lists:foreach(
        fun(File) ->
            {Status, Text} =
                try nats_gateway_settings:read(#{file => File}) of
                    _ -> {0, []}
                catch
                    throw:{stop, Refused, Why} -> {Refused, Why}
                end,
            io:format("~b ~s~n", [Status, base64:encode(iolist_to_binary(Text))])
        end,
        init:get_plain_arguments()
    ),
    halt().
"""


def read_settings(files: Iterable[Path]) -> list[tuple[int, str]]:
    """For each of these settings files the exit status and the text with which the program refuses it, or 0: in one process for all."""
    ebin = REPOSITORY / "_build" / "default" / "lib" / "nats_gateway" / "ebin"
    command = ["erl", "-noinput", "-boot", "no_dot_erlang", "-pa", ebin, "-eval", READ_SETTINGS, "-extra", *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.partition(" ") for line in done.stdout.splitlines()]
    return [(int(status), base64.b64decode(text).decode()) for status, _, text in rows]
