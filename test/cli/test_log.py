"""The log of the standalone gateway: its two forms, and where it goes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from cli.running import GATEWAY, Running
from ports import HOST, free_port
from wire.servers import REPOSITORY

EBIN = REPOSITORY / "_build" / "default" / "lib" / "nats_gateway" / "ebin"
TEXTS = ['"', "\\", "a\n2026 error forged", "\x1b[31m", "\x00\x7f\x9b", "\u2028\u2029\x85", "\ud7ff\U0001f600", "{}", "%s ~p", "a" * 100000]
NO_TEXTS = [b"\xff", b"a\xffb\xfe", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", bytes(range(256)), b"\xff" * 5000]
HOSTILE = [text.encode() for text in TEXTS] + NO_TEXTS


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json(gateway: Running):
    gateway.write(log_format="json", log_level="info")
    with gateway._log.open("wb") as log:
        gateway.process = subprocess.Popen([GATEWAY, "-c", gateway.file], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    gateway.until(lambda: '"listening"' in gateway.log, "it listens", 30)
    with gateway.client() as client:
        client.send(b"PUB a 1\r\nx\r\n")
        client.ping()
        peer = "{}:{}".format(*client._socket.getsockname())
    gateway.until(lambda: "connection_closed" in gateway.log, "the end of the client is in the log")
    gateway.signal(signal.SIGTERM)
    assert gateway.ended() == 0
    all_of_them = events(gateway.log)
    for event in all_of_them:
        assert list(event)[:3] == ["time", "level", "msg"]
        assert event["time"].endswith("Z") and datetime.fromisoformat(event["time"].replace("Z", "+00:00"))
    assert all_of_them[0] | {"time": ""} == {
        "time": "", "level": "notice", "msg": "listening", "listener": "tcp:default", "address": f"{HOST}:{gateway.port}"
    }
    [closed] = [event for event in all_of_them if event["msg"] == "connection_closed"]
    assert (closed["messages_received"], closed["peername"], closed["reason"]) == (1, peer, "client_closed")
    assert closed["level"] == "info"


def test_the_keys_are_those_of_the_text(gateway: Running):
    gateway.write(log_level="info")
    gateway.start()
    gateway.client().close()
    gateway.until(lambda: "connection_closed" in gateway.log, "the text")
    text = next(line for line in gateway.log.splitlines() if "connection_closed" in line)
    gateway.write(log_level="info", log_format="json")
    gateway.reload("settings_reloaded")
    before = gateway.log.count("connection_closed")
    gateway.client().close()
    gateway.until(lambda: gateway.log.count("connection_closed") > before, "JSON")
    event = json.loads(next(line for line in gateway.log.splitlines() if '"connection_closed"' in line))
    assert list(event)[3:] == re.findall(r" ([a-z_]+)=", text)


@pytest.fixture(scope="module")
def formatted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The lines of these values in both forms, as the formatter makes them."""
    values = tmp_path_factory.mktemp("values") / "values"
    values.write_text("".join(f"{value.hex()}\n" for value in HOSTILE))
    program = """
        ok = nats_gateway_nif:load(),
        [File] = init:get_plain_arguments(),
        {ok, Text} = file:read_file(File),
        io:setopts([{encoding, latin1}]),
        [
            begin
                Event = #{level => notice, meta => #{time => 0}, msg => {report, #{msg => Value, key => Value, list => [Value, 1]}}},
                Line = nats_gateway_log:format(Event, #{format => Form, journal => false}),
                io:put_chars([atom_to_list(Form), $ , binary:encode_hex(unicode:characters_to_binary(Line)), $\n])
            end
         || Hex <- binary:split(Text, <<"\\n">>, [global, trim]), Value <- [binary:decode_hex(Hex)], Form <- [text, json]
        ],
        halt()."""
    done = subprocess.run(
        ["erl", "-noinput", "-boot", "start_clean", "-pa", EBIN, "-eval", program, "-extra", values],
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {form: [bytes.fromhex(text).decode() for which, text in lines if which == form] for form in ("text", "json")}


def test_hostile_values_in_json(formatted: dict[str, list[str]]):
    assert len(formatted["json"]) == len(HOSTILE)
    for value, line in zip(HOSTILE, formatted["json"], strict=True):
        assert line.endswith("}\n") and line.count("\n") == 1
        event = json.loads(line)
        assert event["key"] == event["msg"] and event["list"] == [event["key"], 1]
        try:
            assert event["key"] == value.decode()
        except UnicodeDecodeError:
            # What is no text is shown as its bytes.
            assert "\\x" in event["key"]


def test_hostile_values_in_text(formatted: dict[str, list[str]]):
    assert len(formatted["text"]) == len(HOSTILE)
    for line in formatted["text"]:
        # Neither a terminal nor whoever reads line by line takes it for something else.
        assert line.endswith("\n") and len(line.splitlines()) == 1
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", line)
        assert " key=" in line and "FORMATTER" not in line


@pytest.mark.parametrize("rotated", ["moved", "copied"])
def test_a_file_is_rotated(gateway: Running, tmp_path: Path, rotated: str):
    log = tmp_path / "file.log"
    gateway.write(log_file=str(log), log_level="info")
    log.write_text("what was there before\n")
    gateway.start()
    gateway.client().close()
    gateway.until(lambda: log.read_text().count("connection_closed") == 1, "it is in the file")
    assert log.read_text().startswith("what was there before\n")
    if rotated == "moved":
        old = log.rename(tmp_path / "file.log.1")
        gateway.signal(signal.SIGUSR1)
        gateway.until(lambda: log.exists() and "log_file_opened_again" in log.read_text(), "it is opened again")
        # Without a signal, too.
        log.rename(tmp_path / "file.log.2")
    else:
        old = tmp_path / "file.log.1"
        old.write_text(log.read_text())
        log.write_text("")
    gateway.client().close()
    gateway.until(lambda: log.exists() and log.read_text().count("connection_closed") == 1, "the next line is in the new one")
    assert "\0" not in log.read_text()
    assert old.read_text().count("connection_closed") == 1
    assert "connection_closed" not in gateway.log


def test_a_reload_moves_the_log(gateway: Running, tmp_path: Path):
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    gateway.write()
    gateway.start()
    gateway.write(log_file=str(first))
    gateway.signal(signal.SIGHUP)
    gateway.until(lambda: first.exists() and "settings_reloaded" in first.read_text(), "it is in the first file")
    gateway.write(log_file=str(second), log_format="json")
    gateway.signal(signal.SIGHUP)
    gateway.until(lambda: second.exists() and "settings_reloaded" in second.read_text(), "it is in the second file")
    assert all(event["msg"] for event in events(second.read_text()))
    gateway.write()
    gateway.reload(" settings_reloaded")
    assert first.read_text().count("\n") == 1 and second.read_text().count("\n") == 1


def start(file: Path) -> subprocess.CompletedProcess:
    return subprocess.run([GATEWAY, "-c", file], capture_output=True, text=True, timeout=60)


def test_a_file_that_cannot_be_written_is_named(gateway: Running, tmp_path: Path):
    for path, why in ((tmp_path / "none" / "x.log", "no such file or directory"), (tmp_path, "illegal operation on a directory")):
        gateway.write(log_file=str(path))
        done = start(gateway.file)
        assert done.returncode == 78
        assert done.stderr == f"nats_gateway: {gateway.file}: log_file: {path}: {why}\n"


def test_why_it_does_not_start_is_json_too(gateway: Running):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        gateway.write(log_format="json", listeners={"a": port})
        done = start(gateway.file)
    assert done.returncode == 69 and done.stdout == ""
    [event] = events(done.stderr)
    assert (event["level"], event["msg"], event["exit_status"]) == ("error", "start_failed", 69)
    assert f"cannot listen on {HOST}:{port}" in event["reason"] and "listeners.tcp.a.bind" in event["reason"]


def test_a_broker_that_is_gone_is_named(gateway: Running):
    with socket.create_server((HOST, 0)) as broker:
        where = "{}:{}".format(*broker.getsockname())
        gateway.file.write_text(f'[upstream]\nurl = "mqtt://{where}"\n[listeners.tcp.default]\nbind = "{HOST}:{gateway.port}"\n')
        gateway.start()
    with socket.create_connection((HOST, gateway.port)) as client:
        assert client.recv(100) == b""
    gateway.until(lambda: f"upstream_connect_failed reason=econnrefused upstream={where}" in gateway.log, "it is named")


def test_other_ports(gateway: Running):
    gateway.write(log_format="json", monitor={"bind": f"{HOST}:{free_port()}"})
    with gateway._log.open("wb") as log:
        gateway.process = subprocess.Popen([GATEWAY, "-c", gateway.file], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    gateway.until(lambda: '"monitoring"' in gateway.log, "it is monitored", 30)
    assert [event["msg"] for event in events(gateway.log)] == ["listening", "monitoring"]
