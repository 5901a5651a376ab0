//! Goal: whoever is not one of us, or behaves as if, gets nothing, and hurts nobody. Method: as in the parent.

use super::*;
use crate::frame::{Header, Kind};
use crate::handshake::{self, Refusal};
use crate::stream::Incoming;
use std::io::{Read, Write};
use std::net::TcpStream;

#[test]
fn strangers_are_refused_with_a_reason() {
    let memory = Memory::default();
    memory.put(key(1), 4096);
    reactor(|| async {
        let other_token = Token::new(b"another token, also long").unwrap();
        let elsewhere = Identity {
            file_system: 8,
            ..identity("a")
        };
        let table = [
            (other_token, Some(identity("a")), "token"),
            (token(), None, "has not heard of its cluster"),
            (token(), Some(elsewhere), "file system"),
            (token(), Some(identity("c")), "node c is there, not a"),
        ];
        for (token, me, why) in table {
            let (address, server) = server(&memory, token, me);
            let (client, peer) = client(address);
            let buf = IoBuf::alloc(4096);
            let got = client.fetch(&peer, key(1), 4096, buf, SOON).await;
            assert_eq!(got.unwrap_err(), AskError::Down, "{why}");
            assert_eq!(server.stats().served_bytes, 0);
            let error = client.refusal(&peer).await;
            assert!(error.contains(why), "{error}");
        }
    });
}

impl Cluster {
    /// What a handshake with a node ends with.
    async fn refusal(&self, peer: &Peer) -> String {
        let stream = Fd::connect(peer.address).await.unwrap();
        let mut incoming = Incoming::new(stream.clone());
        let me = self.me().unwrap();
        match handshake::connect(&stream, &mut incoming, &self.token, &me).await {
            Ok(other) => format!("node {} is there, not {}", other.id, peer.id),
            Err(error) => error.to_string(),
        }
    }
}

/// What a server does with these bytes from a stranger: everything it says before it hangs up.
fn says(bytes: &[u8]) -> (Vec<u8>, u64) {
    let memory = Memory::default();
    memory.put(key(1), 4096);
    let bytes = bytes.to_vec();
    reactor(|| async move {
        let (address, server) = server(&memory, token(), Some(identity("a")));
        let talk = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut said = Vec::new();
            // It may reset: what it said before counts.
            let _ = stream.read_to_end(&mut said);
            said
        });
        while !talk.is_finished() {
            sleep(Duration::from_millis(1)).await;
        }
        while server.stats().refused_connections == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        (talk.join().unwrap(), server.stats().served_bytes)
    })
}

#[test]
fn who_skips_the_handshake_gets_nothing() {
    let get = Header {
        key: key(1),
        length: 4096,
        ..Header::new(Kind::Get, 1)
    };
    let (said, served) = says(&get.encode());
    let head = Header::parse(said.first_chunk().unwrap()).unwrap();
    assert_eq!((head.kind, head.status), (Kind::Refused, Status::Token));
    assert_eq!(served, 0);
    let mut damaged = Header::new(Kind::Hello, 0).encode();
    damaged[20] ^= 1;
    let http = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".as_slice(), &[b' '; 64]].concat();
    for bytes in [&damaged[..], &http] {
        assert_eq!(says(bytes), (Vec::new(), 0));
    }
    // A proof of nothing.
    let hello = [&[0; 32][..], &FILE_SYSTEM.to_le_bytes(), b"evil"].concat();
    let proof = [0u8; 32];
    let frames = [
        &Header::new(Kind::Hello, 0).with_payload(&hello).encode()[..],
        &hello,
        &Header::new(Kind::Proof, 0).with_payload(&proof).encode()[..],
        &proof,
        &get.encode(),
    ]
    .concat();
    let (said, served) = says(&frames);
    let text = String::from_utf8_lossy(&said).into_owned();
    assert!(
        text.contains("node evil does not know this cluster's token"),
        "{text}"
    );
    assert_eq!(served, 0);
}

