//! Files that are written in place, and logs: what a program does to their contents.

use super::{LINE, Note, Of, PLACE, PLACES, Program, errno, values_in};
use crate::close;
use crate::oracle::{Timed, Touch, Touched};
use rand::Rng as _;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

impl Program {
    fn touch(
        &mut self,
        note: impl FnOnce(Timed<Touched>) -> Note,
        session: u64,
        began: Instant,
        returned: Option<Instant>,
        touch: Touch,
    ) {
        let event = Touched {
            node: self.task.node,
            session,
            touch,
        };
        self.noted.notes.push(note(Timed {
            began,
            returned,
            event,
        }));
    }

    /// Opens a file, does something to it, closes it; sometimes with an fsync before.
    fn session(
        &mut self,
        at: BorrowedFd<'_>,
        name: &str,
        flags: OFlags,
        note: &dyn Fn(Timed<Touched>) -> Note,
        what: impl FnOnce(&mut Self, &File, u64),
    ) {
        let began = Instant::now();
        let file = match self.open(at, name, OFlags::WRONLY | flags) {
            Ok(file) => file,
            Err(error) => return self.trouble(Of::Read, "open to write", error, began),
        };
        let session = self.value();
        what(self, &file, session);
        let mut has_failed = false;
        if self.rng.random_ratio(1, 4) {
            let began = Instant::now();
            let done = file.sync_all().map_err(|e| errno(&e));
            has_failed = done.is_err();
            if let Some(returned @ Some(_)) = self.end_of(Of::Written, "fsync", done, began) {
                self.touch(note, session, began, returned, Touch::Commit);
            }
        }
        let began = Instant::now();
        let done = close(file).map_err(|e| errno(&e));
        // What is lost is told once: a `close` after that says nothing.
        if let Some(returned @ Some(_)) = self.end_of(Of::Written, "close", done, began)
            && !has_failed
        {
            self.touch(note, session, began, returned, Touch::Commit);
        }
    }

    pub(super) fn write(&mut self, at: BorrowedFd<'_>, file: usize) {
        let note = |timed| Note::File(file, timed);
        let name = format!("file{file}");
        self.session(at, &name, OFlags::empty(), &note, |own, open, session| {
            for _ in 0..own.rng.random_range(1..=3) {
                let (place, value) = (own.rng.random_range(0..PLACES.len()), own.value());
                let bytes = format!("{value:016x}").repeat(PLACE / LINE);
                let began = Instant::now();
                let done = open.write_at(bytes.as_bytes(), PLACES[place]);
                let done = own.whole(done, PLACE);
                if let Some(returned) = own.end_of(Of::Written, "write", done, began) {
                    let touch = Touch::Write(place, value);
                    own.touch(note, session, began, returned, touch);
                }
                if done.is_err() {
                    break;
                }
            }
        });
    }

    pub(super) fn append(&mut self, at: BorrowedFd<'_>, log: usize) {
        let note = |timed| Note::Log(log, timed);
        let name = format!("log{log}");
        self.session(
            at,
            &name,
            OFlags::APPEND,
            &note,
            |own, mut open, session| {
                for _ in 0..own.rng.random_range(1..=2) {
                    let value = own.value();
                    let began = Instant::now();
                    let done = open.write(format!("{value:016x}").as_bytes());
                    let done = own.whole(done, LINE);
                    if let Some(returned) = own.end_of(Of::Written, "append", done, began) {
                        own.touch(note, session, began, returned, Touch::Append(value));
                    }
                    if done.is_err() {
                        break;
                    }
                }
            },
        );
    }

    pub(super) fn cut(&mut self, at: BorrowedFd<'_>, log: usize) {
        let note = |timed| Note::Log(log, timed);
        let name = format!("log{log}");
        self.session(at, &name, OFlags::empty(), &note, |own, open, session| {
            let began = Instant::now();
            let done = open.set_len(0).map_err(|e| errno(&e));
            if let Some(returned) = own.end_of(Of::Written, "truncate", done, began) {
                own.touch(note, session, began, returned, Touch::Cut);
            }
        });
    }

    /// A write is whole.
    fn whole(&mut self, done: io::Result<usize>, len: usize) -> Result<(), Errno> {
        let done = done.map_err(|e| errno(&e))?;
        if done != len {
            let what = format!(
                "node {}: {done} of {len} bytes were written",
                self.task.node
            );
            self.noted.wrong.push(what);
        }
        Ok(())
    }

    pub(super) fn read(&mut self, at: BorrowedFd<'_>, file: usize, places: &[usize]) {
        let began = Instant::now();
        let open = match self.open(at, &format!("file{file}"), OFlags::RDONLY) {
            Ok(open) => open,
            Err(error) => return self.trouble(Of::Read, "open to read", error, began),
        };
        for place in places {
            let began = Instant::now();
            let mut bytes = [0; PLACE];
            let touch = match open.read_at(&mut bytes, PLACES[*place]) {
                Err(e) => return self.trouble(Of::Read, "read", errno(&e), began),
                Ok(0) => Touch::ReadPast(*place),
                Ok(PLACE) if bytes == [0; PLACE] => Touch::Read(*place, 0),
                Ok(n) => match values_in(&bytes[..n], LINE) {
                    Some(v) if n == PLACE && v.iter().all(|one| *one == v[0]) => {
                        Touch::Read(*place, v[0])
                    }
                    _ => return self.wrong_bytes("a place", &bytes[..n]),
                },
            };
            let returned = Some(Instant::now());
            let note = |timed| Note::File(file, timed);
            self.touch(note, 0, began, returned, touch);
        }
        let began = Instant::now();
        let done = close(open).map_err(|e| errno(&e));
        self.end_of(Of::Written, "close of what was read", done, began);
    }

    pub(super) fn read_log(&mut self, at: BorrowedFd<'_>, log: usize) {
        let began = Instant::now();
        match self.read_whole(at, &format!("log{log}")) {
            Err(error) => self.trouble(Of::Read, "read of a log", error, began),
            Ok(bytes) => match lines_in(&bytes) {
                None => self.wrong_bytes("a log", &bytes),
                Some(values) => {
                    let returned = Some(Instant::now());
                    let note = |timed| Note::Log(log, timed);
                    self.touch(note, 0, began, returned, Touch::ReadAll(values));
                }
            },
        }
    }
}

/// The values of a log; 0 for a line of zeros.
fn lines_in(bytes: &[u8]) -> Option<Vec<u64>> {
    let lines = bytes.chunks(LINE).map(|line| match line == [0; LINE] {
        true => Some(0),
        false => values_in(line, LINE)?.first().copied(),
    });
    lines.collect()
}
