"""The wire cases: what a NATS client may send over plain TCP without authentication, and what it gets back, byte for byte.

Sections are those of the protocol notes: 1 grammar, 2 CONNECT, 3 INFO, 4 SUB, UNSUB and delivery, 5 subjects,
6 headers, 8 limits and timers, 10 bytes to know by heart.

Expectations are those of nats-server. Subjects are UTF-8 without control characters, and only such orders are expected
as hold when messages take a way through a broker: across connections, a subscription is proved active by a PONG, and
"nothing more" by a fence, a last message from the same publisher.
"""

from __future__ import annotations

import re

from .wire import ABSENT, PORT, As, Case, Difference, Peer, Spread, Step

A, B, C = Peer("A"), Peer("B"), Peer("C")

QUIET = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
HEADERS = b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n'
NO_RESPONDERS = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
NO_ECHO = b'CONNECT {"verbose":false,"pedantic":false,"echo":false}\r\n'
PEDANTIC = b'CONNECT {"verbose":false,"pedantic":true}\r\n'

OK = b"+OK\r\n"
PING = b"PING\r\n"
PONG = b"PONG\r\n"
UNKNOWN_OPERATION = b"-ERR 'Unknown Protocol Operation'\r\n"
MAXIMUM_PAYLOAD = b"-ERR 'Maximum Payload Violation'\r\n"
MAXIMUM_CONTROL_LINE = b"-ERR 'maximum control line exceeded'\r\n"
MAXIMUM_CONNECTIONS = b"-ERR 'maximum connections exceeded'\r\n"
MAXIMUM_SUBSCRIPTIONS = b"-ERR 'maximum subscriptions exceeded'\r\n"
INVALID_CLIENT_PROTOCOL = b"-ERR 'invalid client protocol'\r\n"
NO_RESPONDERS_NEEDS_HEADERS = b"-ERR 'no responders requires headers support'\r\n"
AUTHORIZATION_VIOLATION = b"-ERR 'Authorization Violation'\r\n"
INVALID_SUBJECT = b"-ERR 'Invalid Subject'\r\n"
INVALID_PUBLISH_SUBJECT = b"-ERR 'Invalid Publish Subject'\r\n"
STALE_CONNECTION = b"-ERR 'Stale Connection'\r\n"

BLOCK = b"NATS/1.0\r\nA: b\r\n\r\n"
DEFAULT_MAX_PAYLOAD = 1048576
DEFAULT_MAX_CONTROL_LINE = 4096


def sub(subject: bytes, sid: bytes, queue_group: bytes = b"") -> bytes:
    return b"SUB " + b" ".join(filter(None, (subject, queue_group, sid))) + b"\r\n"


def pub(subject: bytes, payload: bytes = b"", reply_to: bytes = b"") -> bytes:
    arguments = b" ".join(filter(None, (subject, reply_to, b"%d" % len(payload))))
    return b"PUB " + arguments + b"\r\n" + payload + b"\r\n"


def msg(subject: bytes, sid: bytes, payload: bytes = b"", reply_to: bytes = b"") -> bytes:
    arguments = b" ".join(filter(None, (subject, sid, reply_to, b"%d" % len(payload))))
    return b"MSG " + arguments + b"\r\n" + payload + b"\r\n"


def hpub(subject: bytes, block: bytes, payload: bytes = b"", reply_to: bytes = b"") -> bytes:
    sizes = b"%d %d" % (len(block), len(block) + len(payload))
    return b"HPUB " + b" ".join(filter(None, (subject, reply_to, sizes))) + b"\r\n" + block + payload + b"\r\n"


def hmsg(subject: bytes, sid: bytes, block: bytes, payload: bytes = b"", reply_to: bytes = b"") -> bytes:
    sizes = b"%d %d" % (len(block), len(block) + len(payload))
    return b"HMSG " + b" ".join(filter(None, (subject, sid, reply_to, sizes))) + b"\r\n" + block + payload + b"\r\n"


def no_responders(reply_to: bytes, sid: bytes) -> bytes:
    return hmsg(reply_to, sid, b"NATS/1.0 503\r\n\r\n")


# A subject and sid that no case uses otherwise: the last message, which shows that nothing else was before it.
FENCE_SUB = sub(b"fence.@@", b"9")
FENCE_PUB = pub(b"fence.@@")
FENCE = msg(b"fence.@@", b"9")


def subscriber(peer: Peer, subscriptions: bytes, connect: bytes = QUIET) -> tuple[Step, Step]:
    """The fence included; the PONG makes the subscriptions active for every publisher."""
    return peer.send(connect + subscriptions + FENCE_SUB + PING), peer.expect(PONG)


_cases: list[Case] = []


def case(
    id: str,
    section: str,
    *steps: Step | tuple[Step, ...],
    settings: dict | None = None,
    since: str | None = None,
    tcp: bool = False,
):
    flat: list[Step] = []
    for step in steps:
        flat.extend(step if isinstance(step, tuple) else (step,))
    _cases.append(Case(id, section, tuple(flat), settings or {}, since, tcp))


def alone(id: str, section: str, data: bytes, *received: bytes, **options):
    """One connection, one send; it stays open."""
    case(id, section, A.send(data), *(A.expect(piece) for piece in received), A.open(), **options)


def fatal(id: str, section: str, data: bytes, received: bytes = b"", **options):
    """One connection, one send; the server closes, after the text or silently."""
    case(id, section, A.send(data), *([A.expect(received)] if received else []), A.closed(), **options)


# === 1. Grammar ======================================================================================================

# --- Operation names

alone("op_ping_any_letter_case", "1", b"ping\r\nPiNg\r\npINg\r\n", PONG * 3)
alone("op_connect_sub_pub_lower_case", "1", b'connect {"verbose":false}\r\nsub a 1\r\npub a 1\r\nx\r\n', msg(b"a", b"1", b"x"))
alone("op_sub_pub_mixed_letter_case", "1", QUIET + b"sUb a 1\r\nPuB a 1\r\nx\r\n", msg(b"a", b"1", b"x"))
alone("op_unsub_mixed_letter_case", "1", QUIET + sub(b"a", b"1") + b"uNsUb 1\r\n" + pub(b"a") + FENCE_SUB + FENCE_PUB, FENCE)
alone("op_hpub_mixed_letter_case", "1",
      HEADERS + sub(b"a", b"1") + b"hPuB a 18 18\r\n" + BLOCK + b"\r\n", hmsg(b"a", b"1", BLOCK))
alone("op_pong_lower_case_is_taken", "1", QUIET + b"pong\r\n")

for name, data in {
    "first_byte": b"X",
    "digit": b"1",
    "second_byte": b"PX",
    "in_ping": b"PINX",
    "in_pub": b"PUX",
    "in_sub": b"SUX",
    "in_unsub": b"UNSUX",
    "in_hpub": b"HPUX",
    "in_connect": b"CONNECX",
    "in_info": b"INFX",
    "in_ok": b"+OX",
    "in_err": b"-ERX",
    "no_blank_after_pub": b"PUBa",
    "no_blank_after_sub": b"SUBa",
    "no_blank_after_unsub": b"UNSUB1",
    "no_blank_after_hpub": b"HPUBa",
}.items():
    # No line end follows: the first wrong byte is enough.
    fatal(f"wrong_byte_{name}", "1", QUIET + data, UNKNOWN_OPERATION)

for name, data in {
    "pub": b"PUB\r\n",
    "hpub": b"HPUB\r\n",
    "sub": b"SUB\r\n",
    "unsub": b"UNSUB\r\n",
    "err": b"-ERR\r\n",
}.items():
    fatal(f"op_alone_{name}", "1", QUIET + data, UNKNOWN_OPERATION)

for name, data in {
    "space": b" PING\r\n",
    "tab": b"\tPING\r\n",
    "empty_line": b"\r\nPING\r\n",
    "empty_line_lf": b"\nPING\r\n",
    "nul": b"\x00PING\r\n",
}.items():
    fatal(f"before_op_{name}", "1", QUIET + data, UNKNOWN_OPERATION)

alone("ping_with_trailing_text", "1", b"PING x y\r\nPINGxyz\r\nPING\t\r\n", PONG * 3)
alone("ping_with_long_trailing_text", "1", b"PING " + b"x" * 9000 + b"\r\n", PONG)
alone("pong_with_trailing_text", "1", QUIET + b"PONG x y\r\nPONGxyz\r\n")
alone("pong_unasked", "1", QUIET + b"PONG\r\n" * 5)
alone("ok_from_client_is_ignored", "1", QUIET + b"+OK\r\n+OK whatever\r\n")
alone("info_from_client_is_ignored", "1", QUIET + b'INFO {"server_id":"x"}\r\n')
fatal("info_from_client_bad_json", "1", QUIET + b"INFO {bad\r\n" + PING)
fatal("err_from_client_closes", "1", QUIET + b"-ERR 'x'\r\n" + PING)
for name, data in {
    "msg": b"MSG a 1 1\r\nx\r\n",
    "hmsg": b"HMSG a 1 12 12\r\nNATS/1.0\r\n\r\n\r\n",
    "rs_plus": b"RS+ a b\r\n",
    "rs_minus": b"RS- a b\r\n",
    "ls_plus": b"LS+ a b\r\n",
    "a_plus": b"A+ a\r\n",
    "rmsg": b"RMSG a b 1\r\nx\r\n",
}.items():
    fatal(f"server_op_{name}", "1", QUIET + data, UNKNOWN_OPERATION)

# --- Blanks and line ends

alone("blanks_doubled_as_nats_py_sends_them", "1",
      HEADERS + b"SUB a  1\r\nPUB a  5\r\nhello\r\nHPUB a  18 20\r\n" + BLOCK + b"hi\r\nUNSUB 1 \r\n",
      msg(b"a", b"1", b"hello") + hmsg(b"a", b"1", BLOCK, b"hi"))
alone("blanks_tabs", "1", QUIET + b"SUB\ta\t1\r\nPUB\ta\t1\r\nx\r\n", msg(b"a", b"1", b"x"))
alone("blanks_mixed_runs", "1", QUIET + b"SUB \t  a\t \tq \t 1\r\nPUB  \ta \t r\t\t 1\r\nx\r\n", msg(b"a", b"1", b"x", b"r"))
alone("blanks_leading_and_trailing", "1", QUIET + b"SUB   a 1  \t\r\nPUB \t a 1 \t \r\nx\r\n", msg(b"a", b"1", b"x"))
alone("blanks_hpub_tabs", "1", HEADERS + sub(b"a", b"1") + b"HPUB\ta\tr\t18\t20 \r\n" + BLOCK + b"hi\r\n",
      hmsg(b"a", b"1", BLOCK, b"hi", b"r"))
alone("blanks_unsub", "1", QUIET + sub(b"a", b"1") + b"UNSUB \t 1\t 1 \r\n" + pub(b"a") * 2 + FENCE_SUB + FENCE_PUB,
      msg(b"a", b"1") + FENCE)
alone("line_end_lf_only", "1",
      b'CONNECT {"verbose":false}\nSUB a 1\nPUB a 1\nx\r\nUNSUB 1 5\nPING\n', msg(b"a", b"1", b"x") + PONG)
alone("line_end_lf_only_hpub", "1", HEADERS[:-2] + b"\nSUB a 1\nHPUB a 18 18\n" + BLOCK + b"\r\n", hmsg(b"a", b"1", BLOCK))

fatal("payload_end_lf_only", "1", QUIET + b"PUB a 1\r\nx\n" + PING, UNKNOWN_OPERATION)
fatal("payload_end_cr_only", "1", QUIET + b"PUB a 1\r\nx\rPING\r\n", UNKNOWN_OPERATION)
fatal("payload_end_other_bytes", "1", QUIET + b"PUB a 1\r\nxyz", UNKNOWN_OPERATION)
fatal("payload_empty_end_lf_only", "1", QUIET + b"PUB a 0\r\n\n" + PING, UNKNOWN_OPERATION)
fatal("payload_empty_end_missing", "1", QUIET + b"PUB a 0\r\nPING\r\n", UNKNOWN_OPERATION)
fatal("hpub_payload_end_lf_only", "1", HEADERS + b"HPUB a 18 18\r\n" + BLOCK + b"\n" + PING, UNKNOWN_OPERATION)
case("payload_shorter_waits_for_more", "1",
     A.send(QUIET + sub(b"a", b"1") + PING + b"PUB a 5\r\nhel"), A.expect(PONG),
     A.send(b"lo\r\n"), A.expect(msg(b"a", b"1", b"hello")))
case("payload_takes_what_looks_like_operations", "1",
     A.send(QUIET + sub(b"a", b"1") + b"PUB a 12\r\nPING\r\n"), A.send(b"PING\r\n\r\n"),
     A.expect(msg(b"a", b"1", b"PING\r\nPING\r\n")))
alone("payload_of_line_ends", "1", QUIET + sub(b"a", b"1") + pub(b"a", b"\r\n" * 7), msg(b"a", b"1", b"\r\n" * 7))
alone("payload_of_every_byte", "1", QUIET + sub(b"a", b"1") + pub(b"a", bytes(range(256))), msg(b"a", b"1", bytes(range(256))))

# --- Splits

