//! Goal: a store is recognised while one copy is good, and nothing else is ever taken for a blank device.

use super::*;

fn superblock() -> Superblock {
    Superblock {
        uuid: *b"0123456789abcdef",
        generation: 3,
        formatted_at: 1_700_000_000,
        geometry: Geometry::new(64 << 20).unwrap(),
    }
}

fn head(s: &Superblock) -> Vec<u8> {
    let mut head = vec![0; HEAD_BLOCKS as usize * BLOCK];
    for at in COPIES {
        s.encode(&mut head[at as usize * BLOCK..][..BLOCK]);
    }
    head
}

#[test]
fn geometry_covers_the_device_within_its_overhead() {
    for bytes in [MIN_BYTES, 64 << 20, 1 << 30, 10 << 30, 1 << 40, MAX_BYTES] {
        let g = Geometry::new(bytes).unwrap();
        assert!(g.is_sound(), "{g:?}");
        assert_eq!(g.data.end(), g.total_blocks);
        assert!(
            u64::from(g.data.len) * BLOCK_U64 >= bytes / 100 * 90,
            "{bytes}: {g:?}"
        );
    }
    assert!(matches!(
        Geometry::new(MIN_BYTES - 1),
        Err(StoreError::TooSmall { .. })
    ));
    assert!(matches!(
        Geometry::new(u64::MAX),
        Err(StoreError::TooLarge { .. })
    ));
}

#[test]
fn either_copy_is_enough_and_two_bad_ones_are_refused() {
    let s = superblock();
    assert!(
        matches!(examine(&head(&s)), Found::Store { superblock, is_repaired: false, .. } if superblock == s)
    );
    for (n, at) in COPIES.into_iter().enumerate() {
        for byte in [0, 9, 40, 60, 2000, 4095] {
            let mut h = head(&s);
            h[at as usize * BLOCK + byte] ^= 4;
            assert!(
                matches!(examine(&h), Found::Store { superblock, is_repaired: true, first } if superblock == s && first == n)
            );
        }
    }
    let mut h = head(&s);
    h[30] ^= 1;
    h[16 * BLOCK + 30] ^= 1;
    assert!(matches!(examine(&h), Found::Refused(StoreError::Damaged)));
}

#[test]
fn a_newer_format_is_named() {
    let mut h = head(&superblock());
    for at in COPIES {
        let block = &mut h[at as usize * BLOCK..][..BLOCK];
        block[8] = 3;
        let crc = crc_all(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }
    let Found::Refused(StoreError::Version { found, supported }) = examine(&h) else {
        panic!()
    };
    assert_eq!((found, supported), (3, 2));
}

#[test]
fn the_first_format_is_read() {
    let s = superblock();
    let mut h = head(&s);
    for at in COPIES {
        let block = &mut h[at as usize * BLOCK..][..BLOCK];
        block[8] = 1;
        let crc = crc_all(&block[..CRC_AT]);
        block[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        // Also where one copy is of this format already.
        assert!(
            matches!(examine(&h), Found::Store { superblock, is_repaired: false, .. } if superblock == s)
        );
    }
}

#[test]
fn a_device_whose_formatting_did_not_end_is_known() {
    for mut h in [
        head(&superblock()),
        vec![0; HEAD_BLOCKS as usize * BLOCK],
        vec![7; HEAD_BLOCKS as usize * BLOCK],
    ] {
        encode_unfinished(&mut h[..BLOCK]);
        assert!(matches!(examine(&h), Found::Unfinished));
        // Somebody else has it now.
        h[0x10040..0x10048].copy_from_slice(b"_BHRfS_M");
        assert!(matches!(
            examine(&h),
            Found::Refused(StoreError::Foreign { .. })
        ));
    }
}

#[test]
fn other_users_of_a_device_are_named() {
    let blank = vec![0; HEAD_BLOCKS as usize * BLOCK];
    assert!(matches!(examine(&blank), Found::Blank));
    let cases: &[(usize, &[u8], &str)] = &[
        (0x438, &[0x53, 0xEF], "ext4"),
        (0, b"XFSB", "XFS"),
        (0x10040, b"_BHRfS_M", "Btrfs"),
        (4086, b"SWAPSPACE2", "swap"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "LVM"),
        (512, b"EFI PART", "GPT"),
        (510, &[0x55, 0xAA], "MBR"),
        (70_000, b"x", "unknown"),
    ];
    for (at, bytes, name) in cases {
        let mut h = blank.clone();
        h[*at..*at + bytes.len()].copy_from_slice(bytes);
        let Found::Refused(error) = examine(&h) else {
            panic!("{name}")
        };
        let text = error.to_string();
        assert!(
            text.contains(name) && text.contains("--format --force"),
            "{text}"
        );
    }
    // mkfs over a store: the second copy does not bring it back.
    let mut h = head(&superblock());
    h[..BLOCK].fill(0);
    h[0x438..0x43A].copy_from_slice(&[0x53, 0xEF]);
    assert!(matches!(
        examine(&h),
        Found::Refused(StoreError::Foreign { .. })
    ));
}
