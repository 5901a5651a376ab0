//! `fastcache-data`: configuration, wiring and shutdown of the data plane.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod config;
mod control;
mod memory;
mod peers;
mod repair;
mod replicate;
mod watchdog;

use anyhow::{Context, Result};
use config::Config;
use fastcache_api::control::DataStats;
use fastcache_cache::{FileSystem, Link};
use fastcache_chunkstore::{Recovered, Store, StoreError, StoreOptions};
use fastcache_fuse::{Choice, Mount, MountError, MountOptions, Session, choose};
use fastcache_reactor::Remote;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// glibc cannot put buffers that begin on a page where a small thing was between two of them: it took 8 KiB of RAM for
/// each new chunk (docs/adr/0010-memory-of-the-data-plane.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Buffers of one core for requests: what can be in flight in the kernel of one client at full depth.
const POOL_BUFFERS: usize = 96;
/// Size of one.
const BUFFER_BYTES: usize = fastcache_fuse::BUFFER_MIN + fastcache_types::BLOCK;
/// Submission entries of a ring.
const RING_ENTRIES: u32 = 512;
/// How long to wait for the store of a process that was just killed.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries.
const BUSY_LOOK: Duration = Duration::from_millis(100);
/// How long the mount may take to become free at the end before its connection is cut.
const UNMOUNT_MAX: Duration = Duration::from_secs(5);

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("FASTCACHE_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let done = Config::load().and_then(run);
    if let Err(error) = done {
        tracing::error!(target: "control", "{error:#}");
        std::process::exit(1);
    }
}

fn ring_config(cpu: usize, transport: &Choice) -> fastcache_reactor::Config {
    fastcache_reactor::Config {
        cpu: Some(cpu),
        entries: RING_ENTRIES,
        pool_buffers: POOL_BUFFERS,
        buffer_bytes: BUFFER_BYTES,
        wide_entries: transport.is_uring(),
    }
}

/// What the buffers of one core take, bytes: whole pages of 2 MiB.
const fn pool_bytes() -> u64 {
    (POOL_BUFFERS * BUFFER_BYTES.next_multiple_of(fastcache_types::BLOCK)).next_multiple_of(2 << 20)
        as u64
}

/// What a core is told when it starts.
enum Start {
    Serve(FileSystem, Session),
    Stop,
}

fn run(config: Config) -> Result<()> {
    let transport = choose(config.transport)?;
    // What can be said before anything is made. The store may turn out to be larger.
    let needs = memory::Needs {
        wanted_bytes: config.memory_bytes,
        checksums_bytes: config.checksum_memory_bytes,
        cores: config.cpus.len(),
        is_uring: transport.is_uring(),
        has_peers: config.peers.is_some(),
        capacity_bytes: 0,
        machine_bytes: memory::of_machine()?,
    };
    memory::divide(&needs)?;
    // Every core says where it can be reached, then waits for its session; the first one brings everything up.
    let (say, hear) = mpsc::channel::<Result<(usize, Remote)>>();
    let mut starts = Vec::new();
    let mut threads = Vec::new();
    for (core, cpu) in config.cpus.iter().copied().enumerate().skip(1) {
        let (send, receive) = futures_channel::oneshot::channel::<Start>();
        starts.push(send);
        let say = say.clone();
        let ring = ring_config(cpu, &transport);
        threads.push(std::thread::Builder::new().name(format!("core-{core}")).spawn(move || {
            let ended = fastcache_reactor::run(ring, || async move {
                let _ = say.send(Ok((core, fastcache_reactor::remote())));
                drop(say);
                if let Ok(Start::Serve(fs, session)) = receive.await {
                    serve(fs, session).await;
                    // The lane of this core is still needed: the process ends when the store is closed.
                    std::future::pending::<()>().await;
                }
            });
            if let Err(error) = ended {
                tracing::error!(target: "control", core, %error, "a core's ring cannot be made");
                std::process::exit(1);
            }
        })?);
    }
    drop(say);
    let first = config.cpus.first().copied().unwrap_or(0);
    let ring = ring_config(first, &transport);
    fastcache_reactor::run(ring, || bring_up(config, transport, needs, hear, starts))
        .context("the first core's ring cannot be made")?
}

async fn serve(fs: FileSystem, session: Session) {
    fastcache_fuse::serve(fs, session).await;
}

