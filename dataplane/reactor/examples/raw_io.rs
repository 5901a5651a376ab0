//! What a core costs by itself: task switches, operations that need no device, cross-core wakes, and random reads of a
//! file against the device. `cargo run --release -p fastcache-reactor --example raw_io -- FILE [depth] [bytes]`; the
//! file is created with 1 GiB if it is missing. CPU=n pins the core (the CPU that takes the device's interrupts is the
//! fast one), ONLY_READS=1 leaves out the rest. Compare with fio on the same file in the same minute.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement, not a service"
)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use fastcache_reactor::{
    Config, Disk, DiskOptions, Fd, IoBuf, now, pool, remote, run, spawn, yield_now,
};

const RUN: Duration = Duration::from_secs(3);
const FILE_BYTES: u64 = 1 << 30;

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("usage: raw_io FILE [depth] [bytes]");
    let depth: usize = args.next().map_or(32, |arg| arg.parse().unwrap());
    let bytes: usize = args.next().map_or(4096, |arg| arg.parse().unwrap());
    let config = Config {
        cpu: std::env::var("CPU").ok().map(|cpu| cpu.parse().unwrap()),
        entries: 512,
        pool_buffers: depth,
        buffer_bytes: bytes,
        wide_entries: false,
    };
    run(config, || async move {
        if std::env::var_os("ONLY_READS").is_none() {
            yields().await;
            spawns().await;
            nops(depth).await;
            wakes().await;
        }
        reads(&path, depth, bytes).await;
    })
    .unwrap();
}

async fn yields() {
    let start = now();
    let count = 5_000_000u32;
    spawn(async move {
        for _ in 0..count {
            yield_now().await;
        }
    })
    .await;
    println!(
        "yield        {:8.1} ns",
        start.elapsed().as_secs_f64() * 1e9 / f64::from(count)
    );
}

async fn spawns() {
    let start = now();
    let count = 1_000_000u32;
    for _ in 0..count {
        spawn(async {}).detach();
        yield_now().await;
    }
    println!(
        "spawn + run  {:8.1} ns",
        start.elapsed().as_secs_f64() * 1e9 / f64::from(count)
    );
}

/// Runs `depth` tasks that call `work` until the time is over, and returns calls a second.
async fn load<F: Future<Output = ()>>(depth: usize, work: impl Fn() -> F + Clone + 'static) -> f64 {
    let start = now();
    let count = Rc::new(Cell::new(0u32));
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let (work, count) = (work.clone(), count.clone());
            spawn(async move {
                while start.elapsed() < RUN {
                    work().await;
                    count.set(count.get() + 1);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await;
    }
    f64::from(count.get()) / start.elapsed().as_secs_f64()
}

async fn nops(depth: usize) {
    let zero = Fd::from(std::os::fd::OwnedFd::from(
        std::fs::File::open("/dev/zero").unwrap(),
    ));
    let rate = load(depth, move || {
        let zero = zero.clone();
        async move {
            zero.read(IoBuf::alloc(8)).await.0.unwrap();
        }
    })
    .await;
    println!(
        "/dev/zero 8B {:8.0} k/s at depth {depth} (buffer from the heap)",
        rate / 1e3
    );
}

async fn wakes() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let stop = std::sync::Arc::new(event_listener::Event::new());
    let stopped = stop.listen();
    let thread = std::thread::spawn(move || {
        let config = Config {
            cpu: Some(1),
            entries: 64,
            pool_buffers: 0,
            buffer_bytes: 4096,
            wide_entries: false,
        };
        run(config, || async move {
            sender.send(remote()).unwrap();
            stopped.await;
        })
        .unwrap();
    });
    let other = receiver.recv().unwrap();
    let here = remote();
    let count = 100_000u32;
    let start = now();
    for _ in 0..count {
        let event = std::sync::Arc::new(event_listener::Event::new());
        let listener = event.listen();
        let here = here.clone();
        other.spawn(move || async move {
            here.spawn(move || async move {
                event.notify(1);
            });
        });
        listener.await;
    }
    println!(
        "to another core and back {:5.2} us",
        start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
    );
    stop.notify(1);
    thread.join().unwrap();
}

async fn reads(path: &str, depth: usize, bytes: usize) {
    let disk = Disk::open(
        path,
        DiskOptions {
            create_len: Some(FILE_BYTES),
        },
    )
    .unwrap();
    let blocks = disk.len() / bytes as u64;
    let seed = Rc::new(Cell::new(0x9e37_79b9_7f4a_7c15u64));
    let (pool, next) = (pool(), seed.clone());
    let rate = load(depth, move || {
        // xorshift64
        let mut x = next.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        next.set(x);
        let (disk, pool) = (disk.clone(), pool.clone());
        async move {
            let offset = x % blocks * bytes as u64;
            let (read, _buf) = disk.read(pool.get().await, offset).await;
            assert_eq!(read.unwrap(), bytes);
        }
    })
    .await;
    println!(
        "random reads {:8.1} k/s of {bytes} bytes at depth {depth}, {:.2} GB/s",
        rate / 1e3,
        rate * bytes as f64 / 1e9
    );
}
