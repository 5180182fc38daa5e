//! Takes the bytes of a fuzzer apart for a target.

/// The bytes of the fuzzer, read from the front. They never run out: a missing field is empty, and
/// a missing choice is the first one.
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of the bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// One of these choices: `0` is the first, `1` the second.
    pub fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        let byte = match self.rest {
            [byte, rest @ ..] => {
                self.rest = rest;
                *byte
            }
            [] => b'0',
        };
        from[usize::from(byte.wrapping_sub(b'0')) % from.len()]
    }

    /// The bytes up to the next `|`.
    pub fn field(&mut self) -> &'a [u8] {
        let end = self.rest.iter().position(|&byte| byte == b'|');
        let (field, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest.get(1..).unwrap_or_default();
        field
    }

    /// The fields that are left.
    pub fn fields(&mut self) -> Vec<&'a [u8]> {
        let mut fields = Vec::new();
        while !self.rest.is_empty() {
            fields.push(self.field());
        }
        fields
    }

    /// All bytes that are left.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

/// Cuts `bytes` into pieces: `A` is one of 1 byte, `B` of 2, and `@` is an empty one. The last
/// piece is what is left.
#[must_use]
pub fn pieces<'a>(mut bytes: &'a [u8], sizes: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes {
        let size = usize::from(size.wrapping_sub(b'@'));
        let (piece, rest) = bytes.split_at(size.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}
