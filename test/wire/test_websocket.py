"""What is WebSocket's own, against a real nats-server and against the gateway: the handshake, frames, close codes.

The wire cases run over WebSocket in test_wire.py. Where the gateway differs, it is stricter, as RFC 6455 asks, or does
more: both expectations are written down then.
"""

from __future__ import annotations

import json
import os
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from websocket_client import (
    BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, Unexpected, WebSocket, frame, request,
)

from .cases import CASES
from .logins import CASES as LOGINS
from .logins import JWT, USER, connect, of_account
from .servers import TARGETS, Servers, require, servers  # noqa: F401 (a fixture)
from .transports import WS, WSS, trusting
from .wire import Case, Closed, run

GET = "GET / HTTP/1.1"
PONG_FRAME = Frame(BINARY, b"PONG\r\n")
PROTOCOL_ERROR, TOO_BIG, POLICY, GOING_AWAY = 1002, 1009, 1008, 1001
BOTH_NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    require(request.param, None)
    return request.param


def opened(servers: Servers, target: str, data: bytes | None = None, **settings: object) -> WebSocket:  # noqa: F811
    client = WebSocket.connect(servers.address(target, {"websocket": settings.pop("websocket", {})} | settings))
    client.upgrade(data)
    assert client.read().payload.startswith(b"INFO ")
    return client


def answers(client: WebSocket) -> Iterator[Frame]:
    """Up to the end of the connection."""
    while True:
        received = client.read()
        yield received
        if received.opcode == CLOSE:
            client.ended()
            return


def closed(code: int, text: str) -> Frame:
    return Frame(CLOSE, code.to_bytes(2, "big") + text.encode())


# --- Handshake -------------------------------------------------------------------------------------------------------

