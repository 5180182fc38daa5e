//! Names in the texts of `-ERR`.

/// A name in quotes, as nats-server writes it in `-ERR` texts: Go's `%q`.
#[must_use]
pub fn quote(text: &[u8]) -> Vec<u8> {
    let mut out = String::with_capacity(text.len().saturating_add(2));
    out.push('"');
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            quote_character(character, &mut out);
        }
        for byte in chunk.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out.into_bytes()
}

fn quote_character(character: char, out: &mut String) {
    match character {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\x07' => out.push_str("\\a"),
        '\x08' => out.push_str("\\b"),
        '\x0C' => out.push_str("\\f"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\x0B' => out.push_str("\\v"),
        ' '..='~' => out.push(character),
        '\0'..='\x7F' => out.push_str(&format!("\\x{:02x}", u32::from(character))),
        _ if is_printable(character) => out.push(character),
        '\u{80}'..='\u{FFFF}' => out.push_str(&format!("\\u{:04x}", u32::from(character))),
        _ => out.push_str(&format!("\\U{:08x}", u32::from(character))),
    }
}

/// Letters, marks, numbers, punctuation and symbols. The standard library tells this only through
/// `escape_debug`, which also escapes a combining mark that begins a text.
fn is_printable(character: char) -> bool {
    let text: String = ['a', character].into_iter().collect();
    text.escape_debug().eq(text.chars())
}
