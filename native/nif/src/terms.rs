//! Terms of the Erlang module.

pub use nats_gateway_beam::{Chunk, binary};
use nats_protocol::DecodeError;
use nats_protocol::connect::Connect;
use rustler::types::atom::Atom;
use rustler::{Encoder, Env, NifResult, Term};

pub mod atoms {
    rustler::atoms! {
        ok, error, undefined, invalid, open, connect_only,
        connect, ping, pong, sub, unsub, properties, ascii_properties, subject, topic,
        publish = "pub",
        unknown_protocol_operation, invalid_publish_subject, authorization_violation, maximum_payload_violation,
        maximum_control_line_exceeded, bad_arguments, bad_size, bad_json, headers_not_supported,
        client_error,
        verbose, pedantic, echo, headers, no_responders, protocol, user, pass, auth_token, name,
        lang, version, tls_required, jwt, nkey, sig, account, new_account,
        binary, plain, deflated, none, more, close,
        operator, other, infinity, closed, kind, issuer, issued_at, expires, not_before, claims,
        signing_keys, strict_signing_key_usage, revocations, default_permissions, tags, subs,
        payload, null, disallow_bearer, issuer_account, limits, has_limits, permissions, outer_permissions, src, times,
        times_location, bearer_token, allowed_connection_types, allow, deny, subscribe, responses,
        publish_claims = "publish", too_long, connections,
        refused, value, repeated,
    }
}

/// `undefined` if there are no bytes.
pub fn optional_part<'a>(
    env: Env<'a>,
    chunk: &mut Chunk<'a>,
    bytes: Option<&[u8]>,
) -> NifResult<Term<'a>> {
    match bytes {
        Some(bytes) => chunk.part(bytes),
        None => Ok(atoms::undefined().to_term(env)),
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

/// The reason for which the connection is closed.
pub fn reason(error: DecodeError) -> Atom {
    match error {
        DecodeError::UnknownOperation
        | DecodeError::PayloadTerminator {
            valid_subject: true,
        } => atoms::unknown_protocol_operation(),
        DecodeError::PayloadTerminator {
            valid_subject: false,
        } => atoms::invalid_publish_subject(),
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

/// Calls a function for each element of a proper list, without an intermediate vector. An improper
/// list is an error; rustler's iterator would panic.
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
