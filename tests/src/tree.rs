//! A real tree of files, and the comparison of two trees.

use crate::bytes::Bytes;
use crate::machine::{run, temp_dir};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use walkdir::WalkDir;

/// Bytes of a generated file, where the machine has too few of its own.
const GENERATED: u64 = 16_000;

/// A tree on the disk, put together from what this machine has: C headers, documentation, Rust's documentation,
/// and the odd things that a real tree has too.
#[derive(Debug)]
pub struct SourceTree {
    dir: TempDir,
    /// Regular files with at least one byte; one with several names counts once.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl SourceTree {
    /// A tree of at least this size.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(files_min: u64, bytes_min: u64) -> SourceTree {
        let dir = temp_dir("tree");
        let root = dir.path().join("tree");
        std::fs::create_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
        let (mut files, mut bytes) = copy_from_machine(&root, files_min, bytes_min);
        let mut n = 0;
        while files < files_min || bytes < bytes_min {
            let sub = root.join(format!("generated/{:03}", n / 200));
            std::fs::create_dir_all(&sub).unwrap_or_else(|e| panic!("{}: {e}", sub.display()));
            let len = if files < files_min {
                GENERATED
            } else {
                50 * GENERATED
            };
            put(
                &sub.join(format!("file-{n:06}")),
                &Bytes::of(n).range(0, usize_of(len)),
            );
            n += 1;
            files += 1;
            bytes += len;
        }
        odd_things(&root.join("odd"));
        let mut tree = SourceTree {
            dir,
            files: 0,
            bytes: 0,
        };
        let mut inodes = std::collections::HashSet::new();
        for entry in WalkDir::new(tree.path()).into_iter().filter_map(Result::ok) {
            if let Ok(m) = entry.metadata()
                && m.is_file()
                && m.len() > 0
                && inodes.insert(m.ino())
            {
                tree.files += 1;
                tree.bytes += m.len();
            }
        }
        tree
    }

    /// Its root.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("tree")
    }
}

/// Copies until both minimums are reached; says how many files and bytes.
fn copy_from_machine(root: &Path, files_min: u64, bytes_min: u64) -> (u64, u64) {
    let sysroot = run(Command::new("rustc").args(["--print", "sysroot"]));
    let rust = PathBuf::from(sysroot.trim()).join("share/doc");
    // (where, at most so many files): a mixture first, then whatever is needed of the largest two.
    let sources = [
        (PathBuf::from("/usr/include"), u64::MAX),
        (PathBuf::from("/usr/share"), 6_000),
        (rust, u64::MAX),
        (PathBuf::from("/usr/share"), u64::MAX),
    ];
    let (mut files, mut bytes) = (0, 0);
    let mut list: Vec<u8> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (source, limit) in sources {
        let start = files;
        for entry in WalkDir::new(source)
            .sort_by_file_name()
            .into_iter()
            .filter_map(Result::ok)
        {
            if (files >= files_min && bytes >= bytes_min) || files - start >= limit {
                break;
            }
            let Ok(meta) = entry.metadata() else { continue };
            let is_wanted = meta.is_file() || meta.is_dir() || meta.file_type().is_symlink();
            if !is_wanted || !seen.insert(entry.path().to_owned()) {
                continue;
            }
            if meta.is_file() {
                files += 1;
                bytes += meta.len();
            }
            list.extend(
                entry
                    .path()
                    .strip_prefix("/")
                    .unwrap_or(entry.path())
                    .as_os_str()
                    .as_bytes(),
            );
            list.push(0);
        }
    }
    let script = "tar -C / --no-recursion --null -T - -cf - | tar -C \"$0\" -xpf -";
    let mut tar = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .arg(root)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("tar: {e}"));
    if let Some(stdin) = &mut tar.stdin {
        stdin
            .write_all(&list)
            .unwrap_or_else(|e| panic!("tar: {e}"));
    }
    let status = tar.wait().unwrap_or_else(|e| panic!("tar: {e}"));
    assert!(status.success(), "tar: {status}");
    (files, bytes)
}

