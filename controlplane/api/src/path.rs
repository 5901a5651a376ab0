//! What a path in a URL names. Decoded once; what leaves the root, is absolute, or has an empty, `.` or `..`
//! component or a NUL is refused. Names are bytes: they need not be UTF-8.

use crate::NAME_MAX;

/// Longest path, decoded, bytes (Linux PATH_MAX).
pub const PATH_MAX: usize = 4096;

/// Why a path is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PathError {
    /// Nothing is named.
    #[error("the path is empty")]
    Empty,
    /// It starts with a slash.
    #[error("the path is absolute; paths are relative to the root of the file system")]
    Absolute,
    /// Two slashes in a row, or one at the end.
    #[error("the path has an empty component")]
    EmptyComponent,
    /// `.` or `..`.
    #[error("the path has a `.` or `..` component")]
    Dots,
    /// A zero byte.
    #[error("the path has a NUL byte")]
    Nul,
    /// `%` without two hexadecimal digits.
    #[error("the path has a `%` that is not followed by two hexadecimal digits")]
    Escape,
    /// A name above [`NAME_MAX`].
    #[error("a name is longer than 255 bytes")]
    NameTooLong,
    /// Above [`PATH_MAX`].
    #[error("the path is longer than 4096 bytes")]
    TooLong,
}

/// A path below the root: at least one name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FilePath(Vec<Vec<u8>>);

impl FilePath {
    /// From decoded bytes with `/` between names.
    pub fn from_bytes(path: &[u8]) -> Result<FilePath, PathError> {
        if path.is_empty() {
            return Err(PathError::Empty);
        }
        if path.len() > PATH_MAX {
            return Err(PathError::TooLong);
        }
        if path.contains(&0) {
            return Err(PathError::Nul);
        }
        if path[0] == b'/' {
            return Err(PathError::Absolute);
        }
        let mut names = Vec::new();
        for name in path.split(|b| *b == b'/') {
            match name {
                b"" => return Err(PathError::EmptyComponent),
                b"." | b".." => return Err(PathError::Dots),
                n if n.len() > NAME_MAX => return Err(PathError::NameTooLong),
                n => names.push(n.to_vec()),
            }
        }
        Ok(FilePath(names))
    }

    /// From the percent-encoded path of a URL, decoded once.
    pub fn from_encoded(raw: &str) -> Result<FilePath, PathError> {
        FilePath::from_bytes(&decode(raw, false)?)
    }

    /// The names, from the root; at least one.
    pub fn names(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The names of the directories, and the last name.
    pub fn split(&self) -> (&[Vec<u8>], &[u8]) {
        match self.0.split_last() {
            Some((last, parents)) => (parents, last),
            None => (&[], &[]),
        }
    }
}

impl std::fmt::Display for FilePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, name) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("/")?;
            }
            f.write_str(&String::from_utf8_lossy(name))?;
        }
        Ok(())
    }
}

/// What `/api/files/…` is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The file.
    File(FilePath),
    /// Its size: the path ends in a literal `/size`.
    Size(FilePath),
}

/// From what follows `/api/files/` in the URL, still encoded. The suffix `/size` wins; a file of that name is
/// reached as `dir%2Fsize`.
pub fn target(raw: &str) -> Result<Target, PathError> {
    match raw.strip_suffix("/size") {
        Some(file) => FilePath::from_encoded(file).map(Target::Size),
        None => FilePath::from_encoded(raw).map(Target::File),
    }
}

/// Undoes percent-encoding, once; in a query `+` is a space.
fn decode(raw: &str, is_query: bool) -> Result<Vec<u8>, PathError> {
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let mut digit = || {
                    let b = bytes.next().ok_or(PathError::Escape)?;
                    let d = char::from(b).to_digit(16).ok_or(PathError::Escape)?;
                    u8::try_from(d).map_err(|_| PathError::Escape)
                };
                out.push(digit()? << 4 | digit()?);
            }
            b'+' if is_query => out.push(b' '),
            b => out.push(b),
        }
    }
    Ok(out)
}

/// The decoded value of a parameter of a query; `None` when it is absent.
pub fn parameter(query: Option<&str>, name: &str) -> Result<Option<Vec<u8>>, PathError> {
    for pair in query.unwrap_or_default().split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if decode(key, true)? == name.as_bytes() {
            return decode(value, true).map(Some);
        }
    }
    Ok(None)
}

/// Percent-encodes a path for a URL; `/` stays when `keep_slash`.
pub fn encode(path: &[u8], keep_slash: bool) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(path.len());
    for b in path {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(*b));
            }
            b'/' if keep_slash => out.push('/'),
            b => {
                out.push('%');
                out.push(char::from(HEX[usize::from(b >> 4)]));
                out.push(char::from(HEX[usize::from(b & 15)]));
            }
        }
    }
    out
}
