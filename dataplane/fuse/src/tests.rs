//! Goal: what the kernel sends is understood, what it cannot have sent never panics, and what it is answered has its
//! layout. Method: golden requests built byte by byte, the same cut short and scrambled, golden answers.

mod answers;
mod negotiation;
mod requests;

use crate::wire::InHeader;
use zerocopy::IntoBytes;

/// A message of the kernel: header and body.
fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(size_of::<InHeader>() + body.len()).unwrap();
    let header = InHeader {
        len,
        opcode,
        unique: 9,
        nodeid: 1,
        uid: 1,
        gid: 2,
        pid: 3,
        ..InHeader::default()
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// Puts byte strings behind each other.
fn cat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}
