//! Turns packet terms into bytes for the broker.

use crate::atoms;
use mqtt_protocol_core::mqtt::packet::v5_0::{
    Connect, Disconnect, Pingreq, Puback, Publish, Pubrel, Subscribe, Unsubscribe,
};
use mqtt_protocol_core::mqtt::packet::{
    ContentType, CorrelationData, DecodeResult, MaximumPacketSize, MessageExpiryInterval,
    PayloadFormat, PayloadFormatIndicator, Properties, Property, Qos, ReceiveMaximum,
    ResponseTopic, RetainHandling, SubEntry, SubOpts, SubscriptionIdentifier, UserProperty,
    VariableByteInteger,
};
use mqtt_protocol_core::mqtt::result_code::{DisconnectReasonCode, MqttError, PubackReasonCode};
use rustler::types::atom::Atom;
use rustler::types::tuple::get_tuple;
use rustler::{Binary, Encoder, Env, Error, NewBinary, NifResult, Term};

/// Payloads of this size and more are passed by reference. For smaller ones, one flat copy for the
/// socket is cheaper than another element of the list.
const REFERENCE_FROM: usize = 4096;

/// Most bytes of an MQTT string.
const MAX_STRING: usize = 65_535;

/// The bytes that are encoded in about a millisecond, and the cost of a packet besides its bytes.
const TIMESLICE: usize = 2 * 1024 * 1024;
const PACKET_COST: usize = 512;

#[rustler::nif]
fn encode<'a>(env: Env<'a>, packets: Term<'a>) -> NifResult<Term<'a>> {
    let mut output = Output {
        env,
        parts: Vec::new(),
        flat: Vec::with_capacity(512),
    };
    let mut cost = 0_usize;
    each(packets, |packet| {
        cost = cost.saturating_add(PACKET_COST);
        encode_packet(packet, &mut output)
    })?;
    let percent = cost.saturating_add(output.flat.len()).saturating_mul(100) / TIMESLICE;
    rustler::schedule::consume_timeslice(env, percent.clamp(1, 100) as i32);
    Ok(output.finish())
}

#[rustler::nif]
fn is_string(bytes: Binary<'_>) -> bool {
    text(bytes.as_slice()).is_some()
}

#[rustler::nif]
fn is_topic(bytes: Binary<'_>) -> bool {
    text(bytes.as_slice()).is_some_and(is_topic_name)
}

/// Whether a client can publish to this name (4.7.1, 4.7.3).
pub fn is_topic_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['+', '#'])
}

/// Text that every broker accepts. MQTT says that strings should not hold control characters and
/// non-characters (1.5.4). A broker may close the connection because of them, as Mosquitto does.
fn text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let plain = bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    (text.len() <= MAX_STRING && (plain || !text.chars().any(is_disallowed))).then_some(text)
}

fn is_disallowed(char: char) -> bool {
    let code = u32::from(char);
    char.is_control() || (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe
}

struct Output<'a> {
    env: Env<'a>,
    /// The finished output: flat binaries and the payloads between them.
    parts: Vec<Term<'a>>,
    flat: Vec<u8>,
}

impl<'a> Output<'a> {
    fn payload(&mut self, payload: Binary<'a>) {
        if payload.len() < REFERENCE_FROM {
            self.flat.extend_from_slice(payload.as_slice());
        } else {
            self.flush();
            self.parts.push(payload.to_term(self.env));
        }
    }

    fn flush(&mut self) {
        if !self.flat.is_empty() {
            self.parts
                .push(NewBinary::from_slice(self.env, &self.flat).into());
            self.flat.clear();
        }
    }

    fn finish(mut self) -> Term<'a> {
        self.flush();
        self.parts.encode(self.env)
    }
}

