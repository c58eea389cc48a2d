//! Keys: the identities everything rests on, all of them hashes with a domain.
//!
//! Hashes are blake3 over a domain string (`amend/row/1`, …) and length-prefixed fields, so that
//! no two different lists of fields share an input.

use std::fmt;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A 127-bit id: a row, a content, a version, a fingerprint. Shown as 32 hex digits.
///
/// The highest bit is never set by a hash: it marks an id that stands for something not yet
/// known, which only `plan` makes (see [`Id::unknown`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Id(u128);

const UNKNOWN: u128 = 1 << 127;

impl Id {
    /// The id that names nothing.
    pub const ZERO: Id = Id(0);

    /// This id as the mark of something that only a call not yet made could tell.
    #[must_use]
    pub fn unknown(self) -> Id {
        Id(self.0 | UNKNOWN)
    }

    /// Whether this id stands for something not yet known.
    pub fn is_unknown(self) -> bool {
        self.0 & UNKNOWN != 0
    }

    /// The id's bits.
    pub fn bits(self) -> u128 {
        self.0
    }

    /// The lowest 64 bits: a hash that is uniform and the same everywhere.
    pub fn low(self) -> u64 {
        self.0 as u64
    }

    /// The 32 hex digits, as [`Display`](fmt::Display) writes them.
    pub fn hex(self) -> String {
        self.digits().into_iter().map(char::from).collect()
    }

    /// The hex digits as ASCII, without a text of their own: tables are full of them.
    pub(super) fn digits(self) -> [u8; 32] {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 32];
        for (two, byte) in digits.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            two[0] = DIGITS[usize::from(byte >> 4)];
            two[1] = DIGITS[usize::from(byte & 15)];
        }
        digits
    }

    /// An id of the given bits.
    pub fn from_bits(bits: u128) -> Id {
        Id(bits)
    }
}

impl Serialize for Id {
    /// Hex digits where a person reads, bits between workers.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        if !deserializer.is_human_readable() {
            return u128::deserialize(deserializer).map(Id);
        }
        let hex = String::deserialize(deserializer)?;
        hex.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not the hex digits of an id or a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an id is 32 hex digits, not {0:?}")]
pub struct ParseIdError(String);

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Id, ParseIdError> {
        match u128::from_str_radix(text, 16) {
            Ok(bits) if text.len() == 32 => Ok(Id(bits)),
            _ => Err(ParseIdError(text.to_owned())),
        }
    }
}

/// The 256-bit key of a call: the hash of its fully rendered request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallKey(pub [u8; 32]);

impl Hash for CallKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Of a hash, half is enough to tell keys apart in a map.
        state.write_u128(u128::from_le_bytes(*self.0.first_chunk().expect("32 bytes hold 16")));
    }
}

impl CallKey {
    /// The first 16 bytes, which rows carry in `call_keys`.
    pub fn id(&self) -> Id {
        id_of(&self.0)
    }
}

impl fmt::Display for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for CallKey {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<CallKey, ParseIdError> {
        let mut key = CallKey([0; 32]);
        let (halves, rest) = text.as_bytes().as_chunks::<2>();
        if halves.len() != key.0.len() || !rest.is_empty() {
            return Err(ParseIdError(text.to_owned()));
        }
        for (byte, digits) in key.0.iter_mut().zip(halves) {
            let digits = std::str::from_utf8(digits).ok();
            let parsed = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            *byte = parsed.ok_or_else(|| ParseIdError(text.to_owned()))?;
        }
        Ok(key)
    }
}

impl fmt::Debug for CallKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn id_of(hash: &[u8; 32]) -> Id {
    let mut first = [0u8; 16];
    first.copy_from_slice(&hash[..16]);
    Id(u128::from_be_bytes(first) & !UNKNOWN)
}

/// Hashes length-prefixed fields under a domain.
///
/// ```
/// use amend::record::KeyHasher;
/// let a = KeyHasher::new("amend/row/1").text("ab").text("c").id();
/// let b = KeyHasher::new("amend/row/1").text("a").text("bc").id();
/// assert_ne!(a, b);
/// ```
#[derive(Clone)]
pub struct KeyHasher {
    /// What was added last. Fields are a few bytes each, and most keys are short: they are hashed
    /// at once, which is several times faster than a field at a time.
    buffer: Vec<u8>,
    /// What was added before it, once there is much.
    long: Option<Box<blake3::Hasher>>,
}

