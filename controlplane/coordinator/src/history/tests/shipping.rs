//! The log on its way into the bucket: who may write it, and how far it is.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn who_was_overtaken_stops_and_says_why() {
    let mut place = Place::new(4);
    let old = place.start("a", QUICK).await;
    for _ in 0..50 {
        place.change(&old).await;
    }
    place.persist(&old).await;
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    let new = place.start("b", QUICK).await;
    place.change(&old).await;
    let status = place.persist(&old).await;
    assert_eq!(status.state, HistoryState::Stopped);
    assert!(status.shipped_position < status.log_position);
    assert!(
        status.error.as_ref().unwrap().contains("out of date"),
        "{status:?}"
    );
    assert_eq!(
        old.garbage_released(),
        0,
        "its garbage may be in use elsewhere"
    );
    place.change(&new).await;
    let status = place.persist(&new).await;
    assert_eq!(status.shipped_position, status.log_position);
    drop((old, new));
    place.rebuild("c", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("b")).await, dump(&place.state("c")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_somebody_elses_is_refused() {
    let mut place = Place::new(5);
    let nothing = place.rebuild("z", RebuildOptions::default()).await;
    assert!(matches!(nothing, Err(RebuildError::Nothing(_))));
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    drop(engine);
    // An empty state on a bucket that is not.
    let error = place.try_start("b", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("--rebuild"), "{error}");
    assert!(!place.state("b").join("namespace").exists());
    // A state of its own on that bucket.
    let other = Engine::start(&place.state("b").join("namespace"), None)
        .await
        .unwrap();
    drop(other);
    let error = place.try_start("b", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("another file system"), "{error}");
    // An old copy of the right state.
    let copy = place.state("copy");
    dump(&place.state("a")).await;
    let from = place.state("a");
    let status = std::process::Command::new("cp")
        .arg("-a")
        .args([&from, &copy])
        .status();
    assert!(status.unwrap().success());
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    drop(engine);
    let error = place.try_start("copy", QUICK).await.err().unwrap();
    assert!(error.to_string().contains("out of date"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_delays_and_loses_nothing() {
    let mut place = Place::new(6);
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    let (bucket, away) = (place.bucket(), place.state("away"));
    std::fs::rename(&bucket, &away).unwrap();
    std::fs::write(&bucket, b"a file where a directory was").unwrap();
    for _ in 0..200 {
        place.change(&engine).await;
    }
    until("the failure is told", || engine.progress().error.is_some()).await;
    let status = place.status(&engine).await;
    assert!(status.lag_ms.is_some() && status.shipped_position < status.log_position);
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    until("it caught up", || {
        let progress = engine.progress();
        progress.shipped == engine.log_position() && progress.error.is_none()
    })
    .await;
    drop(engine);
    // A start without the bucket: it goes on, and catches up.
    let cloud = place.cloud();
    std::fs::rename(&bucket, &away).unwrap();
    std::fs::write(&bucket, b"").unwrap();
    let begin = Instant::now();
    let engine = loop {
        let options = QUICK;
        let config = HistoryConfig {
            cloud: cloud.clone(),
            options,
        };
        match Engine::start(&place.state("a").join("namespace"), Some(config)).await {
            Err(EngineError::Locked(_)) if begin.elapsed() < Duration::from_secs(10) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => break done.unwrap(),
        }
    };
    assert_eq!(engine.progress().state, HistoryState::Claiming);
    place.change(&engine).await;
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(&away, &bucket).unwrap();
    until("it claimed and caught up", || {
        engine.progress().shipped == engine.log_position()
    })
    .await;
    drop(engine);
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_is_gone_for_a_moment_is_gone_on_with() {
    let mut place = Place::new(7);
    let engine = place.start("a", QUICK).await;
    place.change(&engine).await;
    place.persist(&engine).await;
    // The bucket is there, and what is listed of it is another one's.
    let (history, away) = (place.bucket().join("history"), place.state("away"));
    std::fs::rename(&history, &away).unwrap();
    for _ in 0..20 {
        place.change(&engine).await;
    }
    let said = || engine.progress().error.clone().unwrap_or_default();
    until("it is told", || said().contains("is gone")).await;
    let before = engine.progress().shipped;
    assert!(before < engine.log_position());
    // What was tried meanwhile went there.
    let (cwd, exchange) = (rustix::fs::CWD, rustix::fs::RenameFlags::EXCHANGE);
    rustix::fs::renameat_with(cwd, &away, cwd, &history, exchange).unwrap();
    until("it caught up", || {
        let progress = engine.progress();
        progress.shipped == engine.log_position() && progress.error.is_none()
    })
    .await;
    assert_eq!(engine.progress().state, HistoryState::Shipping);
    drop(engine);
    place.rebuild("b", RebuildOptions::default()).await.unwrap();
    assert_eq!(dump(&place.state("a")).await, dump(&place.state("b")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_covered_when_its_record_and_its_path_are() {
    let slow = HistoryOptions {
        segment_every: Duration::from_secs(3600),
        ..QUICK
    };
    let mut place = Place::new(9);
    let engine = place.start("a", slow).await;
    let made = place.ask(&engine, make(Ino::ROOT, b"d", Kind::Dir)).await;
    let Ok(NsAnswer::Entry(dir)) = made else {
        panic!()
    };
    let made = place.ask(&engine, make(dir.ino, b"f", Kind::File)).await;
    let Ok(NsAnswer::Entry(file)) = made else {
        panic!()
    };
    let is_covered = |ino| engine.history_status(Some(ino)).unwrap().is_covered;
    assert!(!is_covered(file.ino));
    place.persist(&engine).await;
    assert!(is_covered(file.ino) && is_covered(dir.ino));
    // Another file in the directory is another matter; another name of the directory is not.
    place
        .ask(&engine, make(dir.ino, b"g", Kind::File))
        .await
        .unwrap();
    assert!(is_covered(file.ino));
    let moved = NsOp::Rename {
        parent: Ino::ROOT,
        name: b"d".to_vec(),
        new_parent: Ino::ROOT,
        new_name: b"e".to_vec(),
        mode: RenameMode::Replace,
    };
    place.ask(&engine, moved).await.unwrap();
    assert!(!is_covered(file.ino));
    place.persist(&engine).await;
    assert!(is_covered(file.ino));
    assert!(!is_covered(Ino(404)));
}
