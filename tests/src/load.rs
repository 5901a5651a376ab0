//! A worker of the load test: random operations, each done on the mount and on a plain directory (the model) and
//! compared at once: what it answered, its errno, the bytes it read.
//!
//! A run is a function of its seed and its worker number alone: names of different workers never meet, although they
//! share a directory and the pages of one file. So a worker that found a difference finds it again when it is started
//! with the same arguments, and most differences show up without the other workers.

mod check;
mod contents;
mod names;
mod pair;

pub use check::{compare_now, same_times};

use names::Names;
use pair::{Difference, Handle, Pair};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::VecDeque;
use std::path::PathBuf;

/// Operations that are told when there is a difference.
const HISTORY: usize = 40;
/// Most files a worker holds open at once.
const HANDLES_MAX: usize = 4;
/// Everything is compared after so many operations, too.
const COMPARE_EVERY: u64 = 500;
/// Name of the file that all workers write to, each its own stripes.
pub const COMMON: &str = "shared/common";
/// Bytes of a stripe: neither a block nor a divisor of one, so that neighbours meet in every block.
const STRIPE: u64 = 5000;
/// Stripes of the common file for each worker.
const STRIPES: u64 = 200;

/// What a worker is told to do.
#[derive(Clone, Debug)]
pub struct Task {
    /// Everything random comes from this and `worker`.
    pub seed: u64,
    /// Number of this worker.
    pub worker: u64,
    /// How many workers there are.
    pub workers: u64,
    /// How many operations.
    pub ops: u64,
    /// Folder on the mount.
    pub mount: PathBuf,
    /// Folder on a local file system that does the same.
    pub model: PathBuf,
}

impl Task {
    /// Makes the folders that this worker expects, on both sides; to be called before any worker starts.
    ///
    /// # Panics
    /// When they cannot be made.
    pub fn prepare(&self, owner: u32) {
        for side in [&self.mount, &self.model] {
            for dir in [self.own(), "shared".to_owned()] {
                let dir = side.join(dir);
                std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
            }
            let open_to_all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            let common = side.join(COMMON);
            std::fs::set_permissions(side.join("shared"), open_to_all)
                .and_then(|()| {
                    std::os::unix::fs::chown(side.join(self.own()), Some(owner), Some(owner))
                })
                .and_then(|()| {
                    std::fs::OpenOptions::new()
                        .append(true)
                        .create(true)
                        .open(&common)
                })
                .and_then(|f| {
                    f.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
                })
                .unwrap_or_else(|e| panic!("{}: {e}", side.display()));
        }
    }

    fn own(&self) -> String {
        format!("own-{}", self.worker)
    }

    /// Does it.
    ///
    /// # Errors
    /// The first difference, with the operations before it.
    pub fn run(&self) -> Result<(), String> {
        let mut worker = Worker {
            pair: Pair::new(&self.mount, &self.model),
            rng: StdRng::seed_from_u64(self.seed.wrapping_mul(1_000_003).wrapping_add(self.worker)),
            names: Names::new(&self.own(), self.worker),
            handles: Vec::new(),
            history: VecDeque::new(),
            task: self.clone(),
        };
        for number in 0..self.ops {
            worker
                .step()
                .and_then(|()| {
                    let is_due = number % COMPARE_EVERY == COMPARE_EVERY - 1;
                    if is_due { worker.compare_own() } else { Ok(()) }
                })
                .map_err(|d| worker.story(number, &d))?;
        }
        worker.handles.clear();
        worker.compare_own().map_err(|d| worker.story(self.ops, &d))
    }
}

struct Worker {
    task: Task,
    pair: Pair,
    rng: StdRng,
    names: Names,
    handles: Vec<Handle>,
    history: VecDeque<String>,
}

impl Worker {
    /// One random operation.
    fn step(&mut self) -> Result<(), Difference> {
        // Weights: contents, then names, then attributes.
        match self.rng.random_range(0..100) {
            0..=11 => self.open_new(),
            12..=27 => self.write(),
            28..=39 => self.read(),
            40..=42 => self.append(),
            43..=47 => self.truncate(),
            48..=51 => self.fallocate(),
            52..=54 => self.copy_range(),
            55..=58 => self.map(),
            59..=60 => self.sync(),
            61..=63 => self.stripe(),
            64..=65 => self.seek(),
            66..=71 => self.rename(),
            72..=74 => self.link(),
            75..=78 => self.unlink(),
            79..=82 => self.mkdir(),
            83..=84 => self.rmdir(),
            85..=86 => self.symlink(),
            87..=89 => self.list(),
            90..=91 => self.chmod(),
            92 => self.times(),
            93..=95 => self.xattr(),
            96..=97 => self.stat(),
            _ => self.close(),
        }
    }

    fn note(&mut self, what: String) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(what);
    }

    fn compare_own(&self) -> Result<(), Difference> {
        for dir in [self.task.own(), "shared".to_owned()] {
            let prefix = (dir == "shared").then(|| self.names.prefix());
            compare_now(
                &self.task.model.join(&dir),
                &self.task.mount.join(&dir),
                prefix,
            )
            .map_err(Difference)?;
        }
        Ok(())
    }

    fn story(&self, number: u64, difference: &Difference) -> String {
        let mut text = format!(
            "worker {} of {}, seed {}, operation {number}: {}\nthe operations before, oldest first:\n",
            self.task.worker, self.task.workers, self.task.seed, difference.0
        );
        for line in &self.history {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    //! The load test itself: it finds nothing where there is nothing, and finds what is there.

    use super::*;
    use std::os::unix::fs::FileExt as _;

    fn task(dir: &std::path::Path) -> Task {
        let task = Task {
            seed: 11,
            worker: 0,
            workers: 2,
            ops: 600,
            mount: dir.join("mount"),
            model: dir.join("model"),
        };
        task.prepare(0);
        task
    }

    #[test]
    fn two_local_folders_are_the_same_until_one_byte_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let task = task(dir.path());
        task.run().unwrap();
        same_times(&task.model, &task.mount);
        compare_now(&task.model, &task.mount, None).unwrap();
        crate::assert_same_tree(&task.model, &task.mount);
        let files = walkdir::WalkDir::new(&task.mount)
            .into_iter()
            .filter_map(Result::ok);
        let mut files = files.filter(|e| e.metadata().is_ok_and(|m| m.is_file() && m.len() > 0));
        let damaged = files.next().unwrap();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(damaged.path())
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0).unwrap();
        file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
        let wrong = compare_now(&task.model, &task.mount, None).unwrap_err();
        assert!(wrong.contains("contents differ from byte 0"), "{wrong}");
        // The next run sees what the folder had before it.
        std::fs::write(task.mount.join("own-0/extra"), "x").unwrap();
        let story = task.run().unwrap_err();
        assert!(
            story.contains("extra") && story.contains("seed 11"),
            "{story}"
        );
    }
}
