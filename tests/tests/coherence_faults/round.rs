//! A round: programs on every node while things fail, a look at everything when all is back, and the judgement.

use super::hurt::{Hurt, Outage, split};
use fastcache_tests::oracle::{
    Contents, Names, Object, Register, Timed, Touch, Touched, Verdict, as_one, check, check_views,
    settle, with_returns,
};
use fastcache_tests::program::{
    FILES, LOGS, NODES, Note, Noted, Of, PLACES, PROGRAMS, Program, REGISTERS, Running, Task,
    Trouble,
};
use fastcache_tests::{CabledNodes, Node};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How long the programs go on when everything is back.
const AFTER: Duration = Duration::from_millis(700);
/// Events that are told of an object whose answers have no order.
const TOLD: usize = 150;

/// What was so shortly before a read is told with it.
const NEAR: Duration = Duration::from_millis(100);

/// A round's folder, and what it began with.
pub struct Round {
    began: Instant,
    name: String,
    seed: u64,
    first: Noted,
}

/// What came of a round.
#[derive(Debug, Default)]
pub struct Told {
    pub operations: u64,
    /// Nobody knows whether they were done.
    pub undecided: usize,
    /// Reads of what was being written, about which nothing is promised.
    pub under_way: usize,
    /// Errors, by what they were about.
    pub errors: BTreeMap<String, usize>,
    pub conflict_files: usize,
    /// Objects whose search was given up.
    pub gave_up: usize,
    pub checked_in: Duration,
}

