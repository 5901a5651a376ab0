//! The key that REST and the coordinator's gRPC may want, and its comparison.

use std::fmt;
use std::hint::black_box;
use subtle::{Choice, ConstantTimeEq};

/// Name of the header (REST) and of the metadata (gRPC) that carries the key.
pub const API_KEY_HEADER: &str = "x-api-key";

/// A key that callers have to show. Never printed.
#[derive(Clone)]
pub struct ApiKey(Box<[u8]>);

impl ApiKey {
    /// From its text.
    pub fn new(key: &str) -> ApiKey {
        ApiKey(key.as_bytes().into())
    }

    /// Whether this is the key. How long that takes depends on nothing but the length of what was given: neither where
    /// it first differs nor how long the key is shows.
    pub fn is(&self, given: &[u8]) -> bool {
        let mut is_same = (given.len() as u64).ct_eq(&(self.0.len() as u64));
        for (at, byte) in given.iter().enumerate() {
            // Beyond the key, its bytes come again: the length above has decided by then.
            let of_key = match self.0.len() {
                0 => 0,
                len => self.0[at % len],
            };
            is_same &= byte.ct_eq(&of_key);
        }
        bool::from(black_box::<Choice>(is_same))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_is_the_key() {
        let key = ApiKey::new("right");
        assert!(key.is(b"right"));
        for wrong in ["", "r", "righ", "righT", "rightr", "rightright", "wrong"] {
            assert!(!key.is(wrong.as_bytes()), "{wrong:?}");
        }
        assert!(ApiKey::new("").is(b"") && !ApiKey::new("").is(b"\0"));
        assert!(!format!("{key:?}").contains("right"));
    }
}