_SCRIPT = (
    HEADERS + sub(b"a.*", b"12") + pub(b"a.b", b"hello", b"r") + hpub(b"a.c", BLOCK, b"hi") + b"UNSUB 12 2\r\n" + PING
)
_SCRIPT_ANSWER = msg(b"a.b", b"12", b"hello", b"r") + hmsg(b"a.c", b"12", BLOCK, b"hi") + PONG
case("split_at_every_byte", "1", A.send(_SCRIPT, range(1, len(_SCRIPT))), A.expect(_SCRIPT_ANSWER))
case("split_every_third_byte", "1", A.send(_SCRIPT, range(3, len(_SCRIPT), 3)), A.expect(_SCRIPT_ANSWER))
alone("split_nowhere", "1", _SCRIPT, _SCRIPT_ANSWER)
case("split_between_cr_and_lf", "1",
     A.send(b"PING\r\nPING\r\n", (5, 11)), A.expect(PONG * 2),
     A.send(QUIET + sub(b"a", b"1") + b"PUB a 1\r\nx\r\n", (len(QUIET) - 1, len(QUIET) + 8, len(QUIET) + 17, len(QUIET) + 20)),
     A.expect(msg(b"a", b"1", b"x")))
case("split_inside_size", "1",
     A.send(QUIET + sub(b"a", b"1") + b"PUB a 11\r\nhello world\r\n", (len(QUIET) + 9 + 7,)),
     A.expect(msg(b"a", b"1", b"hello world")))
case("split_wrong_payload_end", "1", A.send(QUIET + b"PUB a 1\r\nx\rX", (len(QUIET) + 10, len(QUIET) + 11)),
     A.expect(UNKNOWN_OPERATION), A.closed())

# --- Argument counts: closed in silence, only the server's log says why

for name, data in {
    "pub_none": b"PUB \r\n",
    "pub_one": b"PUB a\r\n",
    "pub_four": b"PUB a b c 1\r\n",
    "sub_one": b"SUB a\r\n",
    "sub_four": b"SUB a q 1 2\r\n",
    "unsub_three": b"UNSUB 1 2 3\r\n",
    "hpub_one": b"HPUB a\r\n",
    "hpub_two": b"HPUB a 18\r\n",
    "hpub_five": b"HPUB a b c 18 18\r\n",
}.items():
    fatal(f"arguments_{name}", "1", HEADERS + data + PING)
alone("arguments_numeric_reply_to", "1", QUIET + sub(b"a", b"1") + b"PUB a 5 1\r\nx\r\n", msg(b"a", b"1", b"x", b"5"))
alone("arguments_numeric_queue_group", "1", QUIET + b"SUB a.@@ 12 1\r\n" + pub(b"a.@@", b"x"), msg(b"a.@@", b"1", b"x"))
alone("arguments_numeric_subject", "1", QUIET + sub(b"7", b"1") + pub(b"7", b"x"), msg(b"7", b"1", b"x"))
alone("arguments_hpub_numeric_reply_to", "1", HEADERS + sub(b"a", b"1") + b"HPUB a 18 18 20\r\n" + BLOCK + b"hi\r\n",
      hmsg(b"a", b"1", BLOCK, b"hi", b"18"))

# --- sid: any run of non-blank bytes, echoed as sent

for name, sid in {
    "letters": b"abc",
    "zero": b"0",
    "leading_zeros": b"007",
    "negative": b"-1",
    "shell": b"2>&1",
    "quotes": b"'\"\\",
    "utf8": "\u2603".encode(),
    "20_digits": b"18446744073709551616",
    "300_digits": b"1" * 300,
}.items():
    alone(f"sid_{name}", "1", QUIET + sub(b"a", sid) + pub(b"a", b"x"), msg(b"a", sid, b"x"))
alone("sid_1_is_not_01", "1",
      QUIET + sub(b"a", b"1") + sub(b"b", b"01") + b"UNSUB 01\r\n" + pub(b"b") + pub(b"a"), msg(b"a", b"1"))
alone("sid_letter_case_matters", "1", QUIET + sub(b"a", b"x") + b"UNSUB X\r\n" + pub(b"a"), msg(b"a", b"x"))

# --- Sizes: 1 to 9 decimal digits, echoed as sent

for name, size in {
    "negative": b"-1",
    "plus": b"+1",
    "hex": b"0x1",
    "letters": b"abc",
    "exponent": b"1e1",
    "fraction": b"1.0",
    "comma": b"1,",
    "10_digits": b"1000000000",
    "10_digits_of_a_small_number": b"0000000001",
    "20_digits": b"18446744073709551617",
}.items():
    fatal(f"size_{name}", "1", QUIET + b"PUB a " + size + b"\r\nx\r\n" + PING)
alone("size_zero", "1", QUIET + sub(b"a", b"1") + b"PUB a 0\r\n\r\n", b"MSG a 1 0\r\n\r\n")
fatal("size_9_digits_over_max_payload", "1", QUIET + b"PUB a 999999999\r\n", MAXIMUM_PAYLOAD)
fatal("hpub_size_10_digits", "1", HEADERS + b"HPUB a 18 1000000000\r\n" + PING)
fatal("hpub_header_size_10_digits", "1", HEADERS + b"HPUB a 0000000018 20\r\n" + PING)
fatal("hpub_header_size_negative", "1", HEADERS + b"HPUB a -1 20\r\n" + PING)
fatal("hpub_header_size_letters", "1", HEADERS + b"HPUB a x 20\r\n" + PING)
fatal("hpub_header_size_over_total", "1", HEADERS + b"HPUB a 19 18\r\n" + BLOCK + b"\r\n" + PING)

# --- max_payload: compared at the control line, before any byte of payload

_SMALL_PAYLOAD = {"max_payload": 1024}
alone("max_payload_pub_at_limit", "1",
      QUIET + sub(b"a", b"1") + pub(b"a", b"x" * 1024), msg(b"a", b"1", b"x" * 1024), settings=_SMALL_PAYLOAD)
fatal("max_payload_pub_over_limit", "1", QUIET + b"PUB a 1025\r\n", MAXIMUM_PAYLOAD, settings=_SMALL_PAYLOAD)
fatal("max_payload_pub_over_limit_verbose", "1",
      b"PUB a 1025\r\n" + b"x" * 1025 + b"\r\n", MAXIMUM_PAYLOAD, settings=_SMALL_PAYLOAD)
alone("max_payload_hpub_at_limit", "1",
      HEADERS + sub(b"a", b"1") + hpub(b"a", BLOCK, b"x" * 1006), hmsg(b"a", b"1", BLOCK, b"x" * 1006),
      settings=_SMALL_PAYLOAD)
fatal("max_payload_hpub_counts_the_header_block", "1", HEADERS + b"HPUB a 18 1025\r\n", MAXIMUM_PAYLOAD, settings=_SMALL_PAYLOAD)
alone("max_payload_default_at_limit", "1", QUIET + sub(b"a", b"1") + pub(b"a", b"x" * DEFAULT_MAX_PAYLOAD),
      msg(b"a", b"1", b"x" * DEFAULT_MAX_PAYLOAD))
fatal("max_payload_default_over_limit", "1", QUIET + b"PUB a %d\r\n" % (DEFAULT_MAX_PAYLOAD + 1), MAXIMUM_PAYLOAD)
fatal("max_payload_after_an_accepted_message", "1", QUIET + sub(b"a", b"1") + pub(b"a", b"x") + b"PUB a 1025\r\n" + PING,
      msg(b"a", b"1", b"x") + MAXIMUM_PAYLOAD, settings=_SMALL_PAYLOAD)

# --- max_control_line: counts the argument bytes, neither the operation and its blanks nor the line end

_SHORT_LINES = {"max_control_line": 64}
_CONNECT_64 = b'{"verbose":false,"name":"' + b"x" * (64 - 27) + b'"}'
assert len(_CONNECT_64) == 64

for limit, settings in ((64, _SHORT_LINES), (DEFAULT_MAX_CONTROL_LINE, {})):
    _quiet = b'CONNECT {"verbose":false}\r\n'
    _subject = b"s" * (limit - 2)
    alone(f"control_line_{limit}_sub_at_limit", "1", _quiet + b"SUB " + _subject + b" 1\r\n", settings=settings)
    fatal(f"control_line_{limit}_sub_over_limit", "1",
          _quiet + b"SUB " + _subject + b" 12\r\n", MAXIMUM_CONTROL_LINE, settings=settings)
    # The line that delivers this is longer by its sid, see DIFFERENCES.
    if limit < DEFAULT_MAX_CONTROL_LINE:
        alone(f"control_line_{limit}_pub_at_limit", "1", _quiet + sub(_subject, b"1") + b"PUB " + _subject + b" 1\r\nx\r\n",
              msg(_subject, b"1", b"x"), settings=settings)
    fatal(f"control_line_{limit}_pub_over_limit", "1",
          _quiet + b"PUB " + _subject + b" 01\r\nx\r\n", MAXIMUM_CONTROL_LINE, settings=settings)
    fatal(f"control_line_{limit}_over_limit_without_line_end", "1", _quiet + b"SUB " + b"s" * (limit + 1), MAXIMUM_CONTROL_LINE,
          settings=settings)
    case(f"control_line_{limit}_at_limit_split_before_line_end", "1",
         A.send(_quiet + b"SUB " + _subject + b" 1\r\n", (len(_quiet) + 4 + limit,)), settings=settings)
_LONG = b"s" * (DEFAULT_MAX_CONTROL_LINE - 4)
alone("control_line_4096_of_a_delivery_at_limit", "1", QUIET + sub(_LONG, b"1") + pub(_LONG, b"x"), msg(_LONG, b"1", b"x"))
alone("control_line_64_connect_at_limit", "1", b"CONNECT " + _CONNECT_64 + b"\r\n", settings=_SHORT_LINES)
fatal("control_line_64_connect_over_limit", "1",
      b"CONNECT " + _CONNECT_64 + b" \r\n", MAXIMUM_CONTROL_LINE, settings=_SHORT_LINES)
alone("control_line_64_unsub_at_limit", "1",
      b'CONNECT {"verbose":false}\r\n' + b"UNSUB " + b"1" * 64 + b"\r\n", settings=_SHORT_LINES)
fatal("control_line_64_unsub_over_limit", "1",
      b'CONNECT {"verbose":false}\r\n' + b"UNSUB " + b"1" * 65 + b"\r\n", MAXIMUM_CONTROL_LINE,
      settings=_SHORT_LINES)
_HEADERS_SHORT = b'CONNECT {"verbose":false,"headers":true}\r\n'
alone("control_line_64_hpub_at_limit", "1",
      _HEADERS_SHORT + b"HPUB " + b"s" * 58 + b" 18 18\r\n" + BLOCK + b"\r\n", settings=_SHORT_LINES)
fatal("control_line_64_hpub_over_limit", "1",
      _HEADERS_SHORT + b"HPUB " + b"s" * 59 + b" 18 18\r\n" + BLOCK + b"\r\n", MAXIMUM_CONTROL_LINE,
      settings=_SHORT_LINES)
alone("control_line_blanks_after_the_operation_are_free", "1",
      QUIET + b"SUB" + b" " * 9000 + b"a 1\r\n" + pub(b"a"), msg(b"a", b"1"))
fatal("control_line_trailing_blanks_count", "1",
      b'CONNECT {"verbose":false}\r\nSUB a 1' + b" " * 62 + b"\r\n", MAXIMUM_CONTROL_LINE,
      settings=_SHORT_LINES)

# --- HPUB needs a CONNECT with headers:true

fatal("hpub_without_headers", "1", QUIET + hpub(b"a", BLOCK) + PING)
fatal("hpub_with_headers_false", "1", b'CONNECT {"verbose":false,"headers":false}\r\n' + hpub(b"a", BLOCK) + PING)
fatal("hpub_without_connect", "1", hpub(b"a", BLOCK) + PING)

# --- Around a fatal line, within one segment: what precedes is processed, what follows is dropped

fatal("fatal_line_after_pings", "1", PING * 3 + b"X" + PING, PONG * 3 + UNKNOWN_OPERATION)
fatal("fatal_line_after_own_message", "1", QUIET + sub(b"a", b"1") + pub(b"a", b"x") + b"BAD\r\n" + pub(b"a", b"y") + PING,
      msg(b"a", b"1", b"x") + UNKNOWN_OPERATION)
fatal("fatal_payload_end_after_invalid_subject", "1", PEDANTIC + b"PUB a.* 1\r\nxyz", INVALID_PUBLISH_SUBJECT + UNKNOWN_OPERATION)
fatal("fatal_payload_end_after_invalid_subject_not_pedantic", "1", QUIET + b"PUB a.* 1\r\nxyz", UNKNOWN_OPERATION)
fatal("fatal_line_silent_after_pings", "1", PING * 2 + b"PUB a\r\n" + PING, PONG * 2)
fatal("fatal_line_after_verbose_operations", "1",
      b"SUB a 1\r\nSUB a..b 2\r\nUNSUB 1\r\n\r\nPING\r\n", OK + INVALID_SUBJECT + OK + UNKNOWN_OPERATION)
case("fatal_line_splits_what_others_receive", "1",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(QUIET + pub(b"a.@@", b"before") + b"BAD\r\n" + pub(b"a.@@", b"after")), A.expect(UNKNOWN_OPERATION), A.closed(),
     B.expect(msg(b"a.@@", b"1", b"before")),
     C.send(QUIET + FENCE_PUB), B.expect(FENCE))
case("fatal_line_silent_splits_what_others_receive", "1",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(QUIET + pub(b"a.@@", b"before") + b"PUB a.@@ -1\r\n" + pub(b"a.@@", b"after")), A.closed(),
     B.expect(msg(b"a.@@", b"1", b"before")),
     C.send(QUIET + FENCE_PUB), B.expect(FENCE))

# --- Half close: what came before FIN is processed and answered