async fn bring_up(
    config: Config,
    transport: Choice,
    needs: memory::Needs,
    others: mpsc::Receiver<Result<(usize, Remote)>>,
    starts: Vec<futures_channel::oneshot::Sender<Start>>,
) -> Result<()> {
    let mut remotes = vec![fastcache_reactor::remote()];
    let mut heard: Vec<(usize, Remote)> = others.iter().collect::<Result<_>>()?;
    heard.sort_by_key(|(core, _)| *core);
    remotes.extend(heard.into_iter().map(|(_, remote)| remote));

    check_mount_point(&config.mount)?;
    let (
        store,
        Recovered {
            chunks,
            elapsed,
            pending,
            kept,
        },
    ) = open_store(&config).await?;
    let usage = store.usage();
    tracing::info!(target: "nvme", path = %config.nvme.display(), chunks, dirty_chunks = usage.dirty_chunks, used_bytes = usage.used_bytes, capacity_bytes = usage.capacity_bytes, elapsed_ms = elapsed.as_millis(), uncommitted = pending.len(), kept_for_others = kept.len(), "the store is open");

    let budget = memory::divide(&memory::Needs {
        capacity_bytes: usage.capacity_bytes,
        ..needs
    })?;
    tracing::info!(target: "control", memory_bytes = budget.total, fixed_bytes = budget.total - budget.limits.tables_bytes, chunks_most = budget.limits.chunks, inodes_bytes = budget.limits.inodes_bytes, "memory");
    let watched = watchdog::start(&remotes)?;
    let listener = control::bind(&config.socket)?;
    let for_peers = match &config.peers {
        Some(at) => Some((peers::bind(at.listen)?, at.token.clone())),
        None => None,
    };
    let arena = control::new_arena()?;
    let link = Link::new(config.cpus.clone(), rand::random());
    let fs = FileSystem::new(store.clone(), link, arena);
    fs.hold_again(&kept);
    fs.set_read_ahead(config.read_ahead_bytes);
    let keeper = memory::Keeper::new(budget, &fs);
    fastcache_reactor::spawn(Arc::clone(&keeper).tend(fs.clone())).detach();
    fs.set_cores(remotes.clone());
    let mut peer_listen = None;
    if let Some((listener, token)) = for_peers {
        // The port, where any was asked for.
        let address = listener.local_addr()?;
        tracing::info!(target: "peer", %address, "listening for other nodes");
        peer_listen = Some(address.to_string());
        peers::start(&fs, listener, token, remotes.clone());
    }
    let greeting = control::Greeting {
        capacity_bytes: usage.capacity_bytes,
        peer_listen,
    };
    fastcache_reactor::spawn(control::listen(
        fs.clone(),
        listener,
        remotes.clone(),
        greeting,
    ))
    .detach();
    {
        let store = store.clone();
        fastcache_reactor::spawn(async move { store.background().await }).detach();
    }

    let stop = stop_signal()?;
    tracing::info!(target: "control", socket = %config.socket.display(), "waiting for the agent (fastcache-ctl with the same --socket)");
    let ready = async {
        fs.agent().connected().await;
        fs.recover(pending).await;
        fs.drop_stale_orphans().await;
    };
    let stopped_early = {
        let ready = std::pin::pin!(ready);
        let stop = std::pin::pin!(async { stop.recv().await });
        matches!(
            futures_util::future::select(stop, ready).await,
            futures_util::future::Either::Left(_)
        )
    };
    if stopped_early {
        for start in starts {
            let _ = start.send(Start::Stop);
        }
        fs.write_back().await;
        fs.stop().await;
        return Ok(());
    }

    let options = MountOptions {
        transport,
        remote_locks: fs.has_coordinator(),
        ..MountOptions::default()
    };
    let mount = fastcache_fuse::mount(&config.mount, &options)?;
    let transport = mount.transport().clone();
    fs.set_notify(Box::new(mount.notifier()?));
    fs.set_extra_stats(Box::new(move |stats: &mut DataStats| {
        stats.memory = keeper.stats();
        stats.fuse_requests = fastcache_fuse::counters();
        stats.fuse_latency = fastcache_fuse::latencies();
        stats.transport = transport.kind.name().to_owned();
        stats.transport_why.clone_from(&transport.why);
        stats.stuck_cores = watched.stuck();
        stats.core_stalls = watched.total();
    }));
    let mut sessions = mount.sessions(&config.cpus, budget.entries)?.into_iter();
    let own = sessions.next();
    for (start, session) in starts.into_iter().zip(sessions) {
        let _ = start.send(Start::Serve(fs.clone(), session));
    }
    if let Some(own) = own {
        fastcache_reactor::spawn(serve(fs.clone(), own)).detach();
    }
    {
        let fs = fs.clone();
        fastcache_reactor::spawn(async move { fs.background().await }).detach();
    }
    tracing::info!(target: "fuse", mount = %config.mount.display(), cores = remotes.len(), "mounted");

    stop.recv().await;
    tracing::info!(target: "control", "stopping: sealing what is open, unmounting, closing the store");
    if let Err(error) = fs.sync_all().await {
        tracing::error!(target: "cache", %error, "not every open file could be sealed");
    }
    let is_off = take_off(mount).await;
    fs.write_back().await;
    if is_off {
        fs.leave().await;
    }
    fs.stop().await;
    let _ = std::fs::remove_file(&config.socket);
    tracing::info!(target: "control", "stopped");
    // The other cores hold nothing that is not on the device now.
    std::process::exit(0);
}

