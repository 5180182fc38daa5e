//! The errors that end a connection while its bytes are decoded.

use thiserror::Error;

/// A protocol violation of the peer, with one variant per rule (docs/protocol.md section 1).
///
/// Each of them ends the connection. Erlang's table of endings has the text that the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum DecodeError {
    /// A byte that no operation has in this place, or an operation that clients may not send.
    #[error("unknown protocol operation")]
    UnknownOperation,
    /// A payload that is not followed by exactly CR LF.
    #[error("payload not followed by CR LF")]
    PayloadTerminator {
        /// Whether nats-server would first have told a pedantic client that the subject is invalid
        /// ([`crate::subject::is_valid_publish_subject`]).
        valid_subject: bool,
    },
    /// Authentication is required, and the operation is not CONNECT.
    #[error("operation before CONNECT")]
    ConnectExpected,
    /// The announced size, header block included, is larger than the limit.
    #[error("payload larger than the limit")]
    PayloadTooLarge,
    /// The arguments of an operation are longer than the limit, with or without a line end.
    #[error("control line longer than the limit")]
    ControlLineTooLong,
    /// More blanks or ignored text in one line than [`crate::MAX_IGNORED_BYTES`].
    #[error("more ignored bytes in one line than the limit")]
    TooManyIgnoredBytes,
    /// Too few or too many arguments.
    #[error("wrong number of arguments")]
    ArgumentCount,
    /// A size that is not 1 to 9 decimal digits.
    #[error("size is not 1 to 9 decimal digits")]
    BadSize,
    /// HPUB with a header size beyond the total size.
    #[error("header size beyond the total size")]
    HeaderSizeBeyondTotal,
    /// HPUB by a client whose CONNECT did not announce headers.
    #[error("HPUB without headers in CONNECT")]
    HeadersNotSupported,
    /// The argument of CONNECT is not the JSON that it must be.
    #[error("bad JSON in CONNECT")]
    BadConnect,
    /// The argument of INFO is not a JSON object.
    #[error("bad JSON in INFO")]
    BadInfo,
    /// The client sent `-ERR`.
    #[error("the client sent -ERR")]
    ClientError,
}
