#!/usr/bin/env python3
"""Runs fio-profiles/ on a fastcache mount and on a plain file of the same disk, and prints the ratios.

Raw and mount take turns, round by round, so that what else the machine does hits both. Each number is the median of
the rounds. With --write FILE the table replaces what stands between the two markers in FILE.

The node is started here, with its store, its directory for the cloud and the raw file in one temporary folder, and is
stopped again. Only Python's own library is used.
"""
import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROFILES = os.path.join(REPO, "fio-profiles")
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MIB = 1 << 20

# name, what it says, unit, ratio to raw that the project promises at this stage (None: none yet). The node writes through to
# a directory on the same disk, as a node does that is started with nothing but defaults.
CASES = [
    ("seq_read", "1 MiB direct reads, depth 16", "MB/s", 0.5),
    ("rand_read", "4 KiB random direct reads, depth 32 × 2 jobs", "IOPS", 0.5),
    ("checkpoint_write", "1 MiB direct writes, depth 16, fsync", "MB/s", 0.35),
    ("ingest", "2 GiB of new data, 1 MiB direct writes, uploaded to the same disk meanwhile", "MB/s", None),
    ("mixed", "16 KiB random, 70 % reads, depth 16", "IOPS", None),
    ("small_files", "new files of 16 KiB, 2 jobs", "files/s", None),
    ("reread", "1 MiB buffered reads, read before", "MB/s", None),
]

# Random writes scatter a file's blocks in the store, and new data needs a new file.
OWN_FILE = ("mixed", "ingest")


class Node:
    """A node of its own, in a folder."""

    def __init__(self, home, binaries, capacity):
        self.ctl = os.path.join(binaries, "fastcache-ctl")
        self.dir = os.path.join(home, "node")
        self.mount = os.path.join(home, "mnt")
        os.makedirs(self.mount)
        self.run("up", "--mount", self.mount, "--detach", "--port", "0", "--nvme-capacity", capacity)

    def run(self, command, *args):
        return subprocess.run(
            [self.ctl, command, "--dir", self.dir, *args],
            check=True, stdout=subprocess.PIPE, text=True, timeout=600,
        ).stdout

    def settle(self):
        """Everything is in the cloud: nothing is uploaded while something else is measured."""
        self.run("flush", "--wait")

    def fuse_requests(self):
        """Requests by operation name."""
        table = find(json.loads(self.run("status", "--json")), "fuse_requests")
        return dict(table) if not isinstance(table, dict) else table

    def stop(self):
        try:
            self.run("down", "--stop-timeout", "1")
        except (subprocess.SubprocessError, OSError) as error:
            print(f"down: {error}", file=sys.stderr)
            subprocess.run(["umount", "-l", self.mount], check=False, stderr=subprocess.DEVNULL)


def find(value, name):
    """The value of a name, wherever in a document it is."""
    if isinstance(value, dict):
        if name in value:
            return value[name]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            found = find(item, name)
            if found is not None:
                return found
    return None


def fio(profile, folder, settings):
    """One run; the number that the case is about, and the median latency in µs."""
    unit = next(c[2] for c in CASES if c[0] == profile)
    env = dict(
        os.environ,
        GLIBC_TUNABLES="glibc.malloc.hugetlb=1",
        FIO_FILE=os.path.join(folder, profile if profile in OWN_FILE else "bench"),
        FIO_DIR=os.path.join(folder, "small"),
        FIO_SIZE=str(2 * settings.size if profile == "ingest" else settings.size),
        FIO_RUNTIME=str(settings.runtime),
        FIO_NRFILES=str(settings.files),
    )
    os.makedirs(env["FIO_DIR"], exist_ok=True)
    if profile == "reread":
        drop_page_cache()
        with open(env["FIO_FILE"], "rb", buffering=0) as file:
            while file.read(MIB):
                pass
    out = subprocess.run(
        ["fio", "--output-format=json", f"{profile}.fio"],
        cwd=PROFILES, env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=600,
    ).stdout
    job = json.loads(out[out.index("{"):])["jobs"][0]
    if job.get("error"):
        sys.exit(f"fio {profile}: error {job['error']}")
    sides = [job["read"], job["write"]]
    latencies = [
        s["clat_ns"]["percentile"]["50.000000"] / 1000 for s in sides if s["total_ios"] and "percentile" in s["clat_ns"]
    ]
    latency = max(latencies, default=0)
    if unit == "MB/s":
        return sum(s["bw_bytes"] for s in sides) / 1e6, latency
    if unit == "files/s":
        # Only what is between the first open and the last close: fio counts the writes' time alone.
        return 2 * settings.files / (job["job_runtime"] / 2 / 1000), latency
    return sum(s["iops"] for s in sides), latency


def write_file(path, size):
    """Random bytes, so that no layer can do better than store them."""
    with open(path, "wb", buffering=0) as file:
        left = size
        while left > 0:
            left -= file.write(os.urandom(min(left, 4 * MIB)))
        os.fsync(file.fileno())