impl Round {
    /// A folder of its own.
    pub fn prepare(cluster: &CabledNodes, number: usize, seed: u64) -> Round {
        let name = format!("round{number}");
        let seed = seed.wrapping_add((number as u64) << 32);
        let began = Instant::now();
        let first = Program::new(Task::on(&cluster.nodes[0], 0, PROGRAMS, &name, seed)).prepare();
        Round {
            began,
            name,
            seed,
            first,
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When something is wrong, with the history of the object.
    #[track_caller]
    pub fn run(self, cluster: &mut CabledNodes, hurts: Vec<Hurt>) -> Told {
        println!("{}, seed {}: {hurts:?}", self.name, self.seed);
        let (nodes, mut rest) = split(cluster);
        let (mut noted, outages) = self.work(nodes, |nodes| rest.hurt(nodes, &hurts));
        noted.push(self.first.clone());
        for (n, node) in nodes.iter().enumerate() {
            let task = Task::on(node, n, PROGRAMS, &self.name, self.seed);
            noted.push(Program::new(task).look());
        }
        self.judge(nodes, noted, &outages)
    }

    /// Programs on each node, while something is done to the nodes.
    fn work(
        &self,
        nodes: &[Node],
        hurt: impl FnOnce(&[Node]) -> Vec<Outage>,
    ) -> (Vec<Noted>, Vec<Outage>) {
        let executable = env!("CARGO_BIN_EXE_fastcache-program");
        let mut programs: Vec<Running> = Vec::new();
        for (n, node) in nodes.iter().enumerate() {
            for program in 0..PROGRAMS {
                let task = Task::on(node, n, program, &self.name, self.seed);
                programs.push(task.start(executable));
            }
        }
        let outages = hurt(nodes);
        std::thread::sleep(AFTER);
        programs.iter_mut().for_each(Running::stop);
        let noted = programs.into_iter().map(Running::noted);
        (noted.collect(), outages)
    }

    fn judge(&self, nodes: &[Node], noted: Vec<Noted>, outages: &[Outage]) -> Told {
        let mut told = Told::default();
        let mut wrong: Vec<String> = Vec::new();
        let (mut sorted, mut troubles) = (Sorted::default(), Vec::new());
        for one in noted {
            wrong.extend(one.wrong);
            for trouble in one.troubles {
                let error = std::io::Error::from(trouble.error()).kind();
                let what = match trouble.error() {
                    Errno::IO => format!("{:?}: EIO", trouble.of),
                    _ => format!("{:?}: {error:?}", trouble.of),
                };
                *told.errors.entry(what).or_default() += 1;
                if trouble.error() != Errno::NOTCONN {
                    troubles.push(self.trouble(&trouble));
                }
                if !is_documented(&trouble, outages) {
                    wrong.push(format!("no outage explains {}", self.trouble(&trouble)));
                }
            }
            sorted.add(one.notes);
        }
        for (n, log) in sorted.logs.iter().enumerate() {
            self.tell_zeros(n, log);
        }
        told.under_way = sorted.settle();
        told.operations = sorted.count();
        told.undecided = sorted.undecided();
        sorted.names = as_one(sorted.names);
        let hurt = (0..NODES).map(|node| {
            let of_node = outages.iter().filter(|outage| outage.concerns(node));
            of_node.map(|outage| outage.from).min()
        });
        let hurt: Vec<Option<Instant>> = hurt.collect();
        let since = Instant::now();
        let mut checks = vec![
            self.check_views("the names", &Names, &sorted.names),
            self.check_views("the time stamp", &Register, &sorted.stamp),
        ];
        for (n, turns) in sorted.registers.iter().enumerate() {
            checks.push(self.check_views(&format!("register {n}"), &Register, turns));
        }
        let contents = |places| Contents {
            places,
            hurt: hurt.clone(),
        };
        for (n, touches) in sorted.files.iter().enumerate() {
            let object = contents(PLACES.len());
            checks.push(self.check_contents(&format!("file {n}"), &object, touches));
        }
        for (n, touches) in sorted.logs.iter().enumerate() {
            checks.push(self.check_contents(&format!("log {n}"), &contents(0), touches));
        }
        told.checked_in = since.elapsed();
        for found in checks {
            match found {
                Found::Ordered => {}
                Found::GaveUp => told.gave_up += 1,
                Found::Wrong(text) => wrong.push(text),
            }
        }
        match self.conflict_files(&nodes[0]) {
            Ok(count) if count > 0 && hurt.iter().all(Option::is_none) => {
                wrong.push(format!("{count} conflict files, and nobody lost a lease"));
            }
            Ok(count) => told.conflict_files = count,
            Err(what) => wrong.push(what),
        }
        let outages: Vec<String> = outages
            .iter()
            .map(|o| format!("{:?} from {} to {}", o.what, self.ms(o.from), self.ms(o.to)))
            .collect();
        assert!(
            wrong.is_empty(),
            "{}, seed {}, milliseconds: {outages:#?}\n{told:?}\n{}\n{}",
            self.name,
            self.seed,
            troubles.join("\n"),
            wrong.join("\n\n")
        );
        told
    }

    /// Milliseconds since the round began.
    fn ms(&self, at: Instant) -> f64 {
        let since = at.saturating_duration_since(self.began);
        (since.as_secs_f64() * 10_000.0).round() / 10.0
    }

    fn trouble(&self, trouble: &Trouble) -> String {
        format!(
            "{} to {} node {}: {}: {:?}",
            self.ms(trouble.began),
            self.ms(trouble.ended),
            trouble.node,
            trouble.what,
            trouble.error()
        )
    }

    fn check_views<O: Object>(&self, what: &str, object: &O, history: &[Timed<O::Event>]) -> Found
    where
        O::Event: Clone,
    {
        self.found(what, check_views(object, history), history)
    }

    fn check_contents(&self, what: &str, file: &Contents, touches: &[Timed<Touched>]) -> Found {
        let touches = with_returns(touches);
        self.found(what, check(file, &touches), &touches)
    }

    fn found<E: Debug>(&self, what: &str, verdict: Verdict, history: &[Timed<E>]) -> Found {
        let at = match verdict {
            Verdict::Ordered => return Found::Ordered,
            Verdict::GaveUp(at) => {
                println!("{what}: given up at {:?}", history[at].event);
                return Found::GaveUp;
            }
            Verdict::Wrong(at) => at,
        };
        let returned = history[at].returned;
        let mut before: Vec<&Timed<E>> = history
            .iter()
            .filter(|t| returned.is_none_or(|returned| t.began <= returned))
            .collect();
        before.sort_by_key(|t| t.began);
        let skipped = before.len().saturating_sub(TOLD);
        // What is undecided is never old.
        let (old, new) = before.split_at(skipped);
        let undecided = old.iter().filter(|t| t.returned.is_none());
        let lines: Vec<String> = undecided
            .chain(new)
            .map(|t| {
                let to = t
                    .returned
                    .map_or("?".to_owned(), |r| self.ms(r).to_string());
                format!("{} to {to}: {:?}", self.ms(t.began), t.event)
            })
            .collect();
        Found::Wrong(format!(
            "{what}: no order of what is before has {:?}, which returned at {:?} ms:\n{}",
            history[at].event,
            returned.map(|r| self.ms(r)),
            lines.join("\n")
        ))
    }

    /// Reads of a log that found zeros, and what was about it then.
    fn tell_zeros(&self, number: usize, log: &[Timed<Touched>]) {
        let ms = |at: Option<Instant>| at.map(|at| self.ms(at));
        let has_zeros = |touch: &Touch| matches!(touch, Touch::ReadAll(v) if v.contains(&0));
        for read in log.iter().filter(|t| has_zeros(&t.event.touch)) {
            let (from, to) = (self.ms(read.began), ms(read.returned));
            println!("log {number}, {from} to {to:?}, zeros: {:?}", read.event);
            let is_near = |t: &&Timed<Touched>| {
                t.began <= read.returned.unwrap_or(t.began)
                    && t.returned.is_none_or(|at| at + NEAR >= read.began)
            };
            let mut near: Vec<_> = log.iter().filter(is_near).collect();
            near.sort_by_key(|t| t.began);
            for t in near {
                let (from, to) = (self.ms(t.began), ms(t.returned));
                println!("  {from} to {to:?}: {:?}", t.event);
            }
        }
    }

    /// How many there are; an error for what nobody made.
    fn conflict_files(&self, node: &Node) -> Result<usize, String> {
        let names = std::fs::read_dir(node.at(&self.name)).map_err(|e| e.to_string())?;
        let mut count = 0;
        for name in names {
            let name = name.map_err(|e| e.to_string())?.file_name();
            let name = name.to_string_lossy();
            match name.split_once(".conflict-") {
                Some((of, _)) if is_written_in_place(of) || of.starts_with("beside-") => count += 1,
                Some(_) => return Err(format!("a conflict file of nothing: {name}")),
                None if is_known(&name) => {}
                None => return Err(format!("nobody made {name}")),
            }
        }
        Ok(count)
    }
}

enum Found {
    Ordered,
    GaveUp,
    Wrong(String),
}

fn is_written_in_place(name: &str) -> bool {
    let files = (0..FILES).map(|n| format!("file{n}"));
    let logs = (0..LOGS).map(|n| format!("log{n}"));
    files.chain(logs).any(|n| n == name)
}

fn is_known(name: &str) -> bool {
    is_written_in_place(name)
        || (0..REGISTERS).any(|n| name == format!("register{n}"))
        || ["stamp", "d0", "d1", "x", "y"].contains(&name)
        // Put nowhere, since something failed.
        || name.starts_with("beside-")
}

/// Whether docs/semantics.md has this error for an outage that was then: the mount of a data plane that was killed ends; what was
/// written under a lease that was lost is said at the next `close`, and writes wait 2 s at most for what is done about it; what
/// only a node has that is down or cut off cannot be read, nor written to in part.
fn is_documented(trouble: &Trouble, outages: &[Outage]) -> bool {
    let node = trouble.node;
    let mut then = outages
        .iter()
        .filter(|outage| outage.is_in(trouble.began, trouble.ended));
    let is_of_mount = matches!(
        trouble.error(),
        Errno::NOTCONN | Errno::CONNABORTED | Errno::IO
    );
    then.clone().any(|outage| outage.ends_mount(node)) && is_of_mount
        || trouble.error() == Errno::IO
            && match trouble.of {
                Of::Names => false,
                Of::Read => then.any(|outage| (0..NODES).any(|n| n != node && outage.hides(n))),
                Of::Written => {
                    then.any(|outage| (0..NODES).any(|n| n != node && outage.hides(n)))
                        || outages
                            .iter()
                            .any(|outage| outage.concerns(node) && outage.from <= trouble.ended)
                }
            }
}

/// Notes by the object that they are about.
#[derive(Default)]
struct Sorted {
    names: Vec<Timed<<Names as Object>::Event>>,
    stamp: Vec<Timed<<Register as Object>::Event>>,
    registers: [Vec<Timed<<Register as Object>::Event>>; REGISTERS],
    files: [Vec<Timed<Touched>>; FILES],
    logs: [Vec<Timed<Touched>>; LOGS],
}

impl Sorted {
    fn add(&mut self, notes: Vec<Note>) {
        for note in notes {
            match note {
                Note::Names(timed) => self.names.push(timed),
                Note::Stamp(timed) => self.stamp.push(timed),
                Note::Register(n, timed) => self.registers[n].push(timed),
                Note::File(n, timed) => self.files[n].push(timed),
                Note::Log(n, timed) => self.logs[n].push(timed),
            }
        }
    }

    fn settle(&mut self) -> usize {
        let contents = self.files.iter_mut().chain(&mut self.logs);
        contents.map(settle).sum()
    }

    /// What of each object.
    fn sums(
        &self,
        names: impl Fn(&Timed<<Names as Object>::Event>) -> bool,
        turns: impl Fn(&Timed<<Register as Object>::Event>) -> bool,
        touches: impl Fn(&Timed<Touched>) -> bool,
    ) -> usize {
        let registers = self.registers.iter().flatten().chain(&self.stamp);
        let contents = self.files.iter().chain(&self.logs).flatten();
        self.names.iter().filter(|t| names(t)).count()
            + registers.filter(|t| turns(t)).count()
            + contents.filter(|t| touches(t)).count()
    }

    fn count(&self) -> u64 {
        self.sums(|_| true, |_| true, |_| true) as u64
    }

    fn undecided(&self) -> usize {
        self.sums(
            |t| t.returned.is_none(),
            |t| t.returned.is_none(),
            |t| t.returned.is_none(),
        )
    }
}
