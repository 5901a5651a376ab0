//! Nodes come, are silent, and come back.

use super::*;

fn node(id: &str) -> grpc::Node {
    grpc::Node {
        peer_id: id.to_owned(),
        ..Default::default()
    }
}

#[test]
fn who_comes_goes_or_moves_makes_the_list_another() {
    let dir = tempfile::tempdir().unwrap();
    let second = Duration::from_secs(1);
    let mut r = Registry::open(dir.path(), 100, 60 * second, 10 * second).unwrap();
    let t = Instant::now();
    let mut seen = vec![r.version()];
    let a = r.register(node("a"), 0, t).unwrap();
    seen.push(r.version());
    r.heartbeat(a.session, Some(node("a")), t).unwrap();
    assert_eq!(seen.last(), Some(&r.version()), "nothing changed");
    let moved = grpc::Node {
        peer_address: "10.0.0.1:8082".to_owned(),
        ..node("a")
    };
    r.heartbeat(a.session, Some(moved), t).unwrap();
    assert_eq!(r.peers(t)[0].peer_address, "10.0.0.1:8082");
    seen.push(r.version());
    r.fence(a.session).unwrap();
    seen.push(r.version());
    assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
}

#[test]
fn an_id_has_one_live_node_and_is_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let second = Duration::from_secs(1);
    let open = || Registry::open(dir.path(), 100, 60 * second, 10 * second).unwrap();
    let mut r = open();
    let t = Instant::now();
    let a = r.register(node("a"), 0, t).unwrap();
    assert!(!a.is_second && a.replaced.is_none());
    assert_eq!(
        r.register(node("a"), 0, t).unwrap_err(),
        RegisterError::Taken("a".into())
    );
    assert_eq!(
        r.register(node("a b"), 0, t).unwrap_err(),
        RegisterError::PeerId
    );
    // Its own agent again.
    let again = r.register(node("a"), a.session, t).unwrap();
    assert_eq!(again.replaced, Some(a.session));
    assert_eq!(r.check(a.session), Err(UnknownSession(a.session)));
    // Killed, and started again: the stream ended.
    r.unwatched(again.session);
    let third = r.register(node("a"), 0, t).unwrap();
    // Silent for long enough.
    let t = t + 10 * second;
    assert!(r.register(node("a"), 0, t).is_ok());
    assert!(r.is_same_node(third.session, a.session));
    assert!(!r.is_shared());
    assert!(r.register(node("b"), 0, t).unwrap().is_second);
    assert!(r.stale(t + 59 * second).is_empty());
    let stale = r.stale(t + 60 * second);
    assert_eq!(stale.len(), 2);
    r.fence(stale[0]).unwrap();
    assert_eq!(r.peers(t)[0].state, "stale");
    assert!(r.ended().contains(&stale[0]) && !r.ended().contains(&stale[1]));
    let r = open();
    assert!(r.is_shared() && r.peers(t).is_empty());
}

fn of(id: &str, identity: &str) -> grpc::Node {
    grpc::Node {
        identity: identity.to_owned(),
        ..node(id)
    }
}

#[track_caller]
fn refuse(r: &mut Registry, identity: &str, now: Instant) {
    let refused = r.register(of("a", identity), 0, now).unwrap_err();
    let is_it = matches!(&refused, RegisterError::OtherNode { peer_id, .. } if peer_id == "a");
    assert!(is_it, "{refused:?}");
}

#[test]
fn an_id_is_another_nodes_when_its_own_is_stale_and_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let second = Duration::from_secs(1);
    let open = || Registry::open(dir.path(), 100, 60 * second, 10 * second).unwrap();
    let mut r = open();
    let t = Instant::now();
    let a = r.register(of("a", "here"), 0, t).unwrap();
    refuse(&mut r, "there", t);
    refuse(&mut r, "", t);
    // Killed: it is back at once, and nobody else gets in between.
    r.unwatched(a.session);
    refuse(&mut r, "there", t);
    let again = r.register(of("a", "here"), 0, t).unwrap();
    assert_eq!(again.replaced, Some(a.session));
    // Fenced, silent, and stale at last; but its leases last.
    r.fence(again.session).unwrap();
    refuse(&mut r, "there", t + 59 * second);
    refuse(&mut r, "there", t + 60 * second);
    r.forget(a.session);
    refuse(&mut r, "there", t + 60 * second);
    r.forget(again.session);
    refuse(&mut r, "there", t + 59 * second);
    assert!(r.register(of("a", "there"), 0, t + 60 * second).is_ok());
    // The first one comes back to an id that it has no more; also when the coordinator was started again.
    refuse(&mut r, "here", t + 61 * second);
    let mut r = open();
    let t = Instant::now();
    refuse(&mut r, "here", t);
    assert!(r.register(of("a", "there"), 0, t).is_ok());
    assert!(!r.is_shared());
}

#[test]
fn a_list_of_nodes_without_identities_is_read() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("peers.json"), br#"["a","b"]"#).unwrap();
    let second = Duration::from_secs(1);
    let open = || Registry::open(dir.path(), 100, 60 * second, 10 * second).unwrap();
    let mut r = open();
    assert!(r.is_shared());
    let t = Instant::now();
    assert!(r.register(of("a", "here"), 0, t).is_ok());
    refuse(&mut r, "there", t);
    refuse(&mut open(), "there", t);
    assert_eq!(
        r.register(of("a", &"x".repeat(IDENTITY_MAX + 1)), 0, t)
            .unwrap_err(),
        RegisterError::Identity
    );
}

#[test]
fn a_full_list_forgets_the_node_that_was_silent_for_longest() {
    let dir = tempfile::tempdir().unwrap();
    let t = Instant::now();
    let [stale_after, live_for] = [Duration::from_secs(60), Duration::from_secs(10)];
    let open = || Registry::open(dir.path(), 0, stale_after, live_for).unwrap();
    let mut r = open();
    let id = |n: usize| format!("node-{n}");
    for n in 0..PEERS_MAX {
        let now = t + Duration::from_secs(u64::from(n != 3));
        r.register(node(&id(n)), 0, now).unwrap();
    }
    let full = r.register(node("new"), 0, t + Duration::from_secs(30));
    assert_eq!(full.unwrap_err(), RegisterError::Full);
    // Two are silent; what the first of them holds is not over yet, and then it is.
    let later = t + Duration::from_secs(120);
    let silent = [3, 4].map(|n| r.session_of(&id(n)).unwrap());
    for session in silent {
        r.fence(session).unwrap();
    }
    assert!(r.register(node("new"), 0, later).is_err());
    silent.into_iter().for_each(|session| r.forget(session));
    r.register(node("new"), 0, later).unwrap();
    assert!(!r.known().contains(&id(3)) && r.known().contains(&id(4)));
    // After a start nobody has been heard of; those that come back in time stay.
    let mut again = open();
    let start = Instant::now();
    again.register(node(&id(0)), 0, start).unwrap();
    again
        .register(node(&id(3)), 0, start + stale_after + live_for)
        .unwrap();
    assert!(again.known().contains(&id(0)) && again.known().contains(&id(3)));
    assert_eq!(again.known().len(), PEERS_MAX);
}
