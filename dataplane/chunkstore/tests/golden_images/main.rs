//! Goal: a store that an earlier build wrote is opened with exactly the chunks and bytes it had, and one of another format
//! is refused with a sentence that says what to do and is not changed.
//!
//! Method: images of whole stores, written once by the build that made the format, are test data here (`format-N/`). Each
//! has its index as text beside it, byte for byte what opening has to find. A change of the format makes new images, in a
//! folder of its own, with
//!
//! ```text
//! cargo test -p fastcache-chunkstore --test golden_images -- --ignored
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test may fail by panicking, and its numbers are small"
)]

mod image;
mod scenes;

use fastcache_chunkstore::{ChunkBody, PendingSeal, Store, StoreError, crc_all};
use fastcache_types::BLOCK;
use scenes::{SCENES, contents, read, session};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The format of this program.
const FORMAT: u32 = 2;
/// The formats it reads.
const READABLE: [u32; 2] = [1, FORMAT];

fn folder(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden_images/format-{format}"))
}

/// What a store holds, as text: a line for each chunk, and one for each seal that waits for its commit.
async fn describe(store: &Store, pending: &[PendingSeal]) -> String {
    let mut chunks = Vec::new();
    let mut from = Some(0);
    while let Some(at) = from {
        let (page, next) = store.inventory(at);
        chunks.extend(page);
        from = next;
    }
    chunks.sort_by_key(|body| body.key().id());
    let mut text = String::new();
    for body in &chunks {
        let bytes = read(store, body).await;
        let key = body.key();
        assert!(
            bytes == contents(key.version.0, body.len()),
            "{key}: other bytes than were written"
        );
        let (ino, index, version) = (key.ino.0, key.index, key.version.0);
        let (len, state) = (body.len(), if body.is_dirty() { "dirty" } else { "clean" });
        let (runs, crc) = (runs_of(body), crc_all(&bytes[..len as usize]));
        writeln!(text, "chunk ino={ino} index={index} version={version} len={len} {state} runs={runs} crc32c={crc:08x}").unwrap();
    }
    for seal in pending {
        let (ino, number) = (seal.ino.0, seal.number);
        let commit = String::from_utf8_lossy(&seal.commit);
        writeln!(text, "seal ino={ino} number={number} commit={commit}").unwrap();
    }
    let u = store.usage();
    writeln!(
        text,
        "usage chunks={} dirty_chunks={} used_bytes={} dirty_bytes={}",
        u.chunks, u.dirty_chunks, u.used_bytes, u.dirty_bytes
    )
    .unwrap();
    text
}

fn runs_of(body: &ChunkBody) -> String {
    let runs = body.runs().iter();
    let all: Vec<String> = runs
        .map(|r| format!("{}+{}@{}", r.first, r.extent.len, r.extent.start))
        .collect();
    all.join(",")
}

fn look(path: &Path) -> Result<String, StoreError> {
    session(path, async |store, pending| {
        describe(&store, &pending).await
    })
}

/// Puts an image into a file, without what it does not hold.
fn unpacked(dir: &Path, format: u32, scene: &str) -> PathBuf {
    let packed = std::fs::read(folder(format).join(format!("{scene}.image"))).unwrap();
    let path = dir.join(scene);
    image::unpack(&packed, &path).unwrap();
    path
}

#[test]
fn what_an_earlier_build_wrote_is_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let all = READABLE.into_iter().flat_map(|n| SCENES.map(|s| (n, s.0)));
    for (format, scene) in all {
        let path = unpacked(dir.path(), format, scene);
        let wanted =
            std::fs::read_to_string(folder(format).join(format!("{scene}.index"))).unwrap();
        let scene = format!("format {format}, {scene}");
        // Killed in the first start, closed in the second: both leave what was found.
        assert_eq!(look(&path).unwrap(), wanted, "{scene}");
        let closed = session(&path, async |store, pending| {
            let found = describe(&store, &pending).await;
            store.close().await.unwrap();
            found
        });
        assert_eq!(closed.unwrap(), wanted, "{scene}, after a kill");
        assert_eq!(look(&path).unwrap(), wanted, "{scene}, after a close");
    }
}

#[test]
fn another_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    for (format, both) in [(0, true), (FORMAT + 1, true), (FORMAT + 1, false)] {
        let path = unpacked(dir.path(), FORMAT, "clean");
        let mut bytes = std::fs::read(&path).unwrap();
        for copy in [0, 16 * BLOCK].into_iter().take(if both { 2 } else { 1 }) {
            let block = &mut bytes[copy..copy + BLOCK];
            block[8..12].copy_from_slice(&format.to_le_bytes());
            let crc = crc_all(&block[..BLOCK - 4]);
            block[BLOCK - 4..].copy_from_slice(&crc.to_le_bytes());
        }
        std::fs::write(&path, &bytes).unwrap();
        let refused = look(&path).unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!(
                "the store has disk format {format}, this program knows {FORMAT}: run the version that wrote it, or pass \
                 --format to erase it"
            )
        );
        assert!(std::fs::read(&path).unwrap() == bytes, "it was changed");
    }
}

/// Writes the images of this program's format anew.
#[test]
#[ignore = "writes test data: only when the format changed"]
fn write_the_images() {
    let dir = tempfile::tempdir().unwrap();
    let to = folder(FORMAT);
    std::fs::create_dir_all(&to).unwrap();
    for (scene, make) in SCENES {
        let path = dir.path().join(scene);
        make(&path);
        let packed = image::pack(&std::fs::read(&path).unwrap());
        std::fs::write(to.join(format!("{scene}.image")), &packed).unwrap();
        let index = look(&path).unwrap();
        std::fs::write(to.join(format!("{scene}.index")), &index).unwrap();
        println!(
            "{scene}: {} bytes, {} lines",
            packed.len(),
            index.lines().count()
        );
    }
}
