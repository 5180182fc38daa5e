"""What the monitoring port has in common with that of a real nats-server: the same test for both."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificates import client_context
from emqx.nats import Nats
from monitoring import answers, get, get_json
from nats_keys import Key, account_jwt, operator_jwt, user_jwt
from ports import HOST, free_port
from wire.servers import (
    TARGETS,
    gateway_config,
    nats_server_config,
    nats_server_path,
    server_certificate,
)

from .running import GATEWAY

OPERATOR, ACCOUNT, SIGNING, USER, BEARER = (Key(role) for role in ("operator", "account", "account", "user", "user"))
JWT = user_jwt(SIGNING, USER, name="ann", account=ACCOUNT, tags=["t:1"])
SETTINGS = {
    "tls": {},
    "jwt": {
        "operator": operator_jwt(OPERATOR),
        "accounts": {
            ACCOUNT.public: account_jwt(
                OPERATOR, ACCOUNT, name="Acme", signing_keys=[SIGNING.public], tags=["x:1"], revocations={Key("user").public: 1}
            )
        },
    },
}


class Server:
    def __init__(self, port: int, monitor: int):
        self.port = port
        self.monitor = monitor

    def client(self, token: str = JWT, key: Key | None = USER, **fields: object) -> Nats:
        nats = Nats((HOST, self.port), tls=client_context(server_certificate().cafile))
        signed = {"sig": key.signature(nats.info)} if key else {}
        nats.connect(verbose=False, jwt=token, **signed, **fields)
        nats.ping()
        return nats

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.05)


@pytest.fixture(params=TARGETS)
def server(request: pytest.FixtureRequest, tmp_path: Path, mosquitto: int) -> Iterator[Server]:
    port, monitor = free_port(), free_port()
    file = tmp_path / "settings"
    if request.param == "gateway":
        file.write_text(gateway_config(SETTINGS, port, mosquitto) + f'\n[monitor]\nbind = "{HOST}:{monitor}"\n')
        program = GATEWAY
    else:
        program = nats_server_path() or pytest.skip("no nats-server")
        file.write_text(nats_server_config(SETTINGS, port) + f'http: "{HOST}:{monitor}"\n')
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(file)], stdout=log, stderr=log)
    server = Server(port, monitor)
    try:
        server.until(lambda: answers(monitor), "it is monitored")
        yield server
    finally:
        process.terminate()
        process.wait(15)


def test_a_client_over_tls_with_a_jwt(server: Server):
    with server.client(name="orders", lang="python") as client:
        client.subscribe("a")
        [seen] = get_json(server.monitor, "/connz?auth=1&subs=1")["connections"]
        assert (seen["authorized_user"], seen["account"]) == (USER.public, ACCOUNT.public)
        assert (seen["jwt"], seen["issuer_key"], seen["name_tag"], seen["tags"]) == (JWT, SIGNING.public, "ann", ["t:1"])
        assert seen["tls_version"] == "1.3" and re.fullmatch("TLS_[A-Z0-9_]+", seen["tls_cipher_suite"])
        assert re.fullmatch(r"[0-9.]+(µs|ms)", seen["rtt"])
        [quiet] = get_json(server.monitor, "/connz?sort=rtt")["connections"]
        assert not {"jwt", "issuer_key", "name_tag", "tags", "authorized_user", "account"} & quiet.keys()
        assert quiet["tls_version"] == "1.3"


def test_accounts(server: Server):
    with server.client() as client:
        listed = get_json(server.monitor, "/accountz")["accounts"]
        assert set(listed) - {"$SYS"} == {"$G", ACCOUNT.public}
        client.subscribe("a").publish("a", b"hi")
        assert client.message().payload == b"hi"

        def detail() -> dict:
            return get_json(server.monitor, f"/accountz?acc={ACCOUNT.public}")["account_detail"]

        server.until(lambda: detail()["subscriptions"] == 1, "it is counted")
        seen = detail()
        assert (seen["account_name"], seen["name_tag"], seen["tags"]) == (ACCOUNT.public, "Acme", ["x:1"])
        assert seen["jwt"] == SETTINGS["jwt"]["accounts"][ACCOUNT.public] and seen["issuer_key"] == OPERATOR.public
        assert (seen["expired"], seen["complete"], seen["jetstream_enabled"]) == (False, True, False)
        assert (seen["client_connections"], seen["leafnode_connections"]) == (1, 0)
        assert [time[:19] for time in seen["revoked_user"].values()] == ["1970-01-01T00:00:01"]
    status, body = get(server.monitor, "/accountz?acc=x")
    assert (status, body.strip()) == (400, "Account x does not exist")


def test_statistics_of_accounts(server: Server):
    assert get_json(server.monitor, "/accstatz")["account_statz"] == []
    unused = get_json(server.monitor, "/accstatz?unused=1")["account_statz"]
    # nats-server reads an account when its first client comes.
    assert {"$G"} <= {account["acc"] for account in unused} <= {"$G", "$SYS", ACCOUNT.public}
    with server.client() as client:
        client.subscribe("a")
        for _ in range(3):
            client.publish("a", b"hi")
            client.message()

        def statistics() -> dict:
            listed = get_json(server.monitor, "/accstatz")["account_statz"]
            return next((account for account in listed if account["acc"] == ACCOUNT.public), {})

        # A client is in the figures of its account from its first report on.
        server.until(lambda: statistics().get("sent", {}).get("msgs") == 3, "it is counted")
        seen = statistics()
        assert (seen["conns"], seen["leafnodes"], seen["total_conns"], seen["num_subscriptions"]) == (1, 0, 1, 1)
        assert seen["sent"]["bytes"] > 0 and seen["slow_consumers"] == 0 and {"msgs", "bytes"} <= seen["received"].keys()
