use nats_protocol::headers::{Block, MAX_BLOCK, MAX_HEADERS, Properties, STATUS_PROPERTY, build};
use nats_protocol::publish_properties::{show, take};

use crate::input::Input;
use crate::readers::read_headers;

/// Header blocks: `0` and a block of a NATS client, or `1` and Content Type `|` name `|` value and
/// so on, of an MQTT client.
///
/// The strictest client can read the block that is built, and building it again gives the same
/// bytes.
pub fn headers(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if input.choose(&[true, false]) {
        of_block(input.rest());
    } else {
        let content_type = input.field();
        let fields = input.fields();
        of_pairs(content_type, &fields);
    }
}

/// `exact` is right, and the properties hold nothing that MQTT cannot hold.
fn of_block(block: &[u8]) {
    let properties = Properties::of(block);
    assert!(properties.pairs.len() <= MAX_HEADERS + 1);
    for (name, value) in &properties.pairs {
        assert!(!name.contains('\0') && !value.contains('\0'));
        assert!(name.len() <= 65_535 && value.len() <= 65_535);
    }
    let again = block_of(&properties);
    assert_eq!(properties.exact, !again.is_empty() && again == block);
    check_built(&again);
    of_properties(block);
}

/// What is left of a block has nothing more to take, and a shown header is read again.
fn of_properties(block: &[u8]) {
    match take(block, block) {
        Ok(None) => {
            let mut same = Vec::new();
            show(block, std::iter::empty(), &mut same);
            assert_eq!(same, block);
        }
        Ok(Some(taken)) => {
            assert!(taken.rest.len() < block.len());
            assert_eq!(take(&taken.rest, b""), Ok(None));
        }
        Err(_) => {}
    }
}

fn of_pairs(content_type: &[u8], fields: &[&[u8]]) {
    let pairs: Vec<(&[u8], &[u8])> = fields
        .chunks(2)
        .map(|pair| (pair[0], pair.get(1).copied().unwrap_or_default()))
        .collect();
    let mut block = Vec::new();
    build(pairs.iter().copied(), Some(content_type), &mut block);
    if pairs.is_empty() && content_type.is_empty() {
        return assert!(block.is_empty());
    }
    let (status, lines) = read_headers(&block);
    let lines = lines.len() + usize::from(status.is_some());
    // There is one line for each pair, and perhaps one for the Content Type.
    let extra = usize::from(!content_type.is_empty());
    assert!((pairs.len()..=pairs.len() + extra).contains(&lines));
    check_built(&block);
}

/// Clients accept the block, and another round trip changes nothing.
fn check_built(block: &[u8]) {
    if block.is_empty() {
        return;
    }
    read_headers(block);
    let properties = Properties::of(block);
    let pairs = &properties.pairs;
    // A first header of the reserved name may become the status line.
    let reserved = Block::parse(block)
        .and_then(|block| block.pairs.first().copied())
        .is_some_and(|(name, _)| name == STATUS_PROPERTY.as_bytes());
    if (1..MAX_HEADERS).contains(&pairs.len()) && !reserved {
        assert!(properties.exact, "{}", block.escape_ascii());
        assert_eq!(block_of(&properties), block);
    }
    assert!(block.len() <= MAX_BLOCK);
}

fn block_of(properties: &Properties<'_>) -> Vec<u8> {
    let pairs = properties.pairs.iter();
    let mut block = Vec::new();
    build(
        pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        properties.content_type.map(str::as_bytes),
        &mut block,
    );
    block
}
