//! The reasons why a token is refused.

use thiserror::Error;

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JwtError {
    /// Not three parts of base64 (URL alphabet, no padding), or a part is not the JSON it should
    /// be.
    #[error("not a NATS JWT")]
    Malformed,
    /// A header other than `{"typ":"JWT","alg":"ed25519-nkey"}`; version 1 had `ed25519`.
    #[error("the header must be of type JWT and algorithm ed25519-nkey")]
    Algorithm,
    /// Neither version 1 nor 2.
    #[error("only JWTs of versions 1 and 2 are supported")]
    Version,
    /// `nats.type` (`type` in version 1) is not operator, account or user.
    #[error("neither an operator, account nor user JWT")]
    Kind,
    /// `iss` is not a key of a role that may issue this.
    #[error("the issuer may not issue such a JWT")]
    Issuer,
    /// `sub` is not a key of the token's kind.
    #[error("the subject is not the public key of what the JWT is for")]
    Subject,
    /// Not signed by `iss`.
    #[error("the signature is not the issuer's")]
    Signature,
    /// A permission has text that is not a subject.
    #[error("a permission is not a valid subject")]
    Permission,
    /// The claim `permissions` beside `nats` cannot be read.
    #[error(
        "the claim permissions may have pub and sub (or publish and subscribe), with lists allow and deny"
    )]
    OuterPermissions,
    /// An entry of `src` is not a network.
    #[error("a source network is not valid")]
    Network,
    /// A time of day is not `HH:MM:SS`, or its time zone is unknown.
    #[error("a time range or its location is not valid")]
    Times,
}
