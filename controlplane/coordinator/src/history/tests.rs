//! Goal: what the bucket is told to have, it gives back, whatever happens around it. Method: real engines on the
//! directory backend, with small bounds, so that snapshots and pruning come often; the state that was lost and the
//! one that was rebuilt are compared key by key.

mod golden;
mod layouts;
mod place;
mod rebuilding;
mod shipping;
mod snapshots;

use super::*;
use crate::{Engine, EngineError};
use fastcache_api::{Ino, Kind, NsAnswer, NsOp, RenameMode};
use place::{Place, QUICK, dump, make, until};
use std::time::Instant;
