//! Terms of the Erlang module, and which bytes they copy.

use nats_protocol::DecodeError;
use nats_protocol::connect::Connect;
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, NewBinary, NifResult, Term};

pub mod atoms {
    rustler::atoms! {
        ok, error, undefined, invalid, open, connect_only,
        connect, ping, pong, sub, unsub, properties, subject, topic,
        publish = "pub",
        unknown_protocol_operation, authorization_violation, maximum_payload_violation,
        maximum_control_line_exceeded, bad_arguments, bad_size, bad_json, headers_not_supported,
        client_error,
        verbose, pedantic, echo, headers, no_responders, protocol, user, pass, auth_token, name,
        lang, version, tls_required, jwt, nkey, sig, account, new_account,
    }
}

/// Parts of a chunk below this many bytes are copied out of it. A reference costs the same for
/// any size but keeps the whole chunk in memory, for as long as the message lives.
pub const COPY_THRESHOLD: usize = 1024;

/// A binary with these bytes.
pub fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    NewBinary::from_slice(env, bytes).into()
}

/// A chunk, and the pointer arithmetic to make sub-binaries of it.
#[derive(Clone, Copy)]
pub struct Chunk<'a> {
    env: Env<'a>,
    binary: Binary<'a>,
}

impl<'a> Chunk<'a> {
    pub fn new(env: Env<'a>, binary: Binary<'a>) -> Self {
        Self { env, binary }
    }

    /// A term of a part of the chunk's bytes.
    pub fn part(&self, bytes: &[u8]) -> NifResult<Term<'a>> {
        if bytes.len() < COPY_THRESHOLD {
            return Ok(binary(self.env, bytes));
        }
        let start = (bytes.as_ptr() as usize).wrapping_sub(self.binary.as_slice().as_ptr() as usize);
        Ok(self.binary.make_subbinary(start, bytes.len())?.into())
    }

    /// `undefined` for nothing.
    pub fn optional_part(&self, bytes: Option<&[u8]>) -> NifResult<Term<'a>> {
        match bytes {
            Some(bytes) => self.part(bytes),
            None => Ok(atoms::undefined().to_term(self.env)),
        }
    }
}

/// The fields of a CONNECT that are present.
pub fn connect<'a>(env: Env<'a>, connect: &Connect) -> NifResult<Term<'a>> {
    let mut keys = Vec::new();
    let mut values = Vec::new();
    let mut put = |key: Atom, value: Option<Term<'a>>| {
        if let Some(value) = value {
            keys.push(key.to_term(env));
            values.push(value);
        }
    };
    let flag = |value: Option<bool>| value.map(|value| value.encode(env));
    let text = |value: &Option<String>| {
        value.as_ref().map(|value| binary(env, value.as_bytes()))
    };
    put(atoms::verbose(), flag(connect.verbose));
    put(atoms::pedantic(), flag(connect.pedantic));
    put(atoms::echo(), flag(connect.echo));
    put(atoms::headers(), flag(connect.headers));
    put(atoms::no_responders(), flag(connect.no_responders));
    put(atoms::protocol(), connect.protocol.map(|value| value.encode(env)));
    put(atoms::user(), text(&connect.user));
    put(atoms::pass(), text(&connect.pass));
    put(atoms::auth_token(), text(&connect.auth_token));
    put(atoms::name(), text(&connect.name));
    put(atoms::lang(), text(&connect.lang));
    put(atoms::version(), text(&connect.version));
    put(atoms::tls_required(), flag(connect.tls_required));
    put(atoms::jwt(), text(&connect.jwt));
    put(atoms::nkey(), text(&connect.nkey));
    put(atoms::sig(), text(&connect.sig));
    put(atoms::account(), text(&connect.account));
    put(atoms::new_account(), flag(connect.new_account));
    Term::map_from_term_arrays(env, &keys, &values)
}

/// The reason that the connection closes for.
pub fn reason(error: DecodeError) -> Atom {
    match error {
        DecodeError::UnknownOperation | DecodeError::PayloadTerminator => {
            atoms::unknown_protocol_operation()
        }
        DecodeError::ConnectExpected => atoms::authorization_violation(),
        DecodeError::PayloadTooLarge => atoms::maximum_payload_violation(),
        DecodeError::ControlLineTooLong | DecodeError::TooManyIgnoredBytes => {
            atoms::maximum_control_line_exceeded()
        }
        DecodeError::ArgumentCount => atoms::bad_arguments(),
        DecodeError::BadSize | DecodeError::HeaderSizeBeyondTotal => atoms::bad_size(),
        DecodeError::BadConnect | DecodeError::BadInfo => atoms::bad_json(),
        DecodeError::HeadersNotSupported => atoms::headers_not_supported(),
        DecodeError::ClientError => atoms::client_error(),
    }
}

/// Elements of a proper list, without the intermediate vector, and an error where rustler's
/// iterator would panic.
pub fn for_each<'a>(
    list: Term<'a>,
    mut each: impl FnMut(Term<'a>) -> NifResult<()>,
) -> NifResult<()> {
    let mut rest = list;
    while !rest.is_empty_list() {
        let (head, tail) = rest.list_get_cell()?;
        each(head)?;
        rest = tail;
    }
    Ok(())
}
