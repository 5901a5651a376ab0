//! Promise: contents behave as on ext4: holes, sizes, appends, direct I/O, mappings, copies, and the same after the
//! bytes have been in the cloud and back (docs/semantics.md).

use fastcache_tests::{
    Bytes, Mapping, Node, drop_page_cache, run, serial, sha256_file, shared_folder,
};
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

const MIB: u64 = 1 << 20;
/// The default chunk size.
const CHUNK: u64 = 4 * MIB;

/// Read and write, made when it is not there.
fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Sends everything to the cloud and drops it here, so that the next read brings it back.
fn to_the_cloud_and_back(node: &Node) {
    node.flush();
    node.evict();
    drop_page_cache();
}

/// Ranges of data as SEEK_DATA and SEEK_HOLE tell them.
fn data_ranges(file: &File) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return ranges,
            Err(e) => panic!("SEEK_DATA from {at}: {e}"),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).expect("SEEK_HOLE");
        assert!(end > start, "data of no length at {start}");
        ranges.push((start, end));
        at = end;
    }
}

#[test]
fn a_sparse_file_of_one_tebibyte_stays_sparse_through_the_cloud() {
    let _one = serial();
    let (node, here) = shared_folder("sparse");
    let path = here.join("file");
    let file = open(&path);
    let size = 1 << 40;
    file.set_len(size).expect("ftruncate");
    assert_eq!(file.metadata().expect("stat").blocks(), 0);
    assert_eq!(data_ranges(&file), []);
    // A whole chunk in the middle, one that is written from its second half on, and the last byte.
    let bytes = Bytes::of(1);
    let middle = size / 2;
    let part = size / 4 + CHUNK / 2;
    for (at, len) in [(middle, CHUNK), (part, 8192), (size - 1, 1)] {
        let len = usize::try_from(len).expect("len");
        file.write_all_at(&bytes.range(at, len), at).expect("write");
    }
    let check = |when: &str, is_exact: bool| {
        let m = std::fs::metadata(&path).expect("stat");
        assert_eq!(m.size(), size, "{when}");
        let allocated = m.blocks() * 512;
        assert!(
            (CHUNK..=3 * CHUNK).contains(&allocated),
            "{when}: {allocated} bytes are allocated"
        );
        let ranges = data_ranges(&file);
        // A hole is at least kept as whole chunks; inside a chunk that is elsewhere it counts as data.
        let chunk_of = |at: u64| at / CHUNK * CHUNK;
        let wanted = if is_exact {
            vec![
                (part, part + 8192),
                (middle, middle + CHUNK),
                (size - 4096, size),
            ]
        } else {
            vec![
                (chunk_of(part), part + 8192),
                (middle, middle + CHUNK),
                (chunk_of(size - 1), size),
            ]
        };
        assert_eq!(ranges, wanted, "{when}");
        for (at, len) in [(middle, CHUNK), (part, 8192), (size - 1, 1)] {
            let mut got = vec![0; usize::try_from(len).expect("len")];
            file.read_exact_at(&mut got, at).expect("read");
            assert_eq!(bytes.first_difference(at, &got), None, "{when}, at {at}");
        }
        let mut zeros = vec![1; 100_000];
        for at in [0, part - 100_000, size / 3, size - 100_001] {
            file.read_exact_at(&mut zeros, at).expect("read");
            assert!(zeros.iter().all(|b| *b == 0), "{when}: a hole at {at}");
        }
    };
    check("open", true);
    file.sync_all().expect("fsync");
    check("sealed", true);
    node.flush();
    node.evict();
    drop_page_cache();
    check("in the cloud", false);
    check("back again", false);
    let objects: u64 = node.data_objects().iter().map(|(_, n)| n).sum();
    assert!(objects < 64 * MIB, "{objects} bytes in the cloud");
    // cp copies the data and leaves out the holes: it is done at once.
    run(Command::new("timeout")
        .args(["20", "cp", "--sparse=auto"])
        .arg(&path)
        .arg(here.join("copy")));
    let copy = std::fs::metadata(here.join("copy")).expect("stat");
    assert_eq!(copy.size(), size);
    assert!(copy.blocks() * 512 <= 4 * CHUNK, "{} blocks", copy.blocks());
}

