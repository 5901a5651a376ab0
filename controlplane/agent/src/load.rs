//! How much the data plane is asked, for the coordinator: requests a second between two looks.

use crate::node::Inner;
use fastcache_api::control::{DataAnswer, DataCall, DataStats};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks. A rate over less says little, and each look asks the data plane for all its counters.
const LOOK: Duration = Duration::from_secs(5);
/// Longest wait for the counters.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A look: when, how many requests there had been, and how long the data plane had run.
type Look = (Instant, u64, u64);

/// Requests a second since the look before; since its start when the data plane was started meanwhile.
fn rate(before: Option<Look>, now: Look) -> u64 {
    let (at, requests, uptime_s) = now;
    let (rise, millis) = match before.filter(|b| b.1 <= requests && b.2 <= uptime_s) {
        Some(before) => (
            requests - before.1,
            at.saturating_duration_since(before.0).as_millis(),
        ),
        None => (requests, u128::from(uptime_s) * 1000),
    };
    let a_second = u128::from(rise) * 1000 / millis.max(1000);
    u64::try_from(a_second).unwrap_or(u64::MAX)
}

impl Inner {
    async fn counters(&self) -> Option<DataStats> {
        let session = self.link.current()?;
        let asked = session.call(session.any_lane(), DataCall::Stats);
        match tokio::time::timeout(ANSWER_MAX, asked).await {
            Ok(Ok(DataAnswer::Stats(stats))) => Some(*stats),
            _ => None,
        }
    }
}

/// Tells it until the node stops. Without a coordinator of its own process nobody is told.
pub(crate) async fn tell_loop(inner: Arc<Inner>) {
    if inner.namespace.owner().is_none() {
        return;
    }
    let mut sessions = inner.link.watch();
    let mut before = None;
    loop {
        match inner.counters().await {
            Some(data) => {
                let requests = data.fuse_requests.iter().map(|(_, n)| n).sum();
                let now = (Instant::now(), requests, data.uptime_s);
                inner
                    .namespace
                    .set_activity(rate(before, now), &data.transport);
                before = Some(now);
            }
            None => {
                inner.namespace.set_activity(0, "");
                before = None;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            // It came, or went. The next look at it is soon, since it may not be mounted yet.
            _ = sessions.changed() => tokio::time::sleep(Duration::from_secs(1)).await,
            () = inner.stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_of_the_time_between_two_looks() {
        let start = Instant::now();
        let at = |s: u64, requests, uptime| (start + Duration::from_secs(s), requests, uptime);
        let first = at(0, 1000, 10);
        assert_eq!(rate(None, first), 100, "since its start");
        assert_eq!(rate(None, at(0, 7, 0)), 7, "just started");
        assert_eq!(rate(Some(first), at(5, 6000, 15)), 1000);
        assert_eq!(rate(Some(first), at(5, 1000, 15)), 0);
        assert_eq!(rate(Some(first), at(5, 30, 3)), 10, "started again");
        assert_eq!(rate(Some(first), first), 0);
    }
}