case("half_close_at_once", "1", A.connect(), A.half_close(), A.closed())
case("half_close_after_ping", "1", A.send(PING * 2), A.half_close(), A.expect(PONG * 2), A.closed())
case("half_close_after_own_message", "1",
     A.send(QUIET + sub(b"a", b"1") + pub(b"a", b"x") + PING), A.half_close(), A.expect(msg(b"a", b"1", b"x") + PONG), A.closed())
case("half_close_inside_a_line", "1", A.send(PING + b"PIN"), A.half_close(), A.expect(PONG), A.closed())
case("half_close_inside_a_payload", "1", A.send(PING + b"PUB a 5\r\nhel"), A.half_close(), A.expect(PONG), A.closed())
case("half_close_verbose", "1", A.send(b"CONNECT {}\r\nSUB a 1\r\nUNSUB 1\r\n"), A.half_close(), A.expect(OK * 3), A.closed())
case("half_close_publisher", "1",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(QUIET + pub(b"a.@@", b"x") * 3), A.half_close(), A.closed(),
     B.expect(msg(b"a.@@", b"1", b"x") * 3), C.send(QUIET + FENCE_PUB), B.expect(FENCE))
case("close_right_after_publishing", "1",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(QUIET + pub(b"a.@@", b"x") * 3), A.drop(),
     B.expect(msg(b"a.@@", b"1", b"x") * 3), C.send(QUIET + FENCE_PUB), B.expect(FENCE))

# === 2. CONNECT ======================================================================================================

# --- JSON

alone("connect_empty_object", "2", b"CONNECT {}\r\n", OK)
alone("connect_null", "2", b"CONNECT null\r\n", OK)
alone("connect_without_blank", "2", b'CONNECT{"verbose":false}\r\n')
alone("connect_blanks_inside_and_around", "2", b'CONNECT \t { "verbose" :\tfalse , "name" : "x" } \t\r\n')
alone("connect_keys_upper_case", "2", b'CONNECT {"VERBOSE":false}\r\n' + sub(b"a", b"1") + pub(b"a"), msg(b"a", b"1"))
alone("connect_keys_mixed_case", "2",
      b'CONNECT {"Verbose":false,"Pedantic":false,"eCHO":false}\r\n' + sub(b"a", b"1") + pub(b"a") + pub(b"a.*"))
alone("connect_key_escaped", "2", b'CONNECT {"verb\\u006fse":false}\r\n')
alone("connect_key_twice_last_one_counts", "2", b'CONNECT {"verbose":true,"verbose":false}\r\n')
alone("connect_unknown_fields", "2", b'CONNECT {"verbose":false,"x":1,"y":{"z":[null,{}]},"w":"\\u00e9"}\r\n')
alone("connect_half_a_surrogate_pair", "2", b'CONNECT {"verbose":false,"name":"\\ud83d","\\ude00":"\\ud83d\\ud83d","user":"\\udfff"}\r\n')
alone("connect_user_with_characters_that_mqtt_has_not", "2",
      b'CONNECT {"verbose":false,"user":"a\\u0000b\\u0001\\uffff","pass":"c\\u0000d"}\r\n')
alone("connect_null_field_is_absent", "2", b'CONNECT {"verbose":null}\r\n', OK)
alone("connect_all_fields_null", "2",
      b'CONNECT {"verbose":null,"pedantic":null,"echo":null,"headers":null,"no_responders":null,"protocol":null,"user":null,'
      b'"pass":null,"auth_token":null,"jwt":null,"nkey":null,"sig":null,"name":null,"lang":null,"version":null,'
      b'"tls_required":null}\r\n',
      OK)
alone("connect_as_nats_go", "2",
      b'CONNECT {"verbose":false,"pedantic":false,"tls_required":false,"name":"","lang":"go","version":"1.53.0","protocol":1,'
      b'"echo":true,"headers":true,"no_responders":true}\r\nPING\r\n', PONG)
alone("connect_as_async_nats", "2",
      b'CONNECT {"verbose":false,"pedantic":false,"jwt":null,"nkey":null,"sig":null,"name":null,"echo":true,"lang":"rust",'
      b'"version":"0.49.0","protocol":1,"tls_required":false,"user":null,"pass":null,"auth_token":null,"headers":true,'
      b'"no_responders":true}\r\nPING\r\n', PONG)
alone("connect_as_nats_py", "2",
      b'CONNECT {"echo": true, "headers": true, "lang": "python3", "no_responders": true, "pedantic": false, "protocol": 1, '
      b'"verbose": false, "version": "2.15.0"}\r\nPING\r\n', PONG)

for name, arguments in {
    "nothing": b"",
    "text": b" hello",
    "unterminated": b' {"verbose":false',
    "trailing_comma": b' {"verbose":false,}',
    "single_quotes": b" {'verbose':false}",
    "trailing_text": b' {"verbose":false} x',
    "two_objects": b" {}{}",
    "array": b" []",
    "string": b' "x"',
    "number": b" 1",
    "true": b" true",
    "verbose_is_string": b' {"verbose":"no"}',
    "verbose_is_number": b' {"verbose":1}',
    "echo_is_object": b' {"echo":{}}',
    "headers_is_string": b' {"headers":"true"}',
    "protocol_is_fraction": b' {"protocol":1.5}',
    "protocol_is_string": b' {"protocol":"1"}',
    "protocol_is_true": b' {"protocol":true}',
    "name_is_number": b' {"name":5}',
    "user_is_array": b' {"user":["x"]}',
    "control_character": b' {"name":"a\x01b"}',
    "control_character_in_a_key": b' {"na\x01me":"x"}',
    "tab_in_a_text": b' {"name":"a\tb"}',
}.items():
    fatal(f"connect_bad_{name}", "2", b"CONNECT" + arguments + b"\r\n" + PING)

# --- Refused

fatal("connect_protocol_2", "2", b'CONNECT {"verbose":false,"protocol":2}\r\n' + PING, INVALID_CLIENT_PROTOCOL)
fatal("connect_protocol_negative", "2", b'CONNECT {"protocol":-1}\r\n' + PING, INVALID_CLIENT_PROTOCOL)
alone("connect_protocol_0", "2", b'CONNECT {"protocol":0}\r\n', OK)
alone("connect_protocol_1", "2", b'CONNECT {"protocol":1}\r\n', OK)
fatal("connect_no_responders_without_headers", "2",
      b'CONNECT {"verbose":false,"no_responders":true}\r\n' + PING, NO_RESPONDERS_NEEDS_HEADERS)
fatal("connect_no_responders_with_headers_false", "2",
      b'CONNECT {"no_responders":true,"headers":false}\r\n', NO_RESPONDERS_NEEDS_HEADERS)
fatal("connect_account", "2", b'CONNECT {"verbose":false,"account":"x"}\r\n' + PING, AUTHORIZATION_VIOLATION)
fatal("connect_new_account", "2",
      b'CONNECT {"verbose":false,"account":"x","new_account":true}\r\n' + PING, AUTHORIZATION_VIOLATION)
fatal("connect_refused_drops_what_follows", "2",
      b'CONNECT {"protocol":2}\r\n' + PING + sub(b"a", b"1") + pub(b"a"), INVALID_CLIENT_PROTOCOL)

# --- Credentials and other fields that mean nothing here

alone("connect_user_pass_ignored", "2", b'CONNECT {"verbose":false,"user":"u","pass":"p"}\r\n')
alone("connect_auth_token_ignored", "2", b'CONNECT {"verbose":false,"auth_token":"t"}\r\n')
alone("connect_nkey_and_sig_ignored", "2", b'CONNECT {"verbose":false,"nkey":"Ux","sig":"y"}\r\n')
alone("connect_jwt_ignored", "2", b'CONNECT {"verbose":false,"jwt":"x.y.z","sig":"y"}\r\n')
alone("connect_tls_required_ignored", "2", b'CONNECT {"verbose":false,"tls_required":true}\r\n')

# --- Order and repetition

alone("connect_and_everything_in_one_segment", "2",
      QUIET + PING + sub(b"a", b"1") + pub(b"a", b"x"), PONG + msg(b"a", b"1", b"x"))
alone("connect_again_changes_verbose", "2",
      b'CONNECT {"verbose":false}\r\nSUB a 1\r\nCONNECT {"verbose":true}\r\nSUB b 2\r\nCONNECT {"verbose":false}\r\nSUB c 3\r\n',
      OK * 2)
alone("connect_again_keeps_absent_fields", "2", NO_ECHO + b'CONNECT {"name":"x"}\r\nSUB a 1\r\n' + pub(b"a") + pub(b"a.*"))
alone("connect_again_turns_echo_off", "2",
      b'CONNECT {"verbose":false,"echo":true}\r\nCONNECT {"echo":false}\r\n' + sub(b"a", b"1") + pub(b"a"))
alone("connect_again_turns_headers_on", "2",
      QUIET + b'CONNECT {"headers":true}\r\n' + sub(b"a", b"1") + hpub(b"a", BLOCK), hmsg(b"a", b"1", BLOCK))
alone("connect_again_keeps_subscriptions", "2",
      QUIET + sub(b"a", b"1") + b'CONNECT {"name":"x"}\r\n' + pub(b"a", b"x"), msg(b"a", b"1", b"x"))
fatal("connect_again_bad_json", "2", QUIET + PING + b"CONNECT {\r\n" + PING, PONG)
fatal("connect_again_refused_after_own_message", "2",
      QUIET + sub(b"a.@@", b"1") + pub(b"a.@@", b"x") + b'CONNECT {"protocol":3}\r\n', msg(b"a.@@", b"1", b"x") + INVALID_CLIENT_PROTOCOL)
fatal("connect_again_bad_protocol", "2", QUIET + PING + b'CONNECT {"protocol":3}\r\n' + PING, PONG + INVALID_CLIENT_PROTOCOL)
alone("connect_after_other_operations", "2", b"SUB a 1\r\n" + QUIET + pub(b"a", b"x"), OK + msg(b"a", b"1", b"x"))

# --- No CONNECT: every operation works, verbose, pedantic, with echo, without headers

alone("no_connect_ping", "2", PING, PONG)
alone("no_connect_sub_pub", "2", sub(b"a", b"1") + pub(b"a", b"x"), OK * 2 + msg(b"a", b"1", b"x"))
alone("no_connect_unsub", "2", b"UNSUB 1\r\n", OK)
alone("no_connect_is_pedantic", "2", pub(b"a.*"), INVALID_PUBLISH_SUBJECT + OK)
case("no_connect_gets_no_headers", "2",
     A.send(sub(b"a.@@", b"1") + PING), A.expect(OK + PONG),
     B.send(HEADERS + hpub(b"a.@@", BLOCK, b"hi")), A.expect(msg(b"a.@@", b"1", b"hi")))
alone("no_connect_gets_no_503", "2", sub(b"r.@@", b"1") + pub(b"svc.@@", b"x", b"r.@@"), OK * 2)

# --- verbose

alone("verbose_false", "2", b'CONNECT {"verbose":false}\r\n' + sub(b"a", b"1") + pub(b"b", b"x") + b"UNSUB 1\r\n")
alone("verbose_ok_for_each_operation", "2", b"CONNECT {}\r\n" + sub(b"a", b"1") + b"UNSUB 1\r\n" + pub(b"a", b"x"), OK * 4)
alone("verbose_no_ok_for_ping_pong", "2", b"CONNECT {}\r\nPING\r\nPONG\r\nPING\r\n", OK + PONG * 2)
alone("verbose_ok_before_own_message", "2", b"CONNECT {}\r\n" + sub(b"a", b"1") + pub(b"a", b"x"), OK * 3 + msg(b"a", b"1", b"x"))
alone("verbose_hpub", "2",
      b'CONNECT {"headers":true}\r\n' + sub(b"a", b"1") + hpub(b"a", BLOCK, b"x"), OK * 3 + hmsg(b"a", b"1", BLOCK, b"x"))
alone("verbose_duplicate_sid", "2", b"CONNECT {}\r\n" + sub(b"a", b"1") + sub(b"b", b"1"), OK * 3)
alone("verbose_unsub_unknown_sid", "2", b"CONNECT {}\r\nUNSUB 77\r\n", OK * 2)
alone("verbose_unsub_max", "2", b"CONNECT {}\r\nSUB a 1\r\nUNSUB 1 3\r\n", OK * 3)
alone("verbose_err_replaces_ok", "2", b"CONNECT {}\r\nSUB a..b 1\r\nSUB a 2\r\n", OK + INVALID_SUBJECT + OK)
alone("verbose_invalid_publish_subject_comes_before_the_ok", "2",
      b"CONNECT {}\r\n" + pub(b"a.*", b"x"), OK + INVALID_PUBLISH_SUBJECT + OK)
alone("verbose_503", "2",
      b'CONNECT {"headers":true,"no_responders":true}\r\n' + sub(b"r.@@", b"1") + pub(b"svc.@@", b"", b"r.@@"),
      OK * 3 + no_responders(b"r.@@", b"1"))
case("verbose_ok_follows_the_payload", "2",
     A.send(b"CONNECT {}\r\nPUB a 5\r\nhel"), A.expect(OK), A.send(b"lo\r\n"), A.expect(OK))

# --- pedantic: adds a check of the publish subject, nothing else

for name, subject in {
    "star": b"a.*",
    "star_alone": b"*",
    "greater_last": b"a.>",
    "greater_first": b">.a",
    "empty_token": b"a..b",
    "leading_dot": b".a",
    "trailing_dot": b"a.",
    "dot": b".",
}.items():
    alone(f"pedantic_publish_{name}", "2", PEDANTIC + pub(subject, b"x"), INVALID_PUBLISH_SUBJECT)
    alone(f"not_pedantic_publish_{name}", "2", QUIET + pub(subject, b"x") + PING, PONG)
