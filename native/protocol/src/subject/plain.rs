//! Names that need no closer look, which are nearly all names: one byte becomes one byte, and 16
//! are converted at once.

/// Which way a name is converted.
#[derive(Clone, Copy)]
pub(super) enum To {
    Topic,
    Subject,
}

impl To {
    const fn separator(self) -> u8 {
        match self {
            Self::Topic => b'.',
            Self::Subject => b'/',
        }
    }

    const fn other_separator(self) -> u8 {
        match self {
            Self::Topic => b'/',
            Self::Subject => b'.',
        }
    }

    /// Whether a byte needs a closer look. There are no short circuits, for the sake of
    /// [`convert_blocks`].
    #[inline(always)]
    const fn is_special(self, byte: u8) -> bool {
        match self {
            Self::Topic => {
                (byte == b'/')
                    | (byte == b'+')
                    | (byte == b'#')
                    | (byte == b'*')
                    | (byte == b'>')
                    | (byte == b'%')
                    | (byte == 0)
            }
            Self::Subject => {
                (byte <= b' ')
                    | (byte == b'.')
                    | (byte == b'*')
                    | (byte == b'>')
                    | (byte == b'%')
                    | (byte == 0x7F)
            }
        }
    }

    const fn byte_map(self) -> ByteMap {
        let mut map = [(0, 0); 256];
        let mut byte = 0_u8;
        loop {
            let mut entry = (byte, byte & NOT_ASCII);
            if byte == self.separator() {
                entry = (self.other_separator(), SEPARATOR);
            } else if self.is_special(byte) {
                entry.1 |= SPECIAL;
            }
            #[allow(clippy::indexing_slicing, reason = "256 elements, one for each byte")]
            {
                map[byte as usize] = entry;
            }
            match byte.checked_add(1) {
                Some(next) => byte = next,
                None => return map,
            }
        }
    }
}

/// The byte that each byte becomes, and what it may mean.
type ByteMap = [(u8, u8); 256];

// The bits for what a byte may mean.
const SEPARATOR: u8 = 1;
const SPECIAL: u8 = SEPARATOR << 1;
const NOT_ASCII: u8 = 0x80;

static TO_TOPIC: ByteMap = To::Topic.byte_map();
static TO_SUBJECT: ByteMap = To::Subject.byte_map();

/// Bytes that are converted at once: a vector register on every 64-bit machine.
const BLOCK: usize = 16;

/// Converts names that need no closer look: plain UTF-8 without empty tokens or levels. `out` is as
/// long as `name`. Its contents are useless if the result is `false`.
#[inline(always)]
pub(super) fn convert_plain(to: To, name: &[u8], out: &mut [u8]) -> bool {
    let (Some(first), Some(last)) = (name.first(), name.last()) else {
        return false;
    };
    // There is an empty token, as between two separators in a row.
    if *first == to.separator() || *last == to.separator() {
        return false;
    }
    let seen = if name.len() <= BLOCK {
        convert_bytes(to, name, out)
    } else {
        convert_blocks(to, name, out)
    };
    seen & SPECIAL == 0 && (seen & NOT_ASCII == 0 || is_plain_text(to, name))
}

/// Checks what single bytes cannot tell.
#[cold]
fn is_plain_text(to: To, name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(|text| match to {
        To::Topic => true,
        To::Subject => !text.contains(char::is_whitespace),
    })
}

/// Converts each byte, and returns what all of them together may mean.
#[inline(always)]
fn convert_bytes(to: To, name: &[u8], out: &mut [u8]) -> u8 {
    let map = match to {
        To::Topic => &TO_TOPIC,
        To::Subject => &TO_SUBJECT,
    };
    let mut seen = 0;
    let mut previous = 0;
    for (converted, &byte) in out.iter_mut().zip(name) {
        let (mapped, class) = map.get(usize::from(byte)).copied().unwrap_or_default();
        *converted = mapped;
        seen |= class | ((previous & class & SEPARATOR) << 1);
        previous = class;
    }
    seen
}

/// The same as [`convert_bytes`] in less than half the time, for names longer than a block.
#[inline(always)]
fn convert_blocks(to: To, name: &[u8], out: &mut [u8]) -> u8 {
    let (Some((last, bytes)), Some((_, followers))) = (name.split_last(), name.split_first())
    else {
        return 0;
    };
    let Some((last_out, out)) = out.split_last_mut() else {
        return 0;
    };
    let mut seen = [0; BLOCK];
    let blocks = bytes.as_chunks().0.iter().zip(followers.as_chunks().0);
    for ((block, next), converted) in blocks.zip(out.as_chunks_mut().0) {
        convert_block(to, block, next, converted, &mut seen);
    }
    // The rest is converted together with some bytes before it, which are converted twice.
    if let (Some(block), Some(next), Some(converted)) = (
        bytes.last_chunk(),
        followers.last_chunk(),
        out.last_chunk_mut(),
    ) {
        convert_block(to, block, next, converted, &mut seen);
    }
    // The last byte has no follower, and is no separator.
    *last_out = *last;
    let last = (last & NOT_ASCII) | (u8::from(to.is_special(*last)) << 1);
    seen.iter().fold(last, |all, bits| all | bits)
}

/// A loop over arrays, so that the compiler makes vector instructions. `next` is the block one byte
/// further on.
#[inline(always)]
fn convert_block(
    to: To,
    block: &[u8; BLOCK],
    next: &[u8; BLOCK],
    converted: &mut [u8; BLOCK],
    seen: &mut [u8; BLOCK],
) {
    // `.` and `/` differ in their lowest bit only.
    for (((converted, seen), &byte), &next) in converted.iter_mut().zip(seen).zip(block).zip(next) {
        let separator = byte == to.separator();
        let special = to.is_special(byte) | (separator & (next == to.separator()));
        *converted = byte ^ u8::from(separator);
        *seen |= (byte & NOT_ASCII) | (u8::from(special) << 1);
    }
}
