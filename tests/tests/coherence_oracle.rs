//! Promise P4, against a model: what any mount answers is what a single file system would have answered.
//!
//! First operations one after the other, each on a mount of its own choice: every answer is known exactly. Then at once, from
//! all mounts: contents are replaced as a whole (a file beside it, renamed), so that a name is a register, and what was
//! answered must have an order that a register could have had, whose changes are seen everywhere when they have returned.
//!
//! `FASTCACHE_ORACLE_OPS` for more, with a seed that differs each time; a failure prints the seed.

use fastcache_tests::oracle::{Register, Timed, Turn, Verdict, check_views};
use fastcache_tests::{Cluster, number, seed, serial};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Operations in the short form, both parts together.
const OPS: u64 = 2000;
/// Where chunks go through the bucket, each that was just written costs a wait: so many operations fewer.
const APART_SHARE: u64 = 5;
const NODES: usize = 3;
/// Folders and files are few, so that operations meet.
const FOLDERS: [&str; 3] = ["d0", "d1", "d2"];
const FILES: [&str; 4] = ["f0", "f1", "f2", "f3"];
/// Longest file, bytes.
const LONGEST: usize = 20_000;

/// What an operation answers, in words.
type Answer = Result<String, ErrorKind>;

#[derive(Clone, Debug)]
enum Op {
    Mkdir(String),
    Rmdir(String),
    Create(String),
    Unlink(String),
    Rename(String, String),
    Link(String, String),
    Chmod(String, u32),
    Stat(String),
    List(String),
    Write(String, usize, Vec<u8>),
    Append(String, Vec<u8>),
    Truncate(String, usize),
    Read(String),
}

fn file_of(rng: &mut StdRng) -> String {
    let file = FILES.choose(rng).expect("files");
    match rng.random_range(0..4) {
        0 => (*file).to_owned(),
        n => format!("{}/{file}", FOLDERS[n - 1]),
    }
}

fn folder_of(rng: &mut StdRng) -> String {
    (*FOLDERS.choose(rng).expect("folders")).to_owned()
}

fn bytes_of(rng: &mut StdRng) -> Vec<u8> {
    let len = rng.random_range(1..5000);
    vec![rng.random_range(b'a'..=b'z'); len]
}

impl Op {
    fn random(rng: &mut StdRng) -> Op {
        match rng.random_range(0..100) {
            0..8 => Op::Mkdir(folder_of(rng)),
            8..12 => Op::Rmdir(folder_of(rng)),
            12..26 => Op::Create(file_of(rng)),
            26..34 => Op::Unlink(file_of(rng)),
            34..42 => Op::Rename(file_of(rng), file_of(rng)),
            42..44 => Op::Rename(folder_of(rng), folder_of(rng)),
            44..49 => Op::Link(file_of(rng), file_of(rng)),
            49..53 => Op::Chmod(file_of(rng), rng.random_range(0..0o1000) | 0o600),
            53..68 => Op::Stat(file_of(rng)),
            68..76 => Op::List(folder_of(rng)),
            76..83 => {
                let at = rng.random_range(0..LONGEST - 5000);
                Op::Write(file_of(rng), at, bytes_of(rng))
            }
            83..88 => Op::Append(file_of(rng), bytes_of(rng)),
            88..91 => Op::Truncate(file_of(rng), rng.random_range(0..LONGEST)),
            _ => Op::Read(file_of(rng)),
        }
    }

    /// On a mount.
    fn on(&self, mount: &Path) -> Answer {
        let at = |path: &str| mount.join(path);
        let done = |r: std::io::Result<()>| r.map(|()| String::new()).map_err(|e| e.kind());
        match self {
            Op::Mkdir(path) => done(fs::create_dir(at(path))),
            Op::Rmdir(path) => done(fs::remove_dir(at(path))),
            Op::Create(path) => {
                let made = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(at(path));
                done(made.map(drop))
            }
            Op::Unlink(path) => done(fs::remove_file(at(path))),
            Op::Rename(from, to) => done(fs::rename(at(from), at(to))),
            Op::Link(from, to) => done(fs::hard_link(at(from), at(to))),
            Op::Chmod(path, mode) => done(fs::set_permissions(
                at(path),
                fs::Permissions::from_mode(*mode),
            )),
            Op::Stat(path) => match fs::metadata(at(path)) {
                Ok(m) => Ok(format!("{} {:o} {}", m.len(), m.mode() & 0o777, m.nlink())),
                Err(e) => Err(e.kind()),
            },
            Op::List(path) => {
                let names = fs::read_dir(at(path)).map_err(|e| e.kind())?;
                let names: Result<BTreeSet<String>, ErrorKind> = names
                    .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
                    .map(|e| e.map_err(|e| e.kind()))
                    .collect();
                Ok(format!("{:?}", names?))
            }
            Op::Write(path, offset, bytes) => {
                let file = OpenOptions::new().write(true).open(at(path));
                done(file.and_then(|f| f.write_all_at(bytes, *offset as u64)))
            }
            Op::Append(path, bytes) => {
                let file = OpenOptions::new().append(true).open(at(path));
                done(file.and_then(|mut f| f.write_all(bytes)))
            }
            Op::Truncate(path, size) => {
                let file = OpenOptions::new().write(true).open(at(path));
                done(file.and_then(|f| f.set_len(*size as u64)))
            }
            Op::Read(path) => match fs::read(at(path)) {
                Ok(bytes) => Ok(digest(&bytes)),
                Err(e) => Err(e.kind()),
            },
        }
    }
}

