//! A world: one core whose clock, order of tasks and devices come from a seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use super::device::Device;
use crate::executor::{Config, run_in, try_with_core, with_core};
use crate::time::Instant;

/// How long a task runs before it waits, or so.
const STEP: Duration = Duration::from_micros(1);

/// What a core of a simulated world has instead of the operating system.
pub(crate) struct World {
    state: RefCell<State>,
}

struct State {
    rng: StdRng,
    now: Instant,
    devices: BTreeMap<PathBuf, Device>,
}

impl World {
    fn new(seed: u64) -> World {
        World {
            state: RefCell::new(State {
                rng: StdRng::seed_from_u64(seed),
                now: Instant::START,
                devices: BTreeMap::new(),
            }),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.state.borrow().now
    }

    /// Time goes on a little.
    pub(crate) fn step(&self) {
        self.state.borrow_mut().now += STEP;
    }

    /// Time goes on until then.
    pub(crate) fn wait_until(&self, then: Instant) {
        let mut state = self.state.borrow_mut();
        state.now = state.now.max(then);
    }

    /// A number below `n`.
    pub(crate) fn random(&self, n: u64) -> u64 {
        self.state.borrow_mut().rng.random_range(0..n.max(1))
    }

    pub(crate) fn fill(&self, out: &mut [u8]) {
        self.state.borrow_mut().rng.fill_bytes(out);
    }

    pub(crate) fn device(&self, path: &Path) -> Option<Device> {
        self.state.borrow().devices.get(path).cloned()
    }
}

/// Says how to see a failure again.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulated world failed that grew from seed {}", self.0);
        }
    }
}

/// Runs a future in the world that grows from `seed`, to its end. Time passes when all tasks wait, and then at once.
///
/// # Panics
/// When the future or a task does, and when all wait for what never happens; the seed is printed then.
pub fn run<T, F: Future<Output = T>>(seed: u64, main: impl FnOnce() -> F) -> T {
    let _seed = Seed(seed);
    let config = Config {
        cpu: None,
        entries: 8,
        pool_buffers: 1,
        buffer_bytes: 1 << 20,
        wide_entries: false,
    };
    match run_in(config, Some(World::new(seed)), main) {
        Ok(result) => result,
        Err(error) => panic!("a simulated world cannot be made: {error}"),
    }
}

/// Calls `f` with this thread's world.
fn with_world<T>(f: impl FnOnce(&World) -> T) -> T {
    with_core(|core| match &core.world {
        Some(world) => f(world),
        None => panic!("fastcache-reactor: this thread is not in a simulated world"),
    })
}

/// A number below `n` that this thread's world chooses.
///
/// # Panics
/// Outside of a simulated world.
pub fn random(n: u64) -> u64 {
    with_world(|world| world.random(n))
}

pub(crate) fn attach(path: &Path, device: Device) {
    let path = path.to_owned();
    with_world(|world| world.state.borrow_mut().devices.insert(path, device));
}

/// The device at this path in this thread's world.
pub(crate) fn attached(path: &Path) -> Option<Device> {
    try_with_core(|core| core.world.as_ref()?.device(path)).flatten()
}