alone("pedantic_publish_literals", "2", PEDANTIC + pub(b"f*o.x>.*a") + pub(b"a/b.+.#") + PING, PONG)
alone("pedantic_reply_to_is_not_checked", "2",
      PEDANTIC + sub(b"a", b"1") + pub(b"a", b"x", b"r..x.*.>"), msg(b"a", b"1", b"x", b"r..x.*.>"))
alone("pedantic_is_the_default", "2", b'CONNECT {"verbose":false}\r\n' + pub(b"a.*"), INVALID_PUBLISH_SUBJECT)
alone("pedantic_hpub", "2", b'CONNECT {"verbose":false,"headers":true}\r\n' + hpub(b"a.>", BLOCK), INVALID_PUBLISH_SUBJECT)

# --- echo

alone("echo_is_the_default", "2", b'CONNECT {"verbose":false}\r\n' + sub(b"a", b"1") + pub(b"a", b"x"), msg(b"a", b"1", b"x"))
alone("echo_true", "2", b'CONNECT {"verbose":false,"echo":true}\r\n' + sub(b"a", b"1") + pub(b"a", b"x"), msg(b"a", b"1", b"x"))
case("echo_false_own_messages_only", "2",
     A.send(NO_ECHO + sub(b"a.@@", b"1") + pub(b"a.@@", b"own") + PING), A.expect(PONG),
     B.send(QUIET + pub(b"a.@@", b"other")), A.expect(msg(b"a.@@", b"1", b"other")))
case("echo_false_reaches_others", "2",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(NO_ECHO + sub(b"a.@@", b"5") + pub(b"a.@@", b"x") + FENCE_PUB), B.expect(msg(b"a.@@", b"1", b"x") + FENCE))
alone("echo_false_wildcard", "2", NO_ECHO + sub(b"a.@@.>", b"1") + sub(b"a.@@.*", b"2") + pub(b"a.@@.b", b"x"))

# --- headers:false cuts the header block off

case("headers_false_gets_the_payload_alone", "2",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(HEADERS + hpub(b"a.@@", BLOCK, b"hi") + hpub(b"a.@@", BLOCK) + FENCE_PUB),
     B.expect(msg(b"a.@@", b"1", b"hi") + msg(b"a.@@", b"1") + FENCE))
case("headers_false_keeps_reply_to", "2",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(HEADERS + hpub(b"a.@@", BLOCK, b"hi", b"r.1")), B.expect(msg(b"a.@@", b"1", b"hi", b"r.1")))
case("headers_true_and_false_side_by_side", "2",
     subscriber(B, sub(b"a.@@", b"1")), subscriber(C, sub(b"a.@@", b"2"), HEADERS),
     A.send(HEADERS + hpub(b"a.@@", BLOCK, b"hi") + pub(b"a.@@", b"plain")),
     B.expect(msg(b"a.@@", b"1", b"hi") + msg(b"a.@@", b"1", b"plain")),
     C.expect(hmsg(b"a.@@", b"2", BLOCK, b"hi") + msg(b"a.@@", b"2", b"plain")))

# === 3. INFO =========================================================================================================

case("info_line", "3", A.info(line=rb"INFO \{[^\r\n]+\} \r\n"), A.open())
case("info_fields", "3",
     A.info(server_id=str, server_name=str, version=re.compile(r"^\d+\.\d+\.\d+"), proto=1, go=str, host=str, port=PORT,
            headers=True, max_payload=DEFAULT_MAX_PAYLOAD, client_id=int, client_ip="127.0.0.1"))
case("info_optional_fields_are_absent", "3",
     A.info(auth_required=ABSENT, tls_required=ABSENT, tls_available=ABSENT, tls_verify=ABSENT, nonce=ABSENT, ldm=ABSENT,
            connect_urls=ABSENT, jetstream=ABSENT), tcp=True)
case("info_max_payload_as_configured", "3", A.info(max_payload=1024), settings=_SMALL_PAYLOAD)
case("info_server_name_as_configured", "3", A.info(server_name="green"), settings={"server_name": "green"})
case("info_of_two_connections", "3",
     A.info(client_id=int),
     B.info(server_id=As("A"), server_name=As("A"), version=As("A"), client_id=As("A", same=False)))
case("info_is_not_repeated_after_connect", "3",
     A.send(b'CONNECT {"verbose":false,"protocol":1,"headers":true,"no_responders":true}\r\n' + PING * 2), A.expect(PONG * 2))

# === 4. SUB, UNSUB, delivery =========================================================================================

# --- One delivery per sid

case("delivery_two_sids_one_subject", "4",
     A.send(QUIET + sub(b"a", b"1") + sub(b"a", b"2") + pub(b"a", b"x")),
     A.any_order(msg(b"a", b"1", b"x"), msg(b"a", b"2", b"x")))
case("delivery_fifty_sids_one_subject", "4",
     A.send(QUIET + b"".join(sub(b"a", b"%d" % sid) for sid in range(1, 51)) + pub(b"a", b"x")),
     A.any_order(*(msg(b"a", b"%d" % sid, b"x") for sid in range(1, 51))))
case("delivery_overlapping_subjects", "4",
     A.send(QUIET + sub(b"o.a", b"1") + sub(b"o.*", b"2") + sub(b"o.>", b"3") + sub(b"*.a", b"4") + sub(b"o.b", b"5")
            + pub(b"o.a", b"x")),
     A.any_order(*(msg(b"o.a", sid, b"x") for sid in (b"1", b"2", b"3", b"4"))))
case("delivery_overlapping_keeps_the_order_of_messages", "4",
     A.send(QUIET + sub(b"o.a", b"1") + sub(b"o.>", b"2") + pub(b"o.a", b"x") + pub(b"o.a", b"y")),
     A.any_order(msg(b"o.a", b"1", b"x"), msg(b"o.a", b"2", b"x")), A.any_order(msg(b"o.a", b"1", b"y"), msg(b"o.a", b"2", b"y")))
case("delivery_unsub_of_one_of_two_sids", "4",
     A.send(QUIET + sub(b"a", b"1") + sub(b"a", b"2") + b"UNSUB 1\r\n" + pub(b"a", b"x")), A.expect(msg(b"a", b"2", b"x")))
case("delivery_two_connections_same_sid", "4",
     subscriber(B, sub(b"a.@@", b"1")), subscriber(C, sub(b"a.@@", b"1")),
     A.send(QUIET + pub(b"a.@@", b"x") + FENCE_PUB),
     B.expect(msg(b"a.@@", b"1", b"x") + FENCE),
     C.expect(msg(b"a.@@", b"1", b"x") + FENCE))
case("delivery_is_not_retroactive", "4",
     A.send(QUIET + pub(b"a.@@", b"old") + PING), A.expect(PONG),
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(pub(b"a.@@", b"new")), B.expect(msg(b"a.@@", b"1", b"new")))
case("delivery_max_payload_to_another_connection", "4",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(QUIET + pub(b"a.@@", b"x" * DEFAULT_MAX_PAYLOAD) + FENCE_PUB),
     B.expect(msg(b"a.@@", b"1", b"x" * DEFAULT_MAX_PAYLOAD) + FENCE))

# --- Live sid used again

alone("duplicate_sid_same_subject", "4", QUIET + sub(b"a", b"1") * 2 + pub(b"a", b"x"), msg(b"a", b"1", b"x"))
alone("duplicate_sid_first_subject_wins", "4",
      QUIET + sub(b"a", b"1") + sub(b"b", b"1") + pub(b"b", b"x") + pub(b"a", b"y"), msg(b"a", b"1", b"y"))
alone("duplicate_sid_removed_once", "4",
      QUIET + sub(b"a", b"1") * 2 + b"UNSUB 1\r\n" + pub(b"a") + FENCE_SUB + FENCE_PUB, FENCE)
case("duplicate_sid_keeps_the_max", "4",
     A.send(QUIET + sub(b"a", b"1") + b"UNSUB 1 1\r\n" + sub(b"a", b"1") + FENCE_SUB + pub(b"a", b"x") * 2 + FENCE_PUB),
     A.expect(msg(b"a", b"1", b"x") + FENCE))
alone("duplicate_sid_after_unsub_is_free", "4",
      QUIET + sub(b"a", b"1") + b"UNSUB 1\r\n" + sub(b"b", b"1") + pub(b"a", b"x") + pub(b"b", b"y"), msg(b"b", b"1", b"y"))
case("same_sid_on_another_connection_is_another_sid", "4",
     subscriber(B, sub(b"a.@@", b"1")),
     A.send(QUIET + sub(b"b.@@", b"1") + b"UNSUB 1\r\n" + pub(b"a.@@", b"x")), B.expect(msg(b"a.@@", b"1", b"x")))

# --- UNSUB

alone("unsub_at_once", "4", QUIET + sub(b"a", b"1") + b"UNSUB 1\r\n" + pub(b"a") + FENCE_SUB + FENCE_PUB, FENCE)
alone("unsub_unknown_sid", "4", QUIET + b"UNSUB 1\r\nUNSUB nope 5\r\n" + PING, PONG)
alone("unsub_twice", "4", QUIET + sub(b"a", b"1") + b"UNSUB 1\r\nUNSUB 1\r\n" + PING, PONG)
case("unsub_barrier_for_other_publishers", "4",
     subscriber(B, sub(b"a.@@", b"1")),
     B.send(b"UNSUB 1\r\n" + PING), B.expect(PONG),
     A.send(QUIET + pub(b"a.@@", b"x") + FENCE_PUB), B.expect(FENCE))
_COUNT = QUIET + FENCE_SUB + sub(b"a", b"1")
alone("unsub_max", "4", _COUNT + b"UNSUB 1 2\r\n" + pub(b"a", b"x") * 4 + FENCE_PUB, msg(b"a", b"1", b"x") * 2 + FENCE)
alone("unsub_max_not_reached", "4",
      _COUNT + b"UNSUB 1 5\r\n" + pub(b"a", b"x") * 3 + FENCE_PUB, msg(b"a", b"1", b"x") * 3 + FENCE)
case("unsub_max_counts_since_sub", "4",
     A.send(_COUNT + pub(b"a", b"x") * 2), A.expect(msg(b"a", b"1", b"x") * 2),
     A.send(b"UNSUB 1 3\r\n" + pub(b"a", b"y") * 2 + FENCE_PUB), A.expect(msg(b"a", b"1", b"y") + FENCE))
for name, maximum in {"already_reached": b"2", "already_passed": b"1"}.items():
    case(f"unsub_max_{name}", "4",
         A.send(_COUNT + pub(b"a", b"x") * 2), A.expect(msg(b"a", b"1", b"x") * 2),
         A.send(b"UNSUB 1 " + maximum + b"\r\n" + pub(b"a", b"y") + FENCE_PUB), A.expect(FENCE))
for name, maximum in {
    "zero": b"0",
    "negative": b"-1",
    "letters": b"x",
    "fraction": b"1.5",
    "10_digits": b"1000000000",
}.items():
    alone(f"unsub_max_{name}_is_at_once", "4", _COUNT + b"UNSUB 1 " + maximum + b"\r\n" + pub(b"a") + FENCE_PUB, FENCE)
alone("unsub_max_9_digits", "4", _COUNT + b"UNSUB 1 999999999\r\n" + pub(b"a") + FENCE_PUB, msg(b"a", b"1") + FENCE)
alone("unsub_max_leading_zeros", "4", _COUNT + b"UNSUB 1 002\r\n" + pub(b"a") * 3 + FENCE_PUB, msg(b"a", b"1") * 2 + FENCE)
alone("unsub_max_raised", "4", _COUNT + b"UNSUB 1 1\r\nUNSUB 1 3\r\n" + pub(b"a") * 5 + FENCE_PUB, msg(b"a", b"1") * 3 + FENCE)
alone("unsub_max_lowered", "4", _COUNT + b"UNSUB 1 5\r\nUNSUB 1 1\r\n" + pub(b"a") * 3 + FENCE_PUB, msg(b"a", b"1") + FENCE)
alone("unsub_max_then_at_once", "4", _COUNT + b"UNSUB 1 5\r\nUNSUB 1\r\n" + pub(b"a") + FENCE_PUB, FENCE)
alone("unsub_max_frees_the_sid_at_once", "4",
      _COUNT + b"UNSUB 1 1\r\n" + pub(b"a", b"x") + sub(b"b", b"1") + pub(b"b", b"y"), msg(b"a", b"1", b"x") + msg(b"b", b"1", b"y"))
case("unsub_max_frees_the_sid", "4",
     A.send(_COUNT + b"UNSUB 1 1\r\n" + pub(b"a", b"x")), A.expect(msg(b"a", b"1", b"x")),
     A.send(sub(b"b", b"1") + pub(b"a") + pub(b"b", b"y") * 2 + FENCE_PUB), A.expect(msg(b"b", b"1", b"y") * 2 + FENCE))
case("unsub_max_of_two_sids_on_one_subject", "4",
     A.send(_COUNT + sub(b"a", b"2") + b"UNSUB 1 1\r\nUNSUB 2 2\r\n" + pub(b"a", b"x") + pub(b"a", b"y") + pub(b"a", b"z")
            + FENCE_PUB),
     A.any_order(msg(b"a", b"1", b"x"), msg(b"a", b"2", b"x")), A.expect(msg(b"a", b"2", b"y") + FENCE))
