//! HTTP/1.1 by hand: a client that can be slow, stop in the middle, or vanish, which no library's can.

use rustix::net::sockopt;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for a byte of an answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers as they came.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// A server.
#[derive(Clone, Debug)]
pub struct Http {
    address: SocketAddr,
    /// Headers of every request, each with its line end.
    always: String,
}

impl Http {
    /// On a port of this machine.
    pub fn on(port: u16) -> Http {
        Http {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            always: String::new(),
        }
    }

    /// With a header in every request.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Http {
        self.always.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Asks and reads the whole answer.
    ///
    /// # Panics
    /// When the connection fails, or no answer comes.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_ask(method, path, headers, body)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// The same, for connections that may fail.
    ///
    /// # Errors
    /// When the connection fails, or ends in the middle of the answer.
    pub fn try_ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> std::io::Result<Answer> {
        let mut head = format!("Content-Length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut stream = self.begin(method, path, &head)?;
        // An answer may come, and the connection go, before everything is sent.
        let sent = stream.write_all(body);
        match read_answer(&mut stream, method == "HEAD") {
            Err(e) => Err(sent.err().unwrap_or(e)),
            answer => answer,
        }
    }

    /// Sends the head of a request (`headers`: lines, each with its end), and leaves the rest to the caller.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn begin(&self, method: &str, path: &str, headers: &str) -> std::io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: n\r\nConnection: close\r\n{}{headers}\r\n",
            self.always
        );
        stream.write_all(head.as_bytes())?;
        Ok(stream)
    }
}

/// Reads an answer to its end: the connection's, because every request says `Connection: close`.
///
/// # Errors
/// When the connection fails, or ends before the body is as long as was said.
pub fn read_answer(stream: &mut TcpStream, is_head: bool) -> std::io::Result<Answer> {
    let mut all = Vec::new();
    let ended = stream.read_to_end(&mut all);
    let early = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let Some(at) = all.windows(4).position(|w| w == b"\r\n\r\n") else {
        return Err(ended.err().unwrap_or_else(early));
    };
    let body = all.split_off(at + 4);
    let head = String::from_utf8_lossy(&all).into_owned();
    let mut lines = head.lines();
    let status = lines.next().and_then(|l| l.split(' ').nth(1));
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.trim().to_owned(), v.trim().to_owned()))
        .collect();
    let answer = Answer {
        status: status.and_then(|s| s.parse().ok()).ok_or_else(early)?,
        headers,
        body,
    };
    let want = answer
        .header("content-length")
        .and_then(|v| v.parse::<usize>().ok());
    match want {
        Some(n) if !is_head && answer.status != 304 && answer.body.len() < n => {
            Err(ended.err().unwrap_or_else(early))
        }
        _ => Ok(answer),
    }
}

/// Goes away without a word: the other side gets a reset, not an end.
pub fn vanish(stream: TcpStream) {
    let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
    drop(stream);
}
