//! Promise: the table of faults (docs/semantics.md), where several nodes are concerned. A node that stands, is cut off, is
//! killed or has a bad disk costs the others time within a bound, never an error or a wrong byte; and when everything is
//! killed at once, what was acknowledged is there.
//!
//! `FASTCACHE_FAULTS=long` makes the outages as long as the promise says (`make test-cluster`).

mod faults_cluster {
    mod device;
    mod files;
    mod killed;
    mod load;
    mod partition;
    mod slow;
    mod stuck;
    mod warm;
}