/// How many bytes are kept to be hashed at once.
const BUFFER: usize = 16 << 10;

impl KeyHasher {
    /// A hasher of the domain, such as `amend/row/1`.
    pub fn new(domain: &str) -> KeyHasher {
        let mut hasher = KeyHasher { buffer: Vec::with_capacity(512), long: None };
        hasher.add_bytes(domain.as_bytes());
        hasher
    }

    /// Adds a field of bytes.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > BUFFER {
            self.long.get_or_insert_default().update(&self.buffer);
            self.buffer.clear();
        }
    }

    fn finalize(&self) -> blake3::Hash {
        match &self.long {
            None => blake3::hash(&self.buffer),
            Some(long) => long.clone().update(&self.buffer).finalize(),
        }
    }

    /// Adds a field of text.
    pub fn add_text(&mut self, text: &str) {
        self.add_bytes(text.as_bytes());
    }

    /// Adds a number.
    pub fn add_u64(&mut self, number: u64) {
        self.add_bytes(&number.to_le_bytes());
    }

    /// Adds a number by its bits, so that `-0.0` and `0.0` differ and NaN is a value.
    pub fn add_f64(&mut self, number: f64) {
        self.add_u64(number.to_bits());
    }

    /// Adds an id.
    pub fn add_id(&mut self, id: Id) {
        self.add_bytes(&id.0.to_le_bytes());
    }

    /// Adds a field of text, by value.
    #[must_use]
    pub fn text(mut self, text: &str) -> KeyHasher {
        self.add_text(text);
        self
    }

    /// Adds a number, by value.
    #[must_use]
    pub fn u64(mut self, number: u64) -> KeyHasher {
        self.add_u64(number);
        self
    }

    /// Adds an id, by value.
    #[must_use]
    pub fn with(mut self, id: Id) -> KeyHasher {
        self.add_id(id);
        self
    }

    /// The hash as an id.
    pub fn id(&self) -> Id {
        id_of(self.finalize().as_bytes())
    }

    /// The whole hash.
    pub fn call_key(&self) -> CallKey {
        CallKey(*self.finalize().as_bytes())
    }
}

/// Hashes keys of maps that are made of ids, which are hashes already.
///
/// Rows are spread over workers and shards by the lowest bits of an id, and a map looks at the
/// lowest and highest bits of a hash: it is given those in the middle.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

/// A map by ids, or by keys made of ids.
pub type IdMap<K, V> = hashbrown::HashMap<K, V, BuildHasherDefault<IdHasher>>;

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u128(&mut self, id: u128) {
        self.0 = self.0.rotate_left(23) ^ (id >> 32) as u64;
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio's digits, for numbers that are counted up.
        self.0 = self.0.rotate_left(23) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        for eight in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..eight.len()].copy_from_slice(eight);
            self.write_u64(u64::from_le_bytes(number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_from_its_hex_digits() {
        let id = KeyHasher::new("amend/test/1").text("x").id();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!((id.hex(), id.unknown().hex()), (id.to_string(), id.unknown().to_string()));
        assert!("12".parse::<Id>().is_err());
    }

    #[test]
    fn a_long_key_is_the_hash_of_all_its_fields() {
        let fields: Vec<String> = (0..4000).map(|n| format!("field {n}")).collect();
        let (mut hasher, mut whole) = (KeyHasher::new("amend/test/1"), blake3::Hasher::new());
        for field in std::iter::once("amend/test/1").chain(fields.iter().map(String::as_str)) {
            whole.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
        }
        fields.iter().for_each(|field| hasher.add_text(field));
        assert!(fields.len() * 8 > BUFFER);
        assert_eq!(hasher.call_key().0, *whole.finalize().as_bytes());
    }

    #[test]
    fn a_hash_is_never_unknown_and_the_mark_can_be_seen() {
        for n in 0..64 {
            let id = KeyHasher::new("amend/test/1").u64(n).id();
            assert!(!id.is_unknown() && id.unknown().is_unknown());
        }
    }
}
