//! NKeys: public keys of operators, accounts and users, and the verification of their signatures
//! (docs/protocol.md section 7).

use data_encoding::{BASE64_NOPAD, BASE64URL_NOPAD};
use nkeys::{KeyPair, KeyPairType};

/// The role of a key's owner. The first letter of the key says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `O`
    Operator,
    /// `A`
    Account,
    /// `U`
    User,
    /// Servers, clusters and others. No client logs in with such a key.
    Other,
}

/// The role of a public key. `None` if the text is not a public key; its checksum must be right,
/// too.
#[must_use]
pub fn role(public_key: &str) -> Option<Role> {
    let pair = KeyPair::from_public_key(public_key).ok()?;
    Some(match pair.key_pair_type() {
        KeyPairType::Operator => Role::Operator,
        KeyPairType::Account => Role::Account,
        KeyPairType::User => Role::User,
        _ => Role::Other,
    })
}

/// Whether these 64 bytes are the Ed25519 signature of the message by this public key.
#[must_use]
pub fn verify(public_key: &str, message: &[u8], signature: &[u8]) -> bool {
    KeyPair::from_public_key(public_key).is_ok_and(|pair| pair.verify(message, signature).is_ok())
}

/// The bytes of a `sig`. Clients write them as base64 with the URL alphabet or the standard one,
/// with or without padding.
#[must_use]
pub fn signature(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').as_bytes();
    BASE64URL_NOPAD
        .decode(text)
        .or_else(|_| BASE64_NOPAD.decode(text))
        .ok()
}

#[cfg(test)]
#[allow(clippy::restriction)]
mod tests {
    use super::*;
    use data_encoding::{BASE64, BASE64URL};
    use proptest::prelude::*;

    const USER: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    #[test]
    fn role_is_the_prefix() {
        assert_eq!(role(&KeyPair::new_user().public_key()), Some(Role::User));
        assert_eq!(
            role(&KeyPair::new_account().public_key()),
            Some(Role::Account)
        );
        assert_eq!(
            role(&KeyPair::new_operator().public_key()),
            Some(Role::Operator)
        );
        assert_eq!(role(&KeyPair::new_server().public_key()), Some(Role::Other));
        assert_eq!(role(USER), Some(Role::User));
    }

    #[test]
    fn every_changed_character_is_found() {
        for at in 0..USER.len() {
            let mut changed = USER.to_owned().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(role(std::str::from_utf8(&changed).unwrap()), None, "{at}");
        }
        assert_eq!(role(&USER[..55]), None);
        assert_eq!(role(&format!("{USER}A")), None);
        assert_eq!(role(&USER.to_lowercase()), None);
        assert_eq!(role(""), None);
    }

    #[test]
    fn seeds_are_no_public_keys() {
        let pair = KeyPair::new_user();
        assert_eq!(role(&pair.seed().unwrap()), None);
        assert!(!verify(&pair.seed().unwrap(), b"nonce", &[0; 64]));
    }

    proptest! {
        #[test]
        fn a_signature_is_valid_for_its_key_and_message_only(
            nonce in "[A-Za-z0-9_-]{15}", other in "[A-Za-z0-9_-]{15}", flip in 0_usize..512,
        ) {
            let pair = KeyPair::new_user();
            let signed = pair.sign(nonce.as_bytes()).unwrap();
            prop_assert!(verify(&pair.public_key(), nonce.as_bytes(), &signed));
            prop_assert_eq!(
                verify(&pair.public_key(), other.as_bytes(), &signed), nonce == other
            );
            prop_assert!(!verify(
                &KeyPair::new_user().public_key(), nonce.as_bytes(), &signed
            ));
            let mut changed = signed.clone();
            changed[flip / 8] ^= 1 << (flip % 8);
            prop_assert!(!verify(&pair.public_key(), nonce.as_bytes(), &changed));
            prop_assert!(!verify(&pair.public_key(), nonce.as_bytes(), &signed[..63]));
        }

        #[test]
        fn each_spelling_of_a_signature_is_read(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            for encoding in [BASE64URL_NOPAD, BASE64URL, BASE64_NOPAD, BASE64] {
                prop_assert_eq!(signature(&encoding.encode(&bytes)), Some(bytes.clone()));
            }
        }

        #[test]
        fn anything_else_is_no_key_and_no_signature(
            text in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            prop_assert_eq!(role(&text), None);
            prop_assert!(!verify(&text, &bytes, &bytes));
            let _ = signature(&text);
        }
    }
}
