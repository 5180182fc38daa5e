//! What both NIFs of the gateway need from the VM: binaries for parts of the bytes that a socket
//! has received.

use rustler::{Binary, Env, Error, NewBinary, NifResult, Term};

/// The longest binary that the VM keeps on a process heap. Such a copy costs as much as a
/// reference. A longer binary is allocated elsewhere, which takes four times as long.
const ON_HEAP: usize = 64;

/// A term keeps at most this many times its own size alive.
const MAX_RATIO: usize = 64;

/// Parts that may not refer to the chunk refer to a copy of its next bytes. Many parts share one
/// copy of this size.
const SLAB: usize = ON_HEAP * MAX_RATIO;

/// A binary with these bytes.
pub fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    NewBinary::from_slice(env, bytes).into()
}

/// Bytes from a socket, and the means to make terms of their parts.
///
/// A term that is a reference keeps the whole binary alive. A part of a chunk may stay for a long
/// time (in a queue, in a subscription). So it refers to the chunk only if it is a large part of
/// it. Otherwise a client could make the gateway hold a megabyte for every line that it sends.
pub struct Chunk<'a> {
    env: Env<'a>,
    binary: Binary<'a>,
    referenced: usize,
    /// A copy of the bytes from this offset on.
    slab: Option<(usize, Binary<'a>)>,
}

impl<'a> Chunk<'a> {
    /// `referenced` is `binary:referenced_byte_size/1` of the binary, which may itself be a part of
    /// what was received.
    pub fn new(env: Env<'a>, binary: Binary<'a>, referenced: usize) -> Self {
        Self {
            env,
            referenced: referenced.max(binary.len()),
            binary,
            slab: None,
        }
    }

    /// Whether a part of this length refers to the chunk. Otherwise it is copied.
    #[inline]
    pub fn refers(&self, length: usize) -> bool {
        length > ON_HEAP && length.saturating_mul(MAX_RATIO) >= self.referenced
    }

    /// A term of a part of the chunk's bytes.
    #[inline]
    pub fn part(&mut self, bytes: &[u8]) -> NifResult<Term<'a>> {
        if bytes.len() <= ON_HEAP {
            return Ok(binary(self.env, bytes));
        }
        let start = self.offset(bytes);
        if self.refers(bytes.len()) {
            return Ok(self.binary.make_subbinary(start, bytes.len())?.into());
        }
        if let Some((base, slab)) = &self.slab
            && let Some(offset) = start.checked_sub(*base)
            && let Ok(part) = slab.make_subbinary(offset, bytes.len())
        {
            return Ok(part.into());
        }
        let size = SLAB.max(bytes.len());
        let end = start.saturating_add(size).min(self.binary.len());
        let copied = self.binary.get(start..end).ok_or(Error::BadArg)?;
        let slab: Binary<'a> = NewBinary::from_slice(self.env, copied).into();
        let part = slab.make_subbinary(0, bytes.len())?;
        self.slab = Some((start, slab));
        Ok(part.into())
    }

    /// The bytes that are decoded next. They do not stay for long, so they are not copied each
    /// time.
    pub fn rest(&self, bytes: &[u8]) -> NifResult<Term<'a>> {
        if bytes.is_empty() {
            return Ok(binary(self.env, bytes));
        }
        let start = self.offset(bytes);
        Ok(self.binary.make_subbinary(start, bytes.len())?.into())
    }

    fn offset(&self, bytes: &[u8]) -> usize {
        (bytes.as_ptr() as usize).wrapping_sub(self.binary.as_ptr() as usize)
    }
}
