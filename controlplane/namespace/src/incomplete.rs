//! Files whose bytes are not all in the object store.

use crate::keys;
use crate::kv::Kv;
use crate::state::{Done, State};
use fastcache_api::{Ino, NsAnswer, NsOp};

/// Layouts looked at in one go.
const PAGE: usize = 1000;

/// Every file with a chunk that has no cloud ref: its inode, and a path of it (empty when it has no name).
///
/// # Errors
/// When the store cannot be read.
pub fn incomplete(kv: &impl Kv) -> Done<Vec<(Ino, String)>> {
    let state = State::new(kv)?;
    let mut out = Vec::new();
    let mut from = keys::layouts();
    loop {
        let page = kv.scan(&keys::layouts(), &from, PAGE)?;
        for (key, _) in &page {
            let Some(ino) = keys::number_at(key, 1).map(Ino) else {
                continue;
            };
            if !is_complete(&state, ino)? {
                let path = match state.query(&NsOp::PathOf { ino }) {
                    Ok(NsAnswer::Bytes(path)) => String::from_utf8_lossy(&path).into_owned(),
                    _ => String::new(),
                };
                out.push((ino, path));
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == PAGE => {
                from.clone_from(last);
                from.push(0);
            }
            _ => return Ok(out),
        }
    }
}

fn is_complete<K: Kv>(state: &State<'_, K>, ino: Ino) -> Done<bool> {
    let chunk_size = state.attr(ino)?.chunk_size;
    for (index, version, _) in state.layout(ino)?.chunks(chunk_size) {
        if state.cloud_refs(ino, Some((index, version)))?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}
