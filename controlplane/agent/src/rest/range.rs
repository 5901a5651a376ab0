//! The `Range` header (RFC 9110, section 14). One range is honoured; a list of several, another unit, or what does
//! not parse is ignored, as the RFC allows and asks.

/// What to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selected {
    /// Everything: 200.
    Whole,
    /// `len` bytes (at least 1) from `start` on: 206.
    Part {
        /// First byte.
        start: u64,
        /// How many.
        len: u64,
    },
    /// Nothing of it is there: 416.
    Unsatisfiable,
}

/// What a `Range` header selects of `size` bytes.
pub fn select(header: &str, size: u64) -> Selected {
    let Some((unit, set)) = header.split_once('=') else {
        return Selected::Whole;
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") || set.contains(',') {
        return Selected::Whole;
    }
    let Some((first, last)) = set.trim().split_once('-') else {
        return Selected::Whole;
    };
    match (number(first), number(last)) {
        (Number::Absent, Number::Value(suffix)) => {
            if suffix == 0 || size == 0 {
                return Selected::Unsatisfiable;
            }
            let len = suffix.min(size);
            Selected::Part {
                start: size - len,
                len,
            }
        }
        (Number::Value(first), Number::Absent) => from(first, u64::MAX, size),
        (Number::Value(first), Number::Value(last)) if first <= last => from(first, last, size),
        _ => Selected::Whole,
    }
}

fn from(first: u64, last: u64, size: u64) -> Selected {
    if first >= size {
        return Selected::Unsatisfiable;
    }
    Selected::Part {
        start: first,
        len: last.min(size - 1) - first + 1,
    }
}

enum Number {
    Absent,
    Value(u64),
    Bad,
}

/// Digits only; what is too large for 64 bits is as good as the largest.
fn number(text: &str) -> Number {
    if text.is_empty() {
        return Number::Absent;
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Number::Bad;
    }
    Number::Value(text.parse().unwrap_or(u64::MAX))
}
