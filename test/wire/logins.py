"""The wire cases of logins: who is let in, and what a login allows (section 7 of the protocol notes).

The keys and JWTs are made when this file is read; what depends on the connection's nonce or on the time, when it is sent.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

from nats_keys import Key, account_jwt, old_jwt, operator_jwt, scoped_jwt, user_jwt

from .cases import (
    AUTHORIZATION_VIOLATION,
    FENCE,
    FENCE_PUB,
    FENCE_SUB,
    MAXIMUM_PAYLOAD,
    MAXIMUM_SUBSCRIPTIONS,
    OK,
    PING,
    PONG,
    A,
    B,
    hmsg,
    msg,
    no_responders,
    pub,
    sub,
)
from .wire import ABSENT, As, Case, Difference, Step

AUTHENTICATION_TIMEOUT = b"-ERR 'Authentication Timeout'\r\n"
TOO_MANY_OF_THE_ACCOUNT = b"-ERR 'maximum account active connections exceeded'\r\n"
USER_EXPIRED = b"-ERR 'User Authentication Expired'\r\n"
NONCE = re.compile(r"^[A-Za-z0-9_-]{15}$")

_cases: list[Case] = []


def case(
    id: str,
    *steps: Step | tuple[Step, ...],
    settings: dict[str, Any],
    since: str | None = None,
    websocket: bool = True,
):
    flat: list[Step] = []
    for step in steps:
        flat.extend(step if isinstance(step, tuple) else (step,))
    _cases.append(Case(id, "7", tuple(flat), settings, since, websocket=websocket))


def connect(**fields: Any) -> bytes:
    return b"CONNECT " + json.dumps({"verbose": False, "pedantic": False} | fields).encode() + b"\r\n"


def no_publish(subject: bytes) -> bytes:
    return b"-ERR 'Permissions Violation for Publish to \"" + subject + b"\"'\r\n"


def no_subscription(subject: bytes, queue_group: bytes = b"") -> bytes:
    queue = b' using queue "' + queue_group + b'"' if queue_group else b""
    return b"-ERR 'Permissions Violation for Subscription to \"" + subject + b'"' + queue + b"'\r\n"


def accepted(id: str, data: bytes | Callable[[dict], bytes], settings: dict[str, Any], **options: Any):
    case(f"{id}_is_accepted", A.send(data), A.send(PING), A.expect(PONG), A.open(), settings=settings, **options)


def refused(id: str, data: bytes | Callable[[dict], bytes], settings: dict[str, Any], **options: Any):
    case(f"{id}_is_refused", A.send(data), A.expect(AUTHORIZATION_VIOLATION), A.closed(), settings=settings, **options)


# === Users and passwords =============================================================================================

# `w0rd`, cost 4
BCRYPT = "$2a$04$JUIzNcqxj1tTtswnN1a6rOwYU7ysPtDI2t2MvR0L5NgENKQzHf/9y"
USERS = {"users": [{"user": "alice", "password": "secret"}, {"user": "bob", "password": BCRYPT}]}

case("users_info", A.info(auth_required=True, nonce=ABSENT), A.drop(), settings=USERS)
accepted("user", connect(user="alice", password="x", **{"pass": "secret"}), USERS)
accepted("user_with_bcrypt", connect(user="bob", **{"pass": "w0rd"}), USERS)
case("user_verbose", A.send(connect(verbose=True, user="alice", **{"pass": "secret"}) + PING), A.expect(OK + PONG), settings=USERS)
for name, fields in {
    "wrong_password": {"user": "alice", "pass": "Secret"},
    "prefix_of_password": {"user": "alice", "pass": "secre"},
    "longer_password": {"user": "alice", "pass": "secret1"},
    "no_password": {"user": "alice"},
    "empty_password": {"user": "alice", "pass": ""},
    "password_of_another": {"user": "bob", "pass": "secret"},
    "bcrypt_hash_as_password": {"user": "bob", "pass": BCRYPT},
    "unknown_user": {"user": "carol", "pass": "secret"},
    "user_in_another_letter_case": {"user": "Alice", "pass": "secret"},
    "no_credentials": {},
    "password_alone": {"pass": "secret"},
    "token_for_users": {"auth_token": "secret"},
    "account": {"user": "alice", "pass": "secret", "account": "x"},
}.items():
    refused(name, connect(**fields), USERS)
refused("operation_before_connect", PING, USERS)
refused("operation_before_connect_after_blank_line", b"\r\n", USERS)
case("refused_connect_discards_what_follows",
     A.send(connect(user="x") + PING + sub(b"a", b"1") + pub(b"a")), A.expect(AUTHORIZATION_VIOLATION), A.closed(), settings=USERS)
case("authentication_timeout", A.info(auth_required=True), A.expect(AUTHENTICATION_TIMEOUT), A.closed(), settings=USERS)

TWO = {"users": [
    {"user": "alice", "password": "secret", "permissions": {"publish": "a.>", "subscribe": ">"}},
    {"user": "bob", "password": "secret", "permissions": {"publish": "b.>", "subscribe": ">"}},
]}
case("second_connect_as_another",
     A.send(connect(user="alice", **{"pass": "secret"}) + pub(b"a.x") + pub(b"b.x") + connect(user="bob") + pub(b"a.x") + pub(b"b.x") + PING),
     A.expect(no_publish(b"b.x") + no_publish(b"a.x") + PONG), settings=TWO)
case("second_connect_with_wrong_password",
     A.send(connect(user="alice", **{"pass": "secret"}) + PING), A.expect(PONG),
     A.send(connect(**{"pass": "x"}) + PING), A.expect(AUTHORIZATION_VIOLATION), A.closed(), settings=TWO)
case("second_connect_without_credentials",
     A.send(connect(user="alice", **{"pass": "secret"}) + connect(verbose=True) + PING), A.expect(OK + PONG), settings=TWO)

# === Token ===========================================================================================================

TOKEN = {"auth_token": "t0ken"}
BCRYPT_TOKEN = {"auth_token": BCRYPT}

case("token_info", A.info(auth_required=True, nonce=ABSENT), A.drop(), settings=TOKEN)
accepted("token", connect(auth_token="t0ken"), TOKEN)
accepted("token_with_bcrypt", connect(auth_token="w0rd"), BCRYPT_TOKEN)
accepted("token_with_an_empty_user", connect(auth_token="t0ken", user="", **{"pass": ""}), TOKEN)
refused("wrong_token", connect(auth_token="token"), TOKEN)
refused("wrong_token_with_bcrypt", connect(auth_token="t0ken"), BCRYPT_TOKEN)
refused("no_token", connect(), TOKEN)
refused("token_as_password", connect(user="t0ken", **{"pass": "t0ken"}), TOKEN)

# === A user for who sends nothing ====================================================================================

GUEST = {
    "users": [
        {"user": "guest", "password": "x", "permissions": {"publish": "open.>", "subscribe": ">"}},
        {"user": "alice", "password": "secret"},
    ],
    "no_auth_user": "guest",
}
# nats-server asks for a user of its own for WebSocket
case("no_auth_user_info", A.info(auth_required=ABSENT, nonce=ABSENT), settings=GUEST, websocket=False)
for name, fields in {
    "no_credentials": {},
    "empty_ones": {"user": "", "pass": "", "auth_token": ""},
    "a_jwt_that_nobody_asks_for": {"jwt": "x", "sig": "x"},
    "an_nkey_that_nobody_asks_for": {"nkey": Key("user").public, "sig": "x"},
}.items():
    case(f"no_auth_user_for_{name}", A.send(connect(**fields) + pub(b"open.x") + pub(b"x") + PING), A.expect(no_publish(b"x") + PONG),
         settings=GUEST)
case("no_auth_user_without_connect",
     A.send(sub(b"open.@@", b"1") + pub(b"open.@@")), A.expect(OK * 2 + msg(b"open.@@", b"1")),
     A.send(pub(b"x") + PING), A.expect(no_publish(b"x") + PONG), settings=GUEST)
case("no_auth_user_that_says_nothing", A.expect(AUTHENTICATION_TIMEOUT), A.closed(), settings=GUEST, websocket=False)
case("no_auth_user_that_has_said_something", A.send(PING), A.expect(PONG),
     A.send(lambda info: time.sleep(2.5) or pub(b"x") + PING), A.expect(no_publish(b"x") + PONG), settings=GUEST, websocket=False)
case("no_auth_user_is_not_for_others",
     A.send(connect(user="alice", **{"pass": "secret"}) + pub(b"x") + PING), A.expect(PONG), settings=GUEST)
for name, fields in {
    "wrong_password": {"user": "alice", "pass": "x"},
    "unknown_user": {"user": "bob"},
    "password_alone": {"pass": "secret"},
    "token": {"auth_token": "x"},
}.items():
    refused(f"no_auth_user_{name}", connect(**fields), GUEST)

# === NKeys ===========================================================================================================

USER, OTHER = Key("user"), Key("user")
NKEYS = {"nkeys": [USER.public]}


def nkey(key: Key, signer: Key | None = None, **fields: Any) -> Callable[[dict], bytes]:
    return lambda info: connect(nkey=key.public, sig=(signer or key).signature(info), **fields)


case("nkey_info", A.info(auth_required=True, nonce=NONCE), A.drop(), settings=NKEYS)
case("nonce_is_new_for_each_connection", A.info(nonce=NONCE), B.info(nonce=As("A", same=False)), A.drop(), B.drop(), settings=NKEYS)
accepted("nkey", nkey(USER), NKEYS)
accepted("nkey_with_standard_base64",
         lambda info: connect(nkey=USER.public, sig=base64.b64encode(USER.sign(info["nonce"].encode())).decode()), NKEYS)
accepted("nkey_with_a_jwt_of_no_use", nkey(USER, jwt="x"), NKEYS)
refused("unknown_nkey", nkey(OTHER), NKEYS)
refused("nkey_signed_by_another", nkey(USER, OTHER), NKEYS)
refused("nkey_without_signature", connect(nkey=USER.public), NKEYS)
refused("nkey_with_empty_signature", connect(nkey=USER.public, sig=""), NKEYS)
refused("nkey_with_no_base64", connect(nkey=USER.public, sig="!" * 86), NKEYS)
refused("nkey_with_a_short_signature",
        lambda info: connect(nkey=USER.public, sig=USER.signature(info)[:-2]), NKEYS)
refused("nkey_with_the_raw_nonce_signed",
        lambda info: connect(nkey=USER.public, sig=USER.signature({"nonce": info["nonce"] + "="})), NKEYS)
refused("nkey_with_nothing", connect(), NKEYS)
_other_nonce: dict[str, str] = {}


def _remember(info: dict) -> bytes:
    _other_nonce.update(info)
    return nkey(USER)(info)


case("signature_of_another_connections_nonce",
     A.send(_remember), A.send(PING), A.expect(PONG),
     B.send(lambda info: nkey(USER)(_other_nonce)), B.expect(AUTHORIZATION_VIOLATION), B.closed(), settings=NKEYS)

BOTH = {"users": [
    {"nkey": USER.public, "permissions": {"publish": "k.>"}},
    {"user": "alice", "password": "secret", "permissions": {"publish": "a.>"}},
]}
case("nkey_user_info", A.info(auth_required=True, nonce=NONCE), A.drop(), settings=BOTH)
case("nkey_user_has_its_permissions",
     A.send(nkey(USER)), A.send(pub(b"k.x") + pub(b"a.x") + PING), A.expect(no_publish(b"a.x") + PONG), settings=BOTH)
case("user_beside_nkeys",
     A.send(connect(user="alice", **{"pass": "secret"}) + pub(b"k.x") + pub(b"a.x") + PING), A.expect(no_publish(b"k.x") + PONG),
     settings=BOTH)
refused("unknown_nkey_with_a_good_password",
        lambda info: nkey(OTHER, user="alice", **{"pass": "secret"})(info), BOTH)

# === JWT =============================================================================================================

OPERATOR, ROGUE = Key("operator"), Key("operator")
ACCOUNT, STRANGER, FULL, SILENT = (Key("account") for _ in range(4))
SIGNING, SCOPED, NOT_SIGNING = Key("account"), Key("account"), Key("account")
STRICT, SMALL, SUBLESS, EXPIRED_ACCOUNT = (Key("account") for _ in range(4))
REVOKED = Key("user")
NOW = int(time.time())

TEMPLATE = {
    "pub": {"allow": ["pub.{{name()}}.>", "tag.{{tag(team)}}", "acc.{{account-name()}}.{{account-tag(env)}}"]},
    "sub": {"allow": ["{{subject()}}.>", "sub.>"], "deny": ["sub.{{name()}}"]},
    "subs": 2, "data": -1, "payload": -1,
}
JWT = {"jwt": {
    "operator": operator_jwt(OPERATOR),
    "accounts": {
        ACCOUNT.public: account_jwt(
            OPERATOR, ACCOUNT, name="main", tags=["env:prod"],
            signing_keys=[SIGNING.public, {"kind": "user_scope", "key": SCOPED.public, "role": "r", "template": TEMPLATE}],
            revocations={REVOKED.public: NOW + 3600},
            default_permissions={"pub": {"deny": ["default.denied"]}, "sub": {}},
        ),
        STRICT.public: account_jwt(OPERATOR, STRICT, limits={"disallow_bearer": True}, revocations={"*": NOW - 3600}),
        SMALL.public: account_jwt(OPERATOR, SMALL, limits={"payload": 100, "subs": 3}),
        SUBLESS.public: account_jwt(OPERATOR, SUBLESS, limits={"subs": 0}),
        FULL.public: account_jwt(OPERATOR, FULL, limits={"conn": 0}),
        SILENT.public: account_jwt(OPERATOR, SILENT, limits={"conn": None}),
    },
}}
OLD, OLD_SIGNING = Key("account"), Key("account")
OLD_LIMITS = {"subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1, "payload": -1, "wildcards": True}
OLD_JWT = {"jwt": {
    "operator": old_jwt(OPERATOR, "operator", OPERATOR, {}, name="O"),
    "accounts": {OLD.public: old_jwt(OPERATOR, "account", OLD, {"limits": OLD_LIMITS, "signing_keys": [OLD_SIGNING.public]}, name="old")},
}}
NOBODY_YET = {"jwt": {"operator": operator_jwt(OPERATOR), "accounts": {}}}


def by_jwt(token: str, signer: Key | None = USER, **fields: Any) -> Callable[[dict], bytes]:
    signed = (lambda info: {"sig": signer.signature(info)}) if signer else (lambda info: {})
    return lambda info: connect(jwt=token, **signed(info), **fields)


def of_account(**nats: Any) -> str:
    return user_jwt(ACCOUNT, USER, **nats)


PLAIN = of_account()
case("jwt_info", A.info(auth_required=True, nonce=NONCE), A.drop(), settings=JWT)
accepted("jwt", by_jwt(PLAIN), JWT)
accepted("jwt_with_its_nkey", by_jwt(PLAIN, nkey=USER.public), JWT)
accepted("jwt_with_another_nkey", by_jwt(PLAIN, nkey=OTHER.public), JWT)
accepted("jwt_with_a_user_name", by_jwt(PLAIN, user="x", **{"pass": "y"}), JWT)
accepted("jwt_of_a_signing_key", by_jwt(user_jwt(SIGNING, USER, account=ACCOUNT)), JWT)
accepted("jwt_of_a_bearer", by_jwt(of_account(bearer_token=True), None), JWT)
accepted("jwt_not_expired_yet", by_jwt(of_account(top={"exp": NOW + 3600, "nbf": NOW - 3600})), JWT)
accepted("jwt_for_standard_connections", by_jwt(of_account(allowed_connection_types=["STANDARD"])), JWT, websocket=False)
accepted("jwt_for_standard_among_unknown", by_jwt(of_account(allowed_connection_types=["X", "standard"])), JWT,
         websocket=False)
accepted("jwt_for_this_network", by_jwt(of_account(src=["10.0.0.0/8", "127.0.0.0/8"])), JWT)
accepted("jwt_for_networks_as_text", by_jwt(of_account(src="10.0.0.0/8,127.0.0.1/32")), JWT)
accepted("jwt_issued_after_a_revocation", by_jwt(user_jwt(STRICT, USER)), JWT)
accepted("jwt_of_a_scoped_key", by_jwt(scoped_jwt(SCOPED, USER, ACCOUNT)), JWT)

OLD_USER = old_jwt(OLD, "user", USER, {"pub": {"allow": ["p.yes"]}, "src": ""})
accepted("jwt_of_version_1", by_jwt(OLD_USER), OLD_JWT)
accepted("jwt_of_version_1_of_a_signing_key", by_jwt(old_jwt(OLD_SIGNING, "user", USER, {}, issuer_account=OLD.public)), OLD_JWT)
accepted("jwt_of_version_2_of_an_account_of_version_1", by_jwt(user_jwt(OLD, USER)), OLD_JWT)
accepted("jwt_of_version_1_of_an_account_of_version_2", by_jwt(old_jwt(ACCOUNT, "user", USER, {})), JWT)
refused("jwt_of_version_1_of_another_account", by_jwt(old_jwt(STRANGER, "user", USER, {})), OLD_JWT)
refused("jwt_of_version_1_with_another_signature", by_jwt(OLD_USER[:-4] + ("AAAA" if OLD_USER[-4:] != "AAAA" else "BBBB")), OLD_JWT)
refused("jwt_of_an_operator_without_accounts", by_jwt(PLAIN), NOBODY_YET)
case("jwt_of_version_1_has_its_permissions",
     A.send(by_jwt(OLD_USER)), A.send(pub(b"p.yes") + pub(b"p.no") + PING), A.expect(no_publish(b"p.no") + PONG), settings=OLD_JWT)

refused("no_jwt", connect(), JWT)
refused("jwt_that_is_none", by_jwt("x.y.z"), JWT)
refused("jwt_without_signature", by_jwt(PLAIN, None), JWT)
refused("jwt_signed_by_another", by_jwt(PLAIN, OTHER), JWT)
refused("jwt_with_a_changed_claim", by_jwt(PLAIN[:-4] + ("AAAA" if PLAIN[-4:] != "AAAA" else "BBBB")), JWT)
refused("jwt_of_an_account", by_jwt(account_jwt(OPERATOR, ACCOUNT)), JWT)
refused("jwt_expired", by_jwt(of_account(top={"exp": NOW - 10})), JWT)
refused("jwt_not_yet_valid", by_jwt(of_account(top={"nbf": NOW + 3600})), JWT)
refused("jwt_of_an_unknown_account", by_jwt(user_jwt(STRANGER, USER)), JWT)
refused("jwt_of_a_key_that_does_not_sign_for_it", by_jwt(user_jwt(NOT_SIGNING, USER, account=ACCOUNT)), JWT)
refused("jwt_of_another_account_for_this_one", by_jwt(user_jwt(SMALL, USER, account=ACCOUNT)), JWT)
refused("jwt_of_a_signing_key_without_its_account", by_jwt(user_jwt(SIGNING, USER)), JWT)
refused("jwt_for_websockets", by_jwt(of_account(allowed_connection_types=["WEBSOCKET"])), JWT, websocket=False)
refused("jwt_for_unknown_connections", by_jwt(of_account(allowed_connection_types=["CARRIER_PIGEON"])), JWT)
refused("jwt_for_another_network", by_jwt(of_account(src=["10.0.0.0/8"])), JWT)
refused("jwt_for_no_network", by_jwt(of_account(src=["127.0.0.1"])), JWT)
refused("jwt_with_a_bad_subject", by_jwt(of_account(pub={"allow": ["a..b"]})), JWT, since="2.10")
refused("jwt_revoked", by_jwt(user_jwt(ACCOUNT, REVOKED), REVOKED), JWT)
refused("jwt_revoked_with_all", by_jwt(user_jwt(STRICT, USER, top={"iat": NOW - 7200})), JWT)
refused("jwt_of_a_bearer_where_none_may_be", by_jwt(user_jwt(STRICT, USER, bearer_token=True)), JWT)
refused("jwt_of_a_scoped_key_with_limits", by_jwt(user_jwt(SCOPED, USER, account=ACCOUNT)), JWT)
refused("user_and_password_for_jwt", connect(user="alice", **{"pass": "secret"}), JWT)

case("jwt_that_expires_while_connected",
     A.send(lambda info: by_jwt(of_account(top={"exp": int(time.time()) + 2}))(info)), A.send(PING), A.expect(PONG),
     A.expect(USER_EXPIRED), A.closed(), settings=JWT)

for name, account in {"without_connections": FULL, "that_says_nothing_of_connections": SILENT}.items():
    case(f"jwt_of_an_account_{name}", A.send(by_jwt(user_jwt(account, USER))), A.expect(TOO_MANY_OF_THE_ACCOUNT), A.closed(), settings=JWT)

PERMISSIONS = {"pub": {"allow": ["p.>"], "deny": ["p.no"]}, "sub": {"allow": ["s.*", "q g.*"], "deny": ["s.no"]}}
case("jwt_permissions",
     A.send(by_jwt(of_account(**PERMISSIONS))),
     A.send(pub(b"p.yes") + pub(b"p.no") + pub(b"default.denied") + sub(b"s.yes", b"1") + sub(b"s.no", b"2") + sub(b"q", b"3")
            + sub(b"q", b"4", b"g.1") + sub(b"q", b"5", b"h") + PING),
     A.expect(no_publish(b"p.no") + no_publish(b"default.denied") + no_subscription(b"s.no") + no_subscription(b"q")
              + no_subscription(b"q", b"h") + PONG), settings=JWT)
case("jwt_default_permissions_of_the_account",
     A.send(by_jwt(PLAIN)), A.send(pub(b"default.denied") + pub(b"other") + PING), A.expect(no_publish(b"default.denied") + PONG),
     settings=JWT)
case("jwt_scoped_key_with_a_template",
     A.send(by_jwt(scoped_jwt(SCOPED, USER, ACCOUNT, name="ann", tags=["team:red", "team:blue"]))),
     A.send(b"".join(map(pub, (b"pub.ann.x", b"pub.bob.x", b"tag.red", b"tag.blue", b"tag.green", b"acc.main.prod", b"acc.main.test")))
            + sub(USER.public.encode() + b".x", b"1") + sub(b"sub.ann", b"2") + sub(b"sub.bob", b"3") + PING),
     A.expect(no_publish(b"pub.bob.x") + no_publish(b"tag.green") + no_publish(b"acc.main.test") + no_subscription(b"sub.ann") + PONG),
     A.send(sub(b"sub.x", b"4") + PING), A.expect(MAXIMUM_SUBSCRIPTIONS + PONG), settings=JWT)

INFO_TAKER = {"protocol": 1, "headers": True}
case("jwt_payload_limit_is_told_after_the_first_pong",
     A.info(max_payload=1048576),
     A.send(by_jwt(of_account(payload=10), **INFO_TAKER)), A.send(PING), A.expect(PONG),
     A.update(max_payload=10), A.send(PING), A.expect(PONG), settings=JWT)
case("jwt_payload_limit_of_the_account",
     A.send(by_jwt(user_jwt(SMALL, USER, payload=200), **INFO_TAKER)), A.send(PING), A.expect(PONG), A.update(max_payload=100),
     settings=JWT)
case("jwt_payload_limit_is_not_told_to_old_clients",
     A.send(by_jwt(of_account(payload=10))), A.send(PING * 2), A.expect(PONG * 2), settings=JWT)
case("jwt_without_payload_limit_tells_nothing",
     A.send(by_jwt(PLAIN, **INFO_TAKER)), A.send(PING * 2), A.expect(PONG * 2), settings=JWT)
case("jwt_payload_at_the_limit",
     A.send(by_jwt(of_account(payload=10))), A.send(pub(b"a", b"x" * 10) + PING), A.expect(PONG), settings=JWT)
case("jwt_payload_over_the_limit",
     A.send(by_jwt(of_account(payload=10))), A.send(PING), A.expect(PONG),
     A.send(pub(b"a", b"x" * 11)), A.expect(MAXIMUM_PAYLOAD), A.closed(), settings=JWT)
case("jwt_payload_limit_comes_before_permissions",
     A.send(by_jwt(of_account(payload=10, pub={"allow": ["b"]}))), A.send(PING), A.expect(PONG),
     A.send(pub(b"a", b"x" * 11)), A.expect(MAXIMUM_PAYLOAD), A.closed(), settings=JWT)
case("jwt_subscription_limit",
     A.send(by_jwt(of_account(subs=2))), A.send(sub(b"a", b"1") + sub(b"b", b"2") + sub(b"c", b"3") + sub(b"c", b"2") + PING),
     A.expect(MAXIMUM_SUBSCRIPTIONS * 2 + PONG),
     A.send(b"UNSUB 1\r\n" + sub(b"c", b"3") + PING), A.expect(PONG), settings=JWT)
case("jwt_subscription_limit_of_a_second_connect",
     A.send(by_jwt(PLAIN)), A.send(sub(b"a", b"1") + sub(b"b", b"2") + sub(b"c", b"3") + PING), A.expect(PONG),
     A.send(by_jwt(of_account(subs=2))), A.expect(MAXIMUM_SUBSCRIPTIONS),
     # nats-server closes 20 ms later
     A.send(lambda info: time.sleep(0.2) or b""), A.closed(), settings=JWT)
case("jwt_subscription_limit_that_is_reached_at_a_second_connect",
     A.send(by_jwt(PLAIN)), A.send(sub(b"a", b"1") + sub(b"b", b"2") + PING), A.expect(PONG),
     A.send(by_jwt(of_account(subs=2))), A.expect(MAXIMUM_SUBSCRIPTIONS),
     A.send(lambda info: time.sleep(0.2) or b""), A.closed(), settings=JWT)
for name, token in {
    "without_subscriptions": of_account(subs=0),
    "that_says_nothing_of_subscriptions": of_account(subs=None),
    "of_an_account_without_subscriptions": user_jwt(SUBLESS, USER),
}.items():
    case(f"jwt_{name}", A.send(by_jwt(token)), A.expect(MAXIMUM_SUBSCRIPTIONS),
         A.send(lambda info: time.sleep(0.2) or b""), A.closed(), settings=JWT)
case("jwt_subscription_limit_of_the_account",
     A.send(by_jwt(user_jwt(SMALL, USER))), A.send(b"".join(sub(b"a", b"%d" % sid) for sid in range(4)) + PING),
     A.expect(MAXIMUM_SUBSCRIPTIONS + PONG), settings=JWT)

# === Permissions =====================================================================================================


def permissions(**rules: Any) -> dict[str, Any]:
    return {"users": [{"user": "u", "password": "p", "permissions": rules}, {"user": "all", "password": "p"}]}


LOGIN = connect(user="u", **{"pass": "p"})
ALL = connect(user="all", headers=True, no_responders=True, **{"pass": "p"})

PUBLISH = permissions(publish={"allow": ["a.*", "b.>", "lit", "_INBOX.>"], "deny": ["b.no", "b.no.>"]})
for name, subject, allowed in (
    ("one_token", b"a.x", True), ("one_token_missing", b"a", False), ("one_token_too_many", b"a.x.y", False),
    ("rest", b"b.x.y", True), ("rest_missing", b"b", False), ("denied", b"b.no", False), ("denied_below", b"b.no.x", False),
    ("beside_denied", b"b.no2", True), ("literal", b"lit", True), ("below_literal", b"lit.x", False), ("unknown", b"c", False),
    ("letter_case", b"LIT", False), ("star", b"a.*", True), ("star_alone", b"*", False), ("full_wildcard", b">", False),
    ("empty_token", b"a..x", False),
):
    expected = b"" if allowed else no_publish(subject)
    case(f"publish_{name}_is_{'allowed' if allowed else 'denied'}",
         A.send(LOGIN + pub(subject, b"x") + PING), A.expect(expected + PONG), settings=PUBLISH)
    case(f"publish_{name}_is_{'allowed' if allowed else 'denied'}_verbose",
         A.send(LOGIN.replace(b'"verbose": false', b'"verbose": true') + pub(subject, b"x") * 2 + PING),
         A.expect(OK + (expected or OK) * 2 + PONG), settings=PUBLISH)
case("publish_denied_is_not_routed",
     A.send(ALL + sub(b"b.>", b"1") + PING), A.expect(PONG),
     B.send(LOGIN + pub(b"b.no", b"x") + pub(b"b.yes", b"y") + PING), B.expect(no_publish(b"b.no") + PONG),
     A.expect(msg(b"b.yes", b"1", b"y")), settings=PUBLISH)
case("publish_mixed_batch",
     A.send(ALL + sub(b"b.>", b"1") + PING), A.expect(PONG),
     B.send(LOGIN + b"".join(pub(b"b.%d" % n, b"x") + pub(b"c.%d" % n, b"x") for n in range(300)) + PING),
     B.expect(b"".join(no_publish(b"c.%d" % n) for n in range(300)) + PONG),
     A.expect(b"".join(msg(b"b.%d" % n, b"1", b"x") for n in range(300))), settings=PUBLISH)
case("publish_denied_request_gets_no_503",
     A.send(connect(user="u", headers=True, no_responders=True, **{"pass": "p"}) + sub(b"r", b"1") + pub(b"c", b"", b"r")
            + pub(b"a.x", b"", b"r") + PING),
     A.expect(no_publish(b"c") + no_responders(b"r", b"1") + PONG), settings=PUBLISH)
case("publish_reserved_reply_after_permission",
     A.send(LOGIN + pub(b"c", b"", b"_R_.x") + pub(b"a.x", b"", b"_R_.x") + PING),
     A.expect(no_publish(b"c") + b"-ERR 'Permissions Violation for Publish with Reply of \"_R_.x\"'\r\n" + PONG), settings=PUBLISH)
case("publish_reply_subject_needs_no_permission",
     A.send(LOGIN + pub(b"a.x", b"", b"anything.else") + PING), A.expect(PONG), settings=PUBLISH)

SUBSCRIBE = permissions(subscribe={
    "allow": ["a.*", "b.>", "lit", "q.one v1", "q.any", "q.any v.*", "q.all.> w.>"], "deny": ["a.no", "b.x.*", "lit dq"],
})
for name, subject, queue_group, allowed in (
    ("one_token", b"a.x", b"", True), ("star", b"a.*", b"", True), ("denied", b"a.no", b"", False), ("wider", b"*.x", b"", False),
    ("everything", b">", b"", False), ("rest", b"b.>", b"", True), ("star_in_the_rest", b"b.*.y", b"", True),
    ("denied_star", b"b.x.*", b"", False), ("below_denied", b"b.x.y.z", b"", True), ("unknown", b"c", b"", False),
    ("literal", b"lit", b"", True), ("literal_in_any_queue", b"lit", b"g", True), ("denied_queue", b"lit", b"dq", False),
    ("plain_where_a_queue_may", b"q.one", b"", False), ("the_queue", b"q.one", b"v1", True), ("another_queue", b"q.one", b"v2", False),
    ("plain_beside_a_queue", b"q.any", b"", True), ("queue_with_star", b"q.any", b"v.1", True),
    ("queue_without_star", b"q.any", b"v", False), ("queue_beside_plain", b"q.any", b"g", False),
    ("wildcards_in_both", b"q.all.x.y", b"w.1.2", True), ("wildcards_in_both_missing", b"q.all.x", b"w", False),
    ("malformed", b"c..d", b"", False),
):
    case(f"subscribe_{name}_is_{'allowed' if allowed else 'denied'}",
         A.send(LOGIN + sub(subject, b"1", queue_group) + PING),
         A.expect((b"" if allowed else no_subscription(subject, queue_group)) + PONG), settings=SUBSCRIBE)
case("subscribe_denied_leaves_the_sid_free",
     A.send(LOGIN + sub(b"c", b"1") + sub(b"lit", b"1") + pub(b"lit", b"x") + PING),
     A.expect(no_subscription(b"c") + msg(b"lit", b"1", b"x") + PONG), settings=SUBSCRIBE)
case("subscribe_denied_verbose",
     A.send(LOGIN.replace(b'"verbose": false', b'"verbose": true') + sub(b"c", b"1") + sub(b"lit", b"1") + PING),
     A.expect(OK + no_subscription(b"c") + OK + PONG), settings=SUBSCRIBE)
case("subscribe_permission_comes_before_the_limit",
     A.send(LOGIN + sub(b"lit", b"1") + sub(b"c", b"2") + sub(b"lit", b"3") + PING),
     A.expect(no_subscription(b"c") + MAXIMUM_SUBSCRIPTIONS + PONG), settings=SUBSCRIBE | {"max_subscriptions": 1})

DENIED = permissions(subscribe={"deny": ["d.no", "d.secret.>", "e.*"]})
case("delivery_of_a_denied_subject",
     A.send(LOGIN + sub(b"d.>", b"1") + sub(b"d.*", b"2") + sub(b"d.yes", b"3") + PING), A.expect(PONG),
     B.send(ALL + b"".join(pub(subject, b"x") for subject in (b"d.no", b"d.secret.x", b"d.yes", b"d.secret")) + PING), B.expect(PONG),
     A.any_order(*(msg(b"d.yes", sid, b"x") for sid in (b"1", b"2", b"3"))),
     A.any_order(*(msg(b"d.secret", sid, b"x") for sid in (b"1", b"2"))), settings=DENIED)
case("delivery_denied_does_not_count",
     A.send(LOGIN + sub(b"d.*", b"1") + b"UNSUB 1 2\r\n" + FENCE_SUB + PING), A.expect(PONG),
     B.send(ALL + pub(b"d.no") + pub(b"d.a") + pub(b"d.no") + pub(b"d.b") + pub(b"d.c") + FENCE_PUB + PING), B.expect(PONG),
     A.expect(msg(b"d.a", b"1") + msg(b"d.b", b"1") + FENCE), settings=DENIED)
case("delivery_of_its_own_denied_subject",
     A.send(LOGIN + sub(b"d.>", b"1") + pub(b"d.no") + pub(b"d.yes") + PING), A.expect(msg(b"d.yes", b"1") + PONG), settings=DENIED)

RESPOND = permissions(subscribe="svc.>", allow_responses={"max": 2, "expires": "1s"})


def responder(*answers: bytes) -> tuple[Step, ...]:
    """B asks, A answers."""
    return (
        A.send(LOGIN + sub(b"svc.>", b"1") + PING), A.expect(PONG),
        B.send(ALL + sub(b"inbox.>", b"1") + pub(b"svc.x", b"?", b"inbox.1") + PING),
        A.expect(msg(b"svc.x", b"1", b"?", b"inbox.1")), B.expect(PONG),
        A.send(b"".join(answers) + PING),
    )


case("response", responder(pub(b"inbox.1", b"!")), A.expect(PONG), B.expect(msg(b"inbox.1", b"1", b"!")), settings=RESPOND)
case("response_up_to_the_max",
     responder(*(pub(b"inbox.1", b"%d" % n) for n in range(4))), A.expect(no_publish(b"inbox.1") * 2 + PONG),
     B.expect(msg(b"inbox.1", b"1", b"0") + msg(b"inbox.1", b"1", b"1")), settings=RESPOND)
case("response_that_is_late",
     responder(), A.expect(PONG), A.send(lambda info: time.sleep(1.2) or pub(b"inbox.1", b"!") + PING),
     A.expect(no_publish(b"inbox.1") + PONG), settings=RESPOND)
case("response_to_nothing",
     responder(pub(b"inbox.2"), pub(b"svc.x"), pub(b"inbox.1", b"!")),
     A.expect(no_publish(b"inbox.2") + no_publish(b"svc.x") + PONG), B.expect(msg(b"inbox.1", b"1", b"!")), settings=RESPOND)
DEFAULT_RESPOND = permissions(subscribe="svc.>", publish="ok", allow_responses=True)
case("response_by_default_is_one",
     responder(pub(b"inbox.1", b"!"), pub(b"inbox.1"), pub(b"ok"), pub(b"no")),
     A.expect(no_publish(b"inbox.1") + no_publish(b"no") + PONG), B.expect(msg(b"inbox.1", b"1", b"!")), settings=DEFAULT_RESPOND)
case("response_with_headers",
     A.send(connect(user="u", headers=True, **{"pass": "p"}) + sub(b"svc.>", b"1") + PING), A.expect(PONG),
     B.send(ALL + sub(b"inbox.>", b"1") + pub(b"svc.x", b"?", b"inbox.1") + PING),
     A.expect(msg(b"svc.x", b"1", b"?", b"inbox.1")), B.expect(PONG),
     A.send(b"HPUB inbox.1 12 13\r\nNATS/1.0\r\n\r\n!\r\n" + PING), A.expect(PONG),
     B.expect(hmsg(b"inbox.1", b"1", b"NATS/1.0\r\n\r\n", b"!")), settings=RESPOND)

CASES = tuple(_cases)

# === What is stricter than nats-server 2.10, which lets pass what its own rules forbid =================================


def difference(id: str, reason: str, settings: dict[str, Any], act: tuple[Step, ...], nats_server: tuple[Step, ...],
               gateway: tuple[Step, ...]) -> Difference:
    return Difference(id, "7", reason, act + nats_server, act + gateway, settings)


DIFFERENCES = (
    difference(
        "subscribe_rest_where_one_token_is_allowed", "`a.*` does not allow `a.>`, which gets `a.b.c`, too", SUBSCRIBE,
        (A.send(LOGIN + sub(b"a.>", b"1") + PING),),
        (A.expect(PONG), A.open()), (A.expect(no_subscription(b"a.>") + PONG), A.open()),
    ),
    difference(
        "delivery_of_a_denied_subject_to_an_overlapping_wildcard", "a denied subject is filtered for every wildcard", DENIED,
        (A.send(LOGIN + sub(b"*.yes", b"1") + PING), A.expect(PONG),
         B.send(ALL + pub(b"e.yes") + pub(b"d.yes") + PING), B.expect(PONG)),
        (A.expect(msg(b"e.yes", b"1") + msg(b"d.yes", b"1")), A.open(), B.open()),
        (A.expect(msg(b"d.yes", b"1")), A.open(), B.open()),
    ),
    difference(
        "second_connect_of_one_who_may_subscribe_to_less", "subscriptions that the new login may not have end",
        {"users": [{"user": "u", "password": "p"}, {"user": "less", "password": "p", "permissions": {"subscribe": "b"}}]},
        (A.send(LOGIN + sub(b"a", b"1") + sub(b"b", b"2") + PING), A.expect(PONG),
         A.send(connect(user="less", **{"pass": "p"}) + pub(b"a") + pub(b"b") + PING)),
        (A.expect(msg(b"a", b"1") + msg(b"b", b"2") + PONG), A.open()),
        (A.expect(no_subscription(b"a") + msg(b"b", b"2") + PONG), A.open()),
    ),
)
