//! The messages of accepted resources, kept for dumps alone. Resources of one type resemble each other, so each is compressed
//! with the first one of its type as dictionary: a tenth of their size, and nobody waits for a dump.

use std::collections::BTreeMap;
use weft_core::Strng;
use weft_proto::Any;

/// Least and greatest size of a dictionary, in bytes; LZ4 looks back no further than the latter.
const DICTIONARY: (usize, usize) = (64, 64 * 1024);

/// A resource as it was accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Raw {
    /// Version that the control plane gave it.
    pub version: String,
    /// The message.
    pub any: Any,
}

/// All of them, by type and name.
#[derive(Debug, Default)]
pub(crate) struct RawStore {
    types: BTreeMap<String, OfType>,
}

#[derive(Debug, Default)]
struct OfType {
    /// Never changes: what was packed with it is unpacked with it.
    dictionary: Option<Box<[u8]>>,
    entries: BTreeMap<Strng, Packed>,
}

#[derive(Debug)]
struct Packed {
    version: Strng,
    /// Length of the message.
    length: usize,
    with_dictionary: bool,
    bytes: Box<[u8]>,
}

impl RawStore {
    pub fn insert(&mut self, type_url: &str, name: Strng, version: Strng, message: &[u8]) {
        if !self.types.contains_key(type_url) {
            self.types.insert(type_url.to_string(), OfType::default());
        }
        let Some(of_type) = self.types.get_mut(type_url) else { return };
        let with_dictionary = of_type.dictionary.is_some();
        let packed = match &of_type.dictionary {
            Some(dictionary) => lz4_flex::block::compress_with_dict(message, dictionary),
            None => message.to_vec(),
        };
        if of_type.dictionary.is_none() && message.len() >= DICTIONARY.0 {
            of_type.dictionary = Some(message[..message.len().min(DICTIONARY.1)].into());
        }
        let entry = Packed { version, length: message.len(), with_dictionary, bytes: packed.into_boxed_slice() };
        of_type.entries.insert(name, entry);
    }

    pub fn remove(&mut self, type_url: &str, name: &str) {
        if let Some(of_type) = self.types.get_mut(type_url) {
            of_type.entries.remove(name);
        }
    }

    /// The resources of a type, unpacked.
    pub fn of_type(&self, type_url: &str) -> Option<BTreeMap<String, Raw>> {
        let of_type = self.types.get(type_url)?;
        let unpack = |(name, packed): (&Strng, &Packed)| {
            let value = match &of_type.dictionary {
                Some(dictionary) if packed.with_dictionary => {
                    lz4_flex::block::decompress_with_dict(&packed.bytes, packed.length, dictionary).ok()?
                }
                _ => packed.bytes.to_vec(),
            };
            let any = Any { type_url: type_url.to_string(), value };
            Some((name.to_string(), Raw { version: packed.version.to_string(), any }))
        };
        Some(of_type.entries.iter().filter_map(unpack).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out_and_is_small() {
        let mut store = RawStore::default();
        let message =
            |n: usize| format!("name: service-{n} {} end {n}", "equal text of all services ".repeat(40)).into_bytes();
        store.insert("t", "short".into(), "1".into(), b"x");
        store.insert("t", "empty".into(), "1".into(), b"");
        for n in 0..50 {
            store.insert("t", format!("{n}").into(), "7".into(), &message(n));
        }
        let held: usize = store.types["t"].entries.values().map(|p| p.bytes.len()).sum();
        assert!(held < 50 * message(0).len() / 5, "{held} bytes");
        store.remove("t", "3");
        let all = store.of_type("t").unwrap();
        assert_eq!(all.len(), 51);
        assert_eq!(all["short"].any.value, b"x");
        assert_eq!(all["empty"].any.value, b"");
        for n in (0..50).filter(|n| *n != 3) {
            assert_eq!(
                all[&n.to_string()],
                Raw { version: "7".into(), any: Any { type_url: "t".into(), value: message(n) } }
            );
        }
        assert!(store.of_type("none").is_none());
    }
}