/// What trees have that headers and documentation lack.
fn odd_things(dir: &Path) {
    let made = (|| -> std::io::Result<()> {
        use std::os::unix::fs::symlink;
        std::fs::create_dir_all(dir)?;
        put(&dir.join("empty"), b"");
        put(&dir.join("one-byte"), b"x");
        put(&dir.join("block"), &Bytes::of(1).range(0, 4096));
        put(&dir.join("chunk-exactly"), &Bytes::of(2).range(0, 4 << 20));
        put(
            &dir.join("chunk-and-one"),
            &Bytes::of(3).range(0, (4 << 20) + 1),
        );
        put(
            &dir.join("several-chunks"),
            &Bytes::of(4).range(0, 21_000_003),
        );
        std::fs::hard_link(dir.join("several-chunks"), dir.join("second-name"))?;
        std::fs::hard_link(dir.join("one-byte"), dir.join("one-byte-too"))?;
        symlink("several-chunks", dir.join("symlink"))?;
        symlink("nowhere/at all", dir.join("dangling"))?;
        symlink("x".repeat(4000), dir.join("long-symlink"))?;
        put(
            &dir.join(OsString::from_vec(b"not-utf8-\xff\xfe".to_vec())),
            b"name of bytes",
        );
        put(&dir.join("n".repeat(255)), b"longest name");
        put(
            &dir.join("spaces and \"quotes\" and \n newline"),
            b"odd name",
        );
        let mode = |name: &str, mode: u32| -> std::io::Result<()> {
            put(&dir.join(name), name.as_bytes());
            std::fs::set_permissions(dir.join(name), std::fs::Permissions::from_mode(mode))
        };
        mode("read-only", 0o444)?;
        mode("no-access", 0o000)?;
        mode("setuid", 0o4755)?;
        mode("setgid", 0o2755)?;
        std::fs::create_dir(dir.join("sticky"))?;
        std::fs::set_permissions(dir.join("sticky"), std::fs::Permissions::from_mode(0o1777))?;
        mode("owned", 0o640)?;
        std::os::unix::fs::chown(dir.join("owned"), Some(12345), Some(54321))?;
        let sparse = std::fs::File::create(dir.join("sparse"))?;
        sparse.set_len(30 << 20)?;
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"island", 9 << 20)?;
        let deep = (0..40).fold(dir.join("deep"), |d, i| d.join(format!("level-{i}")));
        std::fs::create_dir_all(&deep)?;
        put(&deep.join("bottom"), b"bottom");
        run(Command::new("mkfifo").arg(dir.join("fifo")));
        run(Command::new("touch")
            .args(["-d", "1969-07-20 20:17:40.123456789 UTC"])
            .arg(dir.join("one-byte")));
        run(Command::new("touch")
            .args(["-h", "-d", "2001-02-03 04:05:06.7 UTC"])
            .arg(dir.join("symlink")));
        run(Command::new("touch")
            .args(["-d", "2040-01-01 00:00:00.000000001 UTC"])
            .arg(dir.join("sticky")));
        Ok(())
    })();
    made.unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
}

/// What `cp -a` promises to keep, and contents.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    size: u64,
    target: Option<PathBuf>,
    links: u64,
    /// The first name of the same inode.
    same_as: PathBuf,
}

fn entries(root: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut first = BTreeMap::new();
    let mut out = BTreeMap::new();
    for item in WalkDir::new(root).sort_by_file_name() {
        let item = item.unwrap_or_else(|e| panic!("walking {}: {e}", root.display()));
        let path = item
            .path()
            .strip_prefix(root)
            .unwrap_or(item.path())
            .to_owned();
        let m = item
            .metadata()
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let kind = match m.file_type() {
            t if t.is_dir() => "directory",
            t if t.is_file() => "file",
            t if t.is_symlink() => "symlink",
            t if t.is_fifo() => "fifo",
            _ => "other",
        };
        let is_dir = m.is_dir();
        out.insert(
            path.clone(),
            Entry {
                kind,
                mode: m.mode(),
                owner: (m.uid(), m.gid()),
                mtime: (m.mtime(), m.mtime_nsec()),
                size: if is_dir { 0 } else { m.len() },
                target: m.is_symlink().then(|| {
                    std::fs::read_link(item.path())
                        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                }),
                links: if is_dir { 0 } else { m.nlink() },
                same_as: first.entry(m.ino()).or_insert(path).clone(),
            },
        );
    }
    out
}

/// Types, modes, owners, times, sizes, targets, links and contents of two trees are the same.
///
/// # Panics
/// At the first ten differences, or what `diff -r` says.
#[track_caller]
pub fn assert_same_tree(want: &Path, got: &Path) {
    let (a, b) = (entries(want), entries(got));
    let mut differences: Vec<String> = Vec::new();
    for (path, entry) in &a {
        match b.get(path) {
            None => differences.push(format!("missing: {}", path.display())),
            Some(other) if other != entry => {
                differences.push(format!(
                    "{}:\n  want {entry:?}\n  got  {other:?}",
                    path.display()
                ));
            }
            Some(_) => {}
        }
    }
    differences.extend(
        b.keys()
            .filter(|p| !a.contains_key(*p))
            .map(|p| format!("extra: {}", p.display())),
    );
    assert!(
        differences.is_empty(),
        "{} differences between {} and {}:\n{}",
        differences.len(),
        want.display(),
        got.display(),
        differences[..differences.len().min(10)].join("\n")
    );
    // `diff` does not compare a fifo with a fifo; their attributes are compared above.
    run(Command::new("diff")
        .args(["-r", "--no-dereference", "-x", "fifo"])
        .arg(want)
        .arg(got));
}

/// Regular files below a folder.
pub fn count_files(root: &Path) -> u64 {
    WalkDir::new(root)
        .into_iter()
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_file())
        .count() as u64
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_on_the_disk_is_the_same_and_a_changed_one_is_not() {
        let tree = SourceTree::new(200, 1_000_000);
        assert!(tree.files >= 200 && tree.bytes >= 1_000_000);
        let copy = tree.dir.path().join("copy");
        run(Command::new("cp").arg("-a").arg(tree.path()).arg(&copy));
        assert_same_tree(&tree.path(), &copy);
        put(&copy.join("odd/one-byte-too"), b"y");
        assert!(std::panic::catch_unwind(|| assert_same_tree(&tree.path(), &copy)).is_err());
    }
}
