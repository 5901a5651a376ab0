//! Goal: a simulated world is the same each time that it grows from the same seed, another one from another; its clock goes
//! on when nothing else does; its devices take their time, forget and fail as they are told.
#![cfg(all(feature = "sim", not(feature = "race")))]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use fastcache_reactor::sim::{Device, Loss, Medium, Moods, Step, random, run};
use fastcache_reactor::{Disk, DiskOptions, IoBuf, Task, now, sleep, spawn, timeout};
use std::path::Path;
use std::time::Duration;

const PATH: &str = "/simulated/device";

fn device(moods: Moods) -> (Device, Disk) {
    let device = Device::new(Medium::new(1 << 20), moods);
    device.attach(Path::new(PATH));
    device.record();
    let disk = Disk::open(PATH, DiskOptions::default()).unwrap();
    (device, disk)
}

fn buf(byte: u8) -> IoBuf {
    let mut buf = IoBuf::alloc(4096);
    buf.fill(byte);
    buf
}

/// Some writers, and what the device saw of them.
fn story(seed: u64) -> Vec<Step> {
    run(seed, async || {
        let (device, disk) = device(Moods {
            transfer_us: 10..500,
            flush_us: 10..900,
            ..Moods::default()
        });
        let writers: Vec<Task<()>> = (0..8)
            .map(|n| {
                let disk = disk.clone();
                spawn(async move {
                    for round in 0..8 {
                        let at = random(200) * 4096;
                        disk.write(buf(n * 8 + round), at).await.0.unwrap();
                        if random(4) == 0 {
                            disk.sync().await.unwrap();
                        }
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await;
        }
        device.take_log()
    })
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let one = story(1);
    assert!(one == story(1));
    assert!(one != story(2));
}

#[test]
fn time_passes_when_all_wait() {
    let started = std::time::Instant::now();
    run(3, async || {
        let before = now();
        sleep(Duration::from_secs(3600)).await;
        let hour = before.elapsed();
        assert!(hour >= Duration::from_secs(3600) && hour < Duration::from_secs(3601));
        let never = std::future::pending::<()>();
        assert!(timeout(Duration::from_secs(60), never).await.is_err());
    });
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
#[should_panic(expected = "nothing will happen")]
fn a_wake_up_that_is_lost_is_found() {
    run(4, std::future::pending::<()>);
}

#[test]
fn a_power_cut_takes_what_was_not_flushed() {
    run(5, async || {
        let (device, disk) = device(Moods {
            transfer_us: 10..20,
            ..Moods::default()
        });
        disk.write(buf(1), 0).await.0.unwrap();
        disk.sync().await.unwrap();
        disk.write(buf(2), 0).await.0.unwrap();
        for (loss, byte) in [(Loss::All, 1), (Loss::None, 2)] {
            let mut found = [0];
            device.cut(loss).read(4095, &mut found);
            assert_eq!(found, [byte]);
        }
        // Who does not wait for a write has not taken it back.
        drop(timeout(Duration::from_micros(1), disk.write(buf(3), 0)).await);
        sleep(Duration::from_millis(1)).await;
        let (result, found) = disk.read(buf(0), 0).await;
        assert_eq!((result.unwrap(), found[0]), (4096, 3));
    });
}

#[test]
fn a_device_is_as_sick_as_it_is_told() {
    run(6, async || {
        let (device, disk) = device(Moods::default());
        let sick = Moods {
            read_eio: 1,
            write_enospc: 1,
            flush_eio: 1,
            ..Moods::default()
        };
        device.set_moods(sick);
        let errno = |error: std::io::Error| error.raw_os_error();
        let (read, _) = disk.read(buf(0), 0).await;
        assert_eq!(errno(read.unwrap_err()), Some(libc::EIO));
        let (write, _) = disk.write(buf(1), 0).await;
        assert_eq!(errno(write.unwrap_err()), Some(libc::ENOSPC));
        assert_eq!(errno(disk.sync().await.unwrap_err()), Some(libc::EIO));
        device.set_moods(Moods {
            rot: 1,
            ..Moods::default()
        });
        disk.write(buf(0), 0).await.0.unwrap();
        let (_, found) = disk.read(buf(0), 0).await;
        assert_eq!(found.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        device.rot(0..4096);
        let (_, found) = disk.read(buf(0), 0).await;
        assert!([0, 2].contains(&found.iter().map(|b| b.count_ones()).sum::<u32>()));
    });
}
