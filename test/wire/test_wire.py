"""Every case against a real nats-server and against the gateway, and proof that every case can fail."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import chain, pairwise, product

import pytest

from . import cases, logins
from .servers import TARGETS, Servers, nats_server_path, require, servers  # noqa: F401 (a fixture)
from .transports import TCP, TRANSPORTS, Transport
from .wire import AnyOrder, Case, Difference, Expect, Spread, WireFailure, mutants, run

def grouped(rows: tuple[Case | Difference, ...]) -> list[Case | Difference]:
    """Those with the same settings stand together, so that few processes of pytest need a server with them."""
    groups: dict[str, list[Case | Difference]] = {}
    for row in rows:
        groups.setdefault(json.dumps(row.settings, sort_keys=True), []).append(row)
    return list(chain(*groups.values()))


TABLE = grouped((*cases.CASES, *cases.DIFFERENCES, *logins.CASES, *logins.DIFFERENCES))


def case_for(row: Case | Difference, target: str) -> Case:
    return row.case(target) if isinstance(row, Difference) else row


def ways() -> Iterator[tuple[str, Transport]]:
    """Both servers over each of WIRE_TRANSPORTS; only TCP, if it is not set, where the gateway is somewhere else."""
    named = os.environ.get("WIRE_TRANSPORTS", "tcp" if "GATEWAY_ADDRESS" in os.environ else "tcp,tls,ws,wss")
    return product(TARGETS, (TRANSPORTS[name] for name in named.split(",")))


def way_id(way: tuple[str, Transport]) -> str:
    target, transport = way
    return target if transport is TCP else f"{target}-over-{transport.name}"


@pytest.mark.parametrize("way", list(ways()), ids=way_id)
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_case(servers: Servers, way: tuple[str, Transport], row: Case | Difference):  # noqa: F811
    target, transport = way
    require(target, row.since)
    case = case_for(row, target)
    if not case.suits(transport):
        pytest.skip(f"not over {transport.name}")
    run(case, servers.address(target, row.settings, transport), transport=transport)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.id)
def test_case_can_fail(servers: Servers, row: Case | Difference):  # noqa: F811
    """A falsified expectation is found, at that very step and not by running into the deadline."""
    target = "nats-server" if nats_server_path() else "gateway"
    require(target, row.since)
    address = servers.address(target, row.settings)
    count = 0
    for step, what, mutant in mutants(case_for(row, target)):
        with pytest.raises(WireFailure) as failure:
            run(mutant, address, probe_close=True)
            pytest.fail(f"step {step}: {what}, and the case still passes", pytrace=False)
        assert failure.value.step == step, f"{what} in step {step}, but: {failure.value}"
        assert " within " not in str(failure.value), f"{what} in step {step} was only found by waiting"
        count += 1
    assert count, "the case expects nothing"


def test_ids_are_unique():
    ids = [row.id for row in TABLE]
    assert sorted(set(ids)) == sorted(ids)


def test_alternatives_are_unambiguous():
    """Were one alternative the beginning of another, the bytes after it would decide which one had matched."""
    for target in TARGETS:
        for row in TABLE:
            for strings in alternatives(case_for(row, target)):
                distinct = sorted(set(strings))
                assert not any(after.startswith(before) for before, after in pairwise(distinct)), row.id


def alternatives(case: Case) -> Iterator[tuple[bytes, ...]]:
    for step in case.steps:
        match step:
            case Expect(_, strings) | AnyOrder(_, strings):
                yield strings
            case Spread(units, fence):
                yield from ((*own, fence[peer]) for peer, own in units.items())
