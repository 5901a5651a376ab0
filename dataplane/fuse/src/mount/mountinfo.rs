//! Reads `/proc/self/mountinfo` (proc_pid_mountinfo(5)), which answers without touching any mount.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One line of the mount table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MountEntry {
    /// Major and minor number of the file system's device.
    pub dev: (u32, u32),
    /// Mount point.
    pub dir: PathBuf,
    /// Type, with its subtype.
    pub fs_type: String,
    /// Source.
    pub source: String,
}

/// The topmost mount on exactly this directory, if there is one.
///
/// # Errors
/// When the table cannot be read.
pub fn find_mount(dir: &Path) -> io::Result<Option<MountEntry>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(parse_mountinfo(&table)
        .filter(|entry| entry.dir == dir)
        .last())
}

/// The entries of a mount table; lines that are none are skipped.
pub fn parse_mountinfo(table: &[u8]) -> impl Iterator<Item = MountEntry> + '_ {
    table.split(|&b| b == b'\n').filter_map(parse_line)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&b| b == b' ');
    let dev = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = dev.split_once(':')?;
    let dev = (major.parse().ok()?, minor.parse().ok()?);
    let dir = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut fields = fields.skip_while(|f| *f != b"-").skip(1);
    let text = |f: &[u8]| String::from_utf8_lossy(&unescape(f)).into_owned();
    let fs_type = text(fields.next()?);
    let source = fields.next().map(text).unwrap_or_default();
    Some(MountEntry {
        dev,
        dir,
        fs_type,
        source,
    })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'\\'
            && let Some((digits, tail)) = tail.split_at_checked(3)
            && let Ok(digits) = std::str::from_utf8(digits)
            && let Ok(value) = u8::from_str_radix(digits, 8)
        {
            out.push(value);
            rest = tail;
        } else {
            out.push(byte);
        }
    }
    out
}
