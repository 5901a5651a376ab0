//! A program that works on a few objects through the mount of one node, as a process of its own, and notes what it was answered:
//! what `tests/tests/coherence_faults.rs` starts on each node.
//!
//! `fastcache-program MOUNT OUTSIDE NODE PROGRAM FOLDER SEED` works until its standard input ends. Then it writes what it noted.
//!
//! It goes from the mount to the folder of the round each time, and looks whether it is the mount: while nothing is mounted the
//! folder beneath would answer.

mod contents;
mod task;

pub use task::{Running, Task};

use crate::oracle::{Did, FOLDERS, NAMES, Said, Timed, Touched, Turn, folder_of, moment};
use crate::{CHUNK, close};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

/// Nodes that they work on.
pub const NODES: usize = 3;
/// Programs on each node.
pub const PROGRAMS: usize = 2;
/// Files that are replaced as a whole.
pub const REGISTERS: usize = 2;
/// Files that are written in place, one for each program of a node to write.
pub const FILES: usize = PROGRAMS;
/// Files that are appended to, the same.
pub const LOGS: usize = PROGRAMS;
/// Where a file's places are, bytes: two in one block, one in another, one in another chunk.
pub const PLACES: [u64; 4] = [0, 300, 9_000, CHUNK as u64 + 50];
/// Length of a place, bytes: a value in 16 digits, again and again.
const PLACE: usize = 256;
/// Length of what is appended, bytes.
const LINE: usize = 16;
/// Between two operations: a round is not to have more of them than somebody could look through.
const PAUSE: Duration = Duration::from_millis(15);

/// Something that was asked and answered, or failed, of one of the objects.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Note {
    /// The names.
    Names(Timed<(Did, Option<Said>)>),
    /// A register, by its number.
    Register(usize, Timed<Turn>),
    /// The modification time of a file.
    Stamp(Timed<Turn>),
    /// A file that is written in place, by its number.
    File(usize, Timed<Touched>),
    /// A log, by its number.
    Log(usize, Timed<Touched>),
}

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Of {
    /// A change of names or attributes.
    Names,
    /// What changes nothing.
    Read,
    /// `write`, `close` and `fsync`.
    Written,
}

/// An error that is none of the answers of a file system that is well.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// On which node.
    pub node: usize,
    /// With what.
    pub of: Of,
    /// Its number.
    errno: i32,
    /// Before it was asked.
    #[serde(with = "moment")]
    pub began: Instant,
    /// When it had failed.
    #[serde(with = "moment")]
    pub ended: Instant,
    /// The operation.
    pub what: String,
}

impl Trouble {
    /// Which error.
    #[must_use]
    pub fn error(&self) -> Errno {
        Errno::from_raw_os_error(self.errno)
    }
}

/// What a program noted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Noted {
    /// What was answered.
    pub notes: Vec<Note>,
    /// What was not.
    pub troubles: Vec<Trouble>,
    /// What is wrong by itself, whatever happened.
    pub wrong: Vec<String>,
}

/// A program.
pub struct Program {
    task: Task,
    rng: StdRng,
    values: u64,
    noted: Noted,
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

impl Program {
    /// One that has noted nothing.
    #[must_use]
    pub fn new(task: Task) -> Program {
        let who = (task.node * (PROGRAMS + 1) + task.program) as u64 + 1;
        Program {
            rng: StdRng::seed_from_u64(task.seed ^ who << 40),
            task,
            values: who << 32,
            noted: Noted::default(),
        }
    }

    /// Works until nothing more can be read from `until`.
    pub fn run(mut self, until: impl io::Read + Send + 'static) -> Noted {
        let waiting = std::thread::spawn(move || io::copy(&mut { until }, &mut io::sink()));
        while !waiting.is_finished() {
            if let Some(at) = self.here() {
                self.something(at.as_fd());
            }
            std::thread::sleep(PAUSE);
        }
        self.noted
    }

    /// Makes what is there from the beginning.
    pub fn prepare(mut self) -> Noted {
        std::fs::create_dir(self.task.mount.join(&self.task.folder)).expect("mkdir");
        let at = self.here().expect("the folder");
        for file in (0..FILES).map(|n| format!("file{n}")) {
            self.make(at.as_fd(), &file).expect("create");
        }
        for log in (0..LOGS).map(|n| format!("log{n}")) {
            self.make(at.as_fd(), &log).expect("create");
        }
        self.make(at.as_fd(), "stamp").expect("create");
        self.set_stamp(at.as_fd());
        self.noted
    }

