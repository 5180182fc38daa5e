//! Terms of the Erlang module, and which bytes they copy.

use nats_protocol::DecodeError;
use nats_protocol::connect::Connect;
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error, NewBinary, NifResult, Term};

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
        binary, plain, deflated, none, more, close,
        operator, other, infinity, closed, kind, issuer, issued_at, expires, not_before, claims,
        signing_keys, strict_signing_key_usage, revocations, default_permissions, tags, subs,
        payload, disallow_bearer, issuer_account, limits, has_limits, permissions, src, times,
        times_location, bearer_token, allowed_connection_types, allow, deny, subscribe, responses,
        publish_claims = "publish", too_long, connections,
    }
}

/// Longest binary that the VM keeps on a process heap. A copy of that costs what a reference
/// costs; a longer one is allocated elsewhere and takes four times as long.
const ON_HEAP: usize = 64;

/// Parts of at least this many bytes refer to the chunk, whatever its size: a message in a queue
/// then keeps a chunk of the usual 64 KiB alive, 64 times its own size.
pub const REFERENCE_THRESHOLD: usize = 1024;

/// Smaller parts refer to a copy of the chunk's next bytes, which many of them share, so that each
/// keeps no more than 64 times its own size alive, too. Chunks up to this size are not copied.
const SLAB: usize = 4096;

/// A binary with these bytes.
pub fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    NewBinary::from_slice(env, bytes).into()
}

/// The bytes of a client, and what its parts become terms by.
pub struct Chunk<'a> {
    env: Env<'a>,
    binary: Binary<'a>,
    /// Copy of the bytes from this offset on.
    slab: Option<(usize, Binary<'a>)>,
}

impl<'a> Chunk<'a> {
    pub fn new(env: Env<'a>, binary: Binary<'a>) -> Self {
        Self {
            env,
            binary,
            slab: None,
        }
    }

    /// A term of a part of the chunk's bytes.
    #[inline]
    pub fn part(&mut self, bytes: &[u8]) -> NifResult<Term<'a>> {
        if bytes.len() <= ON_HEAP {
            return Ok(binary(self.env, bytes));
        }
        let chunk = self.binary.as_slice();
        let start = (bytes.as_ptr() as usize).wrapping_sub(chunk.as_ptr() as usize);
        if bytes.len() >= REFERENCE_THRESHOLD || chunk.len() <= SLAB {
            return Ok(self.binary.make_subbinary(start, bytes.len())?.into());
        }
        if let Some((base, slab)) = &self.slab
            && let Some(offset) = start.checked_sub(*base)
            && let Ok(part) = slab.make_subbinary(offset, bytes.len())
        {
            return Ok(part.into());
        }
        let end = start.saturating_add(SLAB).min(chunk.len());
        let copied = chunk.get(start..end).ok_or(Error::BadArg)?;
        let slab: Binary<'a> = NewBinary::from_slice(self.env, copied).into();
        let part = slab.make_subbinary(0, bytes.len())?;
        self.slab = Some((start, slab));
        Ok(part.into())
    }

    /// `undefined` for nothing.
    pub fn optional_part(&mut self, bytes: Option<&[u8]>) -> NifResult<Term<'a>> {
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
    let text = |value: &Option<String>| value.as_ref().map(|value| binary(env, value.as_bytes()));
    put(atoms::verbose(), flag(connect.verbose));
    put(atoms::pedantic(), flag(connect.pedantic));
    put(atoms::echo(), flag(connect.echo));
    put(atoms::headers(), flag(connect.headers));
    put(atoms::no_responders(), flag(connect.no_responders));
    put(
        atoms::protocol(),
        connect.protocol.map(|value| value.encode(env)),
    );
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
