//! Which core serves which of the kernel's queues, and with how much memory.

use super::{ENTRIES_MAX, ENTRY_BYTES};
use std::io;

/// What a core has to serve.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Share {
    /// Its own queues, by their numbers.
    pub queues: Vec<u16>,
    /// Queues of another core in which it has some entries.
    pub helps: Vec<u16>,
    /// It reads `/dev/fuse` too.
    pub reads_device: bool,
    /// What further entries of this core may take, when each holds a request of the largest size, bytes.
    pub entries_bytes: u64,
}

/// Shares the queues out: one for each processor that can exist, to the core on that processor, else in turn. The first
/// core reads the device. Every queue is served, or no request would be. Each core helps the one before it. All cores
/// together have `entries_bytes` for further entries.
#[must_use]
pub fn shares(queues: u16, cpus: &[usize], entries_bytes: u64) -> Vec<Share> {
    let mut shares: Vec<Share> = (0..cpus.len())
        .map(|core| Share {
            queues: Vec::new(),
            helps: Vec::new(),
            reads_device: core == 0,
            entries_bytes: entries_bytes / cpus.len() as u64,
        })
        .collect();
    let mut next = 0;
    for queue in 0..queues {
        let own = cpus.iter().position(|cpu| *cpu == usize::from(queue));
        let core = own.unwrap_or_else(|| {
            next += 1;
            (next - 1) % cpus.len().max(1)
        });
        if let Some(share) = shares.get_mut(core) {
            share.queues.push(queue);
        }
    }
    if shares.len() > 1 {
        let own: Vec<Vec<u16>> = shares.iter().map(|share| share.queues.clone()).collect();
        let before = own.iter().cycle().skip(own.len() - 1);
        for (share, helps) in shares.iter_mut().zip(before) {
            share.helps.clone_from(helps);
        }
    }
    shares
}

/// How many processors this machine can come to have: what the kernel makes queues for.
///
/// # Errors
/// When it does not say.
pub fn possible_cpus() -> io::Result<u16> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    count_cpus(text.trim()).ok_or_else(|| {
        let what = format!("/sys/devices/system/cpu/possible says {text:?}");
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// Processors in a list like `0-3,8`.
fn count_cpus(list: &str) -> Option<u16> {
    list.split(',').try_fold(0_u16, |sum, part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u16, u16) = (from.parse().ok()?, to.parse().ok()?);
        sum.checked_add(to.checked_sub(from)?.checked_add(1)?)
    })
}

/// Most entries of a core that may take so much.
pub(super) fn entries_max(entries_bytes: u64) -> usize {
    let all = entries_bytes / ENTRY_BYTES as u64;
    usize::try_from(all).unwrap_or(usize::MAX).min(ENTRIES_MAX)
}

#[cfg(test)]
mod tests {
    //! Every queue has a core, whatever cores there are.

    use super::*;

    #[test]
    fn every_queue_is_served_once() {
        for (queues, cpus) in [
            (2, vec![0, 1]),
            (2, vec![1]),
            (8, vec![5]),
            (8, vec![6, 7]),
            (1, vec![0]),
            (128, vec![0, 1, 2]),
        ] {
            let shares = shares(queues, &cpus, 0);
            let mut all: Vec<u16> = shares.iter().flat_map(|s| s.queues.clone()).collect();
            all.sort_unstable();
            assert_eq!(all, (0..queues).collect::<Vec<_>>(), "{cpus:?}");
            assert_eq!(shares.iter().filter(|s| s.reads_device).count(), 1);
            let mut helped: Vec<u16> = shares.iter().flat_map(|s| s.helps.clone()).collect();
            helped.sort_unstable();
            assert!(cpus.len() == 1 || helped == all);
            assert!(
                shares
                    .iter()
                    .all(|s| !s.helps.iter().any(|q| s.queues.contains(q)))
            );
            for (core, cpu) in cpus.iter().enumerate() {
                let own = u16::try_from(*cpu).unwrap();
                assert!(own >= queues || shares[core].queues.contains(&own));
            }
            let (least, most) = (
                shares.iter().map(|s| s.queues.len()).min().unwrap(),
                shares.iter().map(|s| s.queues.len()).max().unwrap(),
            );
            assert!(most - least <= 1, "{cpus:?}: {least} to {most}");
        }
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(count_cpus("0"), Some(1));
        assert_eq!(count_cpus("0-1"), Some(2));
        assert_eq!(count_cpus("0-3,8,10-11"), Some(7));
        for wrong in ["", "a", "3-1", "0-", "0-65535"] {
            assert_eq!(count_cpus(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn entries_fit_into_the_memory() {
        let each = entries_max((3 << 30) / 2);
        assert!((1000..ENTRIES_MAX).contains(&each), "{each}");
        assert_eq!(entries_max(u64::MAX), ENTRIES_MAX);
        assert_eq!(entries_max(0), 0);
    }
}
