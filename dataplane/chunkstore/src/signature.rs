//! Signatures of other users of a device, so that none of them is erased by mistake.

/// (offset, bytes, name), in the order in which they are looked for: a partition table comes last, because boot sectors
/// of file systems end like one.
const SIGNATURES: &[(usize, &[u8], &str)] = &[
    (0, b"XFSB", "an XFS file system"),
    (0x438, &[0x53, 0xEF], "an ext2, ext3 or ext4 file system"),
    (0x10040, b"_BHRfS_M", "a Btrfs file system"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (4096 - 10, b"SWAP-SPACE", "swap space"),
    (0x400, &[0x10, 0x20, 0xF5, 0xF2], "an F2FS file system"),
    (4096, &[0xFC, 0x4E, 0x2B, 0xA9], "a member of a Linux RAID"),
    (0, b"hsqs", "a SquashFS file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (0x52, b"FAT32   ", "a FAT file system"),
    (0x36, b"FAT1", "a FAT file system"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (510, &[0x55, 0xAA], "an MBR partition table or boot sector"),
];

/// The name of what `head`, the start of a device, is known to be.
pub(crate) fn known(head: &[u8]) -> Option<&'static str> {
    SIGNATURES
        .iter()
        .find(|(at, bytes, _)| head.get(*at..*at + bytes.len()) == Some(*bytes))
        .map(|(_, _, name)| *name)
}