# The request, and the status of the answer: of both, or (nats-server's, the gateway's).
HANDSHAKES: dict[str, tuple[bytes, int | tuple[int, int]]] = {
    "plain": (request(), 101),
    "any_path": (request("GET /some/path?with=query HTTP/1.1"), 101),
    "absolute_target": (request("GET http://example.com/x HTTP/1.1"), 101),
    "lf_only": (request().replace(b"\r\n", b"\n"), 101),
    "token_lists": (request(Upgrade="h2c, websocket", Connection="keep-alive, Upgrade"), 101),
    "any_letter_case": (request(Upgrade="WebSocket", Connection="UPGRADE"), 101),
    "several_lines": (request().replace(b"Upgrade: websocket", b"Upgrade: h2c\r\nUpgrade: websocket"), 101),
    "names_in_any_case": (request().replace(b"Sec-WebSocket-", b"sec-WEBSOCKET-").replace(b"Host", b"hOST"), 101),
    "other_headers": (request(Cookie="a=b", Authorization="Basic x", Origin="http://other.example"), 101),
    "later_minor_version": (request("GET / HTTP/1.2"), 101),
    "offers_nothing_we_have": (request(Sec_WebSocket_Protocol="mqtt", Sec_WebSocket_Extensions="x-other"), 101),
    "post": (request("POST / HTTP/1.1"), 405),
    "lower_case_method": (request("get / HTTP/1.1"), 405),
    "no_host": (request(Host=None), 400),
    "two_hosts": (request().replace(b"Host:", b"Host: a\r\nHost:"), 400),
    "no_upgrade": (request(Upgrade=None), 400),
    "other_upgrade": (request(Upgrade="h2c"), 400),
    "no_connection": (request(Connection=None), 400),
    "other_connection": (request(Connection="keep-alive"), 400),
    "no_key": (request(Sec_WebSocket_Key=None), 400),
    "empty_key": (request(Sec_WebSocket_Key=""), 400),
    "no_version": (request(Sec_WebSocket_Version=None), 400),
    "other_version": (request(Sec_WebSocket_Version="8"), 400),
    "blank_before_colon": (request().replace(b"Upgrade: web", b"Upgrade : web"), 400),
    "no_path": (request("GET * HTTP/1.1"), 400),
    "http_0_9": (b"GET /\r\n\r\n", 400),
    "nats": (b'CONNECT {"verbose":false}\r\nPING\r\n\r\n', 400),
    "garbage": (b"\x00\x01\x02\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x00\x05hello\r\n\r\n", 400),
    # RFC 6455 section 4.2.1
    "http_1_0": (request("GET / HTTP/1.0"), (101, 400)),
    "http_2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
    # RFC 9112 section 5.2
    "folded_header": (request(X="a\r\n b"), (101, 400)),
    # no request of ours has to be collected beyond this
    "long_headers": (request(X="x" * 16384), (101, 431)),
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshake(servers: Servers, target: str, name: str):  # noqa: F811
    data, status = HANDSHAKES[name]
    expected = status if isinstance(status, int) else status[TARGETS.index(target)]
    with WebSocket.connect(servers.address(target, WS.settings)) as client:
        if expected == 101:
            answer = client.upgrade(data)
            assert (answer.headers["upgrade"], answer.headers["connection"]) == ("websocket", "Upgrade")
            assert not {"sec-websocket-protocol", "sec-websocket-extensions"} & set(answer.headers)
            assert client.read().payload.startswith(b"INFO ")
            client.send(frame(b"PING\r\n"))
            assert client.read() == PONG_FRAME
        else:
            client.send(data)
            answer = client.response()
            assert answer.status == expected
            if target == "gateway":
                # nats-server keeps some connections for another request
                client.ended()
                assert answer.headers["connection"] == "close"
            if expected == 400 and target == "gateway":
                assert answer.headers["sec-websocket-version"] == "13"


def test_request_in_pieces(servers: Servers, target: str):  # noqa: F811
    data = request()
    with WebSocket.connect(servers.address(target, WS.settings)) as client:
        client.send_slowly(*(data[at : at + 7] for at in range(0, len(data), 7)))
        assert client.response().status == 101
        assert client.read().payload.startswith(b"INFO ")


def test_frames_before_the_answer_are_refused(servers: Servers, target: str):  # noqa: F811
    with WebSocket.connect(servers.address(target, WS.settings)) as client:
        client.send(request() + frame(b"PING\r\n"))
        if target == "gateway":
            assert client.response().status == 400
        client.ended()


def test_subprotocol_is_answered_to_who_asks(servers: Servers):  # noqa: F811
    """nats-server answers none; jnats asks for it, and browsers fail without an answer."""
    with WebSocket.connect(servers.address("gateway", WS.settings)) as client:
        answer = client.upgrade(request(Sec_WebSocket_Protocol="mqtt, nats"))
        assert answer.headers["sec-websocket-protocol"] == "nats"


def test_request_that_does_not_come(servers: Servers):  # noqa: F811
    """nats-server's own timeout leaves clients that send nothing at all."""
    address = servers.address("gateway", {"websocket": {"handshake_timeout": "300ms"}})
    for begin in (b"", b"GET / HTTP/1.1\r\nHost: x\r\n"):
        with WebSocket.connect(address) as client:
            client.send(begin)
            began = time.monotonic()
            client.ended()
            assert time.monotonic() - began > 0.25


def test_configured_path(servers: Servers):  # noqa: F811
    address = servers.address("gateway", {"websocket": {"path": "/nats"}})
    for path, expected in {"/nats": 101, "/nats?x": 101, "/nats/x": 101, "/": 404, "/other": 404}.items():
        with WebSocket.connect(address) as client:
            client.send(request(f"GET {path} HTTP/1.1"))
            assert client.response().status == expected, path


SAME = {"same_origin": True}
ALLOWED = {"allowed_origins": ["https://a.example", "http://b.example:81"]}
ORIGINS = [
    ({}, "http://evil.example", 101),
    ({}, "null", 101),
    (SAME, None, 101),
    (SAME, "http://127.0.0.1", 101),
    (SAME, "http://127.0.0.1:80", 101),
    (SAME, "http://127.0.0.1:81", 403),
    (SAME, "https://127.0.0.1", 403),
    (SAME, "http://localhost", 403),
    (SAME, "null", 403),
    (ALLOWED, None, 101),
    (ALLOWED, "https://a.example", 101),
    (ALLOWED, "https://A.EXAMPLE:443", 101),
    (ALLOWED, "http://b.example:81", 101),
    (ALLOWED, "http://a.example", 403),
    (ALLOWED, "http://b.example", 403),
    (ALLOWED, "https://c.example", 403),
    (SAME | ALLOWED, "https://a.example", 403),
    (SAME | ALLOWED, "http://127.0.0.1", 403),
]


@pytest.mark.parametrize("settings, origin, expected", ORIGINS)
def test_origin(servers: Servers, target: str, settings: dict, origin: str | None, expected: int):  # noqa: F811
    with WebSocket.connect(servers.address(target, {"websocket": settings})) as client:
        client.send(request(Origin=origin))
        assert client.response().status == expected


def test_forwarded_address(servers: Servers, target: str):  # noqa: F811
    """nats-server always believes it; the gateway when it is told to."""
    trusted = {"websocket": {} if target == "nats-server" else {"proxy_address_header": "X-Forwarded-For"}}
    for settings, expected in ((trusted, "192.0.2.7"), (WS.settings, "127.0.0.1")):
        with WebSocket.connect(servers.address(target, settings)) as client:
            client.upgrade(request(X_Forwarded_For="192.0.2.7"))
            info = json.loads(client.read().payload[5:])
            assert info["client_ip"] == expected or target == "nats-server"


def test_info_over_tls(servers: Servers, target: str):  # noqa: F811
    with WebSocket.connect(servers.address(target, WSS.settings), trusting()) as client:
        client.upgrade()
        info = json.loads(client.read().payload[5:])
        assert (info["tls_required"], info["tls_available"]) == (True, True)


# --- Frames ----------------------------------------------------------------------------------------------------------

CONNECT = b'CONNECT {"verbose":false}\r\n'
ECHO = b"SUB a 1\r\nPUB a 5\r\nhello\r\n"
MESSAGE = Frame(BINARY, b"MSG a 1 5\r\nhello\r\n")

# What is sent, and what must come back; the connection stays.
STAYS = {
    "binary": (frame(b"PING\r\n"), [PONG_FRAME]),
    "text": (frame(b"PING\r\n", TEXT), [PONG_FRAME]),
    "text_that_is_not_utf8": (frame(CONNECT) + frame(b"SUB a 1\r\nPUB a 2\r\n\xff\xfe\r\n", TEXT),
                              [Frame(BINARY, b"MSG a 1 2\r\n\xff\xfe\r\n")]),
    "two_operations_in_one": (frame(b"PING\r\nPING\r\n"), [Frame(BINARY, b"PONG\r\nPONG\r\n")]),
    "operation_in_two": (frame(b"PI") + frame(b"NG\r\n"), [PONG_FRAME]),
    "fragments": (frame(b"PI", fin=False) + frame(b"NG", CONTINUATION, fin=False) + frame(b"\r\n", CONTINUATION),
                  [PONG_FRAME]),
    "control_between_fragments": (
        frame(b"PI", fin=False) + frame(b"abc", PING) + frame(b"xyz", PONG) + frame(b"NG\r\n", CONTINUATION),
        [Frame(PONG, b"abc"), PONG_FRAME],
    ),
    "empty": (frame(b"") + frame(b"", TEXT) + frame(b"", fin=False) + frame(b"PING\r\n", CONTINUATION), [PONG_FRAME]),
    "length_of_16_bits": (frame(b"PING\r\n", length_form=16), [PONG_FRAME]),
    "length_of_64_bits": (frame(b"PING\r\n", length_form=64), [PONG_FRAME]),
    "mask_of_zeros": (frame(b"PING\r\n", mask=b"\0\0\0\0"), [PONG_FRAME]),
    "ping": (frame(b"", PING), [Frame(PONG, b"")]),
    "ping_of_125": (frame(b"p" * 125, PING), [Frame(PONG, b"p" * 125)]),
    "pong_is_ignored": (frame(b"x", PONG) + frame(b"PING\r\n"), [PONG_FRAME]),
    "message": (frame(CONNECT + ECHO), [MESSAGE]),
    "126_bytes": (frame(CONNECT) + frame(b"SUB a 1\r\nPUB a 107\r\n" + b"x" * 107 + b"\r\n"),
                  [Frame(BINARY, b"MSG a 1 107\r\n" + b"x" * 107 + b"\r\n")]),
    "65536_bytes": (frame(CONNECT) + frame(b"SUB a 1\r\nPUB a 65536\r\n" + b"x" * 65536 + b"\r\n"),
                    [Frame(BINARY, b"MSG a 1 65536\r\n" + b"x" * 65536 + b"\r\n")]),
}


@pytest.mark.parametrize("name", STAYS)
def test_frames(servers: Servers, target: str, name: str):  # noqa: F811
    sent, received = STAYS[name]
    with opened(servers, target) as client:
        client.send(sent)
        assert [client.read() for _ in received] == received
        client.send(frame(b"PING\r\n"))
        assert client.read() == PONG_FRAME


@pytest.mark.parametrize("name", [name for name, (sent, _) in STAYS.items() if len(sent) < 200])
def test_frames_cut_everywhere(servers: Servers, target: str, name: str):  # noqa: F811
    sent, received = STAYS[name]
    for cut in range(1, len(sent)):
        with opened(servers, target) as client:
            client.send_slowly(sent[:cut], sent[cut:])
            stream = b""
            wanted = b"".join(one.payload for one in received if one.opcode == BINARY)
            controls = [one for one in received if one.opcode != BINARY]
            while stream != wanted or controls:
                one = client.read()
                if one.opcode == BINARY:
                    stream += one.payload
                    assert wanted.startswith(stream)
                else:
                    assert one == controls.pop(0)


def test_frames_byte_by_byte(servers: Servers, target: str):  # noqa: F811
    with opened(servers, target) as client:
        client.send_slowly(*(bytes([byte]) for byte in frame(CONNECT + ECHO)))
        assert client.read() == MESSAGE


def test_a_large_frame_in_segments(servers: Servers, target: str):  # noqa: F811
    payload = bytes(range(256)) * 4000
    with opened(servers, target) as client:
        client.send(frame(CONNECT + b"SUB a 1\r\nPUB a %d\r\n%b\r\n" % (len(payload), payload)))
        assert client.read() == Frame(BINARY, b"MSG a 1 %d\r\n%b\r\n" % (len(payload), payload))


# What is sent, and the status of the close frame. nats-server closes for its own reasons without one that arrives.
BREACHES = {
    "not_masked": frame(b"PING\r\n", mask=None),
    "rsv1": frame(b"PING\r\n", rsv=4),
    "unknown_data_opcode": frame(b"PING\r\n", 3),
    "unknown_control_opcode": frame(b"", 11),
    "long_control": frame(b"x" * 126, PING),
    "fragmented_control": frame(b"x", PING, fin=False),
    "continuation_of_nothing": frame(b"PING\r\n", CONTINUATION),
    "message_in_a_message": frame(b"PI", fin=False) + frame(b"NG\r\n"),
    "continuation_after_the_end": frame(b"PI", fin=False) + frame(b"NG", CONTINUATION) + frame(b"\r\n", CONTINUATION),
}
# nats-server does not look at these.
STRICTER = {
    "rsv2": frame(b"PING\r\n", rsv=2),
    "rsv3": frame(b"PING\r\n", rsv=1),
    "rsv1_of_a_control_frame": frame(b"", PING, rsv=4),
}


@pytest.mark.parametrize("name", BREACHES)
def test_breach(servers: Servers, target: str, name: str):  # noqa: F811
    with opened(servers, target) as client:
        client.send(BREACHES[name])
        if target == "gateway":
            last = client.read()
            assert (last.opcode, last.payload[:2]) == (CLOSE, PROTOCOL_ERROR.to_bytes(2, "big"))
            client.ended()
        else:
            try:
                assert client.read().opcode == CLOSE
            except Unexpected as end:
                assert "closed too early" in str(end)


@pytest.mark.parametrize("name", STRICTER)
def test_breach_that_nats_server_passes_over(servers: Servers, name: str):  # noqa: F811
    with opened(servers, "gateway") as client:
        client.send(STRICTER[name])
        assert client.read() == closed(PROTOCOL_ERROR, "reserved bit set")
        client.ended()


def test_what_came_before_a_breach_is_answered(servers: Servers):  # noqa: F811
    with opened(servers, "gateway") as client:
        client.send(frame(b"PING\r\n") + BREACHES["not_masked"])
        assert list(answers(client)) == [PONG_FRAME, closed(PROTOCOL_ERROR, "mask bit missing")]


def test_frame_limit(servers: Servers):  # noqa: F811
    """It is known from the header: no byte of the frame is waited for."""
    settings = {"max_frame_size": 1000}
    line = b"PING" + b" " * 994 + b"\r\n"
    with opened(servers, "gateway", websocket=settings) as client:
        client.send(frame(line))
        assert client.read() == PONG_FRAME
        client.send(frame(line + b" ")[:8])
        assert list(answers(client)) == [closed(TOO_BIG, "frame too large")]


# --- The end ---------------------------------------------------------------------------------------------------------

# What the client closes with, and the answer: of both, or (nats-server's, the gateway's).
CLOSES = {
    "nothing": (b"", b""),
    "normal": (b"\x03\xe8", b"\x03\xe8"),
    "going_away": (b"\x03\xe9", b"\x03\xe9"),
    "with_text": (b"\x03\xe8bye \xc3\xa9", b"\x03\xe8bye \xc3\xa9"),
    "application": (b"\x0f\xa0", b"\x0f\xa0"),
    "text_that_is_not_utf8": (b"\x03\xe8\xff", b"\x03\xefinvalid utf8 body in close frame"),
    # RFC 6455 section 7.4
    "one_byte": (b"\x03", (b"", b"\x03\xeainvalid close frame")),
    "never_sent": (b"\x03\xed", (b"", b"\x03\xeainvalid close code")),
    "unknown": (b"\x03\xe7", (b"\x03\xe7", b"\x03\xeainvalid close code")),
}


@pytest.mark.parametrize("name", CLOSES)
def test_close_of_the_client(servers: Servers, target: str, name: str):  # noqa: F811
    sent, answer = CLOSES[name]
    expected = answer if isinstance(answer, bytes) else answer[TARGETS.index(target)]

    def close() -> list[Frame]:
        with opened(servers, target) as client:
            client.send(frame(b"PING\r\n") + frame(sent, CLOSE) + frame(b"PING\r\n"))
            return list(answers(client))

    try:
        got = close()
    except Unexpected:
        # Now and then the PONG of nats-server follows its own close frame.
        if target == "gateway":
            raise
        got = close()
    assert got == [PONG_FRAME, Frame(CLOSE, expected)]


def fatal(row: Case) -> bool:
    return any(isinstance(step, Closed) for step in row.steps) and row.suits(WS) and row.since is None


@pytest.mark.parametrize("row", list(filter(fatal, (*CASES, *LOGINS))), ids=lambda row: row.id)
def test_close_codes_of_the_cases(servers: Servers, row: Case):  # noqa: F811
    """For every reason that the cases know, nats-server's."""
    codes = []
    for target in TARGETS:
        require(target, row.since)
        played = run(row, servers.address(target, row.settings, WS), transport=WS)
        codes.append({name: connection.socket.close_code for name, connection in played.items()})
    assert codes[0] == codes[1]


def test_too_many_connections(servers: Servers, target: str):  # noqa: F811
    with the_first(servers, target, max_connections=1):
        with opened(servers, target, max_connections=1) as second:
            error, last = list(answers(second))
            assert error == Frame(BINARY, b"-ERR 'maximum connections exceeded'\r\n")
            assert last == closed(POLICY, "Maximum Connections Exceeded")


def test_far_too_many_connections(servers: Servers):  # noqa: F811
    """Who is refused waits for its turn to be told so. There are not more than some of them; the others are closed."""
    with the_first(servers, "gateway", max_connections=1) as first:
        address = first.socket.getpeername()
        with ExitStack() as stack:
            silent, over = [], 0
            for _ in range(150):
                try:
                    silent.append(stack.enter_context(WebSocket.connect(address)))
                except ConnectionResetError:
                    # It was closed before this side of it was ready.
                    over += 1
            time.sleep(0.5)
            over += sum(is_over(client) for client in silent)
            assert 30 <= over <= 50
            first.send(frame(b"PING\r\n"))
            assert first.read() == PONG_FRAME
        until = time.monotonic() + 5
        while not is_told(servers):
            assert time.monotonic() < until


def is_over(client: WebSocket) -> bool:
    client.socket.settimeout(0.001)
    try:
        return client.socket.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True


def is_told(servers: Servers) -> bool:  # noqa: F811
    try:
        with opened(servers, "gateway", max_connections=1) as refused:
            return Frame(BINARY, b"-ERR 'maximum connections exceeded'\r\n") in answers(refused)
    except (Unexpected, OSError):
        return False


def the_first(servers: Servers, target: str, **settings: object) -> WebSocket:  # noqa: F811
    """The server may not have seen the end of an earlier one yet."""
    until = time.monotonic() + 5
    while True:
        client = opened(servers, target, **settings)
        client.send(frame(b"PING\r\n"))
        if client.read() == PONG_FRAME:
            return client
        assert time.monotonic() < until
        client.socket.close()


def test_stale_connection(servers: Servers, target: str):  # noqa: F811
    with opened(servers, target, heartbeat="300ms") as client:
        client.send(frame(CONNECT))
        *pings, error, last = answers(client)
        assert set(pings) == {Frame(BINARY, b"PING\r\n")}
        assert error == Frame(BINARY, b"-ERR 'Stale Connection'\r\n")
        assert last == closed(GOING_AWAY, "Stale Connection")


def test_a_ping_of_websocket_shows_that_the_client_is_there(servers: Servers):  # noqa: F811
    with opened(servers, "gateway", heartbeat="300ms") as client:
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            client.send(frame(b"", PING))
            assert client.read() == Frame(PONG, b"")
            time.sleep(0.05)


SLOW = {"max_pending": 4 << 20}


def test_a_client_that_does_not_read(servers: Servers, target: str):  # noqa: F811
    """It is closed, and the publisher does not notice."""
    message = b"PUB slow 100000\r\n" + b"x" * 100000 + b"\r\n"
    with opened(servers, target, **SLOW) as slow, opened(servers, target, **SLOW) as publisher:
        slow.send(frame(CONNECT + b"SUB slow 1\r\nPING\r\n"))
        assert slow.read() == PONG_FRAME
        publisher.send(frame(CONNECT))
        for _ in range(400):
            publisher.send(frame(message))
        publisher.send(frame(b"PING\r\n"))
        # nats-server pings a client two seconds after its CONNECT.
        while (answer := publisher.read()) == Frame(BINARY, b"PING\r\n"):
            pass
        assert answer == PONG_FRAME
        with pytest.raises(Unexpected, match="closed too early"):
            while True:
                slow.read()


def test_a_client_that_pings_and_does_not_read(servers: Servers):  # noqa: F811
    """It is answered the latest one, and closed when it has taken nothing for a while."""
    pings = frame(b"p" * 125, PING) * 1000
    with opened(servers, "gateway", send_timeout="500ms") as client:
        until = time.monotonic() + 20
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while time.monotonic() < until:
                client.send(pings)


def test_the_latest_ping_is_answered(servers: Servers):  # noqa: F811
    """Pings of a client that reads late: it gets pongs, in order, and at last the one to its last ping.

    The last one may come as late as the next look at the progress of the output: a quarter of `send_timeout`.
    """
    count = 100_000
    with opened(servers, "gateway", heartbeat="1h", send_timeout="12s") as client:
        for number in range(count):
            client.send(frame(b"%010d" % number + b"p" * 115, PING))
        numbers = [0]
        while numbers[-1] < count - 1:
            pong = client.read()
            assert pong.opcode == PONG
            numbers.append(int(pong.payload[:10]))
        assert numbers == sorted(numbers)
        assert len(numbers) < count


def test_login_that_fails(servers: Servers, target: str):  # noqa: F811
    login = {"user": "u", "password": "p"}
    with opened(servers, target, login=login) as client:
        client.send(frame(b"PING\r\n"))
        assert list(answers(client)) == [
            Frame(BINARY, b"-ERR 'Authorization Violation'\r\n"), closed(POLICY, "Authentication Failure"),
        ]


def test_login_that_does_not_come(servers: Servers, target: str):  # noqa: F811
    with opened(servers, target, login={"user": "u", "password": "p", "timeout": 1}) as client:
        assert list(answers(client)) == [
            Frame(BINARY, b"-ERR 'Authentication Timeout'\r\n"), closed(POLICY, "Authentication Timeout"),
        ]


def test_a_client_that_goes_without_a_word(servers: Servers, target: str):  # noqa: F811
    """Half a close is enough: what it has sent before is answered."""
    with opened(servers, target) as client:
        client.send(frame(b"PING\r\n"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read() == PONG_FRAME


def test_what_a_client_sent_before_its_fin_counts(servers: Servers, target: str):  # noqa: F811
    """Over TLS, without an alert of its own: nobody takes the answers after it."""
    publishes = b'CONNECT {"verbose":true}\r\n' + b"PUB fin 200\r\n%b\r\n" % (b"x" * 200) * 5000
    expected = b"MSG fin 1 200\r\n%b\r\n" % (b"x" * 200) * 5000
    address = servers.address(target, WSS.settings)
    with WebSocket.connect(address, trusting()) as reader, WebSocket.connect(address, trusting()) as leaver:
        for client in (reader, leaver):
            client.upgrade()
            assert client.read().payload.startswith(b"INFO ")
        reader.send(frame(CONNECT + b"SUB fin 1\r\nPING\r\n"))
        assert reader.read() == PONG_FRAME
        # A ping has an answer, too, before anything that it holds is looked at.
        pieces = [publishes[at : at + 50000] for at in range(0, len(publishes), 50000)]
        leaver.send(b"".join(frame(b"", PING) + frame(piece) for piece in pieces))
        # Of an SSLSocket it ends TCP alone.
        leaver.socket.shutdown(socket.SHUT_WR)
        received = b""
        while len(received) < len(expected):
            received += reader.read().payload
        assert received == expected


# --- Logins ----------------------------------------------------------------------------------------------------------

COOKIE = {"websocket": {"jwt_cookie": "session", "same_origin": True}} | JWT
BEARER = of_account(bearer_token=True)
REFUSAL = [Frame(BINARY, b"-ERR 'Authorization Violation'\r\n"), closed(POLICY, "Authentication Failure")]


def login_with(servers: Servers, target: str, cookie: str | None, fields: dict | None = None) -> WebSocket:  # noqa: F811
    client = WebSocket.connect(servers.address(target, COOKIE))
    client.upgrade(request(Cookie=cookie))
    info = json.loads(client.read().payload[5:])
    signed = {"sig": USER.signature(info)} if fields and "jwt" in fields else {}
    client.send(frame(connect(**(fields or {}), **signed) + b"PING\r\n"))
    return client


@pytest.mark.parametrize(
    "cookie, fields",
    [
        (f"session={BEARER}", None),
        (f'a=b; session="{BEARER}"; c=d', None),
        (f"session={of_account(bearer_token=True, allowed_connection_types=['WEBSOCKET'])}", None),
        # CONNECT has its own
        ("session=nonsense", {"jwt": of_account()}),
        (None, {"jwt": of_account()}),
        (None, {"jwt": of_account(allowed_connection_types=["WEBSOCKET"])}),
    ],
    ids=range(6),
)
def test_jwt_is_accepted(servers: Servers, target: str, cookie: str | None, fields: dict | None):  # noqa: F811
    with login_with(servers, target, cookie, fields) as client:
        assert client.read() == PONG_FRAME


@pytest.mark.parametrize(
    "cookie, fields",
    [
        (None, None),
        ("session=", None),
        ("session=nonsense", None),
        (f"Session={BEARER}", None),
        (f"other={BEARER}", None),
        # a signature of the nonce is missing
        (f"session={of_account()}", None),
        (f"session={of_account(bearer_token=True, allowed_connection_types=['STANDARD'])}", None),
        (None, {"jwt": of_account(allowed_connection_types=["STANDARD"])}),
        (f"session={BEARER}", {"jwt": "nonsense"}),
    ],
    ids=range(9),
)
def test_jwt_is_refused(servers: Servers, target: str, cookie: str | None, fields: dict | None):  # noqa: F811
    with login_with(servers, target, cookie, fields) as client:
        assert list(answers(client)) == REFUSAL


# --- permessage-deflate ----------------------------------------------------------------------------------------------

DEFLATE = {"compression": True}
OFFER = request(Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits")


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(received: Frame) -> bytes:
    """Each message for itself."""
    assert received.deflated
    return zlib.decompressobj(wbits=-15).decompress(received.payload + b"\0\0\xff\xff")


def compressing(servers: Servers, target: str) -> WebSocket:  # noqa: F811
    client = WebSocket.connect(servers.address(target, {"websocket": DEFLATE}))
    assert client.upgrade(OFFER).headers["sec-websocket-extensions"] == BOTH_NO_TAKEOVER
    info = client.read()
    assert (inflated(info) if info.deflated else info.payload).startswith(b"INFO ")
    return client


def test_deflate_is_off_unless_configured_and_offered(servers: Servers, target: str):  # noqa: F811
    for settings, data in (({}, OFFER), (DEFLATE, request()), (DEFLATE, request(Sec_WebSocket_Extensions="x-other"))):
        with WebSocket.connect(servers.address(target, {"websocket": settings})) as client:
            assert "sec-websocket-extensions" not in client.upgrade(data).headers


def test_deflate(servers: Servers, target: str):  # noqa: F811
    with compressing(servers, target) as client:
        front, back = deflated(CONNECT + b"SUB a 1\r\n")[:5], deflated(CONNECT + b"SUB a 1\r\n")[5:]
        client.send(frame(front, fin=False, rsv=4) + frame(b"", PING) + frame(back, CONTINUATION))
        assert client.read() == Frame(PONG, b"")
        for size in (0, 10, 40, 100, 5000, 1000000):
            payload = b"ab" * (size // 2)
            client.send(frame(deflated(b"PUB a %d\r\n%b\r\n" % (size, payload)), rsv=4))
            message = b"MSG a 1 %d\r\n%b\r\n" % (size, payload)
            received = client.read()
            # 64 bytes and less are not worth it
            assert received.deflated == (len(message) > 64)
            assert (inflated(received) if received.deflated else received.payload) == message
        client.send(frame(b"PING\r\n"))
        assert client.read() == PONG_FRAME


def test_info_is_not_compressed(servers: Servers):  # noqa: F811
    """Who has not logged in gets no memory for compression; what comes after CONNECT is compressed."""
    with WebSocket.connect(servers.address("gateway", {"websocket": DEFLATE})) as client:
        client.upgrade(OFFER)
        assert not client.read().deflated
        client.send(frame(CONNECT + b"SUB a 1\r\nPUB a 1000\r\n" + b"x" * 1000 + b"\r\n"))
        assert client.read().deflated


@pytest.mark.parametrize("offer", [None, OFFER], ids=["plain", "deflate"])
def test_no_frame_is_longer_than_clients_take(servers: Servers, offer: bytes | None):  # noqa: F811
    """nats.go hangs up at one of more than 8 times INFO's max_payload, where nats-server sends it."""
    settings = {"websocket": DEFLATE, "max_payload": 1000}
    # They do not get shorter by compression.
    payloads = [os.urandom(1000) for _ in range(3000)]
    expected = b"".join(b"MSG many 1 1000\r\n%b\r\n" % payload for payload in payloads)
    with opened(servers, "gateway", **settings) as publisher:
        with WebSocket.connect(servers.address("gateway", settings)) as client:
            client.upgrade(offer)
            client.read()
            client.send(frame(CONNECT + b"SUB many 1\r\nPING\r\n"))
            assert client.read() == PONG_FRAME
            publishes = b"".join(b"PUB many 1000\r\n%b\r\n" % payload for payload in payloads)
            publisher.send(frame(CONNECT + publishes))
            received, longest = b"", 0
            while len(received) < len(expected):
                one = client.read()
                longest = max(longest, len(one.payload))
                received += inflated(one) if one.deflated else one.payload
            assert received == expected
            # They are filled, too.
            assert 7000 < longest <= 8000


def test_deflate_cut_everywhere(servers: Servers, target: str):  # noqa: F811
    data = frame(deflated(CONNECT + ECHO), rsv=4)
    for cut in range(1, len(data)):
        with compressing(servers, target) as client:
            client.send_slowly(data[:cut], data[cut:])
            assert client.read() == MESSAGE


def test_what_is_not_deflate(servers: Servers):  # noqa: F811
    with compressing(servers, "gateway") as client:
        client.send(frame(b"\xff\xff\xff\xff", rsv=4))
        assert list(answers(client)) == [closed(1007, "websocket bad compression")]


def test_zip_bomb(servers: Servers):  # noqa: F811
    """64 MiB in 64 KiB: of a message, eight times the largest payload is more than any client needs."""
    with compressing(servers, "gateway") as client:
        client.send(frame(deflated(CONNECT + b"PING" + b" " * 1000 + b"\r\n"), rsv=4))
        assert client.read() == PONG_FRAME
        bomb = frame(deflated(b"PUB a 1000000\r\n%b\r\n" % (b"\0" * 1000000) * 64), rsv=4)
        client.send(bomb)
        assert list(answers(client)) == [closed(TOO_BIG, "websocket message too large")]