    /// Looks at everything.
    pub fn look(mut self) -> Noted {
        let Some(at) = self.here() else {
            return self.noted;
        };
        let at = at.as_fd();
        for name in 0..NAMES.len() {
            self.name(at, Did::Read(name));
        }
        for folder in 0..FOLDERS.len() {
            self.list(at, folder);
        }
        for register in 0..REGISTERS {
            self.get(at, register);
        }
        self.get_stamp(at);
        for file in 0..FILES {
            self.read(at, file, &[0, 1, 2, 3]);
        }
        for log in 0..LOGS {
            self.read_log(at, log);
        }
        self.noted
    }

    fn something(&mut self, at: BorrowedFd<'_>) {
        let rng = &mut self.rng;
        let (name, other) = (
            rng.random_range(0..NAMES.len()),
            rng.random_range(1..NAMES.len()),
        );
        let folder = rng.random_range(0..FOLDERS.len());
        let (own, any) = (self.task.program, rng.random_range(0..PROGRAMS));
        let register = rng.random_range(0..REGISTERS);
        match rng.random_range(0..100) {
            0..4 => self.name(at, Did::Mkdir(folder)),
            4..6 => self.name(at, Did::Rmdir(folder)),
            6..12 => {
                let value = self.value();
                self.name(at, Did::Make(name, value));
            }
            12..15 => self.name(at, Did::Remove(name)),
            15..20 => self.name(at, Did::Rename(name, (name + other) % NAMES.len())),
            20..30 => self.name(at, Did::Read(name)),
            30..34 => self.list(at, folder),
            34..39 => self.put(at, register),
            39..42 => self.create(at, register),
            42..44 => self.delete(at, register),
            44..52 => self.get(at, register),
            52..55 => self.set_stamp(at),
            55..60 => self.get_stamp(at),
            60..72 => self.write(at, own),
            72..84 => {
                let place = self.rng.random_range(0..PLACES.len());
                self.read(at, any, &[place, (place + 1) % PLACES.len()]);
            }
            84..92 => self.append(at, own),
            92..93 => self.cut(at, own),
            _ => self.read_log(at, any),
        }
    }

    /// The folder of the round, when it is mounted.
    fn here(&mut self) -> Option<OwnedFd> {
        let began = Instant::now();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || {
            let beneath = std::fs::metadata(&self.task.outside).map_err(|e| errno(&e))?;
            let root = rustix::fs::openat(CWD, &self.task.mount, flags, Mode::empty())?;
            if rustix::fs::fstat(&root)?.st_dev == beneath.dev() {
                return Err(Errno::NOTCONN);
            }
            let folder = rustix::fs::openat(&root, &self.task.folder, flags, Mode::empty());
            Ok((folder, root))
        };
        match open().and_then(|(folder, _)| folder) {
            Ok(folder) => Some(folder),
            Err(Errno::NOENT) => {
                let what = format!("node {}: the folder is gone", self.task.node);
                self.noted.wrong.push(what);
                None
            }
            Err(error) => {
                self.trouble(Of::Read, "open", error, began);
                None
            }
        }
    }

    /// A value that nobody else has.
    fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    fn trouble(&mut self, of: Of, what: &str, error: Errno, began: Instant) {
        self.noted.troubles.push(Trouble {
            node: self.task.node,
            of,
            errno: error.raw_os_error(),
            began,
            ended: Instant::now(),
            what: what.to_owned(),
        });
    }

    /// When a change was answered; the end of it is not known where it failed, and there is nothing to note where the kernel had
    /// nobody to send it to. A change is one request.
    fn end_of<T>(
        &mut self,
        of: Of,
        what: &str,
        done: Result<T, Errno>,
        began: Instant,
    ) -> Option<Option<Instant>> {
        match done {
            Ok(_) => Some(Some(Instant::now())),
            Err(error) => {
                self.trouble(of, what, error, began);
                (error != Errno::NOTCONN).then_some(None)
            }
        }
    }

    // ---- names ----

