//! The table: one row for each way to damage an image.

use crate::image::{
    BATCH, BATCH_COUNT, BYTES, Group, Image, VICTIM, history, key, put, ticket, undamaged,
};
use fastcache_types::BLOCK;

/// What opening a damaged image must do.
pub enum Then {
    /// Refuse with an error that contains this, and change nothing.
    Refused(&'static str),
    /// Open, and be able to read these versions and no others; and say this.
    Reads {
        versions: Vec<u64>,
        says: &'static str,
    },
}

/// One row.
pub struct Case {
    pub name: String,
    pub harm: Box<dyn Fn(&mut Image)>,
    pub then: Then,
}

#[derive(Default)]
struct Table(Vec<Case>);

impl Table {
    fn add(&mut self, name: impl Into<String>, then: Then, harm: impl Fn(&mut Image) + 'static) {
        self.0.push(Case {
            name: name.into(),
            harm: Box::new(harm),
            then,
        });
    }
}

/// Everything is there.
fn all(says: &'static str) -> Then {
    Then::Reads {
        versions: undamaged(),
        says,
    }
}

/// Everything but these.
fn but(lost: &[u64], says: &'static str) -> Then {
    let mut versions = undamaged();
    versions.retain(|v| !lost.contains(v));
    Then::Reads { versions, says }
}

/// What the headers alone show: also what was removed, and what was never sealed.
fn scanned(lost: &[u64]) -> Then {
    let mut versions = undamaged();
    versions.extend([9, 11]);
    versions.retain(|v| !lost.contains(v));
    Then::Reads {
        versions,
        says: "scanning the headers",
    }
}

/// What is left when the journal ends before a group of the tail (see `image::make`).
fn up_to_group(n: usize) -> Then {
    // What each group changes: versions that come, versions that go.
    let batch = BATCH..BATCH + u64::from(BATCH_COUNT);
    let mut versions = vec![2, 3, VICTIM, 5, 7];
    for group in 0..n {
        match group {
            0 => versions.push(8),
            1 => versions.push(9),
            3 => versions.retain(|&v| v != 9),
            4 => versions.push(10),
            5 => versions.extend(batch.clone()),
            _ => {}
        }
    }
    Then::Reads {
        versions,
        says: "torn or damaged group",
    }
}

pub fn table(base: &Image) -> Vec<Case> {
    let mut t = Table::default();
    size(&mut t);
    foreign(&mut t);
    superblocks(&mut t);
    checkpoints(&mut t);
    journal(&mut t, &base.groups());
    headers_and_data(&mut t);
    t.0
}

fn size(t: &mut Table) {
    let cut = "was cut short";
    t.add("cut to two blocks", Then::Refused("choose a larger"), |i| {
        i.0.truncate(2 * BLOCK);
    });
    t.add("cut to half", Then::Refused(cut), |i| {
        i.0.truncate(i.0.len() / 2);
    });
    t.add("one block too short", Then::Refused(cut), |i| {
        i.0.truncate(i.0.len() - BLOCK);
    });
    t.add("longer than it was", all(""), |i| {
        i.0.resize(i.0.len() + (1 << 20), 0xA5);
    });
    t.add("all zeros", only(&[]), |i| i.zero(0, BYTES as usize));
    t.add("all noise", Then::Refused("unknown kind"), |i| {
        i.scramble(0, BYTES as usize);
    });
    t.add("zeros behind the superblocks", scan_of_nothing(), |i| {
        i.zero(32 * BLOCK, BYTES as usize - 32 * BLOCK);
    });
}

fn only(versions: &[u64]) -> Then {
    Then::Reads {
        versions: versions.to_vec(),
        says: "",
    }
}

fn scan_of_nothing() -> Then {
    Then::Reads {
        versions: vec![],
        says: "no checkpoint can be read",
    }
}

fn foreign(t: &mut Table) {
    let signatures: [(&'static str, usize, &'static [u8]); 12] = [
        ("ext4", 0x438, &[0x53, 0xEF]),
        ("XFS", 0, b"XFSB"),
        ("Btrfs", 0x10040, b"_BHRfS_M"),
        ("LUKS", 0, b"LUKS\xba\xbe"),
        ("LVM", 512, b"LABELONE"),
        ("GPT", 512, b"EFI PART"),
        ("MBR", 510, &[0x55, 0xAA]),
        ("swap", 4096 - 10, b"SWAPSPACE2"),
        ("RAID", 4096, &[0xFC, 0x4E, 0x2B, 0xA9]),
        ("F2FS", 0x400, &[0x10, 0x20, 0xF5, 0xF2]),
        ("FAT", 0x52, b"FAT32   "),
        ("NTFS", 3, b"NTFS    "),
    ];
    for (name, at, bytes) in signatures {
        // As its mkfs leaves it: the start is overwritten, what follows is still ours.
        t.add(
            format!("{name} made over it"),
            Then::Refused(name),
            move |i| {
                i.zero(0, BLOCK);
                i.put(at, bytes);
            },
        );
    }
    // Partition tools keep what they need not write.
    t.add("GPT, the first sector kept", Then::Refused("GPT"), |i| {
        i.put(446, &[0, 0, 2, 0, 0xEE]);
        i.put(510, &[0x55, 0xAA]);
        i.put(512, b"EFI PART");
    });
    t.add("RAID, both superblocks kept", Then::Refused("RAID"), |i| {
        i.put(BLOCK, &[0xFC, 0x4E, 0x2B, 0xA9]);
    });
    t.add(
        "another file system, all of it",
        Then::Refused("ext4"),
        |i| {
            i.scramble(0, BYTES as usize);
            i.zero(0, 1024);
            i.put(0x438, &[0x53, 0xEF]);
        },
    );
}

fn superblocks(t: &mut Table) {
    let repaired = "one copy of the superblock was damaged";
    let both = "both superblocks of this fastcache store are damaged";
    let second = 16 * BLOCK;
    for at in [0, 8, 12, 16, 32, 36, 40, 48, 60, 76, 2000, 4092] {
        t.add(
            format!("superblock 1 flipped at {at}"),
            all(repaired),
            move |i| {
                i.flip(at);
            },
        );
        t.add(
            format!("superblock 2 flipped at {at}"),
            all(repaired),
            move |i| {
                i.flip(second + at);
            },
        );
    }
    t.add("superblock 1 zeros", all(repaired), |i| i.zero(0, BLOCK));
    t.add("superblock 2 zeros", all(repaired), move |i| {
        i.zero(second, BLOCK)
    });
    t.add("superblock 1 noise", all(repaired), |i| {
        i.scramble(0, BLOCK)
    });
    t.add("superblock 1 torn", all(repaired), |i| {
        i.scramble(64, BLOCK - 64);
    });
    t.add("both superblocks flipped", Then::Refused(both), move |i| {
        i.flip(20);
        i.flip(second + 30);
    });
    t.add("both superblocks zeros", Then::Refused(both), |i| {
        i.zero(0, 32 * BLOCK);
    });
    t.add(
        "both superblocks noise",
        Then::Refused("unknown kind"),
        move |i| {
            i.scramble(0, BLOCK);
            i.scramble(second, BLOCK);
        },
    );
    t.add("a later disk format", Then::Refused("disk format 3"), |i| {
        i.superblocks(|b| b[8] = 3);
    });
    t.add(
        "a later disk format in one copy",
        Then::Refused("disk format 3"),
        move |i| i.superblock(second, |b| b[8] = 3),
    );
    t.add("blocks of another size", Then::Refused(both), |i| {
        i.superblocks(|b| b[13] = 0x20);
    });
    t.add(
        "superblocks of two stores",
        Then::Refused("two different stores"),
        move |i| {
            i.superblock(second, |b| b[20] ^= 1);
        },
    );
    t.add(
        "more blocks than the device",
        Then::Refused("was cut short"),
        |i| {
            i.superblocks(|b| b[38] = 1);
        },
    );
    t.add("fewer blocks than its parts", Then::Refused(both), |i| {
        i.superblocks(|b| b[37] -= 1);
    });
    t.add("data region past the end", Then::Refused(both), |i| {
        i.superblocks(|b| b[79] = 0xFF);
    });
    t.add("data region over the journal", Then::Refused(both), |i| {
        i.superblocks(|b| b[72] = 33);
    });
    t.add("an empty journal", Then::Refused(both), |i| {
        i.superblocks(|b| b[52..56].fill(0));
    });
    t.add(
        "the last generation there can be",
        Then::Refused(both),
        |i| {
            i.superblocks(|b| b[32..36].fill(0xFF));
        },
    );
}

fn checkpoints(t: &mut Table) {
    let older = "trying an older one";
    for at in [0, 8, 16, 24, 32, 40, 44, 48, 52] {
        t.add(
            format!("newest checkpoint flipped at {at}"),
            all(""),
            move |i| {
                i.flip(i.checkpoints()[0] + at);
            },
        );
    }
    for at in [0, 4, 8, 16, 24, 40, 300] {
        t.add(
            format!("newest segment flipped at {at}"),
            all(older),
            move |i| {
                i.flip(i.checkpoints()[0] + BLOCK + at);
            },
        );
    }
    t.add("older checkpoint zeros", all(older), |i| {
        i.zero(i.checkpoints()[1], 2 * BLOCK);
    });
    t.add("newest checkpoint zeros", all(older), |i| {
        i.zero(i.checkpoints()[0], 2 * BLOCK);
    });
    t.add(
        "the older segment under the newest header",
        all(older),
        |i| {
            let [newest, older] = i.checkpoints();
            i.copy(older + BLOCK, newest + BLOCK, BLOCK);
        },
    );
    t.add("both checkpoints zeros", scanned(&[]), |i| {
        for at in i.checkpoints() {
            i.zero(at, 2 * BLOCK);
        }
    });
    t.add("both segments flipped", scanned(&[]), |i| {
        for at in i.checkpoints() {
            i.flip(at + BLOCK + 50);
        }
    });
    t.add(
        "both checkpoints zeros and a header flipped",
        scanned(&[VICTIM]),
        |i| {
            for at in i.checkpoints() {
                i.zero(at, BLOCK);
            }
            // Its other header, of the version it replaced, is found instead; that is not this version.
            let other = i.header(1);
            i.zero(other, BLOCK);
            i.flip(i.header(VICTIM) + 66);
        },
    );
    // What is dropped after a scan stays away: the journal goes on behind everything that is left in its ring.
    t.add(
        "both checkpoints zeros and a block of data flipped",
        scanned(&[VICTIM]),
        |i| {
            for at in i.checkpoints() {
                i.zero(at, BLOCK);
            }
            i.flip(i.first_data(VICTIM) + 9);
        },
    );
    let number = |at: usize, len: usize| {
        move |i: &mut Image| {
            let newest = i.checkpoints()[0];
            i.checkpoint(newest, |b| b[at..at + len].fill(0xFF));
        }
    };
    t.add(
        "newest checkpoint: impossible sequence",
        all(older),
        number(16, 8),
    );
    t.add(
        "newest checkpoint: impossible start",
        all(older),
        number(24, 8),
    );
    t.add(
        "newest checkpoint: impossible next number",
        all(older),
        number(32, 8),
    );
    t.add(
        "newest checkpoint: impossible generation",
        all(older),
        number(40, 4),
    );
    t.add(
        "newest checkpoint: 4 billion segments",
        all(older),
        number(44, 4),
    );
    t.add(
        "newest checkpoint: 4 billion blocks",
        all(older),
        number(48, 4),
    );
}

fn journal(t: &mut Table, groups: &[Group]) {
    for (n, group) in groups.iter().copied().enumerate() {
        t.add(
            format!("journal group {n} flipped"),
            up_to_group(n),
            move |i| {
                i.flip(group.at + 40);
            },
        );
    }
    let batch = groups[5];
    assert!(batch.blocks > 1);
    t.add("the last group torn", up_to_group(5), move |i| {
        let at = batch.at + BLOCK;
        let end = i.groups()[6].at + BLOCK;
        i.zero(at, end - at);
    });
    for at in [0, 4, 8, 16, 24, 28] {
        let group = groups[4];
        let mut then = up_to_group(4);
        if let Then::Reads { says, .. } = &mut then {
            *says = "";
        }
        t.add(format!("group header flipped at {at}"), then, move |i| {
            i.flip(group.at + at);
        });
    }
    let [g4, g6] = [groups[4], groups[6]];
    t.add("a group once more at the end", all(""), move |i| {
        let to = g6.at + g6.blocks * BLOCK;
        i.copy(g4.at, to, BLOCK);
    });
    let mut swapped = up_to_group(1);
    if let Then::Reads { says, .. } = &mut swapped {
        *says = "";
    }
    let [g1, g2] = [groups[1], groups[2]];
    t.add("two groups in each other's place", swapped, move |i| {
        let first = i.0[g1.at..g1.at + BLOCK].to_vec();
        i.copy(g2.at, g1.at, BLOCK);
        i.put(g2.at, &first);
    });
    t.add("a group of an earlier lap at the end", all(""), |i| {
        let lap = (i.journal().1 / BLOCK) as u64;
        i.put_group(i.head() - lap, 2, &removal(VICTIM));
    });
    t.add("a group of a later lap at the end", all(""), |i| {
        let lap = (i.journal().1 / BLOCK) as u64;
        i.put_group(i.head() + lap, 2, &removal(VICTIM));
    });
    t.add("a group of a later session at the end", all(""), |i| {
        i.put_group(i.head(), 77, &removal(VICTIM));
    });
    t.add("a group of an earlier session at the end", all(""), |i| {
        i.put_group(i.head(), 1, &removal(VICTIM));
    });
    t.add("a group without an end", all(""), |i| {
        let head = i.head();
        i.append_group(&ticket(1000));
        let at = i.groups().last().unwrap().at;
        assert_eq!(i.u64(at + 16), head);
        i.put(at + 28, &[0xFF; 4]);
    });
    let unknown = "a record of unknown kind";
    t.add("a record of unknown kind", all(unknown), |i| {
        i.append_group(&[ticket(1000), vec![99; 40]].concat());
    });
    t.add("a record cut short", all(unknown), |i| {
        let whole = put(key(50, 0, 50), 1, 400, (0, 1, 401));
        i.append_group(&[ticket(1000), whole[..20].to_vec()].concat());
    });
    t.add("a ticket at the end of numbers", all(unknown), |i| {
        i.append_group(&ticket(u64::MAX));
    });
    t.add("a seal number at the end of numbers", all(unknown), |i| {
        let mut seal = vec![2, 0, 0, 0, 0, 0, 0, 0];
        seal.extend(5u64.to_le_bytes());
        seal.extend(u64::MAX.to_le_bytes());
        i.append_group(&[ticket(1000), seal].concat());
    });
    let dropped = "a chunk is dropped";
    for (name, header, run) in [
        ("header outside the data region", 2, (0, 1, 3000)),
        ("header at the last block number", u32::MAX, (0, 1, 3000)),
        ("data outside the data region", 3000, (0, 1, 50)),
        ("data past the device", 3000, (0, 1, u32::MAX)),
        ("data past the end of the chunk", 3000, (1, 1, 3001)),
        ("a run of no blocks", 3000, (0, 0, 3001)),
        ("data over its own header", 3000, (0, 1, 3000)),
    ] {
        t.add(format!("block map: {name}"), all(dropped), move |i| {
            i.append_group(&[ticket(1000), put(key(50, 0, 50), 1, header, run)].concat());
        });
    }
    t.add("block map: a chunk of 4 GiB", all(dropped), |i| {
        let record = put(key(50, 0, 50), u32::MAX, 3000, (0, 1, 3001));
        i.append_group(&[ticket(1000), record].concat());
    });
    t.add(
        "two chunks claim one extent",
        but(&[VICTIM], "the blocks of a chunk belong to a later one"),
        |i| {
            let data = (i.first_data(VICTIM) / BLOCK) as u32;
            let record = put(key(50, 0, 50), 1, 3000, (0, 1, data + 3));
            i.append_group(&[ticket(1000), record].concat());
        },
    );
    t.add(
        "a chunk claims the header of another",
        but(&[VICTIM], "the blocks of a chunk belong to a later one"),
        |i| {
            let header = (i.header(VICTIM) / BLOCK) as u32;
            let record = put(key(50, 0, 50), 1, 3000, (0, 1, header));
            i.append_group(&[ticket(1000), record].concat());
        },
    );
    t.add(
        "a chunk that was never written",
        all("a chunk header is corrupt"),
        |i| {
            let record = put(key(50, 0, 50), 1, 3000, (0, 1, 3001));
            i.append_group(&[ticket(1000), record].concat());
        },
    );
}

/// A REMOVE record of a version, with its ticket.
fn removal(version: u64) -> Vec<u8> {
    let (key, _) = history()[&version];
    let mut r = ticket(1000);
    r.extend([5, 0, 0, 0]);
    r.extend(key.ino.0.to_le_bytes());
    r.extend(key.index.to_le_bytes());
    r.extend(key.version.0.to_le_bytes());
    r
}

fn headers_and_data(t: &mut Table) {
    let corrupt = "a chunk header is corrupt";
    let lost = || but(&[VICTIM], corrupt);
    for (name, at) in [
        ("magic", 0),
        ("store id", 8),
        ("format", 16),
        ("flags", 18),
        ("runs", 20),
        ("zeros", 22),
        ("ino", 24),
        ("index", 32),
        ("length", 36),
        ("version", 40),
        ("stamp", 48),
        ("checksum", 56),
        ("bytes", 60),
        ("first of a run", 64),
        ("length of a run", 66),
        ("place of a run", 68),
        ("checksum of block 0", 72),
        ("checksum of block 15", 72 + 60),
    ] {
        t.add(format!("chunk header: {name} flipped"), lost(), move |i| {
            i.flip(i.header(VICTIM) + at);
        });
    }
    t.add("chunk header: zeros", lost(), |i| {
        i.zero(i.header(VICTIM), BLOCK)
    });
    t.add("chunk header: of another chunk", lost(), |i| {
        i.copy(i.header(5), i.header(VICTIM), BLOCK);
    });
    t.add("chunk header: of the version before", lost(), |i| {
        i.copy(i.header(1), i.header(VICTIM), BLOCK);
    });
    t.add(
        "chunk header: another length, right checksum",
        lost(),
        |i| {
            i.change_header(VICTIM, |h| h[36] = 1);
        },
    );
    t.add("chunk header: another place, right checksum", lost(), |i| {
        i.change_header(VICTIM, |h| h[68] ^= 1);
    });
    let mismatch = "does not match its checksum";
    let wrong = || but(&[VICTIM], mismatch);
    t.add(
        "chunk header: another block checksum, right checksum",
        wrong(),
        |i| {
            i.change_header(VICTIM, |h| h[80] ^= 1);
        },
    );
    for block in [0, 7, 15] {
        t.add(
            format!("data of block {block} flipped"),
            wrong(),
            move |i| {
                i.flip(i.first_data(VICTIM) + block * BLOCK + 1234);
            },
        );
    }
    t.add("a block of data zeros", wrong(), |i| {
        i.zero(i.first_data(VICTIM) + 3 * BLOCK, BLOCK);
    });
    t.add("two blocks of data in each other's place", wrong(), |i| {
        let at = i.first_data(VICTIM);
        let first = i.0[at..at + BLOCK].to_vec();
        i.copy(at + BLOCK, at, BLOCK);
        i.put(at + BLOCK, &first);
    });
    t.add("the data of the version before", wrong(), |i| {
        i.copy(i.first_data(1), i.first_data(VICTIM), 16 * BLOCK);
    });
    t.add(
        "the padding behind the last byte",
        but(&[2], mismatch),
        |i| {
            i.flip(i.first_data(2) + 2 * BLOCK - 1);
        },
    );
    t.add(
        "a block that two versions share",
        but(&[7], mismatch),
        |i| {
            i.flip(i.first_data(7) + 2 * BLOCK + 9);
        },
    );
    t.add("a block of the version that was replaced", all(""), |i| {
        i.flip(i.first_data(1) + 9);
    });
}