fn encode_packet<'a>(packet: Term<'a>, output: &mut Output<'a>) -> NifResult<()> {
    if packet.is_atom() {
        if atoms::pingreq() != packet {
            return Err(Error::BadArg);
        }
        let pingreq = Pingreq::builder().build().map_err(invalid)?;
        output.flat.extend(pingreq.to_continuous_buffer());
        return Ok(());
    }
    let fields = get_tuple(packet)?;
    let (tag, fields) = fields.split_first().ok_or(Error::BadArg)?;
    let tag: Atom = tag.decode()?;
    if tag == atoms::publish() {
        publish(fields, output)
    } else if tag == atoms::puback() {
        puback(fields, output)
    } else if tag == atoms::pubrel() {
        pubrel(fields, output)
    } else if tag == atoms::subscribe() {
        subscribe(fields, output)
    } else if tag == atoms::unsubscribe() {
        unsubscribe(fields, output)
    } else if tag == atoms::connect() {
        connect(fields, output)
    } else if tag == atoms::disconnect() {
        disconnect(fields, output)
    } else {
        Err(Error::BadArg)
    }
}

fn invalid(_: MqttError) -> Error {
    Error::BadArg
}

fn fields<'f, 'a, const N: usize>(fields: &'f [Term<'a>]) -> NifResult<&'f [Term<'a>; N]> {
    fields.try_into().map_err(|_| Error::BadArg)
}

fn string<'a>(term: Term<'a>) -> NifResult<&'a str> {
    let binary: Binary<'a> = term.decode()?;
    text(binary.as_slice()).ok_or(Error::BadArg)
}

fn topic_name<'a>(term: Term<'a>) -> NifResult<&'a str> {
    match string(term)? {
        name if is_topic_name(name) => Ok(name),
        _ => Err(Error::BadArg),
    }
}

fn bytes(term: Term<'_>) -> NifResult<Vec<u8>> {
    let binary: Binary<'_> = term.decode()?;
    Ok(binary.as_slice().to_vec())
}

fn optional<'a, T>(
    term: Term<'a>,
    convert: impl FnOnce(Term<'a>) -> NifResult<T>,
) -> NifResult<Option<T>> {
    if atoms::undefined() == term {
        Ok(None)
    } else {
        convert(term).map(Some)
    }
}

/// rustler's own decoder would cut off bits that a `u8` or `u16` cannot hold.
fn number<T: TryFrom<u32>>(term: Term<'_>) -> NifResult<T> {
    T::try_from(term.decode::<u32>()?).map_err(|_| Error::BadArg)
}

fn packet_id(term: Term<'_>) -> NifResult<u16> {
    match number(term)? {
        0 => Err(Error::BadArg),
        id => Ok(id),
    }
}

fn qos(term: Term<'_>) -> NifResult<Qos> {
    Qos::try_from(number::<u8>(term)?).map_err(|_| Error::BadArg)
}

/// Refuses an improper list without a panic, unlike rustler's iterator.
fn each<'a>(mut list: Term<'a>, mut visit: impl FnMut(Term<'a>) -> NifResult<()>) -> NifResult<()> {
    while !list.is_empty_list() {
        let (head, tail) = list.list_get_cell()?;
        visit(head)?;
        list = tail;
    }
    Ok(())
}

fn list<'a, T>(term: Term<'a>, convert: impl Fn(Term<'a>) -> NifResult<T>) -> NifResult<Vec<T>> {
    let mut items = Vec::new();
    each(term, |item| {
        items.push(convert(item)?);
        Ok(())
    })?;
    Ok(items)
}