case("unsub_max_from_two_publishers", "4",
     subscriber(B, sub(b"a.@@", b"1") + b"UNSUB 1 3\r\n"),
     A.send(QUIET + pub(b"a.@@", b"x") * 4 + PING), A.expect(PONG), B.expect(msg(b"a.@@", b"1", b"x") * 3),
     C.send(QUIET + pub(b"a.@@", b"y") * 4 + FENCE_PUB), B.expect(FENCE))
case("unsub_max_wildcard", "4",
     A.send(QUIET + FENCE_SUB + sub(b"w.*", b"1") + b"UNSUB 1 2\r\n" + pub(b"w.a") + pub(b"w.b") + pub(b"w.c") + FENCE_PUB),
     A.expect(msg(b"w.a", b"1") + msg(b"w.b", b"1") + FENCE))

# --- Operations after publishes, in one segment: who had subscribed by then gets the message

alone("publish_then_sub_of_a_known_subject", "4",
      QUIET + sub(b"a", b"1") + pub(b"a", b"x") + sub(b"a", b"2") + PING, msg(b"a", b"1", b"x") + PONG)
case("publish_then_unsub_of_one_of_two_sids", "4",
     A.send(QUIET + sub(b"a", b"1") + sub(b"a", b"2") + pub(b"a", b"x") + b"UNSUB 2\r\n" + PING),
     A.any_order(msg(b"a", b"1", b"x"), msg(b"a", b"2", b"x")), A.expect(PONG))
case("publish_by_another_then_unsub_of_one_of_two_sids", "4",
     subscriber(B, sub(b"a.@@", b"1") + sub(b"a.@@", b"2")),
     A.send(QUIET + pub(b"a.@@", b"x") + PING), A.expect(PONG),
     B.send(b"UNSUB 2\r\n" + PING), B.any_order(msg(b"a.@@", b"1", b"x"), msg(b"a.@@", b"2", b"x")), B.expect(PONG))
alone("publish_then_unsub_of_a_sid_with_a_max", "4",
      QUIET + sub(b"a", b"1") + b"UNSUB 1 500\r\n" + pub(b"a", b"x") * 3 + b"UNSUB 1\r\n" + PING, msg(b"a", b"1", b"x") * 3 + PONG)
alone("publish_then_unsub_with_a_max_that_is_reached", "4",
      QUIET + sub(b"a", b"1") + pub(b"a", b"x") * 3 + b"UNSUB 1 2\r\n" + pub(b"a", b"y") + PING, msg(b"a", b"1", b"x") * 3 + PONG)
alone("publish_then_unsub_and_sub_again", "4",
      QUIET + sub(b"a", b"1") + pub(b"a", b"x") + b"UNSUB 1\r\n" + sub(b"a", b"2") + PING, msg(b"a", b"1", b"x") + PONG)
alone("publish_then_another_filter_of_the_queue_group", "4",
      QUIET + sub(b"j.@@.b", b"1", b"q") + pub(b"j.@@.b", b"x") * 5 + sub(b"j.@@.*", b"2", b"q") + PING,
      msg(b"j.@@.b", b"1", b"x") * 5 + PONG)
case("publish_then_unsub_of_a_filter_of_the_queue_group", "4",
     A.send(QUIET + sub(b"j.@@.b", b"1", b"q") + sub(b"j.@@.*", b"2", b"q") + pub(b"j.@@.b", b"x") + b"UNSUB 2\r\n"
            + pub(b"j.@@.b", b"y") + PING),
     A.any_of(msg(b"j.@@.b", b"1", b"x"), msg(b"j.@@.b", b"2", b"x")), A.expect(msg(b"j.@@.b", b"1", b"y") + PONG))
case("publish_to_a_queue_group_of_two_filters_with_a_max", "4",
     A.send(QUIET + sub(b"j.@@.*", b"1", b"q") + b"UNSUB 1 1\r\n" + sub(b"j.@@.b", b"2", b"q") + pub(b"j.@@.b", b"x") + PING),
     A.any_of(msg(b"j.@@.b", b"1", b"x") + PONG, msg(b"j.@@.b", b"2", b"x") + PONG))
alone("second_connect_after_an_unsub_in_a_queue_group", "4",
      QUIET + sub(b"j.@@.*", b"1", b"q") + sub(b"j.@@.b", b"2", b"q") + b'UNSUB 1\r\nCONNECT {"user":"b"}\r\n'
      + pub(b"j.@@.b", b"x") * 2 + PING, msg(b"j.@@.b", b"2", b"x") * 2 + PONG)

# --- Queue groups: one random member per message

_TEN = tuple(b"%d" % number for number in range(10))
_TEN_PUBS = b"".join(pub(b"j.@@", payload) for payload in _TEN)


def _received(sid: bytes) -> tuple[bytes, ...]:
    return tuple(msg(b"j.@@", sid, payload) for payload in _TEN)


case("queue_one_member", "4", A.send(QUIET + sub(b"j.@@", b"1", b"q") + _TEN_PUBS), A.expect(b"".join(_received(b"1"))))
case("queue_two_members_on_one_connection", "4",
     A.send(QUIET + sub(b"j.@@", b"1", b"q") + sub(b"j.@@", b"2", b"q") + _TEN_PUBS),
     *(A.any_of(msg(b"j.@@", b"1", payload), msg(b"j.@@", b"2", payload)) for payload in _TEN))
case("queue_two_members_on_two_connections", "4",
     subscriber(B, sub(b"j.@@", b"1", b"q")), subscriber(C, sub(b"j.@@", b"2", b"q")),
     A.send(QUIET + _TEN_PUBS + FENCE_PUB),
     Spread({"B": _received(b"1"), "C": _received(b"2")}, {"B": FENCE, "C": FENCE}))
case("queue_members_on_publisher_and_another_connection", "4",
     subscriber(B, sub(b"j.@@", b"1", b"q")),
     A.send(QUIET + FENCE_SUB + sub(b"j.@@", b"2", b"q") + PING), A.expect(PONG),
     A.send(_TEN_PUBS + FENCE_PUB),
     Spread({"A": _received(b"2"), "B": _received(b"1")}, {"A": FENCE, "B": FENCE}))
case("queue_plain_subscription_beside_it", "4",
     A.send(QUIET + sub(b"j.@@", b"1", b"q") + sub(b"j.@@", b"2") + pub(b"j.@@", b"x")),
     A.any_order(msg(b"j.@@", b"1", b"x"), msg(b"j.@@", b"2", b"x")))
case("queue_plain_subscription_on_another_connection", "4",
     subscriber(B, sub(b"j.@@", b"1", b"q")), subscriber(C, sub(b"j.@@", b"2")),
     A.send(QUIET + _TEN_PUBS + FENCE_PUB),
     B.expect(b"".join(_received(b"1")) + FENCE), C.expect(b"".join(_received(b"2")) + FENCE))
case("queue_two_names_on_one_connection", "4",
     A.send(QUIET + sub(b"j.@@", b"1", b"q1") + sub(b"j.@@", b"2", b"q2") + pub(b"j.@@", b"x")),
     A.any_order(msg(b"j.@@", b"1", b"x"), msg(b"j.@@", b"2", b"x")))
case("queue_two_names_with_two_members_each_on_one_connection", "4",
     A.send(QUIET + sub(b"j.@@", b"1", b"q1") + sub(b"j.@@", b"2", b"q1") + sub(b"j.@@", b"3", b"q2") + sub(b"j.@@", b"4", b"q2")
            + FENCE_SUB + pub(b"j.@@") + FENCE_PUB),
     A.any_of(*(msg(b"j.@@", first) + msg(b"j.@@", second) + FENCE
                for one in (b"1", b"2") for two in (b"3", b"4") for first, second in ((one, two), (two, one)))))
case("queue_two_names_on_two_connections", "4",
     subscriber(B, sub(b"j.@@", b"1", b"q1")), subscriber(C, sub(b"j.@@", b"2", b"q2")),
     A.send(QUIET + _TEN_PUBS + FENCE_PUB),
     B.expect(b"".join(_received(b"1")) + FENCE), C.expect(b"".join(_received(b"2")) + FENCE))
case("queue_name_letter_case_matters", "4",
     A.send(QUIET + sub(b"j.@@", b"1", b"q") + sub(b"j.@@", b"2", b"Q") + pub(b"j.@@", b"x")),
     A.any_order(msg(b"j.@@", b"1", b"x"), msg(b"j.@@", b"2", b"x")))
case("queue_one_name_over_two_filters_on_one_connection", "4",
     A.send(QUIET + FENCE_SUB + sub(b"j.*.@@", b"1", b"q") + sub(b"j.x.@@", b"2", b"q") + pub(b"j.x.@@", b"y") + FENCE_PUB),
     A.any_of(msg(b"j.x.@@", b"1", b"y") + FENCE, msg(b"j.x.@@", b"2", b"y") + FENCE))
case("queue_one_name_over_three_filters_on_one_connection", "4",
     A.send(QUIET + FENCE_SUB + sub(b"j.@@.*", b"1", b"q") + sub(b"j.@@.x", b"2", b"q") + sub(b"j.@@.>", b"3", b"q")
            + pub(b"j.@@.x") * 3 + FENCE_PUB),
     A.any_of(msg(b"j.@@.x", b"1"), msg(b"j.@@.x", b"2"), msg(b"j.@@.x", b"3")),
     A.any_of(msg(b"j.@@.x", b"1"), msg(b"j.@@.x", b"2"), msg(b"j.@@.x", b"3")),
     A.any_of(msg(b"j.@@.x", b"1"), msg(b"j.@@.x", b"2"), msg(b"j.@@.x", b"3")), A.expect(FENCE))
case("queue_filters_apart_on_one_connection", "4",
     A.send(QUIET + sub(b"j.a.@@", b"1", b"q") + sub(b"j.b.@@", b"2", b"q") + pub(b"j.a.@@") + pub(b"j.b.@@")),
     A.expect(msg(b"j.a.@@", b"1") + msg(b"j.b.@@", b"2")))
case("queue_wildcard", "4",
     A.send(QUIET + sub(b"j.@@.>", b"1", b"q") + pub(b"j.@@") + pub(b"j.@@.a.b", b"x")), A.expect(msg(b"j.@@.a.b", b"1", b"x")))
case("queue_member_leaves", "4",
     A.send(QUIET + sub(b"j.@@", b"1", b"q") + sub(b"j.@@", b"2", b"q") + b"UNSUB 1\r\n" + _TEN_PUBS),
     A.expect(b"".join(_received(b"2"))))
case("queue_member_on_another_connection_leaves", "4",
     subscriber(B, sub(b"j.@@", b"1", b"q")), subscriber(C, sub(b"j.@@", b"2", b"q")),
     B.send(b"UNSUB 1\r\n" + PING), B.expect(PONG),
     A.send(QUIET + _TEN_PUBS + FENCE_PUB), B.expect(FENCE), C.expect(b"".join(_received(b"2")) + FENCE))
case("queue_member_disconnects", "4",
     subscriber(B, sub(b"j.@@", b"1", b"q")), subscriber(C, sub(b"j.@@", b"2", b"q")),
     B.half_close(), B.closed(),
     A.send(QUIET + _TEN_PUBS + FENCE_PUB), C.expect(b"".join(_received(b"2")) + FENCE))
case("queue_member_with_max_on_one_connection", "4",
     A.send(QUIET + FENCE_SUB + sub(b"j.@@", b"1", b"q") + b"UNSUB 1 1\r\n" + _TEN_PUBS + FENCE_PUB),
     A.expect(msg(b"j.@@", b"1", b"0") + FENCE))
for name, queue_group in {
    "dots_and_wildcard": b"q.a.>",
    "slash_plus_hash": b"q/b+#",
    "utf8": "\u2603".encode(),
    "percent": b"100%2F",
    "star": b"*",
}.items():
    case(f"queue_name_{name}", "4",
         subscriber(B, sub(b"j.@@", b"1", queue_group)), subscriber(C, sub(b"j.@@", b"2", queue_group)),
         A.send(QUIET + _TEN_PUBS + FENCE_PUB),
         Spread({"B": _received(b"1"), "C": _received(b"2")}, {"B": FENCE, "C": FENCE}))
case("queue_names_slash_and_percent_are_two", "4",
     A.send(QUIET + sub(b"j.@@", b"1", b"q/b") + sub(b"j.@@", b"2", b"q%2Fb") + pub(b"j.@@")),
     A.any_order(msg(b"j.@@", b"1"), msg(b"j.@@", b"2")))
case("queue_headers", "4",
     subscriber(B, sub(b"j.@@", b"1", b"q"), HEADERS),
     A.send(HEADERS + hpub(b"j.@@", BLOCK, b"hi", b"r") + FENCE_PUB), B.expect(hmsg(b"j.@@", b"1", BLOCK, b"hi", b"r") + FENCE))

# --- Order

_MANY = [(b"o.@@.%d" % (number % 3), b"%d" % number) for number in range(300)]
_MANY_PUBS = b"".join(pub(subject, payload) for subject, payload in _MANY)
case("order_over_subjects_one_wildcard", "4",
     subscriber(B, sub(b"o.@@.*", b"1")),
     A.send(QUIET + _MANY_PUBS), B.expect(b"".join(msg(subject, b"1", payload) for subject, payload in _MANY)))
case("order_over_subjects_and_subscriptions", "4",
     subscriber(B, b"".join(sub(b"o.@@.%d" % number, b"s%d" % number) for number in range(3))),
     A.send(QUIET + _MANY_PUBS), B.expect(b"".join(msg(subject, b"s" + subject[-1:], payload) for subject, payload in _MANY)))
