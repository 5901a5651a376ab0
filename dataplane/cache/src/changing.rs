//! What a change of names by this node makes of what is known of their directories. Whoever begins one ends it, or forgets:
//! a change that nobody has waited for may have happened, or happen yet.

use crate::FileSystem;
use crate::entries::{Begun, Outcome};
use crate::lease::Grant;
use fastcache_api::{Errno, Ino, NsAnswer, NsOp, RenameMode};

/// A change that is under way.
pub(crate) struct Changing<'a> {
    fs: &'a FileSystem,
    begun: Vec<Begun>,
}

/// What is to become of the names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// It leads to what the answer tells.
    Made,
    /// It goes.
    Removed,
    /// The first takes the place of the second.
    Moved,
    /// Something else.
    Other,
}

impl Change {
    /// Of this operation.
    pub fn of(op: &NsOp) -> Change {
        match op {
            NsOp::Make { .. } | NsOp::Link { .. } => Change::Made,
            NsOp::Unlink { .. } | NsOp::Rmdir { .. } => Change::Removed,
            NsOp::Rename { mode, .. } if *mode != RenameMode::Exchange => Change::Moved,
            _ => Change::Other,
        }
    }

    /// What came of the names; `None`: nobody knows.
    fn outcomes(self, begun: &[Begun], result: &Result<NsAnswer, Errno>) -> Option<Vec<Outcome>> {
        let answer = match result {
            Ok(answer) => answer,
            // The agent or the coordinator gave up waiting.
            Err(Errno::EIO | Errno::ENOTCONN) => return None,
            // What is known of the name is wrong, or nothing is known.
            Err(Errno::ENOENT | Errno::EEXIST) => return Some(vec![Outcome::Unsure; begun.len()]),
            Err(_) => return Some(vec![Outcome::Unchanged; begun.len()]),
        };
        Some(match (self, answer, begun) {
            (Change::Made, NsAnswer::Entry(attr), _) => vec![Outcome::Leads(attr.ino)],
            (Change::Removed, _, _) => vec![Outcome::Absent],
            (Change::Moved, _, [from, to]) => match (from.led_to(), to.led_to()) {
                // Two names of one file both stay.
                (Some(Some(ino)), Some(replaced)) if replaced != Some(ino) => {
                    vec![Outcome::Absent, Outcome::Leads(ino)]
                }
                _ => vec![Outcome::Unsure; 2],
            },
            _ => vec![Outcome::Unsure; begun.len()],
        })
    }
}

impl<'a> Changing<'a> {
    /// To be called before it is asked for.
    pub fn begin(fs: &'a FileSystem, names: &[(Ino, &[u8])]) -> Changing<'a> {
        Changing {
            fs,
            begun: fs.inner.entries.begin(names),
        }
    }

    /// It was answered.
    pub fn end(mut self, what: Change, result: &Result<NsAnswer, Errno>, grant: Grant) {
        let begun = std::mem::take(&mut self.begun);
        let outcomes = what.outcomes(&begun, result);
        self.finish(&begun, outcomes.map(|outcomes| (grant, outcomes)));
    }

    fn finish(&self, begun: &[Begun], told: Option<(Grant, Vec<Outcome>)>) {
        let inner = &self.fs.inner;
        let (grant, outcomes) = match told {
            Some((grant, outcomes)) => (Some(grant), outcomes),
            None => (None, vec![Outcome::Unsure; begun.len()]),
        };
        inner.entries.end(&inner.lease, grant, begun, &outcomes);
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let begun = std::mem::take(&mut self.begun);
        if !begun.is_empty() {
            self.finish(&begun, None);
        }
    }
}
