//! Prints the table of docs/scaling.md: `cargo run --release -p fastcache-sim --example scaling [SEED [NODES...]]`.

use fastcache_sim::measure::keeps_bounds;
use fastcache_sim::{Report, measure};

fn main() -> Result<(), String> {
    let mut given = std::env::args().skip(1).filter_map(|arg| arg.parse().ok());
    let seed = given.next().unwrap_or(1);
    let mut sizes: Vec<u64> = given.collect();
    if sizes.is_empty() {
        sizes = vec![3, 30];
    }
    let sizes = sizes.iter().filter_map(|n| usize::try_from(*n).ok());
    let reports: Vec<Report> = sizes.map(|n| measure(n, seed)).collect();
    let row = |what: &str, of: &dyn Fn(&Report) -> String| {
        let cells: Vec<String> = reports.iter().map(of).collect();
        println!("| {what} | {} |", cells.join(" | "));
    };
    let idle = |method: &'static str| {
        move |r: &Report| format!("{:.2}", r.idle.get(method).copied().unwrap_or(0.0))
    };
    row("nodes", &|r| r.nodes.to_string());
    println!("|---|{}", "---:|".repeat(reports.len()));
    row("idle, messages a second and node", &|r| {
        format!("{:.2}", r.idle.values().sum::<f64>())
    });
    for method in ["Heartbeat", "Peers", "Call"] {
        row(&format!("– of these {method}"), &idle(method));
    }
    row(
        "new file of 4 KiB in a directory of its own: messages",
        &|r| format!("{:.2}", r.own_file),
    );
    row(
        "the same in a directory that all have listed: messages",
        &|r| format!("{:.2}", r.shared_file),
    );
    row("– revocations, each acknowledged", &|r| {
        format!("{:.1}", r.shared_file_revocations)
    });
    row("– time, own and shared directory", &|r| {
        format!("{:.0} ms, {:.0} ms", r.file_ms.0, r.file_ms.1)
    });
    row("stat of an unknown name: messages", &|r| {
        format!("{:.2}", r.stat)
    });
    row("stat, open, read, close of what is known: messages", &|r| {
        format!("{:.2}", r.known)
    });
    row("one change of what every node holds: revocations", &|r| {
        format!("{:.1}", r.fan_out)
    });
    row("– time, mean and most", &|r| {
        format!("{:.0} ms, {:.0} ms", r.fan_out_ms.0, r.fan_out_ms.1)
    });
    row("messages a second at the coordinator at work", &|r| {
        format!("{:.0}", r.work)
    });
    row(
        "a cold file read by all at once: bytes of the cloud / bytes of the file",
        &|r| format!("{:.2}", r.cold),
    );
    row("– time", &|r| format!("{:.2} s", r.cold_s));
    row("balance of homes, of first homes: most/mean", &|r| {
        format!("{:.2}, {:.2}", r.balance.0, r.balance.1)
    });
    row("a node leaves: copies that move", &|r| {
        format!("{:.1} %", 100.0 * r.moved)
    });
    row("a node is cut off: a change waits for it", &|r| {
        format!("{:.1} s", r.cut_wait_s)
    });
    row("– the others know", &|r| {
        format!("{:.0} s", r.cut_known_s)
    });
    row("messages lost on the way and sent again", &|r| {
        r.lost.to_string()
    });
    reports.iter().try_for_each(keeps_bounds)
}