case("order_of_own_messages", "4",
     A.send(QUIET + sub(b"o.@@.>", b"1") + _MANY_PUBS + PING),
     A.expect(b"".join(msg(subject, b"1", payload) for subject, payload in _MANY) + PONG))
case("order_with_payloads_of_all_sizes", "4",
     subscriber(B, sub(b"o.@@", b"1")),
     A.send(QUIET + b"".join(pub(b"o.@@", b"x" * size) for size in (0, 100000, 1, 65536, 2, 4096, 3))),
     B.expect(b"".join(msg(b"o.@@", b"1", b"x" * size) for size in (0, 100000, 1, 65536, 2, 4096, 3))))
case("order_of_plain_and_queue_and_headers", "4",
     subscriber(B, sub(b"o.@@.a", b"1") + sub(b"o.@@.b", b"2", b"q"), HEADERS),
     A.send(HEADERS + (pub(b"o.@@.a", b"x") + hpub(b"o.@@.b", BLOCK) + pub(b"o.@@.b", b"y") + hpub(b"o.@@.a", BLOCK, b"z")) * 20),
     B.expect((msg(b"o.@@.a", b"1", b"x") + hmsg(b"o.@@.b", b"2", BLOCK) + msg(b"o.@@.b", b"2", b"y")
               + hmsg(b"o.@@.a", b"1", BLOCK, b"z")) * 20))
case("order_verbose_publisher", "4",
     subscriber(B, sub(b"o.@@.*", b"1")),
     A.send(b"CONNECT {}\r\n" + _MANY_PUBS), A.expect(OK * (1 + len(_MANY))),
     B.expect(b"".join(msg(subject, b"1", payload) for subject, payload in _MANY)))

# --- PING is a barrier

alone("ping_barrier_own_message", "4", QUIET + sub(b"a", b"1") + pub(b"a", b"x") + PING + pub(b"a", b"y") + PING,
      msg(b"a", b"1", b"x") + PONG + msg(b"a", b"1", b"y") + PONG)
alone("ping_barrier_errors", "4", QUIET + sub(b"a..b", b"1") + PING + sub(b"x.>.y", b"2") + PING, (INVALID_SUBJECT + PONG) * 2)
alone("ping_barrier_503", "4",
      NO_RESPONDERS + sub(b"r.@@", b"1") + pub(b"svc.@@", b"", b"r.@@") + PING, no_responders(b"r.@@", b"1") + PONG)
case("ping_barrier_sub_is_active_everywhere", "4",
     A.send(QUIET + PING), A.expect(PONG),
     B.send(QUIET + sub(b"a.@@", b"1") + PING), B.expect(PONG),
     A.send(pub(b"a.@@", b"x")), B.expect(msg(b"a.@@", b"1", b"x")),
     B.send(sub(b"b.@@", b"2") + PING), B.expect(PONG),
     A.send(pub(b"b.@@", b"y")), B.expect(msg(b"b.@@", b"2", b"y")))

# --- Request and reply

case("request_and_reply_between_two_connections", "4",
     B.send(QUIET + sub(b"svc.@@", b"1") + PING), B.expect(PONG),
     A.send(QUIET + sub(b"_INBOX.@@.*", b"1") + pub(b"svc.@@", b"ask", b"_INBOX.@@.x1")),
     B.expect(msg(b"svc.@@", b"1", b"ask", b"_INBOX.@@.x1")),
     B.send(pub(b"_INBOX.@@.x1", b"answer")), A.expect(msg(b"_INBOX.@@.x1", b"1", b"answer")))
case("request_old_style_inbox", "4",
     B.send(QUIET + sub(b"svc.@@", b"1", b"workers") + PING), B.expect(PONG),
     A.send(QUIET + sub(b"_INBOX.@@", b"2") + b"UNSUB 2 1\r\n" + pub(b"svc.@@", b"ask", b"_INBOX.@@")),
     B.expect(msg(b"svc.@@", b"1", b"ask", b"_INBOX.@@")),
     B.send(pub(b"_INBOX.@@", b"one") + pub(b"_INBOX.@@", b"two")), A.expect(msg(b"_INBOX.@@", b"2", b"one")))
case("request_with_headers_both_ways", "4",
     B.send(HEADERS + sub(b"svc.@@", b"1") + PING), B.expect(PONG),
     A.send(NO_RESPONDERS + sub(b"_INBOX.@@.*", b"1") + hpub(b"svc.@@", BLOCK, b"ask", b"_INBOX.@@.x1")),
     B.expect(hmsg(b"svc.@@", b"1", BLOCK, b"ask", b"_INBOX.@@.x1")),
     B.send(hpub(b"_INBOX.@@.x1", b"NATS/1.0\r\nStatus:ok\r\n\r\n", b"answer")),
     A.expect(hmsg(b"_INBOX.@@.x1", b"1", b"NATS/1.0\r\nStatus:ok\r\n\r\n", b"answer")))

# === 5. Subjects =====================================================================================================

for name, subject in {
    "empty_token": b"a..b",
    "leading_dot": b".a",
    "trailing_dot": b"a.",
    "dot": b".",
    "greater_not_last": b"a.>.b",
    "greater_first": b">.a",
    "greater_twice": b">.>",
    "greater_then_dot": b"a.>.",
    "star_then_dot": b"*.",
}.items():
    alone(f"invalid_subject_{name}", "5", QUIET + sub(subject, b"1") + PING, INVALID_SUBJECT + PONG)
alone("invalid_subject_in_queue_sub", "5", QUIET + sub(b"a..b", b"1", b"q") + PING, INVALID_SUBJECT + PONG)
alone("invalid_subject_leaves_the_sid_free", "5",
      QUIET + sub(b"a..b", b"1") + sub(b"a", b"1") + pub(b"a"), INVALID_SUBJECT + msg(b"a", b"1"))

for name, subscribed, matching, others in (
    ("star_last", b"w.@@.*", (b"w.@@.a", b"w.@@.\xc3\xbc"), (b"w.@@", b"w.@@.a.b", b"w.x@@.a")),
    ("star_first", b"*.@@.a", (b"w.@@.a", b"x.@@.a"), (b"@@.a", b"w.@@.b", b"w.w.@@.a")),
    ("star_middle", b"w.@@.*.c", (b"w.@@.b.c",), (b"w.@@.c", b"w.@@.b.b.c", b"w.@@.b")),
    ("stars_only", b"*.*.@@", (b"a.b.@@",), (b"a.@@", b"a.b.c.@@")),
    ("greater", b"w.@@.>", (b"w.@@.a", b"w.@@.a.b.c"), (b"w.@@", b"w.x@@.a", b"w")),
    ("star_and_greater", b"*.@@.>", (b"w.@@.a", b"x.@@.a.b"), (b"w.@@", b"@@.a")),
    ("star_before_greater", b"w.@@.*.>", (b"w.@@.a.b", b"w.@@.a.b.c"), (b"w.@@.a", b"w.@@")),
    ("star_inside_a_token_is_literal", b"w.@@.f*o", (b"w.@@.f*o",), (b"w.@@.foo", b"w.@@.fo")),
    ("star_at_the_end_of_a_token_is_literal", b"w.@@.foo*", (b"w.@@.foo*",), (b"w.@@.foo", b"w.@@.foox")),
    ("two_stars_are_literal", b"w.@@.**", (b"w.@@.**",), (b"w.@@.a", b"w.@@.aa")),
    ("greater_at_the_end_of_a_token_is_literal", b"w.@@.x>", (b"w.@@.x>",), (b"w.@@.x", b"w.@@.x.a", b"w.@@.xa")),
    ("literal_and_star", b"w.@@.f*o.*", (b"w.@@.f*o.a",), (b"w.@@.foo.a", b"w.@@.f*o")),
    ("letter_case_matters", b"w.@@.a", (b"w.@@.a",), (b"w.@@.A", b"W.@@.a")),
    ("prefix_is_not_enough", b"w.@@.ab", (b"w.@@.ab",), (b"w.@@.a", b"w.@@.abc", b"w.@@.ab.c")),
):
    case(f"match_{name}", "5",
         A.send(QUIET + sub(subscribed, b"1") + b"".join(map(pub, others)) + b"".join(map(pub, matching))
                + FENCE_SUB + FENCE_PUB),
         A.expect(b"".join(msg(subject, b"1") for subject in matching) + FENCE))
case("match_greater_alone", "5",
     A.send(QUIET + sub(b">", b"1") + PING), A.expect(PONG),
     A.send(pub(b"g.@@") + pub(b"g.@@.a.b")), A.expect(msg(b"g.@@", b"1") + msg(b"g.@@.a.b", b"1")))

# What is special in MQTT, or to the mapping between subjects and topics, and means nothing in NATS: back it comes as it was.
for name, token in {
    "slash": b"a/b",
    "slash_alone": b"/",
    "slashes_alone": b"//",
    "three_slashes": b"///",
    "slash_first": b"/a",
    "slash_last": b"a/",
    "double_slash": b"a//b",
    "plus": b"a+b",
    "plus_alone": b"+",
    "hash": b"a#",
    "hash_alone": b"#",
    "plus_and_hash_escaped": b"%2B%23",
    "percent": b"100%",
    "percent_slash": b"a%2Fb",
    "percent_slash_lower_case": b"a%2fb",
    "percent_percent": b"%25",
    "percent_percent_slash": b"%252F",
    "percent_space": b"a%20b",
    "percent_letters": b"%zz",
    "percent_alone": b"%",
    "dollar": b"$",
    "quotes_and_backslash": b"\"'\\",
    "braces": b"{a}[b](c)",
    "utf8": "\u00fcber-\u2603-\U0001f600".encode(),
    "punctuation": b"!&,-:;=?@^_`|~",
}.items():
    case(f"token_{name}", "5",
         A.send(QUIET + sub(b"t.@@." + token + b".z", b"1") + pub(b"t.@@." + token + b".z", b"x")),
         A.expect(msg(b"t.@@." + token + b".z", b"1", b"x")),
         A.send(b"UNSUB 1\r\n" + sub(b"t.@@.*.z", b"2") + pub(b"t.@@." + token + b".z", b"y")),
         A.expect(msg(b"t.@@." + token + b".z", b"2", b"y")))
case("tokens_that_look_alike_are_not_the_same", "5",
     A.send(QUIET + sub(b"t.@@.a/b", b"1") + sub(b"t.@@.a.b", b"2") + sub(b"t.@@.a%2Fb", b"3") + sub(b"t.@@.a//b", b"4")
            + pub(b"t.@@.a%2Fb") + pub(b"t.@@.a.b") + pub(b"t.@@.a//b") + pub(b"t.@@.a/b")),
     A.expect(msg(b"t.@@.a%2Fb", b"3") + msg(b"t.@@.a.b", b"2") + msg(b"t.@@.a//b", b"4") + msg(b"t.@@.a/b", b"1")))
case("token_plus_and_hash_are_no_wildcards", "5",
     A.send(QUIET + sub(b"t.@@.+", b"1") + sub(b"t.@@.#", b"2") + pub(b"t.@@.a") + pub(b"t.@@.#") + pub(b"t.@@.+")),
     A.expect(msg(b"t.@@.#", b"2") + msg(b"t.@@.+", b"1")))
alone("subject_slash_first", "5", QUIET + sub(b"/.@@", b"1") + pub(b"/.@@", b"x"), msg(b"/.@@", b"1", b"x"))
alone("subject_slash_last", "5", QUIET + sub(b"@@./", b"1") + pub(b"@@./", b"x"), msg(b"@@./", b"1", b"x"))
alone("subject_of_128_tokens", "5", QUIET + sub(b".".join([b"t"] * 128), b"1") + pub(b".".join([b"t"] * 128), b"x"),
      msg(b".".join([b"t"] * 128), b"1", b"x"))
alone("subject_of_2000_bytes", "5", QUIET + sub(b"t" * 2000, b"1") + pub(b"t" * 2000, b"x"), msg(b"t" * 2000, b"1", b"x"))

# The other names that begin with $ are reserved on a broker, see DIFFERENCES; these are what clients use.
for name, subscribed, subject in (
    ("literal", b"$X.@@", b"$X.@@"),
    ("star", b"$X.*", b"$X.@@"),
    ("greater", b"$X.@@.>", b"$X.@@.a.b"),
    ("service_ping", b"$SRV.PING", b"$SRV.PING"),
    ("service_info", b"$SRV.INFO.*.@@", b"$SRV.INFO.name.@@"),
    ("key_value", b"$KV.@@.>", b"$KV.@@.k"),
):
    alone(f"dollar_subject_{name}", "5", QUIET + sub(subscribed, b"1") + pub(subject, b"x"), msg(subject, b"1", b"x"))
case("dollar_in_a_later_token_is_seen_by_wildcards", "5",
     A.send(QUIET + sub(b"d.@@.*", b"1") + pub(b"d.@@.$x")), A.expect(msg(b"d.@@.$x", b"1")))

for name, subject in {
    "empty_token": b"p.@@..b",
    "leading_dot": b".p.@@",
    "trailing_dot": b"p.@@.",
    "greater": b"p.@@.>",
    "star": b"p.*.@@",
}.items():
    case(f"publish_to_invalid_subject_{name}_reaches_no_literal", "5",
         A.send(QUIET + sub(b"p.@@", b"1") + sub(b"p.@@.b", b"2") + sub(b"p.x.@@", b"3") + FENCE_SUB
                + pub(subject, b"x") + FENCE_PUB),
         A.expect(FENCE))