/// Contents in few words.
fn digest(bytes: &[u8]) -> String {
    let mut text = format!("{} bytes:", bytes.len());
    for run in bytes.chunk_by(|a, b| a == b) {
        text.push_str(&format!(" {}x{}", run.len(), char::from(run[0].max(b'0'))));
    }
    text
}

#[derive(Clone, Debug, Default)]
struct File {
    bytes: Vec<u8>,
    mode: u32,
    links: u32,
}

/// A file system of folders with files, and files beside them.
#[derive(Default)]
struct Model {
    folders: BTreeSet<String>,
    /// Path to number.
    names: BTreeMap<String, u64>,
    files: HashMap<u64, File>,
    next: u64,
}

impl Model {
    fn parent(&self, path: &str) -> Result<(), ErrorKind> {
        match path.split_once('/') {
            Some((folder, _)) if !self.folders.contains(folder) => Err(ErrorKind::NotFound),
            _ => Ok(()),
        }
    }

    fn number(&self, path: &str) -> Result<u64, ErrorKind> {
        self.names.get(path).copied().ok_or(ErrorKind::NotFound)
    }

    fn file(&mut self, path: &str) -> Result<&mut File, ErrorKind> {
        let number = self.number(path)?;
        self.files.get_mut(&number).ok_or(ErrorKind::NotFound)
    }

    fn unlink(&mut self, path: &str) {
        if let Some(number) = self.names.remove(path)
            && let Some(file) = self.files.get_mut(&number)
        {
            file.links -= 1;
        }
    }

    fn inside(&self, folder: &str) -> Vec<String> {
        let prefix = format!("{folder}/");
        let names = self.names.keys().filter(|n| n.starts_with(&prefix));
        names.map(|n| n[prefix.len()..].to_owned()).collect()
    }

    fn apply(&mut self, op: &Op) -> Answer {
        let done = Ok(String::new());
        match op {
            Op::Mkdir(path) => match self.folders.insert(path.clone()) {
                true => done,
                false => Err(ErrorKind::AlreadyExists),
            },
            Op::Rmdir(path) => {
                if !self.folders.contains(path) {
                    return Err(ErrorKind::NotFound);
                }
                if !self.inside(path).is_empty() {
                    return Err(ErrorKind::DirectoryNotEmpty);
                }
                self.folders.remove(path);
                done
            }
            Op::Create(path) => {
                self.parent(path)?;
                if self.names.contains_key(path) {
                    return Err(ErrorKind::AlreadyExists);
                }
                self.next += 1;
                self.names.insert(path.clone(), self.next);
                let file = File {
                    mode: 0o644,
                    links: 1,
                    ..File::default()
                };
                self.files.insert(self.next, file);
                done
            }
            Op::Unlink(path) => {
                self.number(path)?;
                self.unlink(path);
                done
            }
            Op::Rename(from, to) if FOLDERS.contains(&from.as_str()) => {
                if !self.folders.contains(from) {
                    return Err(ErrorKind::NotFound);
                }
                if from == to {
                    return done;
                }
                if !self.inside(to).is_empty() {
                    return Err(ErrorKind::DirectoryNotEmpty);
                }
                for name in self.inside(from) {
                    let number = self.names.remove(&format!("{from}/{name}"));
                    let number = number.expect("it is inside");
                    self.names.insert(format!("{to}/{name}"), number);
                }
                self.folders.remove(from);
                self.folders.insert(to.clone());
                done
            }
            Op::Rename(from, to) => {
                let number = self.number(from)?;
                self.parent(to)?;
                if self.names.get(to) == Some(&number) {
                    return done;
                }
                self.unlink(to);
                self.names.remove(from);
                self.names.insert(to.clone(), number);
                done
            }
            Op::Link(from, to) => {
                let number = self.number(from)?;
                self.parent(to)?;
                if self.names.contains_key(to) {
                    return Err(ErrorKind::AlreadyExists);
                }
                self.names.insert(to.clone(), number);
                self.file(to)?.links += 1;
                done
            }
            Op::Chmod(path, mode) => {
                self.file(path)?.mode = *mode;
                done
            }
            Op::Stat(path) => {
                let file = self.file(path)?;
                Ok(format!(
                    "{} {:o} {}",
                    file.bytes.len(),
                    file.mode,
                    file.links
                ))
            }
            Op::List(path) => {
                if !self.folders.contains(path) {
                    return Err(ErrorKind::NotFound);
                }
                let names: BTreeSet<String> = self.inside(path).into_iter().collect();
                Ok(format!("{names:?}"))
            }
            Op::Write(path, offset, bytes) => {
                let file = self.file(path)?;
                let end = offset + bytes.len();
                if file.bytes.len() < end {
                    file.bytes.resize(end, 0);
                }
                file.bytes[*offset..end].copy_from_slice(bytes);
                done
            }
            Op::Append(path, bytes) => {
                self.file(path)?.bytes.extend_from_slice(bytes);
                done
            }
            Op::Truncate(path, size) => {
                self.file(path)?.bytes.resize(*size, 0);
                done
            }
            Op::Read(path) => Ok(digest(&self.file(path)?.bytes)),
        }
    }
}

