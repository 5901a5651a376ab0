//! The kernel's operation codes, and how often each was asked for and how long it took.

use fastcache_api::control::{LATENCY_BOUNDS_US, Latency};
use fastcache_reactor::striped::{STRIPES, Stripe, Striped};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One more than the largest opcode counted.
const OPCODE_END: usize = 64;

/// The requests of one opcode on one core.
struct Requests {
    count: AtomicU64,
    /// Those that were answered by how long it took; the last one takes what is longer than all bounds.
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

/// Requests by opcode since the process started; index 0 takes those without a name here.
static REQUESTS: Striped<[Requests; OPCODE_END]> = Striped::new(
    [const {
        Stripe(
            [const {
                Requests {
                    count: AtomicU64::new(0),
                    buckets: [const { AtomicU64::new(0) }; LATENCY_BOUNDS_US.len() + 1],
                    sum_ns: AtomicU64::new(0),
                }
            }; OPCODE_END],
        )
    }; STRIPES],
);

/// A number of all cores together.
fn sum(of: impl Fn(&[Requests; OPCODE_END]) -> &AtomicU64) -> u64 {
    let all = REQUESTS.iter().map(|core| of(core).load(Ordering::Relaxed));
    all.fold(0, u64::wrapping_add)
}

macro_rules! opcodes {
    ($($name:ident = $value:literal, $word:literal;)*) => {
        /// What a request asks for (`enum fuse_opcode`).
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum Opcode {
            $(#[doc = concat!("`FUSE_", $word, "`, ", stringify!($value), ".")] $name = $value,)*
        }

        impl Opcode {
            /// Every opcode, in order of its number.
            pub const ALL: &[Opcode] = &[$(Opcode::$name),*];

            /// The opcode of this number, if it has a name here.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Opcode> {
                match number { $($value => Some(Opcode::$name),)* _ => None }
            }

            /// The kernel's name in lower case, for logs and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Opcode::$name => $word,)* }
            }
        }
    };
}

opcodes! {
    Lookup = 1, "lookup";
    Forget = 2, "forget";
    Getattr = 3, "getattr";
    Setattr = 4, "setattr";
    Readlink = 5, "readlink";
    Symlink = 6, "symlink";
    Mknod = 8, "mknod";
    Mkdir = 9, "mkdir";
    Unlink = 10, "unlink";
    Rmdir = 11, "rmdir";
    Rename = 12, "rename";
    Link = 13, "link";
    Open = 14, "open";
    Read = 15, "read";
    Write = 16, "write";
    Statfs = 17, "statfs";
    Release = 18, "release";
    Fsync = 20, "fsync";
    Setxattr = 21, "setxattr";
    Getxattr = 22, "getxattr";
    Listxattr = 23, "listxattr";
    Removexattr = 24, "removexattr";
    Flush = 25, "flush";
    Init = 26, "init";
    Opendir = 27, "opendir";
    Readdir = 28, "readdir";
    Releasedir = 29, "releasedir";
    Fsyncdir = 30, "fsyncdir";
    Getlk = 31, "getlk";
    Setlk = 32, "setlk";
    Setlkw = 33, "setlkw";
    Access = 34, "access";
    Create = 35, "create";
    Interrupt = 36, "interrupt";
    Bmap = 37, "bmap";
    Destroy = 38, "destroy";
    Ioctl = 39, "ioctl";
    Poll = 40, "poll";
    NotifyReply = 41, "notify_reply";
    BatchForget = 42, "batch_forget";
    Fallocate = 43, "fallocate";
    Readdirplus = 44, "readdirplus";
    Rename2 = 45, "rename2";
    Lseek = 46, "lseek";
    CopyFileRange = 47, "copy_file_range";
    SetupMapping = 48, "setupmapping";
    RemoveMapping = 49, "removemapping";
    Syncfs = 50, "syncfs";
    Tmpfile = 51, "tmpfile";
    Statx = 52, "statx";
    CopyFileRange64 = 53, "copy_file_range_64";
}

fn index_of(number: u32) -> usize {
    Opcode::from_number(number).map_or(0, |opcode| opcode as usize)
}

/// Counts one request.
pub(crate) fn count(number: u32) {
    REQUESTS.mine()[index_of(number)]
        .count
        .fetch_add(1, Ordering::Relaxed);
}

/// Notes how long a request took, from when it was read to when its answer is ready.
pub(crate) fn took(number: u32, duration: Duration) {
    let of = &REQUESTS.mine()[index_of(number)];
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
    of.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    of.sum_ns.fetch_add(ns, Ordering::Relaxed);
}

/// How long requests took, by operation; those that never came are left out.
#[must_use]
pub fn latencies() -> Vec<Latency> {
    let named = Opcode::ALL
        .iter()
        .map(|opcode| (opcode.name(), *opcode as usize));
    std::iter::once(("unknown", 0))
        .chain(named)
        .filter_map(|(name, index)| {
            let buckets: Vec<u64> = (0..=LATENCY_BOUNDS_US.len())
                .map(|bucket| sum(|of| &of[index].buckets[bucket]))
                .collect();
            (buckets.iter().sum::<u64>() > 0).then(|| Latency {
                operation: name.to_owned(),
                buckets,
                sum_us: sum(|of| &of[index].sum_ns) / 1000,
            })
        })
        .collect()
}

/// Requests served so far by operation, those that never came left out. Names are the kernel's in lower case.
#[must_use]
pub fn counters() -> Vec<(String, u64)> {
    let named = Opcode::ALL
        .iter()
        .map(|opcode| (opcode.name(), *opcode as usize));
    std::iter::once(("unknown", 0))
        .chain(named)
        .map(|(name, index)| (name.to_owned(), sum(|of| &of[index].count)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        // Nothing else in these tests asks for this opcode.
        let number = Opcode::RemoveMapping as u32;
        let bound = LATENCY_BOUNDS_US[0];
        took(number, Duration::from_micros(bound));
        took(number, Duration::from_micros(bound + 1));
        took(number, Duration::from_secs(3600));
        let of = latencies()
            .into_iter()
            .find(|l| l.operation == "removemapping")
            .unwrap();
        assert_eq!(of.buckets.len(), LATENCY_BOUNDS_US.len() + 1);
        assert_eq!((of.buckets[0], of.buckets[1]), (1, 1));
        assert_eq!(of.buckets.last(), Some(&1));
        assert_eq!(of.sum_us, 3_600_000_000 + 2 * bound + 1);
    }
}