#[test]
fn st_blocks_counts_what_is_written_and_not_what_is_not() {
    let _one = serial();
    let (node, here) = shared_folder("blocks");
    let path = here.join("file");
    let blocks = || std::fs::metadata(&path).expect("stat").blocks();
    let file = open(&path);
    assert_eq!(blocks(), 0);
    file.write_all_at(b"1", 0).expect("write");
    assert_eq!(blocks(), 8);
    file.write_all_at(&vec![1; 3 << 20], CHUNK).expect("write");
    let written = 8 + (3 << 20) / 512;
    assert_eq!(blocks(), written);
    to_the_cloud_and_back(node);
    assert_eq!(blocks(), written);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, CHUNK, CHUNK).expect("punch");
    assert_eq!(blocks(), 8);
    file.set_len(0).expect("ftruncate");
    assert_eq!(blocks(), 0);
    let link = here.join("link");
    std::os::unix::fs::symlink("file", &link).expect("symlink");
    assert_eq!(std::fs::symlink_metadata(&link).expect("stat").blocks(), 0);
}

#[test]
fn fallocate_punches_zeroes_and_extends_and_refuses_the_rest() {
    let _one = serial();
    let (node, here) = shared_folder("fallocate");
    let path = here.join("file");
    let file = open(&path);
    let allocate = |flags, at, len| rustix::fs::fallocate(&file, flags, at, len);
    let size = || std::fs::metadata(&path).expect("stat").size();
    let mut model = vec![7; 3 * usize::try_from(CHUNK).expect("fits")];
    file.write_all_at(&model, 0).expect("write");

    let keep = FallocateFlags::KEEP_SIZE;
    let punch = FallocateFlags::PUNCH_HOLE | keep;
    let zero = FallocateFlags::ZERO_RANGE;
    let end = 3 * CHUNK;
    for (flags, at, len) in [
        (punch, 5000, 100),
        (punch, CHUNK - 10, 20),
        (zero, CHUNK + 4096, 8192),
        (punch, CHUNK * 2, CHUNK),
        (zero | keep, 70_000, 1),
        (punch, end - 5, 1_000_000),
    ] {
        allocate(flags, at, len).unwrap_or_else(|e| panic!("{flags:?} {at} {len}: {e}"));
        let from = usize::try_from(at).expect("fits");
        let to = usize::try_from((at + len).min(end)).expect("fits");
        model[from..to].fill(0);
        assert_eq!(size(), end);
    }
    allocate(keep, end, 5000).expect("KEEP_SIZE");
    assert_eq!(size(), end);
    allocate(FallocateFlags::empty(), end, 5000).expect("extend");
    assert_eq!(size(), end + 5000);
    model.resize(model.len() + 5000, 0);
    allocate(zero, end + 5000, 1).expect("zero beyond the end");
    model.push(0);
    let same = |when: &str| assert!(std::fs::read(&path).expect("read") == model, "{when}");
    same("at once");
    to_the_cloud_and_back(node);
    same("from the cloud");

    for flags in [
        FallocateFlags::COLLAPSE_RANGE,
        FallocateFlags::INSERT_RANGE,
        FallocateFlags::UNSHARE_RANGE,
        FallocateFlags::PUNCH_HOLE,
    ] {
        assert_eq!(allocate(flags, 0, 4096), Err(Errno::OPNOTSUPP), "{flags:?}");
    }
    assert_eq!(allocate(FallocateFlags::empty(), 0, 0), Err(Errno::INVAL));
    assert_eq!(
        allocate(FallocateFlags::empty(), 1 << 50, 1),
        Err(Errno::FBIG)
    );
    same("after refusals");
}

