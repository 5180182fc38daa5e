//! NATS JWTs: the claims of an operator about an account, and of an account about a user
//! (docs/protocol.md section 7).
//!
//! [`decode`] checks a token by itself: its form, the signature of its issuer, and whether this
//! kind of issuer may issue this kind of token. The caller decides whom to trust, and what is valid
//! now.
//!
//! A limit of -1 means no limit. An absent limit is 0, as in nats-server: the tools write all
//! limits.
//!
//! Tokens of version 1 (until 2020) are read as nats-server reads them. There the kind, the tags
//! and the account are beside `nats`, only the claims are signed, and an absent limit of a user
//! means no limit.

mod claims;
mod decode;
mod error;
mod hours;

pub use claims::{
    Account, AccountLimits, Claims, Operator, Permission, Permissions, ResponsePermission,
    SigningKey, TimeRange, Token, User, UserLimits,
};
pub use decode::decode;
pub use error::JwtError;
pub use hours::{Hours, hours, is_source_allowed};