    fn name(&mut self, at: BorrowedFd<'_>, did: Did) {
        let began = Instant::now();
        let said = match did {
            Did::Mkdir(folder) => rustix::fs::mkdirat(at, FOLDERS[folder], Mode::RWXU),
            Did::Rmdir(folder) => rustix::fs::unlinkat(at, FOLDERS[folder], AtFlags::REMOVEDIR),
            Did::Make(name, value) => rustix::fs::symlinkat(value.to_string(), at, NAMES[name]),
            Did::Remove(name) => rustix::fs::unlinkat(at, NAMES[name], AtFlags::empty()),
            Did::Rename(from, to) => rustix::fs::renameat(at, NAMES[from], at, NAMES[to]),
            Did::Read(_) | Did::Listed(_) | Did::List(_) => Ok(()),
        };
        let said = match (did, said) {
            (Did::Read(name), _) => {
                let target = rustix::fs::readlinkat(at, NAMES[name], Vec::new());
                target.map(|t| {
                    t.to_string_lossy()
                        .parse()
                        .map_or(Said::NotEmpty, Said::Value)
                })
            }
            (_, said) => said.map(|()| Said::Done),
        };
        let said = match said {
            Err(Errno::NOENT) => Ok(Said::Absent),
            Err(Errno::EXIST) => Ok(Said::There),
            Err(Errno::NOTEMPTY) => Ok(Said::NotEmpty),
            said => said,
        };
        let of = match did {
            Did::Read(_) => Of::Read,
            _ => Of::Names,
        };
        let end = self.end_of(of, &format!("{did:?}"), said, began);
        if let Some(returned) = end
            && (returned.is_some() || of == Of::Names)
        {
            let event = (did, said.ok());
            self.noted.notes.push(Note::Names(Timed {
                began,
                returned,
                event,
            }));
        }
    }

    fn list(&mut self, at: BorrowedFd<'_>, folder: usize) {
        let began = Instant::now();
        let listed = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let open = rustix::fs::openat(at, FOLDERS[folder], flags, Mode::empty())?;
            let names: Result<Vec<String>, Errno> = Dir::new(open)?
                .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
                .collect();
            names
        };
        let listed = listed();
        let returned = Some(Instant::now());
        let mut note = |did, said| {
            let event = (did, Some(said));
            self.noted.notes.push(Note::Names(Timed {
                began,
                returned,
                event,
            }));
        };
        match listed {
            Err(Errno::NOENT) => note(Did::List(folder), Said::Absent),
            Err(error) => self.trouble(Of::Read, "a listing", error, began),
            Ok(mut names) => {
                note(Did::List(folder), Said::Done);
                names.retain(|name| name != "." && name != "..");
                for name in (0..NAMES.len()).filter(|n| folder_of(*n) == Some(folder)) {
                    let path = NAMES[name];
                    let own = &path[path.len() - 1..];
                    let said = match names.iter().any(|n| n == own) {
                        true => Said::There,
                        false => Said::Absent,
                    };
                    note(Did::Listed(name), said);
                    // One that goes and comes meanwhile may be told twice.
                    names.retain(|n| n != own);
                }
                if !names.is_empty() {
                    let what = format!("node {}: a listing told of {names:?}", self.task.node);
                    self.noted.wrong.push(what);
                }
            }
        }
    }

    // ---- registers ----

    fn open(&self, at: BorrowedFd<'_>, name: &str, flags: OFlags) -> Result<File, Errno> {
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::openat(at, name, flags | OFlags::CLOEXEC, mode).map(File::from)
    }

    fn make(&self, at: BorrowedFd<'_>, name: &str) -> Result<File, Errno> {
        self.open(at, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)
    }

    /// A new file beside, with a value.
    fn beside(&mut self, at: BorrowedFd<'_>) -> Option<(String, u64)> {
        let value = self.value();
        let name = format!("beside-{value:x}");
        let began = Instant::now();
        let text = format!("{value:016x}");
        let made = self.make(at, &name).and_then(|mut file| {
            file.write_all(text.as_bytes()).map_err(|e| errno(&e))?;
            close(file).map_err(|e| errno(&e))
        });
        self.end_of(Of::Written, "a file beside", made, began)?
            .map(|_| (name, value))
    }