#[test]
fn the_largest_file_has_one_pebibyte() {
    let _one = serial();
    let (node, here) = shared_folder("largest");
    let path = here.join("file");
    let file = open(&path);
    let max = 1 << 50;
    let errno = |r: std::io::Result<usize>| r.map_err(|e| e.raw_os_error().unwrap_or(0));
    file.set_len(max).expect("ftruncate");
    let too_long = file.set_len(max + 1).expect_err("longer than the limit");
    assert_eq!(too_long.raw_os_error(), Some(libc::EFBIG));
    assert_eq!(errno(file.write_at(b"x", max)), Err(libc::EFBIG));
    assert_eq!(errno(file.write_at(b"x", max - 1)), Ok(1));
    assert_eq!(file.metadata().expect("stat").size(), max);
    to_the_cloud_and_back(node);
    let mut last = [0; 10];
    assert_eq!(file.read_at(&mut last, max - 1).expect("read"), 1);
    assert_eq!(last[0], b'x');
    // Its holes take no room.
    let stat = rustix::fs::statvfs(&here).expect("statvfs");
    assert!(stat.f_bavail > stat.f_blocks / 2);
    std::fs::remove_file(&path).expect("unlink");
}

#[test]
fn files_of_every_size_around_a_chunk_come_back_from_the_cloud() {
    let _one = serial();
    let (node, here) = shared_folder("sizes");
    let sizes = [
        0,
        1,
        4095,
        4096,
        4097,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK,
        2 * CHUNK + 1,
    ];
    for (n, size) in sizes.into_iter().enumerate() {
        let bytes = Bytes::of(n as u64).range(0, usize::try_from(size).expect("fits"));
        std::fs::write(here.join(size.to_string()), bytes).expect("write");
    }
    to_the_cloud_and_back(node);
    for (n, size) in sizes.into_iter().enumerate() {
        let got = std::fs::read(here.join(size.to_string())).expect("read");
        assert_eq!(got.len() as u64, size);
        assert_eq!(
            Bytes::of(n as u64).first_difference(0, &got),
            None,
            "{size}"
        );
        assert_eq!(
            node.state_xattr(&format!("sizes/{size}")),
            "persisted",
            "{size}"
        );
    }
    // Empty and one byte past the end.
    let file = File::open(here.join("4096")).expect("open");
    let mut buf = [0; 10];
    assert_eq!(file.read_at(&mut buf, 4096).expect("read"), 0);
    assert_eq!(file.read_at(&mut buf, 4095).expect("read"), 1);
    assert_eq!(file.read_at(&mut buf, 1 << 40).expect("read"), 0);
}

#[test]
fn appends_of_two_descriptors_and_of_two_processes_never_overwrite() {
    let _one = serial();
    let (_, here) = shared_folder("append");
    let path = here.join("two-descriptors");
    let append = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .expect("open")
    };
    let (mut a, mut b) = (append(), append());
    for n in 0..500 {
        writeln!(a, "a{n}").expect("append");
        writeln!(b, "b{n}").expect("append");
        if n == 250 {
            // The end is the end of now, also after somebody else cut the file.
            assert!(a.metadata().expect("stat").size() > 1000);
            File::options()
                .write(true)
                .open(&path)
                .expect("open")
                .set_len(0)
                .expect("cut");
        }
    }
    let text = std::fs::read_to_string(&path).expect("read");
    let want: String = (251..500).map(|n| format!("a{n}\nb{n}\n")).collect();
    assert!(text == want, "{} bytes", text.len());
    // pwrite to a descriptor with O_APPEND appends, as Linux has it.
    b.write_at(b"end", 0).expect("pwrite");
    assert!(
        std::fs::read_to_string(&path)
            .expect("read")
            .ends_with("b499\nend")
    );

    // Lines of 1,000 bytes from four processes at once: all there, none torn.
    let script = "line=$(printf '%0998d' 0 | tr 0 $1)
        n=0; while [ $n -lt 300 ]; do echo \"$1$line\"; n=$((n + 1)); done >>processes";
    let children: Vec<_> = ["a", "b", "c", "d"]
        .iter()
        .map(|who| {
            let mut command = Command::new("bash");
            command.args(["-c", script, "sh", who]).current_dir(&here);
            command.spawn().expect("bash")
        })
        .collect();
    for mut child in children {
        assert!(child.wait().expect("wait").success());
    }
    let text = std::fs::read_to_string(here.join("processes")).expect("read");
    let mut counts = [0; 4];
    for line in text.lines() {
        let who = line.as_bytes()[0];
        assert!(
            line.len() == 999 && line.bytes().all(|b| b == who),
            "{line}"
        );
        counts[usize::from(who - b'a')] += 1;
    }
    assert_eq!(counts, [300; 4]);
}