fn connect<'a>(terms: &[Term<'a>], output: &mut Output<'a>) -> NifResult<()> {
    let [
        client_id,
        user_name,
        password,
        keep_alive,
        receive_maximum,
        maximum_packet_size,
        will,
    ] = *fields(terms)?;
    let mut properties = Properties::new();
    if let Some(maximum) = optional(receive_maximum, number)? {
        properties.push(ReceiveMaximum::new(maximum).map_err(invalid)?.into());
    }
    if let Some(maximum) = optional(maximum_packet_size, number)? {
        properties.push(MaximumPacketSize::new(maximum).map_err(invalid)?.into());
    }
    let mut builder = Connect::builder()
        .client_id(string(client_id)?)
        .map_err(invalid)?
        .clean_start(true)
        .keep_alive(number(keep_alive)?)
        .props(properties);
    if let Some(name) = optional(user_name, string)? {
        builder = builder.user_name(name).map_err(invalid)?;
    }
    if let Some(password) = optional(password, bytes)? {
        builder = builder.password(password).map_err(invalid)?;
    }
    if atoms::undefined() != will {
        let [topic, payload, quality, retain] = *fields(&get_tuple(will)?)?;
        builder = builder
            .will_message(
                topic_name(topic)?,
                bytes(payload)?,
                qos(quality)?,
                retain.decode()?,
            )
            .map_err(invalid)?;
    }
    let connect = builder.build().map_err(invalid)?;
    output.flat.extend(connect.to_continuous_buffer());
    Ok(())
}

fn publish<'a>(terms: &[Term<'a>], output: &mut Output<'a>) -> NifResult<()> {
    let [
        topic,
        payload,
        quality,
        retain,
        id,
        response_topic,
        correlation_data,
        content_type,
        user_properties,
        subscription_ids,
    ] = *fields(terms)?;
    if !subscription_ids.is_empty_list() {
        return Err(Error::BadArg);
    }
    let mut properties = Properties::new();
    let retain = retained(retain, &mut properties)?;
    if let Some(topic) = optional(response_topic, topic_name)? {
        properties.push(ResponseTopic::new(topic).map_err(invalid)?.into());
    }
    if let Some(data) = optional(correlation_data, bytes)? {
        properties.push(CorrelationData::new(data).map_err(invalid)?.into());
    }
    if let Some(name) = optional(content_type, string)? {
        properties.push(ContentType::new(name).map_err(invalid)?.into());
    }
    each(user_properties, |pair| {
        let (name, value) = pair.decode::<(Term<'a>, Term<'a>)>()?;
        let property = UserProperty::new(string(name)?, string(value)?).map_err(invalid)?;
        properties.push(Property::UserProperty(property));
        Ok(())
    })?;
    let mut builder = Publish::builder()
        .topic_name(topic_name(topic)?)
        .map_err(invalid)?
        .qos(qos(quality)?)
        .retain(retain)
        .props(properties);
    if let Some(id) = optional(id, packet_id)? {
        builder = builder.packet_id(id);
    }
    let payload: Binary<'a> = payload.decode()?;
    let publish = builder.build().map_err(invalid)?;
    // The crate requires the payload in an `Arc` of its own. So it encodes the packet without a
    // payload, and the remaining length is corrected here.
    let slices = publish.to_buffers();
    let [fixed_header, length, rest @ ..] = slices.as_slice() else {
        return Err(Error::BadArg);
    };
    let DecodeResult::Ok(length, _) = VariableByteInteger::decode_stream(length) else {
        return Err(Error::BadArg);
    };
    let length = u32::try_from(payload.len())
        .ok()
        .and_then(|payload| payload.checked_add(length.to_u32()))
        .and_then(VariableByteInteger::from_u32)
        .ok_or(Error::BadArg)?;
    output.flat.extend_from_slice(fixed_header);
    output.flat.extend_from_slice(length.as_bytes());
    for slice in rest {
        output.flat.extend_from_slice(slice);
    }
    output.payload(payload);
    Ok(())
}

/// The flag, and the two properties that may come with it.
fn retained(term: Term<'_>, properties: &mut Properties) -> NifResult<bool> {
    if !term.is_tuple() {
        return term.decode();
    }
    let [retain, expiry, payload_format] = *fields(&get_tuple(term)?)?;
    if let Some(seconds) = optional(expiry, number)? {
        properties.push(MessageExpiryInterval::new(seconds).map_err(invalid)?.into());
    }
    if let Some(format) = optional(payload_format, number::<u8>)? {
        let format = match format {
            0 => PayloadFormat::Binary,
            1 => PayloadFormat::String,
            _ => return Err(Error::BadArg),
        };
        properties.push(PayloadFormatIndicator::new(format).map_err(invalid)?.into());
    }
    retain.decode()
}