    fn turn(&mut self, register: usize, began: Instant, returned: Option<Instant>, event: Turn) {
        let timed = Timed {
            began,
            returned,
            event,
        };
        self.noted.notes.push(Note::Register(register, timed));
    }

    fn put(&mut self, at: BorrowedFd<'_>, register: usize) {
        let Some((beside, value)) = self.beside(at) else {
            return;
        };
        let began = Instant::now();
        let done = rustix::fs::renameat(at, &beside, at, format!("register{register}"));
        if let Some(returned) = self.end_of(Of::Names, "put", done, began) {
            self.turn(register, began, returned, Turn::Put(value));
        }
    }

    fn create(&mut self, at: BorrowedFd<'_>, register: usize) {
        let Some((beside, value)) = self.beside(at) else {
            return;
        };
        let began = Instant::now();
        let name = format!("register{register}");
        let made = match rustix::fs::linkat(at, &beside, at, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error),
        };
        if let Some(returned) = self.end_of(Of::Names, "create", made, began) {
            let event = Turn::Create(value, made.unwrap_or(true));
            self.turn(register, began, returned, event);
        }
        let began = Instant::now();
        let gone = rustix::fs::unlinkat(at, &beside, AtFlags::empty());
        self.end_of(Of::Names, "unlink", gone, began);
    }

    fn delete(&mut self, at: BorrowedFd<'_>, register: usize) {
        let began = Instant::now();
        let name = format!("register{register}");
        let gone = match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        };
        if let Some(returned) = self.end_of(Of::Names, "delete", gone, began) {
            let event = Turn::Delete(gone.unwrap_or(true));
            self.turn(register, began, returned, event);
        }
    }

    fn get(&mut self, at: BorrowedFd<'_>, register: usize) {
        let began = Instant::now();
        let read = self.read_whole(at, &format!("register{register}"));
        let returned = Some(Instant::now());
        let value = match read {
            Err(Errno::NOENT) => None,
            Err(error) => return self.trouble(Of::Read, "get", error, began),
            Ok(bytes) => match values_in(&bytes, LINE).as_deref() {
                Some([value]) => Some(*value),
                _ => return self.wrong_bytes("a register", &bytes),
            },
        };
        self.turn(register, began, returned, Turn::Get(value));
    }

    fn read_whole(&self, at: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, Errno> {
        let mut file = self.open(at, name, OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|e| errno(&e))?;
        Ok(bytes)
    }

    fn wrong_bytes(&mut self, what: &str, bytes: &[u8]) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(600)]);
        let what = format!(
            "node {}: {what}: {} bytes: {text:?}",
            self.task.node,
            bytes.len()
        );
        self.noted.wrong.push(what);
    }

    // ---- a time stamp ----

    fn set_stamp(&mut self, at: BorrowedFd<'_>) {
        let value = self.value();
        let time = Timespec {
            tv_sec: i64::try_from(value).expect("a time"),
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let began = Instant::now();
        let done = rustix::fs::utimensat(at, "stamp", &times, AtFlags::empty());
        if let Some(returned) = self.end_of(Of::Names, "utimensat", done, began) {
            let event = Turn::Put(value);
            self.noted.notes.push(Note::Stamp(Timed {
                began,
                returned,
                event,
            }));
        }
    }

    fn get_stamp(&mut self, at: BorrowedFd<'_>) {
        let began = Instant::now();
        match rustix::fs::statat(at, "stamp", AtFlags::empty()) {
            Err(error) => self.trouble(Of::Read, "stat", error, began),
            Ok(stat) => {
                let event = Turn::Get(u64::try_from(stat.st_mtime).ok());
                self.noted.notes.push(Note::Stamp(Timed {
                    began,
                    returned: Some(Instant::now()),
                    event,
                }));
            }
        }
    }
}

/// The values that bytes consist of, each of so many digits.
fn values_in(bytes: &[u8], digits: usize) -> Option<Vec<u64>> {
    let values = bytes.chunks(digits).map(|digits_of| {
        let text = std::str::from_utf8(digits_of).ok()?;
        let value = u64::from_str_radix(text, 16).ok()?;
        (digits_of.len() == digits && value >> 32 <= (NODES * (PROGRAMS + 1)) as u64)
            .then_some(value)
    });
    values.collect()
}
