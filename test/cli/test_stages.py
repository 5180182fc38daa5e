"""bin/stages, which runs what `make test` is made of, with a make that a test writes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wire.servers import REPOSITORY

ENDED = 30.0


@pytest.fixture
def stages(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Starts it; scripts: what each stage runs."""

    def start(*arguments: str, **scripts: str) -> subprocess.Popen:
        make = tmp_path / "make"
        cases = "".join(f"{name})\n{script}\n;;\n" for name, script in scripts.items())
        make.write_text(f'#!/bin/bash\ncd {tmp_path}\ncase $2 in\n{cases}*) exit 99\nesac\n')
        make.chmod(0o755)
        return subprocess.Popen(
            [REPOSITORY / "bin" / "stages", *arguments], env=os.environ | {"MAKE": str(make)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return start


def ended(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=ENDED)
    return process.returncode, output


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


def until_there(file: Path) -> None:
    until = time.monotonic() + ENDED
    while not file.exists():
        assert time.monotonic() < until, f"no {file.name}"
        time.sleep(0.02)


def test_stages_run_side_by_side_and_the_output_of_each_is_whole(stages: Callable, tmp_path: Path):
    # Each waits for the other.
    meet = "echo {0} 1; touch {0}; until [ -e {1} ]; do sleep 0.02; done; echo {0} 2 >&2; sleep 0.1; echo {0} 3"
    status, output = ended(stages("a", "b", a=meet.format("a", "b"), b=meet.format("b", "a")))
    assert status == 0, output
    for name in "ab":
        assert re.search(rf"^--- {name}: passed after 0:0\d ---\n{name} 1\n{name} 2\n{name} 3\n", output, re.MULTILINE), output
    assert re.search(r"^--- times, .*\n.*\na +0:\d\d +0:\d\d\nb +0:\d\d +0:\d\d\nall together +0:\d\d\n\Z", output, re.MULTILINE), output


def test_no_more_run_at_once_than_there_are_lanes(stages: Callable, tmp_path: Path):
    alone = "mkdir running || exit 1; sleep 0.1; rmdir running"
    status, output = ended(stages("--lanes", "1", "a", "b", "c", a=alone, b=alone, c=alone))
    assert status == 0, output


def test_two_lanes_more_are_for_those_that_wait(stages: Callable, tmp_path: Path):
    heavy = "mkdir heavy || exit 1; touch {0}; until [ -e w1 -a -e w2 ]; do sleep 0.02; done; rmdir heavy"
    light = "until [ -e a ]; do sleep 0.02; done; sleep 0.1; [ ! -e w3 ] || exit 1; touch {0}"
    # `a`, `w1` and `w2` run at once, each of which waits for others of them; neither `b` nor `w3` runs beside them.
    status, output = ended(stages(
        "--lanes", "1", "--waiting", "w1,w2,w3", "a", "b", "w1", "w2", "w3",
        a=heavy.format("a"), b=heavy.format("b"), w1=light.format("w1"), w2=light.format("w2"), w3="[ -e w1 -o -e w2 ] || exit 1; touch w3",
    ))
    assert status == 0, output


def test_those_that_wait_take_a_lane_that_the_others_leave(stages: Callable):
    meet = "touch {0}; until [ -e {1} ]; do sleep 0.02; done"
    status, output = ended(stages(
        "--lanes", "1", "--waiting", "w1,w2,w3", "w1", "w2", "w3", "a",
        w1=meet.format("w1", "w2"), w2=meet.format("w2", "w3"), w3=meet.format("w3", "w1"), a="[ -e w1 -o -e w2 -o -e w3 ]",
    ))
    assert status == 0, output


def test_a_stage_waits_for_what_it_names_and_the_last_ones_run_alone(stages: Callable, tmp_path: Path):
    status, output = ended(stages(
        "--lanes", "4", "a", "b:a", "c:a,b", "d", "--", "e", "f",
        a="sleep 0.3; touch a", b="[ -e a ] || exit 1; sleep 0.3; touch b", c="[ -e a -a -e b ] || exit 1; touch c",
        d="sleep 0.5; touch d", e="[ -e c -a -e d ] || exit 1; sleep 0.3; touch e", f="[ -e e ] || exit 1",
    ))
    assert status == 0, output
    passed = re.findall(r"^--- (\w): passed", output, re.MULTILINE)
    # Nothing orders d and the others: a busy machine decides which ends first.
    assert sorted(passed) == ["a", "b", "c", "d", "e", "f"] and passed[4:] == ["e", "f"], output
    assert [name for name in passed if name in "abc"] == ["a", "b", "c"], output


def test_the_first_that_fails_ends_the_others(stages: Callable, tmp_path: Path):
    status, output = ended(stages(
        "--lanes", "2", "long", "bad", "next", "--", "last",
        long="echo so far; trap 'echo cleaned up; exit 1' INT; touch ready; while :; do sleep 0.02; done",
        bad="until [ -e ready ]; do sleep 0.02; done; echo why; exit 7", next="echo never", last="echo never",
    ))
    assert status == 7, output
    assert re.search(r"^--- long: ended after .*\nso far\ncleaned up\n\n--- bad: failed ---\nwhy\n", output, re.MULTILINE), output
    assert output.endswith("\nbad failed\n")
    assert "never" not in output and output.count("why") == 1


def test_with_keep_going_only_those_are_left_out_that_wait_for_what_has_failed(stages: Callable):
    status, output = ended(stages(
        "--keep-going", "a", "b:a", "c:b", "d", "--", "e", "f", a="exit 3", b="echo never", c="echo never", d="exit 4", f="echo last",
        e="echo alone; exit 5",
    ))
    assert status in (3, 4) and "never" not in output, output
    assert "\nalone\n" in output and "\nlast\n" in output
    assert sorted(output.splitlines()[-3:]) == ["a failed", "d failed", "e failed"]


def test_one_that_is_killed_has_failed(stages: Callable):
    status, output = ended(stages("a", a="kill -KILL $$"))
    assert (status, output.splitlines()[-1]) == (128 + signal.SIGKILL, "a failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_that_was_started(stages: Callable, tmp_path: Path, number: int):
    """Also what has a session of its own, whose parent has ended, and what a signal does not end."""
    process = stages(
        "--grace", "1", "a", "b",
        a="(setsid sleep 1000 & echo $! >orphan); sleep 1000",
        b="trap '' INT TERM; echo $$ >stubborn.new; mv stubborn.new stubborn; while :; do sleep 1; done",
    )
    until_there(tmp_path / "orphan")
    until_there(tmp_path / "stubborn")
    process.send_signal(number)
    status, output = ended(process)
    assert status == 128 + number, output
    for file in ("orphan", "stubborn"):
        assert has_ended(int((tmp_path / file).read_text()))


@pytest.mark.parametrize("arguments", [["a:b"], ["a:b", "b"], ["--lanes", "0", "a"], ["--waiting", "b", "a"]], ids=" ".join)
def test_what_cannot_run_is_refused(stages: Callable, arguments: list[str]):
    status, output = ended(stages(*arguments, a="echo never", b="echo never"))
    assert status == 2 and "never" not in output and any(
        said in output for said in ("--lanes must be", "waits for b", "--waiting names b")
    )


@pytest.mark.parametrize("more", [[], ["AGAIN=1"]], ids=["once", "again"])
def test_the_stages_of_make_test_are_commands(more: list[str]):
    """What make would run, read by a shell and not run."""
    for name in ("test-erlang", "test-cli", "test-release", "test-wire", "test-clients", "test-brokers", "test-emqx", "test-hostile"):
        commands = subprocess.run(["make", "-n", "BUILT=1", *more, name], cwd=REPOSITORY, capture_output=True, text=True)
        assert commands.returncode == 0, commands.stderr
        read = subprocess.run(["sh", "-n"], input=commands.stdout, capture_output=True, text=True)
        assert read.returncode == 0, f"{name}: {read.stderr}"
