//! What is rebuilt is what was lost, and what cannot be is said.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_alone_gives_the_state_back() {
    let mut place = Place::new(1);
    let engine = place.start("a", QUICK).await;
    for n in 0..600 {
        place.change(&engine).await;
        if n % 100 == 0 {
            let status = place.persist(&engine).await;
            assert_eq!(status.shipped_position, status.log_position);
        }
    }
    let status = place.persist(&engine).await;
    assert!(place.objects("log").len() > 5, "a segment is small here");
    drop(engine);
    let rebuilt = place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert_eq!(rebuilt.position, status.log_position);
    assert!(rebuilt.incomplete.is_empty(), "{:?}", rebuilt.incomplete);
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);

    // It goes on from there, in a later epoch, and the state it came from is out of date.
    let again = place.start("b", QUICK).await;
    assert!(again.stats().epoch > 1000);
    place.change(&again).await;
    let status = place.persist(&again).await;
    assert_eq!(status.shipped_position, status.log_position);
    let error = place.try_start("a", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("out of date"), "{error}");
    drop(again);
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("b")).await, dump(&place.state("c")).await);
    // And there is nothing to rebuild over.
    let error = place
        .rebuild("c", RebuildOptions::default())
        .await
        .unwrap_err();
    assert!(matches!(error, RebuildError::NotEmpty(_)), "{error}");
    let replace = RebuildOptions {
        replace: true,
        ..RebuildOptions::default()
    };
    let rebuilt = place.rebuild("c", replace).await.unwrap();
    assert!(rebuilt.put_aside.unwrap().exists());
}

/// Chunks that went with the disks come back once, after a rebuild, and whoever is killed over it does it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuilt_state_says_so_until_it_is_settled() {
    let mut place = Place::new(7);
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    assert!(!engine.is_unsettled());
    drop(engine);
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    for (is_unsettled, is_done) in [(true, false), (true, true), (false, false)] {
        let engine = place.start("b", QUICK).await;
        assert_eq!(engine.is_unsettled(), is_unsettled);
        if is_done {
            engine.settled().unwrap();
            assert!(!engine.is_unsettled());
        }
        drop(engine);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_named_and_accepted_only_when_asked() {
    let mut place = Place::new(3);
    let engine = place.start("a", QUICK).await;
    for _ in 0..10 {
        place.change(&engine).await;
        place.change(&engine).await;
        place.persist(&engine).await;
    }
    drop(engine);
    let segments = place.objects("log");
    let victim = &segments[segments.len() / 2];
    let name = victim.rsplit('/').next().unwrap().to_owned();
    let whole = std::fs::read(victim).unwrap();
    for kind in 0..4 {
        match kind {
            0 => std::fs::write(victim, &whole[..whole.len() - 1]).unwrap(),
            1 => std::fs::write(victim, b"").unwrap(),
            2 => std::fs::write(victim, vec![b'x'; 500]).unwrap(),
            _ => std::fs::remove_file(victim).unwrap(),
        }
        let error = place
            .rebuild("b", RebuildOptions::default())
            .await
            .unwrap_err();
        let text = error.to_string();
        let first = name.split('-').next().unwrap();
        assert!(
            text.contains(first) && text.contains("--accept-loss"),
            "{text}"
        );
        assert!(!place.state("b").join("namespace").exists());
    }
    let accept = RebuildOptions {
        accept_loss: true,
        ..RebuildOptions::default()
    };
    let rebuilt = place.rebuild("b", accept).await.unwrap();
    let first = u64::from_str_radix(name.split('-').next().unwrap(), 16).unwrap();
    assert_eq!(rebuilt.position, first - 1);
    assert!(rebuilt.lost_behind.is_some());
    // What follows from there is the history: what lay behind the damage is void.
    let engine = place.start("b", QUICK).await;
    place.change(&engine).await;
    let status = place.persist(&engine).await;
    assert_eq!(status.shipped_position, status.log_position);
    drop(engine);
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("b")).await, dump(&place.state("c")).await);
}
