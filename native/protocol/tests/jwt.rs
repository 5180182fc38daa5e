//! NATS JWTs: which are read, and which are refused.

#![allow(clippy::restriction)]

use std::collections::BTreeMap;

use data_encoding::BASE64URL_NOPAD;
use jiff::Timestamp;
use nats_protocol::jwt::*;
use nkeys::KeyPair;
use proptest::prelude::*;
use serde_json::{Value, json};

fn token(issuer: &KeyPair, claims: &Value) -> String {
    token_with(
        issuer,
        &json!({"typ": "JWT", "alg": "ed25519-nkey"}),
        claims,
    )
}

fn token_with(issuer: &KeyPair, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn user_claims(issuer: &KeyPair, subject: &KeyPair, nats: Value) -> Value {
    let mut claims = json!({
        "iss": issuer.public_key(), "sub": subject.public_key(), "name": "u", "iat": 1,
        "nats": {"type": "user", "version": 2},
    });
    let target = claims["nats"].as_object_mut().unwrap();
    target.extend(nats.as_object().unwrap().clone());
    claims
}

fn user(nats: Value) -> Result<Token, JwtError> {
    let account = KeyPair::new_account();
    decode(&token(
        &account,
        &user_claims(&account, &KeyPair::new_user(), nats),
    ))
}

fn limits(nats: Value) -> UserLimits {
    match user(nats).unwrap().claims {
        Claims::User(user) => user.limits,
        other => panic!("{other:?}"),
    }
}

#[test]
fn user_claims_are_read() {
    let account = KeyPair::new_account();
    let pair = KeyPair::new_user();
    let mut claims = user_claims(
        &account,
        &pair,
        json!({
            "issuer_account": "A…", "tags": ["a:b"], "subs": 3, "data": -1, "payload": 4,
            "pub": {"allow": ["a.>"], "deny": ["a.b"]}, "sub": {"allow": ["s q.*"]},
            "resp": {"max": 2, "ttl": 1_000_000_000}, "src": "10.0.0.0/8, ::1/128",
            "times": [{"start": "01:00:00", "end": "02:00:00"}],
            "times_location": "Europe/Berlin", "bearer_token": true,
            "allowed_connection_types": ["STANDARD"],
        }),
    );
    claims["exp"] = json!(7);
    claims["nbf"] = json!(6);
    let token = decode(&token(&account, &claims)).unwrap();
    assert_eq!(token.issuer, account.public_key());
    assert_eq!(token.subject, pair.public_key());
    assert_eq!(
        (token.issued_at, token.expires, token.not_before),
        (1, 7, 6)
    );
    let Claims::User(user) = token.claims else {
        panic!("not a user")
    };
    assert_eq!(user.issuer_account, "A…");
    assert_eq!(user.tags, ["a:b"]);
    assert_eq!(
        user.limits,
        UserLimits {
            permissions: Permissions {
                publish: Permission {
                    allow: vec!["a.>".into()],
                    deny: vec!["a.b".into()],
                },
                subscribe: Permission {
                    allow: vec!["s q.*".into()],
                    deny: vec![],
                },
                resp: Some(ResponsePermission {
                    max: 2,
                    ttl: 1_000_000_000,
                }),
            },
            src: vec!["10.0.0.0/8".into(), "::1/128".into()],
            times: vec![TimeRange {
                start: "01:00:00".into(),
                end: "02:00:00".into(),
            }],
            times_location: "Europe/Berlin".into(),
            subs: 3,
            data: -1,
            payload: 4,
            bearer_token: true,
            allowed_connection_types: vec!["STANDARD".into()],
        }
    );
}

#[test]
fn absent_and_null_are_zero() {
    let nothing = UserLimits::default();
    assert_eq!(limits(json!({})), nothing);
    assert_eq!(
        limits(
            json!({"pub": null, "sub": {"allow": null}, "resp": null, "src": null,
            "times": null, "times_location": null, "subs": null, "payload": null,
            "bearer_token": null, "allowed_connection_types": null})
        ),
        nothing
    );
}

#[test]
fn what_a_permission_must_look_like() {
    for list in [json!([""]), json!(["a..b"]), json!([".a"]), json!(["a."])] {
        for key in ["allow", "deny"] {
            for direction in ["pub", "sub"] {
                let permission = json!({direction: {key: list}});
                assert_eq!(user(permission).unwrap_err(), JwtError::Permission);
            }
        }
    }
    assert_eq!(
        user(json!({"pub": {"allow": ["a q"]}})).unwrap_err(),
        JwtError::Permission
    );
    assert_eq!(
        user(json!({"sub": {"allow": ["a b c"]}})).unwrap_err(),
        JwtError::Permission
    );
    assert_eq!(
        limits(json!({"sub": {"deny": ["a.* q.>"]}}))
            .permissions
            .subscribe
            .deny,
        ["a.* q.>"]
    );
}

fn with_permissions(permissions: &Value, nats: Value) -> Result<User, JwtError> {
    let account = KeyPair::new_account();
    let mut claims = user_claims(&account, &KeyPair::new_user(), nats);
    claims["permissions"] = permissions.clone();
    decode(&token(&account, &claims)).map(|token| match token.claims {
        Claims::User(user) => *user,
        other => panic!("{other:?}"),
    })
}

#[test]
fn permissions_beside_nats_are_read() {
    let read = |permissions| {
        with_permissions(&permissions, json!({"pub": {"allow": ["n"]}}))
            .map(|user| (user.outer_permissions, user.limits.permissions))
    };
    let inner = Permissions {
        publish: Permission {
            allow: vec!["n".into()],
            deny: vec![],
        },
        ..Permissions::default()
    };
    let outer = Permissions {
        publish: Permission {
            allow: vec!["a.>".into()],
            deny: vec!["a.b".into()],
        },
        subscribe: Permission {
            allow: vec![],
            deny: vec!["s q".into()],
        },
        resp: None,
    };
    for (publish, subscribe) in [("pub", "subscribe"), ("publish", "sub")] {
        assert_eq!(
            read(json!({
                publish: {"allow": ["a.>"], "deny": ["a.b"]}, subscribe: {"deny": ["s q"]},
            })),
            Ok((outer.clone(), inner.clone()))
        );
    }
    for nothing in [
        json!(null),
        json!({}),
        json!({"pub": null}),
        json!({"sub": {"allow": null}, "publish": {}}),
    ] {
        assert_eq!(read(nothing), Ok((Permissions::default(), inner.clone())));
    }
}

#[test]
fn permissions_beside_nats_that_cannot_be_read_are_an_error() {
    let read = |permissions| with_permissions(&permissions, json!({})).map(drop);
    for wrong in [
        json!([]),
        json!("a.>"),
        json!(true),
        json!([{"allow": ["a"]}]),
        json!({"all": {"deny": ["a"]}}),
        json!({"resp": {"max": 1}}),
        json!({"pub": ["a"]}),
        json!({"pub": "a"}),
        json!({"pub": {"allow": "a"}}),
        json!({"pub": {"allow": {"a": true}}}),
        json!({"pub": {"allow": [42]}}),
        json!({"pub": {"Allow": ["a"]}}),
        json!({"pub": {"allow": ["a"]}, "publish": {"allow": ["b"]}}),
    ] {
        let error = read(wrong.clone());
        assert_eq!(error, Err(JwtError::OuterPermissions), "{wrong}");
    }
    for wrong in [
        json!({"pub": {"deny": [""]}}),
        json!({"publish": {"allow": ["a q"]}}),
    ] {
        assert_eq!(read(wrong), Err(JwtError::Permission));
    }
}

#[test]
fn long_names_within_nats_are_the_same_permissions() {
    let read = limits(json!({"publish": {"deny": ["a"]}, "subscribe": {"allow": ["b"]}}));
    assert_eq!(read.permissions.publish.deny, ["a"]);
    assert_eq!(read.permissions.subscribe.allow, ["b"]);
    let both = user(json!({"publish": {"deny": ["a"]}, "pub": {"deny": ["b"]}}));
    assert_eq!(both.unwrap_err(), JwtError::Malformed);
}

#[test]
fn what_limits_must_look_like() {
    for src in [json!(["10.0.0.0"]), json!(["10.0.0.0/33"]), json!("x/8")] {
        assert_eq!(user(json!({"src": src})).unwrap_err(), JwtError::Network);
    }
    for (start, end) in [("", "01:00:00"), ("01:00:00", "24:00:00"), ("1am", "2am")] {
        let times = json!({"times": [{"start": start, "end": end}]});
        assert_eq!(user(times).unwrap_err(), JwtError::Times);
    }
    assert_eq!(
        user(json!({"times_location": "Europe/Nowhere"})).unwrap_err(),
        JwtError::Times
    );
}

#[test]
fn account_and_operator_claims_are_read() {
    let operator = KeyPair::new_operator();
    let account = KeyPair::new_account();
    let claims = json!({
        "iss": operator.public_key(), "sub": account.public_key(), "name": "acc",
        "nats": {
            "type": "account", "version": 2, "tags": ["t:1"],
            "limits": {"subs": 5, "payload": -1, "disallow_bearer": true, "conn": 7},
            "signing_keys": ["AKEY", {
                "kind": "user_scope", "key": "ASCOPED", "role": "r",
                "template": {"pub": {"allow": ["{{name()}}.>"]}, "subs": -1, "payload": 9},
            }],
            "revocations": {"*": 5, "UX": 6},
            "default_permissions": {"pub": {"deny": ["x"]}, "sub": {}},
        },
    });
    let Claims::Account(read) = decode(&token(&operator, &claims)).unwrap().claims else {
        panic!("not an account")
    };
    assert_eq!(
        (
            read.limits.subs,
            read.limits.payload,
            read.limits.connections,
            read.limits.disallow_bearer
        ),
        (5, -1, 7, true)
    );
    assert_eq!(
        read.revocations,
        BTreeMap::from([("*".into(), 5), ("UX".into(), 6)])
    );
    assert_eq!(read.default_permissions.publish.deny, ["x"]);
    let [plain, scoped] = &read.signing_keys[..] else {
        panic!("{:?}", read.signing_keys)
    };
    assert_eq!((plain.key.as_str(), &plain.template), ("AKEY", &None));
    assert_eq!(scoped.key, "ASCOPED");
    let template = scoped.template.as_ref().unwrap();
    assert_eq!(template.permissions.publish.allow, ["{{name()}}.>"]);
    assert_eq!((template.subs, template.payload), (-1, 9));

    let claims = json!({
        "iss": operator.public_key(), "sub": operator.public_key(),
        "nats": {"type": "operator", "version": 2, "signing_keys": ["OKEY"],
            "strict_signing_key_usage": true},
    });
    assert_eq!(
        decode(&token(&operator, &claims)).unwrap().claims,
        Claims::Operator(Operator {
            signing_keys: vec!["OKEY".into()],
            strict_signing_key_usage: true,
        })
    );
}

#[test]
fn another_header_is_not_taken() {
    let account = KeyPair::new_account();
    let claims = user_claims(&account, &KeyPair::new_user(), json!({}));
    for header in [
        json!({"typ": "JWT", "alg": "none"}),
        json!({"typ": "JWT", "alg": "HS256"}),
        json!({"typ": "JWT", "alg": "ed25519-"}),
        json!({"typ": "JWS", "alg": "ed25519-nkey"}),
    ] {
        assert_eq!(
            decode(&token_with(&account, &header, &claims)).unwrap_err(),
            JwtError::Algorithm
        );
    }
    let header = json!({"typ": "jwt", "alg": "ED25519-NKEY"});
    assert!(decode(&token_with(&account, &header, &claims)).is_ok());
}

#[test]
fn who_may_issue_what_about_whom() {
    let pairs = [
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_user(),
    ];
    for (kind, issuers, subject) in [
        ("operator", &[0][..], 0),
        ("account", &[0, 1], 1),
        ("user", &[1], 2),
    ] {
        for (by, issuer) in pairs.iter().enumerate() {
            for (about, whom) in pairs.iter().enumerate() {
                let claims = json!({
                    "iss": issuer.public_key(), "sub": whom.public_key(),
                    "nats": {"type": kind, "version": 2},
                });
                let expected = match (issuers.contains(&by), about == subject) {
                    (false, _) => Some(JwtError::Issuer),
                    (true, false) => Some(JwtError::Subject),
                    (true, true) => None,
                };
                assert_eq!(decode(&token(issuer, &claims)).err(), expected, "{kind}");
            }
        }
    }
}

#[test]
fn kind_and_version_are_known_ones() {
    let account = KeyPair::new_account();
    let with = |nats: Value| {
        let mut claims = user_claims(&account, &KeyPair::new_user(), json!({}));
        claims["nats"] = nats;
        decode(&token(&account, &claims)).unwrap_err()
    };
    // It is signed as in version 2, but is not version 2.
    assert_eq!(with(json!({"type": "user"})), JwtError::Signature);
    assert_eq!(
        with(json!({"type": "user", "version": 1})),
        JwtError::Signature
    );
    assert_eq!(
        with(json!({"type": "user", "version": 3})),
        JwtError::Version
    );
    assert_eq!(
        with(json!({"type": "activation", "version": 2})),
        JwtError::Kind
    );
    assert_eq!(with(json!({"version": 2})), JwtError::Kind);
    assert_eq!(with(json!("user")), JwtError::Malformed);
}

/// A token of version 1, in which only the claims are signed.
fn old_token(issuer: &KeyPair, claims: &Value) -> String {
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let header = encode(&json!({"typ": "jwt", "alg": "ed25519"}));
    let claims = encode(claims);
    let signature = issuer.sign(claims.as_bytes()).unwrap();
    format!("{header}.{claims}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn old_claims(kind: &str, issuer: &KeyPair, subject: &KeyPair, nats: Value) -> Value {
    json!({
        "iss": issuer.public_key(), "sub": subject.public_key(), "name": "n", "iat": 1,
        "type": kind, "tags": ["t:1"], "nats": nats,
    })
}

#[test]
fn users_of_version_1() {
    let (account, subject) = (KeyPair::new_account(), KeyPair::new_user());
    let read = |nats: Value| {
        let mut claims = old_claims("user", &account, &subject, nats);
        claims["issuer_account"] = json!("A…");
        match decode(&old_token(&account, &claims)).unwrap().claims {
            Claims::User(user) => *user,
            other => panic!("{other:?}"),
        }
    };
    let user = read(json!({
        "pub": {"allow": ["a"]}, "src": "10.0.0.0/8", "bearer_token": true, "subs": 3, "max": 7,
        "issuer_account": "B…", "tags": ["b:1"], "allowed_connection_types": ["MQTT"],
    }));
    assert_eq!(user.issuer_account, "A…");
    assert_eq!(user.tags, ["t:1"]);
    assert_eq!(user.limits.permissions.publish.allow, ["a"]);
    assert_eq!(user.limits.src, ["10.0.0.0/8"]);
    assert!(user.limits.bearer_token && user.limits.allowed_connection_types.is_empty());
    assert_eq!(
        (user.limits.subs, user.limits.data, user.limits.payload),
        (3, -1, -1)
    );
    let bare = read(json!({"subs": null, "data": 0, "payload": 5})).limits;
    assert_eq!((bare.subs, bare.data, bare.payload), (-1, 0, 5));
}

#[test]
fn accounts_and_operators_of_version_1() {
    let operator = KeyPair::new_operator();
    let account = |nats: Value| {
        let claims = old_claims("account", &operator, &KeyPair::new_account(), nats);
        decode(&old_token(&operator, &claims)).map(|token| token.claims)
    };
    let Ok(Claims::Account(read)) = account(json!({
        "limits": {"subs": 3, "conn": -1, "payload": 4}, "signing_keys": ["AKEY"], "revocations": {"U": 5},
        "default_permissions": {"pub": {"deny": ["x"]}},
    })) else {
        panic!("no account");
    };
    assert_eq!(read.tags, ["t:1"]);
    assert_eq!((read.limits.subs, read.limits.connections), (3, -1));
    assert_eq!(read.signing_keys[0].key, "AKEY");
    assert_eq!(read.revocations["U"], 5);
    assert_eq!(read.default_permissions, Permissions::default());
    let scoped = json!({"signing_keys": [{"kind": "user_scope", "key": "A", "template": {}}]});
    assert_eq!(account(scoped).unwrap_err(), JwtError::Malformed);
    let nats = json!({"signing_keys": ["OKEY"], "strict_signing_key_usage": true});
    let claims = old_claims("operator", &operator, &operator, nats);
    let expected = Operator {
        signing_keys: vec!["OKEY".to_owned()],
        strict_signing_key_usage: false,
    };
    assert_eq!(
        decode(&old_token(&operator, &claims)).unwrap().claims,
        Claims::Operator(expected)
    );
    let bare =
        json!({"iss": operator.public_key(), "sub": operator.public_key(), "type": "operator"});
    assert!(decode(&old_token(&operator, &bare)).is_ok());
}

/// Which part is signed, and with which algorithm, depends on the version.
#[test]
fn versions_are_told_apart() {
    let (account, subject) = (KeyPair::new_account(), KeyPair::new_user());
    let old = old_claims("user", &account, &subject, json!({}));
    let new = user_claims(&account, &subject, json!({}));
    let error = |token: String| decode(&token).err();
    assert_eq!(error(token(&account, &old)), Some(JwtError::Signature));
    assert_eq!(error(old_token(&account, &new)), Some(JwtError::Signature));
    let header = json!({"typ": "JWT", "alg": "ed25519"});
    assert_eq!(error(token_with(&account, &header, &new)), None);
    let mut between = new.clone();
    between["nats"]["version"] = json!(1);
    assert_eq!(error(old_token(&account, &between)), None);
    between["nats"]["version"] = json!(0);
    assert_eq!(
        error(old_token(&account, &between)),
        Some(JwtError::Version)
    );
    between["nats"]["version"] = json!(3);
    assert_eq!(error(token(&account, &between)), Some(JwtError::Version));
    // The result is the same whatever `nats` says about it.
    let mut both = old.clone();
    both["nats"] = json!({"type": "account", "version": 3});
    assert_eq!(error(old_token(&account, &both)), None);
    both["type"] = json!("cluster");
    assert_eq!(error(old_token(&account, &both)), Some(JwtError::Kind));
}

#[test]
fn a_signature_is_the_issuers() {
    let account = KeyPair::new_account();
    let claims = user_claims(&account, &KeyPair::new_user(), json!({}));
    let good = token(&account, &claims);
    assert!(decode(&good).is_ok());
    assert_eq!(
        decode(&token(&KeyPair::new_account(), &claims)).unwrap_err(),
        JwtError::Signature
    );
    let (signed, signature) = good.rsplit_once('.').unwrap();
    assert_eq!(
        decode(&format!("{signed}.")).unwrap_err(),
        JwtError::Signature
    );
    assert_eq!(decode(signed).unwrap_err(), JwtError::Malformed);
    assert_eq!(
        decode(&format!("{good}.x")).unwrap_err(),
        JwtError::Malformed
    );
    assert_eq!(
        decode(&format!("{signed}.{signature}=")).unwrap_err(),
        JwtError::Malformed
    );
}

#[test]
fn sources() {
    let allowed = |src: &[&str], address: &str| {
        is_source_allowed(src.iter().copied(), address.parse().unwrap())
    };
    assert!(allowed(&[], "10.0.0.1"));
    assert!(allowed(&["10.0.0.0/8"], "10.255.255.255"));
    assert!(!allowed(&["10.0.0.0/8"], "11.0.0.0"));
    assert!(allowed(&["10.0.0.1/32"], "10.0.0.1"));
    assert!(!allowed(&["10.0.0.1/32"], "10.0.0.2"));
    assert!(allowed(&["0.0.0.0/0"], "255.255.255.255"));
    assert!(!allowed(&["0.0.0.0/0"], "::1"));
    assert!(allowed(&["192.168.0.0/16", "::1/128"], "::1"));
    assert!(allowed(&["10.0.0.0/8"], "::ffff:10.1.2.3"));
    assert!(!allowed(&["nonsense"], "10.0.0.1"));
}

const HOUR: i64 = 3_600_000;

fn at(text: &str) -> i64 {
    text.parse::<Timestamp>().unwrap().as_millisecond()
}

fn range(start: &str, end: &str) -> TimeRange {
    TimeRange {
        start: start.into(),
        end: end.into(),
    }
}

#[test]
fn hours_of_the_day() {
    let day = [range("09:00:00", "17:00:00")];
    let open = |now: &str| hours(&day, "", 0, at(now));
    assert_eq!(hours(&[], "", 0, 0), Hours::Always);
    assert_eq!(open("2024-05-01T08:59:59.999Z"), Hours::Closed);
    assert_eq!(open("2024-05-01T09:00:00Z"), Hours::For(8 * HOUR));
    assert_eq!(open("2024-05-01T16:59:59.999Z"), Hours::For(1));
    assert_eq!(open("2024-05-01T17:00:00Z"), Hours::Closed);
    let two = [range("09:00:00", "10:00:00"), range("09:30:00", "12:00:00")];
    assert_eq!(
        hours(&two, "", 0, at("2024-05-01T09:45:00Z")),
        Hours::For(9 * HOUR / 4)
    );
}

#[test]
fn hours_over_midnight() {
    let night = [range("22:00:00", "04:00:00")];
    let open = |now: &str| hours(&night, "", 0, at(now));
    assert_eq!(open("2024-05-01T21:59:59Z"), Hours::Closed);
    assert_eq!(open("2024-05-01T22:00:00Z"), Hours::For(6 * HOUR));
    assert_eq!(open("2024-05-02T03:00:00Z"), Hours::For(HOUR));
    assert_eq!(open("2024-05-02T04:00:00Z"), Hours::Closed);
}

#[test]
fn hours_of_a_place() {
    let day = [range("09:00:00", "10:00:00")];
    assert_eq!(
        hours(&day, "Europe/Berlin", 0, at("2024-07-01T07:30:00Z")),
        Hours::For(HOUR / 2)
    );
    assert_eq!(
        hours(&day, "Europe/Berlin", 0, at("2024-01-01T07:30:00Z")),
        Hours::Closed
    );
    assert_eq!(
        hours(&day, "", 7200, at("2024-01-01T07:30:00Z")),
        Hours::For(HOUR / 2)
    );
    assert_eq!(
        hours(&day, "Nowhere", 0, at("2024-01-01T09:30:00Z")),
        Hours::Closed
    );
    // The night in which 02:00 to 03:00 does not exist.
    let gap = [range("01:00:00", "04:00:00")];
    assert_eq!(
        hours(&gap, "Europe/Berlin", 0, at("2024-03-31T00:00:00Z")),
        Hours::For(2 * HOUR)
    );
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in any::<String>()) {
        prop_assert!(decode(&text).is_err());
    }

    #[test]
    fn a_changed_token_is_refused(position in any::<prop::sample::Index>(), byte in 0x20_u8..0x7F) {
        let account = KeyPair::new_account();
        let good = token(&account, &user_claims(&account, &KeyPair::new_user(), json!({})));
        let at = position.index(good.len());
        let mut changed = good.clone().into_bytes();
        prop_assume!(changed[at] != byte);
        changed[at] = byte;
        prop_assert!(decode(std::str::from_utf8(&changed).unwrap()).is_err());
    }

    #[test]
    fn signed_nonsense_is_read_or_refused(claims in nonsense(4), nats in nonsense(3)) {
        let account = KeyPair::new_account();
        let _ = decode(&token(&account, &claims));
        let mut whole = user_claims(&account, &KeyPair::new_user(), json!({}));
        let fields = whole["nats"].as_object_mut().unwrap();
        if let Value::Object(more) = nats {
            for (key, value) in more {
                fields.entry(key).or_insert(value);
            }
        }
        let _ = decode(&token(&account, &whole));
    }

    #[test]
    fn any_time_is_looked_up(
        now in any::<i64>(), offset in any::<i32>(), start in any::<String>(),
        location in any::<String>(),
    ) {
        let times = [range(&start, "10:00:00"), range("09:00:00", "10:00:00")];
        let _ = hours(&times, &location, offset, now);
        let _ = hours(&times[1..], "", offset, now);
    }
}

/// JSON with the keys that mean something.
fn nonsense(depth: u32) -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec![
        "iss",
        "sub",
        "nats",
        "type",
        "version",
        "permissions",
        "publish",
        "pub",
        "allow",
        "deny",
        "resp",
        "max",
        "ttl",
        "src",
        "times",
        "start",
        "end",
        "times_location",
        "subs",
        "payload",
        "tags",
        "signing_keys",
        "kind",
        "key",
        "template",
        "limits",
        "revocations",
        "exp",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(depth, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
