//! One HTTP/1.1 message at a time, read whole: all the fault proxy needs to know of HTTP.

use std::io::{BufRead, Error, ErrorKind, Read, Result, Write};

/// Longest head of a message, bytes.
const HEAD_MAX: u64 = 64 << 10;
/// Longest body, bytes: a bulk listing or a part of a multipart upload.
const BODY_MAX: u64 = 256 << 20;

/// A request or a response.
#[derive(Debug)]
pub(super) struct Message {
    /// Request line or status line, without its end.
    pub first: String,
    /// Names as they came, and values.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    /// The next request; `None` when the client has ended the connection between two.
    pub(super) fn read_request(
        from: &mut impl BufRead,
        to: &mut impl Write,
    ) -> Result<Option<Message>> {
        let Some(mut message) = read_head(from)? else {
            return Ok(None);
        };
        if message
            .header("expect")
            .is_some_and(|v| v.eq_ignore_ascii_case("100-continue"))
        {
            to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            message.remove("expect");
        }
        message.read_body(from, false)?;
        Ok(Some(message))
    }

    /// The answer to a request with this method.
    pub(super) fn read_response(from: &mut impl BufRead, method: &str) -> Result<Message> {
        loop {
            let mut message = read_head(from)?.ok_or_else(|| broken("no answer"))?;
            let status = message.status();
            if status == 100 {
                continue;
            }
            if method != "HEAD" && status != 204 && status != 304 {
                message.read_body(from, true)?;
            }
            return Ok(message);
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Word `n` of the first line.
    pub(super) fn word(&self, n: usize) -> &str {
        self.first.split(' ').nth(n).unwrap_or("")
    }

    /// Of a response; 0 when there is none.
    pub(super) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    pub(super) fn head(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// Reads the body and leaves it described by its length alone.
    fn read_body(&mut self, from: &mut impl BufRead, until_end: bool) -> Result<()> {
        let is_chunked = self
            .header("transfer-encoding")
            .is_some_and(|v| v.contains("chunked"));
        let length = self.header("content-length").map(str::to_owned);
        self.body = match (is_chunked, length) {
            (true, _) => read_chunks(from)?,
            (false, Some(n)) => {
                read_exactly(from, n.parse().map_err(|_| broken("content-length"))?)?
            }
            (false, None) if until_end => {
                let mut body = Vec::new();
                from.take(BODY_MAX).read_to_end(&mut body)?;
                body
            }
            (false, None) => return Ok(()),
        };
        self.remove("transfer-encoding");
        let length = self.body.len().to_string();
        self.set("Content-Length", &length);
        Ok(())
    }
}

fn broken(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    from.take(HEAD_MAX).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_head(from: &mut impl BufRead) -> Result<Option<Message>> {
    let first = read_line(from)?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        let line = read_line(from)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| broken("header"))?;
        headers.push((name.trim().to_owned(), value.trim().to_owned()));
    }
    Ok(Some(Message {
        first,
        headers,
        body: Vec::new(),
    }))
}

fn read_exactly(from: &mut impl BufRead, length: u64) -> Result<Vec<u8>> {
    if length > BODY_MAX {
        return Err(broken("body too long"));
    }
    let mut body = Vec::new();
    let got = from.take(length).read_to_end(&mut body)?;
    if u64::try_from(got) == Ok(length) {
        Ok(body)
    } else {
        Err(ErrorKind::UnexpectedEof.into())
    }
}

fn read_chunks(from: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(from)?;
        let size = line.split(';').next().unwrap_or("").trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| broken("chunk size"))?;
        if size == 0 {
            while !read_line(from)?.is_empty() {}
            return Ok(body);
        }
        body.extend(read_exactly(from, size)?);
        if u64::try_from(body.len()).unwrap_or(u64::MAX) > BODY_MAX {
            return Err(broken("body too long"));
        }
        read_line(from)?;
    }
}