#[test]
fn any_mount_answers_as_one_file_system_would() {
    let _one = serial();
    let ops = number("FASTCACHE_ORACLE_OPS", OPS);
    against_the_model(&Cluster::start(NODES, &[]), ops);
}

#[test]
fn so_do_mounts_that_have_only_a_bucket_between_them() {
    let _one = serial();
    let ops = number("FASTCACHE_ORACLE_OPS", OPS) / APART_SHARE;
    against_the_model(&Cluster::start_apart(NODES, &[]), ops);
}

fn against_the_model(cluster: &Cluster, ops: u64) {
    let seed = seed("FASTCACHE_ORACLE_SEED", "FASTCACHE_ORACLE_OPS");
    eprintln!("seed {seed}");
    let since = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut last: Vec<String> = Vec::new();
    for n in 0..ops * 3 / 4 {
        let op = Op::random(&mut rng);
        let node = rng.random_range(0..NODES);
        let got = op.on(cluster.nodes[node].mount());
        let want = model.apply(&op);
        last.push(
            format!("{n} node {node} {op:?}: {want:?}")
                .chars()
                .take(200)
                .collect(),
        );
        assert_eq!(
            got,
            want,
            "seed {seed}, operation {n} on node {node}: {op:?}\n{}",
            last[last.len().saturating_sub(40)..].join("\n")
        );
    }
    let one_by_one = since.elapsed();
    registers(cluster, ops / 4, seed);
    eprintln!(
        "{ops} operations: {one_by_one:?} one by one, {:?} at once",
        since.elapsed() - one_by_one
    );
    for node in &cluster.nodes {
        assert_eq!(node.stat("conflict_files"), 0);
    }
}

fn registers(cluster: &Cluster, ops: u64, seed: u64) {
    const KEYS: usize = 6;
    const THREADS: usize = 2;
    let history: Mutex<Vec<(usize, Timed<Turn>)>> = Mutex::default();
    fs::create_dir(cluster.nodes[0].at("registers")).expect("mkdir");
    let each = ops / (NODES * THREADS) as u64;
    std::thread::scope(|scope| {
        for worker in 0..NODES * THREADS {
            let (history, node) = (&history, &cluster.nodes[worker % NODES]);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed ^ (worker as u64 + 1));
                for n in 0..each {
                    let key = rng.random_range(0..KEYS);
                    let path = node.at(&format!("registers/{key}"));
                    let value = worker as u64 * 1_000_000 + n + 1;
                    let text = value.to_string();
                    let beside = node.at(&format!("beside{worker}"));
                    let choice = rng.random_range(0..10);
                    let mut began = Instant::now();
                    let keep = |began, event| {
                        let returned = Some(Instant::now());
                        let timed = Timed {
                            began,
                            returned,
                            event,
                        };
                        history.lock().expect("lock").push((key, timed));
                    };
                    let event = match choice {
                        0..3 => {
                            fs::write(&beside, &text).expect("write");
                            began = Instant::now();
                            fs::rename(&beside, &path).expect("rename");
                            Turn::Put(value)
                        }
                        3..5 => {
                            fs::write(&beside, &text).expect("write");
                            began = Instant::now();
                            let made = fs::hard_link(&beside, &path);
                            keep(began, Turn::Create(value, made.is_ok()));
                            fs::remove_file(&beside).expect("unlink");
                            continue;
                        }
                        5 => Turn::Delete(fs::remove_file(&path).is_ok()),
                        _ => match fs::read_to_string(&path) {
                            Ok(text) => Turn::Get(Some(text.parse().expect("a whole value"))),
                            Err(e) if e.kind() == ErrorKind::NotFound => Turn::Get(None),
                            Err(e) => panic!("seed {seed}: {e}"),
                        },
                    };
                    keep(began, event);
                }
            });
        }
    });
    let history = history.into_inner().expect("lock");
    for key in 0..KEYS {
        let of_key = history.iter().filter(|(k, _)| *k == key);
        let turns: Vec<Timed<Turn>> = of_key.map(|(_, timed)| timed.clone()).collect();
        let found = check_views(&Register, &turns);
        assert_eq!(
            found,
            Verdict::Ordered,
            "seed {seed}, register {key}: no order of {turns:#?}"
        );
    }
}
