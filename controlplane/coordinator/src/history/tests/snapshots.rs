//! Snapshots: what they replace, and what waits for them.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_replace_what_is_older() {
    let options = HistoryOptions {
        snapshot_segments: 4,
        part_bytes: 32 << 10,
        ..QUICK
    };
    let mut place = Place::new(2);
    let engine = place.start("a", options).await;
    for _ in 0..200 {
        for _ in 0..6 {
            place.change(&engine).await;
        }
        place.persist(&engine).await;
    }
    let manifests = |p: &Place| {
        let all = p.objects("snapshots");
        all.iter().filter(|o| o.ends_with("manifest")).count()
    };
    until("snapshots were taken", || {
        engine.progress().snapshot > engine.log_position() / 2
    })
    .await;
    place.persist(&engine).await;
    drop(engine);
    until("the writer ended", || manifests(&place) <= 3).await;
    assert!(manifests(&place) >= 2);
    let rebuilt = place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert!(rebuilt.position > 500);
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);

    // The last snapshot is damaged: the one before it, and the log since, do as well.
    let all = place.objects("snapshots");
    let last = all.iter().rfind(|o| o.ends_with("manifest")).unwrap();
    let part = last.replace("manifest", "000000");
    let mut bytes = std::fs::read(&part).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&part, bytes).unwrap();
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("c")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_lost_its_history_gets_a_snapshot() {
    let mut place = Place::new(7);
    let engine = place.start("a", QUICK).await;
    for _ in 0..50 {
        place.change(&engine).await;
    }
    place.persist(&engine).await;
    drop(engine);
    std::fs::remove_dir_all(place.bucket()).unwrap();
    let engine = place.start("a", QUICK).await;
    until("a snapshot", || engine.progress().snapshot > 0).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    drop(engine);
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_waits_for_a_snapshot() {
    let options = HistoryOptions {
        garbage_wait: Duration::from_millis(200),
        ..QUICK
    };
    let mut place = Place::new(8);
    let engine = place.start("a", options).await;
    let made = place.ask(&engine, make(Ino::ROOT, b"f", Kind::File)).await;
    let Ok(NsAnswer::Entry(attr)) = made else {
        panic!("{made:?}")
    };
    place.write(&engine, attr.ino).await;
    place.write(&engine, attr.ino).await;
    let take = NsOp::TakeGarbage {
        max: 10,
        upto: u64::MAX,
    };
    let before = engine.log_position();
    assert_eq!(
        place.ask(&engine, take.clone()).await,
        Ok(NsAnswer::Garbage(vec![]))
    );
    assert_eq!(
        engine.log_position(),
        before,
        "what changes nothing is no record"
    );
    until("a snapshot", || engine.progress().snapshot >= before).await;
    let Ok(NsAnswer::Garbage(objects)) = place.ask(&engine, take).await else {
        panic!()
    };
    assert_eq!(objects.len(), 1);
}