#[test]
fn direct_io_takes_any_alignment_and_agrees_with_the_page_cache() {
    let _one = serial();
    let (node, here) = shared_folder("direct");
    let path = here.join("file");
    let direct: OwnedFd = rustix::fs::open(
        &path,
        OFlags::RDWR | OFlags::CREATE | OFlags::DIRECT,
        Mode::RUSR | Mode::WUSR,
    )
    .expect("open with O_DIRECT");
    let direct = File::from(direct);
    let cached = open(&path);
    let mut model = vec![0; 2 << 20];
    let bytes = Bytes::of(5);
    // Aligned, unaligned, odd lengths, across a block and across a megabyte; in turn direct and through the cache.
    let places = [
        (0, 1 << 20),
        (4096, 4096),
        (1, 3),
        (4090, 5000),
        ((1 << 20) - 7, 14),
        (12_345, 67_891),
        ((2 << 20) - 5, 5),
    ];
    for (n, (at, len)) in places.into_iter().enumerate() {
        let data = bytes.range((n << 32) as u64, len);
        let file = if n % 2 == 0 { &direct } else { &cached };
        file.write_all_at(&data, at as u64).expect("write");
        model[at..at + len].copy_from_slice(&data);
        let end = cached.metadata().expect("stat").size();
        let end = usize::try_from(end).expect("fits");
        for file in [&direct, &cached] {
            let mut got = vec![0; end];
            file.read_exact_at(&mut got, 0).expect("read");
            assert!(got == model[..end], "after write {n}");
        }
    }
    let mut got = [0; 10];
    direct
        .read_exact_at(&mut got[1..4], 4093)
        .expect("three bytes at an odd address");
    assert_eq!(got[1..4], model[4093..4096]);
    to_the_cloud_and_back(node);
    let mut got = vec![0; model.len()];
    direct.read_exact_at(&mut got, 0).expect("read");
    assert!(got == model, "from the cloud");
}

#[test]
fn a_mapping_is_shared_between_processes_and_with_write() {
    let _one = serial();
    let (node, here) = shared_folder("mapping");
    let path = here.join("file");
    let size = 64 << 10;
    std::fs::write(&path, vec![0; size]).expect("write");
    let file = open(&path);
    let map = Mapping::shared(&file, size);
    // Another process maps it, too, waits for what this one stores and answers in the mapping.
    let script = "import mmap, sys, time
with open('file', 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0)
    m[0:1] = b'R'
    end = time.time() + 20
    while m[8192:8196] != b'ping':
        assert time.time() < end, 'nothing came'
        time.sleep(0.001)
    m[8200:8204] = b'pong'
    while m[16384:16389] != b'write':
        assert time.time() < end, 'the write did not come'
        time.sleep(0.001)
";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .current_dir(&here)
        .spawn()
        .expect("python3");
    fastcache_tests::wait_until(
        "the other process is there",
        std::time::Duration::from_secs(20),
        || map.read(0, 1) == b"R",
    );
    map.write(8192, b"ping");
    fastcache_tests::wait_until("its answer", std::time::Duration::from_secs(20), || {
        map.read(8200, 4) == b"pong"
    });
    // write(2) is seen by both mappings at once, and a store in the mapping by read(2).
    file.write_all_at(b"write", 16384).expect("write");
    assert_eq!(map.read(16384, 5), b"write");
    assert!(child.wait().expect("wait").success());
    map.write(100, b"stored");
    let mut got = [0; 6];
    file.read_exact_at(&mut got, 100).expect("read");
    assert_eq!(&got, b"stored");
    map.sync();
    to_the_cloud_and_back(node);
    assert_eq!(map.read(100, 6), b"stored");
    assert_eq!(map.read(8192, 12), b"ping\0\0\0\0pong");
    // What lies beyond the end when the file is cut is gone, and zeros when it grows again.
    file.set_len(4096).expect("cut");
    file.set_len(size as u64).expect("grow");
    assert_eq!(map.read(8192, 12), [0; 12]);
    assert_eq!(map.read(100, 6), b"stored");
}

