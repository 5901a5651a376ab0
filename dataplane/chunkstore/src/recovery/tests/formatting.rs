//! Whose device it is: what is formatted, repaired or refused when a store is opened.

use super::*;

#[test]
fn one_good_superblock_repairs_the_other_and_two_bad_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| one(&store, 0, 1).await);
    for copy in COPIES {
        let at = u64::from(copy) * BLOCK_U64;
        flip(dir.path(), at + 20);
        session(dir.path(), async |store, _| {
            expect(&store, key(1, 0, 1), 5000).await
        });
    }
    // Both are whole again, so that each alone is enough.
    flip(dir.path(), 20);
    session(dir.path(), async |store, _| {
        expect(&store, key(1, 0, 1), 5000).await
    });
    for copy in COPIES {
        flip(dir.path(), u64::from(copy) * BLOCK_U64 + 20);
    }
    let error = open_error(options(dir.path(), 64));
    assert!(matches!(error, StoreError::Damaged) && error.to_string().contains("--format --force"));
    let format = StoreOptions {
        format: true,
        ..options(dir.path(), 64)
    };
    assert!(matches!(open_error(format.clone()), StoreError::Damaged));
    let force = StoreOptions {
        force: true,
        ..format
    };
    reactor(async || Store::open(force).await.map(drop)).unwrap();
    session(dir.path(), async |_, recovered| {
        assert_eq!(recovered.chunks, 0)
    });
}

#[test]
fn other_peoples_data_is_not_erased_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("device");
    let mut image = vec![0; 20 << 20];
    image[0x438..0x43A].copy_from_slice(&[0x53, 0xEF]);
    std::fs::write(&path, &image).unwrap();
    let plain = options(&path, 20);
    for (format, force) in [(false, false), (true, false), (false, true)] {
        let error = open_error(StoreOptions {
            format,
            force,
            ..plain.clone()
        });
        assert!(matches!(error, StoreError::Foreign { signature } if signature.contains("ext4")));
        assert!(std::fs::read(&path).unwrap() == image);
    }
    let both = StoreOptions {
        format: true,
        force: true,
        ..plain.clone()
    };
    reactor(async || {
        let (store, _) = Store::open(both).await.unwrap();
        one(&store, 0, 1).await;
    });
    reactor(async || {
        let (store, _) = Store::open(plain).await.unwrap();
        expect(&store, key(1, 0, 1), 5000).await;
    });
}

#[test]
fn a_store_is_formatted_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |store, _| one(&store, 0, 1).await);
    let file = dir.path().join(FILE_NAME);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 64 * MIB);
    // The capacity of what is there counts, not the one asked for.
    reactor(async || {
        let (store, recovered) = Store::open(options(&file, 32)).await.unwrap();
        assert_eq!(recovered.chunks, 1);
        assert!(store.usage().capacity_bytes > 50 * MIB);
    });
    let format = StoreOptions {
        format: true,
        ..options(dir.path(), 32)
    };
    reactor(async || {
        let (store, recovered) = Store::open(format).await.unwrap();
        assert_eq!(recovered.chunks, 0);
        assert!(store.usage().capacity_bytes < 32 * MIB);
        one(&store, 0, 9).await;
    });
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 32 * MIB);
    // Nothing of the old store's journal, which is partly still there, is taken for the new one's.
    reactor(async || {
        let (_, recovered) = Store::open(options(dir.path(), 32)).await.unwrap();
        assert_eq!(recovered.chunks, 1);
    });
    let cut = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    cut.set_len(20 << 20).unwrap();
    assert!(matches!(
        open_error(options(dir.path(), 32)),
        StoreError::CutShort { .. }
    ));
    let small = options(&dir.path().join("small"), 1);
    assert!(matches!(open_error(small), StoreError::TooSmall { .. }));
    let nowhere = options(&dir.path().join("no/such/dir"), 32);
    assert!(matches!(open_error(nowhere), StoreError::Open { .. }));
}

#[test]
fn a_second_user_is_told_that_the_store_is_busy() {
    let dir = tempfile::tempdir().unwrap();
    session(dir.path(), async |_store, _| {
        let second = Store::open(options(dir.path(), 64)).await;
        assert!(matches!(second.map(drop), Err(StoreError::Busy)));
    });
    session(dir.path(), async |_, _| ());
}
