use std::net::IpAddr;
use std::sync::LazyLock;

use data_encoding::BASE64URL_NOPAD;
use nats_protocol::jwt::{Claims, Hours, UserLimits, decode, hours, is_source_allowed};
use nats_protocol::nkey::{role, signature, verify};
use nkeys::{KeyPair, KeyPairType};
use serde_json::Value;

use crate::input::Input;

/// The keys of everything that is signed here. `$O`, `$A` and `$U` in claims stand for the public
/// ones.
static KEYS: LazyLock<[(&str, KeyPair); 3]> = LazyLock::new(|| {
    [
        ("$O", KeyPairType::Operator, [1; 32]),
        ("$A", KeyPairType::Account, [2; 32]),
        ("$U", KeyPairType::User, [3; 32]),
    ]
    .map(|(name, kind, seed)| (name, KeyPair::new_from_raw(kind, seed).expect("a key")))
});

const HEADER: &str = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// Tokens: who signs, which character is changed, whether the header is the usual one; then the
/// header `|` the claims.
///
/// A decoded token has the claims that its signer wrote. A text that differs from a token in one
/// character is not a token.
pub fn jwt(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (_, signer) = &KEYS[input.choose(&[1, 0, 2])];
    let place = input.choose(&[1, 2, 3, 5, 8, 13, 40, 100]);
    let usual = input.choose(&[true, false]);
    let header = input.field();
    let claims = named(input.rest());
    let header = if usual { HEADER.as_bytes() } else { header };
    let signed = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(header),
        BASE64URL_NOPAD.encode(&claims)
    );
    let sig = signer.sign(signed.as_bytes()).expect("a signature");
    let token = format!("{signed}.{}", BASE64URL_NOPAD.encode(&sig));
    check_token(&token, &claims, &signer.public_key());
    check_changed(&token, place);
    check_text(bytes);
}

fn named(claims: &[u8]) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(claims).into_owned();
    for (name, pair) in KEYS.iter() {
        text = text.replace(name, &pair.public_key());
    }
    text.into_bytes()
}

fn check_token(token: &str, claims: &[u8], signer: &str) {
    let Ok(token) = decode(token) else {
        return;
    };
    let value: Value = serde_json::from_slice(claims).expect("JSON");
    let number = |key: &str| value[key].as_i64().unwrap_or_default();
    assert_eq!(token.issuer, signer);
    assert_eq!(value["sub"], *token.subject);
    assert!(role(&token.subject).is_some());
    assert_eq!(token.expires, number("exp"));
    assert_eq!(token.not_before, number("nbf"));
    assert_eq!(token.issued_at, number("iat"));
    match token.claims {
        Claims::User(user) => check_limits(&user.limits),
        Claims::Account(account) => {
            let templates = account
                .signing_keys
                .iter()
                .filter_map(|key| key.template.as_ref());
            templates.for_each(check_limits);
        }
        Claims::Operator(_) => {}
    }
}

/// Each limit can be checked, at any time and for any address.
fn check_limits(limits: &UserLimits) {
    for now in [
        0,
        1,
        951_782_400_000,
        1_700_000_000_000,
        -1,
        i64::MAX,
        i64::MIN,
    ] {
        for offset in [0, 7200, -86_399, i32::MAX] {
            let left = hours(&limits.times, &limits.times_location, offset, now);
            // The range ends on the next day, on which clocks are set back.
            let day = 1000 * 3600 * 50;
            assert!(!matches!(left, Hours::For(left) if !(1..=day).contains(&left)));
            assert_eq!(left == Hours::Always, limits.times.is_empty());
        }
    }
    for address in ["10.0.0.1", "::1", "::ffff:10.0.0.1", "255.255.255.255"] {
        let address: IpAddr = address.parse().expect("an address");
        let allowed = is_source_allowed(limits.src.iter().map(String::as_str), address);
        assert!(allowed || !limits.src.is_empty());
    }
}

/// One changed character, counted from the end, makes a token invalid.
fn check_changed(token: &str, place: usize) {
    let mut changed = token.as_bytes().to_vec();
    let at = changed.len().saturating_sub(place);
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).expect("ASCII");
    assert!(decode(&changed).is_err());
    assert!(decode(&token[..at]).is_err());
}

/// Arbitrary text is almost never a token or a key.
fn check_text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    assert!(decode(&text).is_err());
    assert!(!verify(&text, bytes, bytes));
    if let Some(read) = signature(&text) {
        assert_eq!(signature(&BASE64URL_NOPAD.encode(&read)), Some(read));
    }
}
