//! The coordinator, as far as locks go.

use fastcache_api::control::NodeAnswer;
use fastcache_api::locks::{Lock, LockAnswer, LockOp, lock, unlock};
use fastcache_api::{Errno, Ino};
use fastcache_cache::Link;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Where locks are asked for; nobody else asks.
#[derive(Default)]
pub struct Desk {
    had: RefCell<HashMap<Ino, Vec<Lock>>>,
    /// Everything is answered with EIO, and nothing done.
    pub fails: Cell<bool>,
    /// What was done is answered with EIO.
    pub loses_answers: Cell<bool>,
    /// A request that waits for its lock is kept.
    pub holds_waiting: Cell<bool>,
    /// Cancels come too early: they are about nothing yet.
    pub ignores_cancels: Cell<bool>,
    waiting: RefCell<Vec<(u64, LockOp)>>,
    /// Questions so far.
    pub asked: Cell<usize>,
}

impl Desk {
    pub fn take(&self, link: &Link, id: u64, op: LockOp) {
        self.asked.set(self.asked.get() + 1);
        let is_kept = self.holds_waiting.get() && matches!(op, LockOp::Set { waits: true, .. });
        if is_kept {
            self.waiting.borrow_mut().push((id, op));
            return;
        }
        if matches!(op, LockOp::Cancel { .. }) && !self.ignores_cancels.get() {
            self.answer_waiting(link, false);
        }
        let answer = match self.fails.get() {
            true => Err(Errno::EIO),
            false => Ok(NodeAnswer::Lock(self.apply(op))),
        };
        link.answered(
            0,
            id,
            match self.loses_answers.get() {
                true => Err(Errno::EIO),
                false => answer,
            },
        );
    }

    fn apply(&self, op: LockOp) -> LockAnswer {
        let mut had = self.had.borrow_mut();
        match op {
            LockOp::Set { ino, lock: new, .. } => lock(had.entry(ino).or_default(), new),
            LockOp::Unlock { ino, lock } => unlock(had.entry(ino).or_default(), &lock),
            LockOp::Cancel { .. } => {}
            other => panic!("the tests need no {other:?}"),
        }
        LockAnswer::Done
    }

    /// Answers those that wait: one after the other is granted, or still not.
    pub fn answer_waiting(&self, link: &Link, is_granted: bool) {
        for (id, op) in self.waiting.take() {
            let LockOp::Set { lock, .. } = op else {
                panic!("only these wait")
            };
            let answer = match is_granted {
                true => self.apply(op),
                false => LockAnswer::Held(lock),
            };
            link.answered(0, id, Ok(NodeAnswer::Lock(answer)));
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// What it has.
    pub fn has(&self, ino: Ino) -> Vec<Lock> {
        self.had.borrow().get(&ino).cloned().unwrap_or_default()
    }
}