case("publish_to_empty_token_reaches_no_wildcard", "5",
     A.send(QUIET + sub(b"p.@@.*.b", b"1") + sub(b"p.@@.>", b"2") + FENCE_SUB + pub(b"p.@@..b") + pub(b"p.@@.") + FENCE_PUB),
     A.expect(FENCE))

for name, reply_to in {
    "inbox": b"_INBOX.abc.def",
    "empty_tokens": b"r..x",
    "wildcards": b"r.*.>",
    "slash_plus_hash": b"r/a.+.#",
    "percent": b"r%2Fa.%",
    "utf8": "r.\u2603".encode(),
    "dollar": b"$R.x",
    "dot": b".",
}.items():
    case(f"reply_to_{name}", "5",
         subscriber(B, sub(b"a.@@", b"1")),
         A.send(QUIET + pub(b"a.@@", b"x", reply_to)), B.expect(msg(b"a.@@", b"1", b"x", reply_to)))

alone("publish_to_star_is_seen_by_wildcards", "5",
      QUIET + FENCE_SUB + sub(b"p.@@.*", b"1") + sub(b"p.@@.x", b"2") + pub(b"p.@@.*", b"x") + FENCE_PUB,
      msg(b"p.@@.*", b"1", b"x") + FENCE)


# === 6. Headers ======================================================================================================

for name, block in {
    "plain": BLOCK,
    "without_fields": b"NATS/1.0\r\n\r\n",
    "java_spacing": b"NATS/1.0\r\nA:b\r\nC:d\r\n\r\n",
    "other_spacing": b"NATS/1.0\r\nA:   b  \r\nC:\td\t\r\n\r\n",
    "order_and_duplicates": b"NATS/1.0\r\nB: 2\r\nA: 1\r\nB: 1\r\nb: 3\r\nA: 1\r\n\r\n",
    "letter_case": b"NATS/1.0\r\ncOnTent-tYpe: x\r\nX-Y: z\r\n\r\n",
    "empty_values": b"NATS/1.0\r\nA:\r\nB: \r\n\r\n",
    "value_with_colons": b"NATS/1.0\r\nA: b: c::d\r\n\r\n",
    "value_utf8": "NATS/1.0\r\nA: \u2603\r\n\r\n".encode(),
    "value_of_30000_bytes": b"NATS/1.0\r\nA: " + b"x" * 30000 + b"\r\n\r\n",
    "100_fields": b"NATS/1.0\r\n" + b"".join(b"K%d: v%d\r\n" % (number, number) for number in range(100)) + b"\r\n",
    "content_type": b"NATS/1.0\r\nContent-Type: text/plain\r\nA: b\r\ncontent-type: x\r\n\r\n",
    "status": b"NATS/1.0 404\r\n\r\n",
    "status_and_description": b"NATS/1.0 408 Request Timeout\r\nA: b\r\n\r\n",
    "status_503_from_a_client": b"NATS/1.0 503\r\n\r\n",
    "folded_line": b"NATS/1.0\r\nA: b\r\n c\r\n\r\n",
    "lf_only": b"NATS/1.0\nA: b\n\n",
    "no_empty_line": b"NATS/1.0\r\nA: b\r\n",
    "name_with_blank": b"NATS/1.0\r\nA b: c\r\n\r\n",
    "no_colon": b"NATS/1.0\r\nhello\r\n\r\n",
    "empty_name": b"NATS/1.0\r\n: x\r\n\r\n",
    "other_version": b"NATS/2.0\r\nA: b\r\n\r\n",
    "garbage": b"garbage",
    "garbage_bytes": b"\x00\xff\xfe\r\n\x80\r\r\n\n",
    "line_ends_only": b"\r\n\r\n",
}.items():
    case(f"header_block_{name}", "6",
         subscriber(B, sub(b"h.@@", b"1"), HEADERS),
         A.send(HEADERS + hpub(b"h.@@", block, b"payload") + hpub(b"h.@@", block) + FENCE_PUB),
         B.expect(hmsg(b"h.@@", b"1", block, b"payload") + hmsg(b"h.@@", b"1", block) + FENCE))
alone("header_size_zero_is_delivered_as_msg", "6", HEADERS + sub(b"a", b"1") + b"HPUB a 0 2\r\nhi\r\n", b"MSG a 1 2\r\nhi\r\n")
alone("header_and_total_size_zero", "6", HEADERS + sub(b"a", b"1") + b"HPUB a r 0 0\r\n\r\n", b"MSG a 1 r 0\r\n\r\n")
alone("header_block_with_reply_to", "6",
      HEADERS + sub(b"a", b"1") + hpub(b"a", BLOCK, b"hi", b"r.1"), hmsg(b"a", b"1", BLOCK, b"hi", b"r.1"))
case("header_block_to_two_sids", "6",
     A.send(HEADERS + sub(b"a", b"1") + sub(b"a", b"22") + hpub(b"a", BLOCK, b"hi")),
     A.any_order(hmsg(b"a", b"1", BLOCK, b"hi"), hmsg(b"a", b"22", BLOCK, b"hi")))
case("header_block_split_inside", "6",
     A.send(HEADERS + sub(b"a", b"1") + hpub(b"a", BLOCK, b"hi"), (len(HEADERS) + 9 + 14 + 5, len(HEADERS) + 9 + 14 + 17)),
     A.expect(hmsg(b"a", b"1", BLOCK, b"hi")))
alone("header_block_payload_of_every_byte", "6", HEADERS + sub(b"a", b"1") + hpub(b"a", BLOCK, bytes(range(256))),
      hmsg(b"a", b"1", BLOCK, bytes(range(256))))

# --- 503, no responders

_REPLY = b"r.@@"
_REQUEST = pub(b"svc.@@", b"hi", _REPLY)
_503 = no_responders(_REPLY, b"1")
alone("no_responders", "6", NO_RESPONDERS + sub(_REPLY, b"1") + _REQUEST, _503)
alone("no_responders_hpub", "6", NO_RESPONDERS + sub(_REPLY, b"1") + hpub(b"svc.@@", BLOCK, b"hi", _REPLY), _503)
alone("no_responders_wildcard_inbox", "6", NO_RESPONDERS + sub(b"_INBOX.@@.*", b"3") + pub(b"svc.@@", b"", b"_INBOX.@@.x"),
      no_responders(b"_INBOX.@@.x", b"3"))
alone("no_responders_jetstream_api", "6", NO_RESPONDERS + sub(_REPLY, b"1") + pub(b"$JS.API.INFO", b"", _REPLY), _503)
for name, subject in {
    "server_ping": b"$SYS.REQ.SERVER.PING", "sys": b"$SYS.@@", "share": b"$share.q.@@", "queue": b"$queue.@@",
}.items():
    alone(f"no_responders_reserved_{name}", "6", NO_RESPONDERS + sub(_REPLY, b"1") + pub(subject, b"", _REPLY), _503)
    alone(f"no_responders_reserved_{name}_not_asked_for", "6", HEADERS + sub(_REPLY, b"1") + pub(subject, b"", _REPLY) + PING,
          PONG)
alone("no_responders_to_an_invalid_subject", "6", NO_RESPONDERS + sub(_REPLY, b"1") + pub(b"svc..x", b"", _REPLY), _503)
alone("no_responders_each_request", "6", NO_RESPONDERS + sub(_REPLY, b"1") + _REQUEST * 3, _503 * 3)
alone("no_responders_without_reply_to", "6", NO_RESPONDERS + sub(_REPLY, b"1") + pub(b"svc.@@") + PING, PONG)
alone("no_responders_not_asked_for", "6", HEADERS + sub(_REPLY, b"1") + _REQUEST + PING, PONG)
alone("no_responders_without_a_subscription_on_reply_to", "6", NO_RESPONDERS + sub(b"x.@@", b"1") + _REQUEST + PING, PONG)
alone("no_responders_queue_subscription_on_reply_to", "6", NO_RESPONDERS + sub(_REPLY, b"1", b"q") + _REQUEST + PING, PONG)
case("no_responders_two_sids_on_reply_to", "6",
     A.send(NO_RESPONDERS + sub(_REPLY, b"1") + sub(_REPLY, b"2") + _REQUEST), A.any_of(_503, no_responders(_REPLY, b"2")))
case("no_responders_goes_to_the_publisher_only", "6",
     subscriber(B, sub(_REPLY, b"1"), NO_RESPONDERS),
     A.send(NO_RESPONDERS + _REQUEST + FENCE_PUB), B.expect(FENCE))
alone("no_responders_own_subscription_responds", "6", NO_RESPONDERS + sub(_REPLY, b"1") + sub(b"svc.@@", b"2") + _REQUEST,
      msg(b"svc.@@", b"2", b"hi", _REPLY))
for name, queue_group in {"subscriber": b"", "queue_member": b"q"}.items():
    case(f"no_responders_{name}_responds", "6",
         B.send(QUIET + sub(b"svc.@@", b"1", queue_group) + PING), B.expect(PONG),
         A.send(NO_RESPONDERS + sub(_REPLY, b"1") + _REQUEST + PING), A.expect(PONG),
         B.expect(msg(b"svc.@@", b"1", b"hi", _REPLY)))
case("no_responders_after_the_responder_left", "6",
     B.send(QUIET + sub(b"svc.@@", b"1") + PING), B.expect(PONG),
     B.send(b"UNSUB 1\r\n" + PING), B.expect(PONG),
     A.send(NO_RESPONDERS + sub(_REPLY, b"1") + _REQUEST), A.expect(_503))
case("no_responders_does_not_count_towards_the_max", "6",
     A.send(NO_RESPONDERS + FENCE_SUB + sub(_REPLY, b"1") + b"UNSUB 1 1\r\n" + _REQUEST * 2 + pub(_REPLY, b"x") * 2 + FENCE_PUB),
     A.expect(_503 * 2 + msg(_REPLY, b"1", b"x") + FENCE))

# === 8. Limits and timers ============================================================================================

_FEW_TOKENS = {"max_sub_tokens": 3}


def too_many_tokens(subject: bytes) -> bytes:
    return b"-ERR 'Permissions Violation for Subscription to \"" + subject + b"\", too many tokens'\r\n"


alone("max_sub_tokens", "8", QUIET + sub(b"a.b.@@", b"1") + pub(b"a.b.@@"), msg(b"a.b.@@", b"1"), settings=_FEW_TOKENS)
alone("max_sub_tokens_one_too_many", "8",
      QUIET + sub(b"a.*.@@.>", b"1") + sub(b"a.b.c.@@", b"2", b"q") + pub(b"a.b.@@.d") + pub(b"a.b.c.@@") + PING,
      too_many_tokens(b"a.*.@@.>") + too_many_tokens(b"a.b.c.@@") + PONG, settings=_FEW_TOKENS)
alone("max_sub_tokens_before_max_subscriptions", "8",
      QUIET + sub(b"@@", b"1") + sub(b"a.b.c.@@", b"2") + PING, too_many_tokens(b"a.b.c.@@") + PONG,
      settings=_FEW_TOKENS | {"max_subscriptions": 1})
alone("max_sub_tokens_and_a_publish_of_more", "8", QUIET + sub(b"a.@@.>", b"1") + pub(b"a.@@.b.c.d"),
      msg(b"a.@@.b.c.d", b"1"), settings=_FEW_TOKENS)

_FEW_SUBSCRIPTIONS = {"max_subscriptions": 3}
_THREE = QUIET + sub(b"a", b"1") + sub(b"b", b"2") + sub(b"c", b"3")
alone("max_subscriptions", "8",
      _THREE + sub(b"d", b"4") + PING + pub(b"d") + pub(b"c"), MAXIMUM_SUBSCRIPTIONS + PONG + msg(b"c", b"3"),
      settings=_FEW_SUBSCRIPTIONS)
alone("max_subscriptions_verbose", "8",
      b"CONNECT {}\r\nSUB a 1\r\nSUB b 2\r\nSUB c 3\r\nSUB d 4\r\n", OK * 4 + MAXIMUM_SUBSCRIPTIONS,
      settings=_FEW_SUBSCRIPTIONS)
alone("max_subscriptions_counts_sids_not_subjects", "8",
      QUIET + sub(b"a", b"1") + sub(b"a", b"2") + sub(b"a", b"3", b"q") + sub(b"a", b"4"),
      MAXIMUM_SUBSCRIPTIONS, settings=_FEW_SUBSCRIPTIONS)
alone("max_subscriptions_room_after_unsub", "8",
      _THREE + b"UNSUB 2\r\n" + sub(b"d", b"4") + pub(b"d", b"x"), msg(b"d", b"4", b"x"),
      settings=_FEW_SUBSCRIPTIONS)
alone("max_subscriptions_before_duplicate_sid", "8",
      _THREE + sub(b"a", b"1") + PING, MAXIMUM_SUBSCRIPTIONS + PONG, settings=_FEW_SUBSCRIPTIONS)
case("max_subscriptions_is_per_connection", "8",
     A.send(_THREE + PING), A.expect(PONG), B.send(_THREE + PING), B.expect(PONG), settings=_FEW_SUBSCRIPTIONS)

_TWO_CONNECTIONS = {"max_connections": 2}
case("max_connections", "8",
     A.connect(proven=True), B.connect(proven=True), C.connect(), C.expect(MAXIMUM_CONNECTIONS), C.closed(), A.open(), B.open(),
     settings=_TWO_CONNECTIONS, tcp=True)