#[test]
fn copy_file_range_copies_inside_the_file_system() {
    let _one = serial();
    let (node, here) = shared_folder("copy");
    let bytes = Bytes::of(9).range(0, 9_000_001);
    let (from, to) = (here.join("from"), here.join("to"));
    std::fs::write(&from, &bytes).expect("write");
    to_the_cloud_and_back(node);
    let (source, target) = (open(&from), open(&to));
    let (mut at, mut put) = (0, 0);
    loop {
        let n =
            rustix::fs::copy_file_range(&source, Some(&mut at), &target, Some(&mut put), 1 << 30);
        if n.expect("copy_file_range") == 0 {
            break;
        }
    }
    assert_eq!(sha256_file(&from), sha256_file(&to));
    // Inside one file without overlap; with overlap EINVAL; behind the end nothing.
    let inside = |from: u64, to: u64, len| {
        let (mut from, mut to) = (from, to);
        rustix::fs::copy_file_range(&source, Some(&mut from), &source, Some(&mut to), len)
    };
    assert_eq!(inside(0, 5_000_000, 1000), Ok(1000));
    assert_eq!(inside(0, 500, 1000), Err(Errno::INVAL));
    assert_eq!(inside(1 << 40, 0, 1000), Ok(0));
    let mut got = vec![0; 1000];
    source.read_exact_at(&mut got, 5_000_000).expect("read");
    assert_eq!(got, bytes[..1000]);
    // FICLONE shares blocks, which chunks cannot: programs fall back to copying.
    // SAFETY: both descriptors are open, and the call takes no memory.
    let cloned = unsafe {
        libc::ioctl(
            std::os::fd::AsRawFd::as_raw_fd(&target),
            libc::FICLONE,
            std::os::fd::AsRawFd::as_raw_fd(&source),
        )
    };
    let errno = std::io::Error::last_os_error().raw_os_error();
    assert_eq!((cloned, errno), (-1, Some(libc::EOPNOTSUPP)));
    run(Command::new("cp")
        .arg("--reflink=auto")
        .arg(&from)
        .arg(here.join("cp")));
    assert_eq!(sha256_file(&from), sha256_file(&here.join("cp")));
}

#[test]
fn short_reads_happen_only_at_the_end() {
    let _one = serial();
    let (node, here) = shared_folder("short");
    let path = here.join("file");
    let bytes = Bytes::of(11).range(0, 6_000_000);
    std::fs::write(&path, &bytes).expect("write");
    to_the_cloud_and_back(node);
    let mut file = File::open(&path).expect("open");
    let mut got = vec![0; 7_000_000];
    assert_eq!(
        file.read(&mut got).expect("read"),
        6_000_000,
        "one read(2), two chunks, both in the cloud"
    );
    assert!(got[..6_000_000] == bytes);
    assert_eq!(file.read(&mut got).expect("read"), 0);
}