fn pubrel(terms: &[Term<'_>], output: &mut Output<'_>) -> NifResult<()> {
    let [id] = *fields(terms)?;
    let pubrel = Pubrel::builder()
        .packet_id(packet_id(id)?)
        .build()
        .map_err(invalid)?;
    output.flat.extend(pubrel.to_continuous_buffer());
    Ok(())
}

fn puback(terms: &[Term<'_>], output: &mut Output<'_>) -> NifResult<()> {
    let [id, reason] = *fields(terms)?;
    let mut builder = Puback::builder().packet_id(packet_id(id)?);
    let reason: u8 = number(reason)?;
    if reason != 0 {
        let reason = PubackReasonCode::try_from(reason).map_err(|_| Error::BadArg)?;
        builder = builder.reason_code(reason);
    }
    let puback = builder.build().map_err(invalid)?;
    output.flat.extend(puback.to_continuous_buffer());
    Ok(())
}

fn subscribe(terms: &[Term<'_>], output: &mut Output<'_>) -> NifResult<()> {
    let [id, subscription_id, filters] = *fields(terms)?;
    let mut properties = Properties::new();
    if let Some(id) = optional(subscription_id, number)? {
        properties.push(SubscriptionIdentifier::new(id).map_err(invalid)?.into());
    }
    let subscribe = Subscribe::builder()
        .packet_id(packet_id(id)?)
        .entries(list(filters, sub_entry)?)
        .props(properties)
        .build()
        .map_err(invalid)?;
    output.flat.extend(subscribe.to_continuous_buffer());
    Ok(())
}

/// A filter with its options. A fifth element says whether messages keep their retain flag.
fn sub_entry(term: Term<'_>) -> NifResult<SubEntry> {
    type Five<'a> = (Term<'a>, Term<'a>, bool, Term<'a>, bool);
    type Four<'a> = (Term<'a>, Term<'a>, bool, Term<'a>);
    let (filter, quality, no_local, retain_handling, as_published) =
        if let Ok(five) = term.decode::<Five<'_>>() {
            five
        } else {
            let (filter, quality, no_local, retain_handling) = term.decode::<Four<'_>>()?;
            (filter, quality, no_local, retain_handling, false)
        };
    let retain_handling =
        RetainHandling::try_from(number::<u8>(retain_handling)?).map_err(|_| Error::BadArg)?;
    let options = SubOpts::new()
        .set_qos(qos(quality)?)
        .set_nl(no_local)
        .set_rap(as_published)
        .set_rh(retain_handling);
    SubEntry::new(string(filter)?, options).map_err(invalid)
}

fn unsubscribe(terms: &[Term<'_>], output: &mut Output<'_>) -> NifResult<()> {
    let [id, filters] = *fields(terms)?;
    let unsubscribe = Unsubscribe::builder()
        .packet_id(packet_id(id)?)
        .entries(list(filters, string)?)
        .map_err(invalid)?
        .build()
        .map_err(invalid)?;
    output.flat.extend(unsubscribe.to_continuous_buffer());
    Ok(())
}

fn disconnect(terms: &[Term<'_>], output: &mut Output<'_>) -> NifResult<()> {
    // A client has no properties to send here.
    let [reason, _] = *fields(terms)?;
    let reason = DisconnectReasonCode::try_from(number::<u8>(reason)?);
    let disconnect = Disconnect::builder()
        .reason_code(reason.map_err(|_| Error::BadArg)?)
        .build()
        .map_err(invalid)?;
    output.flat.extend(disconnect.to_continuous_buffer());
    Ok(())
}