def drop_page_cache():
    """What was read once is the first to go when memory is full of cache, and other programs filled it."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("1")


def reread_requests(node):
    """FUSE requests made by reading a file again through a descriptor that has read it before.

    The kernel may drop pages of its own accord in between; what the file system causes, it causes each time. So a
    reading that made requests is repeated, twice at most, and the last one counts.
    """
    for _ in range(3):
        drop_page_cache()
        with open(os.path.join(node.mount, "bench"), "rb", buffering=0) as file:
            while file.read(MIB):
                pass
            before = {}
            # Requests that the kernel made ahead of the reader may still be on their way.
            while before != (before := node.fuse_requests()):
                time.sleep(0.2)
            file.seek(0)
            while file.read(MIB):
                pass
            after = node.fuse_requests()
        asked = {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}
        if not asked:
            break
        print(f"a re-read made FUSE requests: {asked}", file=sys.stderr)
    return asked


def machine(path):
    """One line on what this ran on."""
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        for line in info:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    fstype, longest = "unknown", -1
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, at, kind = line.split()[:3]
            if (path + "/").startswith(at.rstrip("/") + "/") and len(at) > longest:
                fstype, longest = kind, len(at)
    return f"{os.cpu_count()} × {model}, {memory:.0f} GiB, Linux {platform.release()}, {fstype}"


def commit():
    """The commit measured."""
    out = subprocess.run(
        ["git", "-C", REPO, "rev-parse", "--short", "HEAD"], check=False, stdout=subprocess.PIPE, text=True
    )
    return out.stdout.strip() or "unknown"


def measure(settings, home):
    """Rows of the table, and what a re-read asked."""
    raw = os.path.join(home, "raw")
    os.makedirs(raw)
    node = Node(home, settings.binaries, settings.capacity)
    try:
        print("laying out the files", file=sys.stderr)
        for folder in (raw, node.mount):
            for name in ("bench", "mixed"):
                write_file(os.path.join(folder, name), settings.size)
        node.settle()
        results = {case[0]: {"raw": [], "mount": []} for case in CASES}
        for turn in range(settings.rounds):
            for name, _, unit, _ in CASES:
                order = [("raw", raw), ("mount", node.mount)]
                if turn % 2:
                    order.reverse()
                for target, folder in order:
                    value, latency = fio(name, folder, settings)
                    results[name][target].append((value, latency))
                    print(f"round {turn + 1}  {name:24} {target:6} {value:12,.0f} {unit}", file=sys.stderr)
                    if target == "mount":
                        node.settle()
        asked = reread_requests(node)
    finally:
        node.stop()
    rows = []
    for name, text, unit, goal in CASES:
        median = {
            target: tuple(statistics.median(column) for column in zip(*values))
            for target, values in results[name].items()
        }
        rows.append((name, text, unit, goal, median["raw"], median["mount"]))
    return rows, asked


def table(settings, rows, asked, home):
    """Markdown."""
    lines = [
        f"Measured {date.today().isoformat()} at commit `{commit()}` on {machine(home)}.",
        f"Command: `{settings.command}` ({settings.rounds} rounds of {settings.runtime} s, file of "
        f"{settings.size // MIB} MiB, store of {settings.capacity}; medians). Raw is a plain file on the same disk.",
        "",
        "| profile | | raw | mount | mount / raw | at least | raw p50 | mount p50 |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, text, unit, goal, raw, mount in rows:
        want = f"{goal}" if goal else "–"
        lines.append(
            f"| {name} | {text} | {raw[0]:,.0f} {unit} | {mount[0]:,.0f} {unit} | {mount[0] / raw[0]:.2f} | {want} "
            f"| {raw[1]:,.0f} µs | {mount[1]:,.0f} µs |"
        )
    said = "none" if not asked else ", ".join(f"{n} {k}" for k, n in sorted(asked.items()))
    lines += ["", f"FUSE requests made by reading a file again through an open descriptor: {said}."]
    return "\n".join(lines)


def put_into(path, text):
    """Replaces what is between the markers."""
    with open(path, encoding="utf-8") as file:
        old = file.read()
    if BEGIN not in old or END not in old:
        sys.exit(f"{path} has no {BEGIN} … {END}")
    head, rest = old.split(BEGIN, 1)
    tail = rest.split(END, 1)[1]
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that everything runs")
    parser.add_argument("--write", metavar="FILE", help="put the table into this file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runtime", type=int, default=5, help="seconds of each run")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the file")
    parser.add_argument("--files", type=int, default=2000, help="small files of each of the two jobs")
    parser.add_argument("--capacity", default="6GiB", help="of the store")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="a folder on the disk to measure")
    parser.add_argument("--check", action="store_true", help="fail where a ratio is below what is promised")
    settings = parser.parse_args()
    is_make = sys.argv[1:] == ["--write", "docs/benchmarks.md"]
    settings.command = "make bench" if is_make else " ".join(["tests/bench.py", *sys.argv[1:]])
    settings.binaries = os.environ.get("FASTCACHE_BIN_DIR", os.path.join(REPO, "target", "release"))
    if settings.quick:
        settings.rounds, settings.runtime, settings.size, settings.files = 1, 1, 128, 200
    settings.size *= MIB
    if not shutil.which("fio"):
        sys.exit("fio is not installed: tests/setup/install.sh bench")
    home = tempfile.mkdtemp(prefix="fastcache-bench-", dir=settings.dir)
    try:
        rows, asked = measure(settings, home)
        text = table(settings, rows, asked, home)
    finally:
        if os.path.ismount(os.path.join(home, "mnt")):
            subprocess.run(["umount", "-l", os.path.join(home, "mnt")], check=False)
        shutil.rmtree(home, ignore_errors=True)
    print(text)
    if settings.write:
        put_into(settings.write, text)
    if asked:
        sys.exit(f"a re-read made FUSE requests: {asked}")
    if settings.check:
        low = [r[0] for r in rows if r[3] and r[5][0] / r[4][0] < r[3]]
        if low:
            sys.exit(f"below what is promised: {', '.join(low)}")


if __name__ == "__main__":
    main()