#[test]
fn two_versions_name_each_other() {
    let mut of_7 = Header::new(Kind::Hello, 0).encode();
    of_7[4] = 7;
    let (said, _) = says(&of_7);
    let text = String::from_utf8_lossy(&said).into_owned();
    assert!(
        text.contains("version 1 of the peer protocol, the other one 7"),
        "{text}"
    );
    reactor(|| async move {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&of_7).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let (client, peer) = client(address);
        let error = client.refusal(&peer).await;
        assert!(
            error.contains("version 7 of the peer protocol, this one 1"),
            "{error}"
        );
    });
}

/// A node that shakes hands, reads one request, says these bytes (its request's number comes first) and hangs up.
async fn misbehaving(say: impl Fn(u64) -> Vec<u8> + 'static) -> AskError {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let listener = Fd::from(OwnedFd::from(listener));
    let server = spawn(async move {
        let stream = listener.accept().await.unwrap();
        let mut incoming = Incoming::new(stream.clone());
        let me = identity("a");
        let shaken: Result<_, Refusal> =
            handshake::accept(&stream, &mut incoming, &token(), Some(&me)).await;
        assert_eq!(shaken.unwrap(), identity("b"));
        let asked = incoming.header().await.unwrap().unwrap();
        assert_eq!(asked.kind, Kind::Get);
        let bytes = say(asked.request);
        let mut buf = IoBuf::alloc(bytes.len());
        buf.copy_from_slice(&bytes);
        stream.send_whole(buf).await.0.unwrap();
        crate::stream::hang_up(&stream);
    });
    let (client, peer) = client(address);
    let got = client
        .fetch(&peer, key(1), 4096, IoBuf::alloc(8192), SOON)
        .await;
    server.await;
    let since = now();
    while client.stats().peers[0].connections > 0 {
        assert!(since.elapsed() < SOON, "the connection stays");
        sleep(Duration::from_millis(1)).await;
    }
    got.unwrap_err()
}

#[test]
fn answers_that_are_cut_or_wrong_end_the_connection() {
    let answer = |id: u64, change: fn(&mut Header, &mut Vec<u8>)| {
        let mut bytes = vec![5; 4096];
        let mut header = Header {
            key: key(1),
            total: 4096,
            ..Header::new(Kind::Answer, id).with_payload(&bytes)
        };
        change(&mut header, &mut bytes);
        [&header.encode()[..], &bytes].concat()
    };
    type Change = fn(&mut Header, &mut Vec<u8>);
    let table: [(Change, AskError); 7] = [
        (|_, bytes| bytes.truncate(100), AskError::Cut),
        (|_, bytes| bytes.clear(), AskError::Cut),
        (|_, bytes| bytes[77] ^= 1, AskError::Cut),
        (
            |header, _| header.key.version = Version(8),
            AskError::Nonsense,
        ),
        (|header, _| header.offset = 4096, AskError::Cut),
        (|header, _| header.kind = Kind::Put, AskError::Cut),
        (|header, _| header.total = 100, AskError::Cut),
    ];
    for (at, (change, error)) in table.into_iter().enumerate() {
        let got = reactor(|| misbehaving(move |id| answer(id, change)));
        assert_eq!(got, error, "case {at}");
    }
    let less = reactor(|| {
        misbehaving(|id| {
            let header = Header {
                key: key(1),
                total: 4096,
                ..Header::new(Kind::Answer, id).with_payload(b"not all of it")
            };
            [&header.encode()[..], b"not all of it"].concat()
        })
    });
    assert_eq!(less, AskError::Nonsense);
    let half =
        reactor(|| misbehaving(move |id| answer(id, |_, _| {})[..HEADER_BYTES / 2].to_vec()));
    assert_eq!(half, AskError::Cut);
    let garbage = reactor(|| misbehaving(|_| vec![0xAA; 300]));
    assert_eq!(garbage, AskError::Cut);
    let nothing = reactor(|| misbehaving(|_| Vec::new()));
    assert_eq!(nothing, AskError::Cut);
}