/// Refuses what can never be mounted on before anything is made or opened. A mount that is there already is not asked:
/// it may be dead, and `mount` knows what to do with it.
fn check_mount_point(dir: &Path) -> Result<(), MountError> {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    if matches!(fastcache_fuse::find_mount(&absolute), Ok(Some(_))) {
        return Ok(());
    }
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => Err(MountError::NotADirectory(absolute)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(MountError::NotADirectory(absolute))
        }
        _ => Ok(()),
    }
}

/// Opens the store. A process that was killed may hold it for a moment longer, while the kernel takes it down.
async fn open_store(config: &Config) -> Result<(Store, Recovered)> {
    let since = fastcache_reactor::now();
    loop {
        let options = StoreOptions {
            path: config.nvme.clone(),
            capacity_bytes: config.capacity_bytes,
            format: config.format,
            force: config.force,
            // Until the budget is divided: the store says how large it is.
            crc_budget_bytes: 0,
        };
        let opened = match config.rebuild_index {
            true => Store::rebuild_index(options).await,
            false => Store::open(options).await,
        };
        match opened {
            Err(StoreError::Busy) if since.elapsed() < BUSY_MAX => {
                fastcache_reactor::sleep(BUSY_LOOK).await;
            }
            other => return other.context("the chunk store"),
        }
    }
}

/// Unmounts from a thread that serves no requests, while this core goes on serving. Whether no program uses the mount any
/// more, and its pages.
async fn take_off(mount: Mount) -> bool {
    let aborter = mount.aborter();
    let (send, receive) = futures_channel::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("unmount".to_owned())
        .spawn(move || {
            let _ = send.send(mount.unmount());
        });
    if let Err(error) = thread {
        tracing::error!(target: "fuse", %error, "no thread to unmount from");
        return false;
    }
    match fastcache_reactor::timeout(UNMOUNT_MAX, receive).await {
        Ok(Ok(Ok(true))) => {
            tracing::info!(target: "fuse", "unmounted");
            return true;
        }
        Ok(Ok(Ok(false))) => {
            tracing::warn!(target: "fuse", "programs still used the mount; it was taken out of the tree")
        }
        Ok(Ok(Err(error))) => {
            tracing::error!(target: "fuse", %error, "the mount could not be taken off")
        }
        Ok(Err(_)) => tracing::error!(target: "fuse", "the thread that unmounts is gone"),
        Err(_) => {
            tracing::error!(target: "fuse", "unmounting takes too long: cutting the connection");
            if let Err(error) = aborter.abort() {
                tracing::error!(target: "fuse", %error, "the connection could not be cut");
            }
        }
    }
    false
}

/// SIGINT and SIGTERM, as something to wait for.
fn stop_signal() -> Result<StopSignal> {
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGINT,
        signal_hook::consts::SIGTERM,
    ])?;
    let state = std::sync::Arc::new((
        std::sync::atomic::AtomicBool::new(false),
        event_listener::Event::new(),
    ));
    let theirs = std::sync::Arc::clone(&state);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                theirs.0.store(true, std::sync::atomic::Ordering::SeqCst);
                theirs.1.notify(usize::MAX);
            }
        })?;
    Ok(StopSignal { state })
}

struct StopSignal {
    state: std::sync::Arc<(std::sync::atomic::AtomicBool, event_listener::Event)>,
}

impl StopSignal {
    async fn recv(&self) {
        loop {
            let listener = self.state.1.listen();
            if self.state.0.load(std::sync::atomic::Ordering::SeqCst) {
                return;
            }
            listener.await;
        }
    }
}