case("max_connections_room_after_a_close", "8",
     A.connect(proven=True), B.connect(proven=True), B.half_close(), B.closed(), C.connect(proven=True),
     settings=_TWO_CONNECTIONS)

# A busy machine needs some of it for an answer.
_FAST_HEARTBEAT = {"heartbeat": "1s"}
# How many PINGs go unanswered before the end is a matter of configuration (ping_max).
case("heartbeat_unanswered", "8",
     A.send(QUIET), A.any_of(*(PING * count + STALE_CONNECTION for count in (1, 2, 3))), A.closed(), settings=_FAST_HEARTBEAT)
case("heartbeat_answered", "8",
     A.send(QUIET), *(step for _ in range(4) for step in (A.expect(PING), A.send(PONG))), settings=_FAST_HEARTBEAT)

# === 10. Bytes worth knowing by heart ================================================================================

alone("by_heart_connect_ping", "10", b"CONNECT {}\r\nPING\r\n", b"+OK\r\nPONG\r\n")
alone("by_heart_ping", "10", b"PING\r\n", b"PONG\r\n")
alone("by_heart_sub", "10", b"SUB a 1\r\n", b"+OK\r\n")
fatal("by_heart_invalid_client_protocol", "10",
      b'CONNECT {"verbose":false,"protocol":2}\r\n', b"-ERR 'invalid client protocol'\r\n")
alone("by_heart_invalid_subject", "10", b"SUB a..b 1\r\n", b"-ERR 'Invalid Subject'\r\n")
alone("by_heart_unsub_max", "10", QUIET + b"SUB a 1\r\nUNSUB 1 2\r\n" + b"PUB a 1\r\nx\r\n" * 3, b"MSG a 1 1\r\nx\r\n" * 2)
case("by_heart_queue_over_two_filters", "10",
     A.send(QUIET + b"SUB heart.@@.* q 1\r\nSUB heart.@@.x q 2\r\nPUB heart.@@.x 1\r\ny\r\n"),
     A.any_of(b"MSG heart.@@.x 1 1\r\ny\r\n", b"MSG heart.@@.x 2 1\r\ny\r\n"))
fatal("by_heart_payload_too_long", "10", QUIET + b"PUB a 2\r\nhello\r\n", b"-ERR 'Unknown Protocol Operation'\r\n")
fatal("by_heart_negative_size", "10", QUIET + b"PUB a -1\r\n")
alone("by_heart_no_responders", "10",
      NO_RESPONDERS + b"SUB r.@@ 1\r\nPUB svc.@@ r.@@ 2\r\nhi\r\n", b"HMSG r.@@ 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n")
alone("by_heart_headers", "10",
      HEADERS + b"SUB a 1\r\nHPUB a 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n", b"HMSG a 1 18 20\r\nNATS/1.0\r\nA: b\r\n\r\nhi\r\n")

CASES = tuple(_cases)

# === Differences by design ===========================================================================================


def reserved_sub(name: str, subject: bytes, queue_group: bytes = b"") -> Difference:
    violation = b'-ERR \'Permissions Violation for Subscription to "' + subject + b'"'
    violation += b' using queue "' + queue_group + b'"' if queue_group else b""
    request = A.send(QUIET + sub(subject, b"1", queue_group) + PING)
    return Difference(
        f"sub_reserved_{name}", "5",
        "a SUB must not reach the broker's own filter prefixes",
        nats_server=(request, A.expect(PONG)),
        gateway=(request, A.expect(violation + b"'\r\n" + PONG)),
    )


def reserved_pub(name: str, subject: bytes) -> Difference:
    violation = b"-ERR 'Permissions Violation for Publish to \"" + subject + b"\"'\r\n"
    request = A.send(QUIET + pub(subject, b"x") + PING)
    return Difference(
        f"pub_reserved_{name}", "5",
        "a PUB must not reach the broker's own topics",
        nats_server=(request, A.expect(PONG)),
        gateway=(request, A.expect(violation + PONG)),
    )


def dollar_wildcard(name: str, subscribed: bytes) -> Difference:
    request = A.send(QUIET + sub(subscribed, b"1") + FENCE_SUB + PING + pub(b"$X.@@", b"x") + pub(b"x.@@", b"y"))
    # The subscription on everything sees whatever else happens on the server, so it is looked at without a fence.
    return Difference(
        f"wildcard_{name}_and_dollar_subjects", "5",
        "MQTT 4.7.2: a filter that begins with a wildcard does not match topics that begin with $",
        nats_server=(request, A.expect(PONG + msg(b"$X.@@", b"1", b"x") + msg(b"x.@@", b"1", b"y"))),
        gateway=(request, A.expect(PONG + msg(b"x.@@", b"1", b"y"))),
    )


def no_topic(name: str, subject: bytes) -> Difference:
    request = A.send(QUIET + sub(subject, b"1") + PING)
    return Difference(
        f"sub_no_topic_{name}", "5",
        "no MQTT topic can hold this subject",
        nats_server=(request, A.expect(PONG)),
        gateway=(request, A.expect(INVALID_SUBJECT + PONG)),
    )


def no_topic_pub(name: str, token: bytes) -> Difference:
    subject = b"n.@@." + token
    request = A.send(
        NO_RESPONDERS + FENCE_SUB + sub(b"n.@@.*", b"1") + sub(_REPLY, b"2") + pub(subject, b"x", _REPLY) + FENCE_PUB
    )
    return Difference(
        f"pub_no_topic_{name}", "5",
        "no MQTT topic can hold this subject, so the message reaches nobody, and a request has no responder",
        nats_server=(request, A.expect(msg(subject, b"1", b"x", _REPLY) + FENCE)),
        gateway=(request, A.expect(no_responders(_REPLY, b"2") + FENCE)),
    )


def control_character(name: str, token: bytes, encoded: bytes) -> Difference:
    request = A.send(QUIET + sub(b"c.@@.*", b"1") + pub(b"c.@@." + token, b"x"))
    return Difference(
        f"control_character_{name}", "5",
        "a topic with control characters, which MQTT 5 lets a broker refuse (1.5.4), reaches nobody, or comes back percent-encoded",
        nats_server=(request, A.expect(msg(b"c.@@." + token, b"1", b"x"))),
        gateway=(request, A.send(PING), A.any_of(PONG, msg(b"c.@@." + encoded, b"1", b"x") + PONG)),
    )


def sizes(name: str, publish: bytes, echoed: bytes, canonical: bytes) -> Difference:
    request = A.send(HEADERS + sub(b"a.@@", b"1") + publish)
    return Difference(
        f"size_leading_zeros_{name}", "1",
        "the size is not part of an MQTT message",
        nats_server=(request, A.expect(echoed)),
        gateway=(request, A.expect(canonical)),
    )


def long_line(name: str, publish: bytes, delivered: bytes, instead: bytes) -> Difference:
    request = A.send(QUIET + sub(b"l.@@.>", b"1") + sub(b"l.@@", b"2") + publish + pub(b"l.@@", b"next"))
    following = msg(b"l.@@", b"2", b"next")
    return Difference(
        f"delivery_line_over_4096_{name}", "1",
        "a client with room for no more would be disconnected by whoever publishes to a long topic",
        nats_server=(request, A.expect(delivered + following)),
        gateway=(request, A.expect(instead + following)),
    )


def _long_subject() -> Difference:
    subject = b"l.@@." + b"s" * 4082
    return long_line("subject", pub(subject, b"x" * 10), msg(subject, b"1", b"x" * 10), b"")


def _long_reply() -> Difference:
    reply = b"r" * 4080
    return long_line(
        "reply", pub(b"l.@@.a", b"x", reply), msg(b"l.@@.a", b"1", b"x", reply), msg(b"l.@@.a", b"1", b"x")
    )


def _queue_member_with_max() -> Difference:
    leaving = sub(b"j.@@", b"1", b"q") + b"UNSUB 1 1\r\n"
    return Difference(
        "queue_member_with_max_hands_over", "4",
        "the broker has assigned messages to a member before it learns that the member is gone, and takes none back",
        nats_server=(
            *subscriber(B, leaving), *subscriber(C, sub(b"j.@@", b"2", b"q")),
            A.send(QUIET + _TEN_PUBS + FENCE_PUB),
            Spread({"B": _received(b"1"), "C": _received(b"2")}, {"B": FENCE, "C": FENCE}),
        ),
        gateway=(
            *subscriber(B, leaving), A.send(QUIET + pub(b"j.@@", b"first")), B.expect(msg(b"j.@@", b"1", b"first")),
            B.send(PING), B.expect(PONG), *subscriber(C, sub(b"j.@@", b"2", b"q")),
            A.send(_TEN_PUBS + FENCE_PUB), B.expect(FENCE), C.expect(b"".join(_received(b"2")) + FENCE),
        ),
    )


def nobody_but(name: str, reason: str, connect: bytes, subscribed: bytes) -> Difference:
    request = A.send(connect + sub(_REPLY, b"1") + sub(subscribed, b"2") + _REQUEST + PING)
    return Difference(
        f"no_responders_but_{name}", "6", reason,
        nats_server=(request, A.expect(_503 + PONG)),
        gateway=(request, A.any_of(PONG, _503 + PONG)),
    )


def _late_503() -> Difference:
    request = A.send(NO_RESPONDERS + _REQUEST + sub(_REPLY, b"1") + PING)
    return Difference(
        "no_responders_to_a_later_subscription", "6",
        "the broker says later that nobody took the request: who has subscribed to its reply subject by then gets the 503",
        nats_server=(request, A.expect(PONG)),
        gateway=(request, A.any_of(PONG, _503 + PONG)),
    )


def _queue_over_filters_across_connections() -> Difference:
    steps = (
        *subscriber(B, sub(b"j.*.@@", b"1", b"q")), *subscriber(C, sub(b"j.x.@@", b"2", b"q")),
        A.send(QUIET + pub(b"j.x.@@", b"y") + FENCE_PUB),
    )
    at_b, at_c = msg(b"j.x.@@", b"1", b"y"), msg(b"j.x.@@", b"2", b"y")
    return Difference(
        "queue_one_name_over_two_filters_on_two_connections", "4",
        "MQTT forms one shared subscription per name and filter",
        nats_server=(*steps, Spread({"B": (at_b,), "C": (at_c,)}, {"B": FENCE, "C": FENCE})),
        gateway=(*steps, B.expect(at_b + FENCE), C.expect(at_c + FENCE)),
    )


def _queue_without_echo() -> Difference:
    steps = (
        *subscriber(B, sub(b"j.@@", b"1", b"q")),
        A.send(NO_ECHO + FENCE_SUB + sub(b"j.@@", b"2", b"q") + PING), A.expect(PONG),
        A.send(pub(b"j.@@", b"x") + FENCE_PUB + PING), A.expect(PONG),
    )
    delivered = msg(b"j.@@", b"1", b"x")
    return Difference(
        "echo_false_queue_member_is_skipped", "2",
        "MQTT 5 forbids No Local on a shared subscription, so the broker may choose the publisher's own member",
        nats_server=(*steps, B.expect(delivered + FENCE)),
        # Passed on by the publisher's own member, it comes after what was published later.
        gateway=(*steps, B.send(PING), B.any_of(FENCE + PONG, delivered + FENCE + PONG, FENCE + delivered + PONG)),
    )


DIFFERENCES = (
    dollar_wildcard("greater", b">"),
    dollar_wildcard("star", b"*.@@"),
    reserved_sub("share", b"$share.q.a"),
    reserved_sub("share_with_queue_group", b"$share.q.a", b"grp"),
    reserved_sub("queue", b"$queue.a"),
    reserved_sub("exclusive", b"$exclusive.a"),
    reserved_pub("sys", b"$SYS.a"),
    reserved_pub("share", b"$share.q.a"),
    reserved_pub("queue", b"$queue.a"),
    no_topic("nul", b"n.a\x00b"),
    no_topic("not_utf8", b"n.\xff\xfe"),
    no_topic_pub("nul", b"a\x00b"),
    no_topic_pub("not_utf8", b"\xff\xfe"),
    control_character("soh", b"a\x01b", b"a%01b"),
    control_character("del", b"a\x7fb", b"a%7Fb"),
    sizes("small", b"PUB a.@@ 000000001\r\nx\r\n", b"MSG a.@@ 1 000000001\r\nx\r\n", msg(b"a.@@", b"1", b"x")),
    sizes("zero", b"PUB a.@@ 00\r\n\r\n", b"MSG a.@@ 1 00\r\n\r\n", msg(b"a.@@", b"1")),
    sizes("reply", b"PUB a.@@ r 002\r\nhi\r\n", b"MSG a.@@ 1 r 002\r\nhi\r\n", msg(b"a.@@", b"1", b"hi", b"r")),
    sizes("headers", b"HPUB a.@@ 018 0020\r\n" + BLOCK + b"hi\r\n", b"HMSG a.@@ 1 018 0020\r\n" + BLOCK + b"hi\r\n",
          hmsg(b"a.@@", b"1", BLOCK, b"hi")),
    nobody_but("own_subscription_without_echo", "the broker counts a No Local subscription as one that takes the message",
               b'CONNECT {"verbose":false,"echo":false,"headers":true,"no_responders":true}\r\n', b"svc.@@"),
    nobody_but("parent_of_greater", "the broker counts svc/#, which matches svc", NO_RESPONDERS, b"svc.@@.>"),
    _late_503(),
    _long_subject(),
    _long_reply(),
    _queue_member_with_max(),
    _queue_over_filters_across_connections(),
    _queue_without_echo(),
)
