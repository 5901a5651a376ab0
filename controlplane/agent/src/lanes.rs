//! Where the lanes of the data plane and the connection to the coordinator run: on a node of a cluster, one thread of their
//! own, so that a question on its way to the coordinator and back changes hands in no other place than the sockets. A thread
//! that sleeps takes longer to wake than the question takes to be passed on.
//!
//! What takes long, or much of a processor, runs with everything else: fetches, uploads, REST. So does a namespace of this
//! process, and its lanes with it.

use std::future::Future;
use std::io;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The two places. Inside a tokio runtime: that one is where everything else runs.
pub(crate) struct Lanes {
    lanes: Handle,
    others: Handle,
    /// Its thread ends when this is dropped.
    _thread: Option<oneshot::Sender<()>>,
}

impl Lanes {
    /// Where everything else runs.
    pub(crate) fn here() -> Lanes {
        Lanes {
            lanes: Handle::current(),
            others: Handle::current(),
            _thread: None,
        }
    }

    /// A thread of their own.
    ///
    /// # Errors
    /// When there can be no more threads or open files.
    pub(crate) fn start() -> io::Result<Lanes> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let lanes = runtime.handle().clone();
        let (thread, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("lanes".to_owned())
            .spawn(move || {
                // Nothing is ever sent: the other end is dropped.
                let _ = runtime.block_on(ended);
                runtime.shutdown_background();
            })?;
        Ok(Lanes {
            lanes,
            others: Handle::current(),
            _thread: Some(thread),
        })
    }

    /// For what passes on.
    pub(crate) fn handle(&self) -> &Handle {
        &self.lanes
    }

    /// For what takes long.
    pub(crate) fn others(&self) -> &Handle {
        &self.others
    }

    /// Does something here whose connections, timers and tasks are to be there.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|context| {
            let _there = self.lanes.enter();
            work.as_mut().poll(context)
        })
        .await
    }
}
