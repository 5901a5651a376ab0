#!/usr/bin/env python3
"""Measures names and attributes through mounts of a cluster: a coordinator in a process of its own, and two nodes, all here.

A node that has cached nothing is started for what is read: what is asked goes to the coordinator. There is no bucket, so
nothing is uploaded meanwhile; what would have been is told. With --write FILE the table replaces what stands between the two
markers in FILE. Only Python's own library is used.
"""
import argparse
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from datetime import date

from bench import REPO, commit
from benchlib import machine, page
from benchlib.coordinator import Coordinator, backlog

BEGIN, END = "<!-- metadata:begin -->", "<!-- metadata:end -->"
CLIENTS = 8
BLOCK = b"\x07" * 4096
# Files of the tree that is unpacked, and its folders.
TREE_FILES, TREE_DIRS = 20_000, 200
# Entries of a small directory, for comparison with a large one.
FEW = 100


@dataclass
class Row:
    """A line of the table; `is_most` where less is better. Without `must` nothing has to be reached."""

    text: str
    value: float
    unit: str
    must: float | None
    is_most: bool = False

    def is_reached(self):
        if self.must is None:
            return True
        return self.value <= self.must if self.is_most else self.value >= self.must

    def number(self, value):
        return f"{value:,.2f} {self.unit}" if value < 100 else f"{value:,.0f} {self.unit}"

    def line(self):
        text = self.number(self.value)
        sign = "≤" if self.is_most else "≥"
        must = "–" if self.must is None else f"{sign} {self.number(self.must)}"
        return f"| {self.text} | {text if self.is_reached() else f'**{text}**'} | {must} |"


def at_once(clients, act):
    """`act(client)` in as many processes, begun together; it answers how much it did. How much was done in a second."""
    begin, done = multiprocessing.Barrier(clients + 1), multiprocessing.Queue()

    def client(number):
        begin.wait()
        count = act(number)
        done.put((count, time.monotonic()))

    running = [multiprocessing.Process(target=client, args=(n,)) for n in range(clients)]
    for process in running:
        process.start()
    begin.wait()
    start = time.monotonic()
    ended = [done.get(timeout=600) for _ in running]
    for process in running:
        process.join()
    return sum(count for count, _ in ended) / (max(end for _, end in ended) - start)


def make_files(folder, seconds):
    """Creates, writes and closes files of 4 KiB for so long."""
    os.makedirs(folder)
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        fd = os.open(f"{folder}/{count:06}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(fd, BLOCK)
        os.close(fd)
        count += 1
    return count


def make_empty(folder, numbers):
    """Makes empty files of these numbers; no bytes, so one message each."""
    for number in numbers:
        os.mknod(f"{folder}/{number:07}", 0o644)
    return len(numbers)


def spread(count, client):
    """A client's share of so many numbers."""
    return range(client * count // CLIENTS, (client + 1) * count // CLIENTS)


def stat_all(folder, numbers):
    """Looks each of these up."""
    for number in numbers:
        os.stat(f"{folder}/{number:07}")
    return len(numbers)


def list_all(folder):
    """Lists a directory, with the attributes of all."""
    with os.scandir(folder) as entries:
        return sum(1 for entry in entries if entry.stat(follow_symlinks=False))


def create(cluster, settings):
    """New files of 4 KiB."""
    node, rows = cluster.writer, []
    for clients, must in ((1, 2_000), (CLIENTS, 6_000)):
        rate = at_once(clients, lambda n: make_files(f"{node.mount}/new-{clients}-{n}", settings.seconds))
        rows.append(Row(f"create + write 4 KiB + close, {clients} at once", rate, "/s", must))
    chunks, size = backlog(node)
    cluster.said.append(f"not uploaded after the creates: {chunks:,} chunks, {size / 1e6:,.0f} MB")
    return rows


def stat(cluster, settings):
    """Names that the node that asks has never seen, in directories of eight clients."""
    count = settings.entries
    for n in range(1 + CLIENTS):
        os.makedirs(f"{cluster.writer.mount}/stat-{n}")
    at_once(CLIENTS, lambda n: make_empty(f"{cluster.writer.mount}/stat-0", spread(count, n)))
    at_once(CLIENTS, lambda n: make_empty(f"{cluster.writer.mount}/stat-{n + 1}", range(count // CLIENTS)))
    node = cluster.fresh()
    one = at_once(1, lambda _: stat_all(f"{node.mount}/stat-0", range(count)))
    all_of = at_once(CLIENTS, lambda n: stat_all(f"{node.mount}/stat-{n + 1}", range(count // CLIENTS)))
    node.stop()
    node = cluster.fresh()
    listed = at_once(1, lambda _: list_all(f"{node.mount}/stat-0"))
    node.stop()
    return [
        Row("stat of uncached entries, 1 at once", one, "/s", 8_000),
        Row(f"stat of uncached entries, {CLIENTS} at once", all_of, "/s", 25_000),
        Row("readdir with the attributes of uncached entries", listed, "entries/s", 150_000),
    ]


def untar(cluster, settings):
    """A tree of small files, on the mount and on the local disk."""
    archive = os.path.join(settings.home, "tree.tar")
    source = os.path.join(settings.home, "tree")
    chosen = random.Random(5)
    for n in range(settings.tree):
        folder = f"{source}/{n % TREE_DIRS:03}"
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/{n:05}", "wb") as file:
            file.write(BLOCK * 4 if n % 50 == 0 else BLOCK[: chosen.randrange(200, 4096)])
    with tarfile.open(archive, "w") as tar:
        tar.add(source, "tree")
    times = {}
    for name, place in (("raw", os.path.join(settings.home, "raw")), ("mount", cluster.writer.mount)):
        os.makedirs(place, exist_ok=True)
        os.sync()
        start = time.monotonic()
        subprocess.run(["tar", "-xf", archive, "-C", place], check=True)
        times[name] = time.monotonic() - start
    text = f"untar of {settings.tree:,} files ({times['mount']:.1f} s, local disk {times['raw']:.1f} s)"
    return [Row(text, times["mount"] / times["raw"], "× local", 10, True)]


def memory(cluster):
    """Of the coordinator, bytes: all that is resident, and what of it its store counts as caches."""
    return cluster.coordinator.resident(), cluster.coordinator.store_caches()


def large(cluster, settings):
    """One directory with very many entries, and the memory of the coordinator before and after."""
    count, mount = settings.large, cluster.writer.mount
    os.makedirs(f"{mount}/large")
    for n in range(FEW):
        os.makedirs(f"{mount}/few-{n}")
        make_empty(f"{mount}/few-{n}", range(FEW))
    before = memory(cluster)
    rate = at_once(CLIENTS, lambda n: make_empty(f"{mount}/large", spread(count, n)))
    after = memory(cluster)
    node = cluster.fresh()
    listed = at_once(1, lambda _: list_all(f"{node.mount}/large"))
    found = len(os.listdir(f"{node.mount}/large"))
    if found != count:
        sys.exit(f"the large directory has {found} entries, not {count}")
    node.stop()
    node = cluster.fresh()
    chosen = random.Random(7)
    # In turns, so that what else the machine does hits both.
    times = {"large": [], "few": []}
    for n in range(FEW):
        # Each asks the coordinator: a directory in which more are looked up is asked for as a whole.
        few = [f"{node.mount}/few-{n}/{k:07}" for k in chosen.sample(range(FEW), 3)]
        many = [f"{node.mount}/large/{k:07}" for k in chosen.sample(range(count), 3)]
        os.stat(os.path.dirname(few[0]))
        os.stat(os.path.dirname(many[0]))
        for kind, names in (("few", few), ("large", many)):
            for name in names:
                start = time.perf_counter()
                os.stat(name)
                times[kind].append(time.perf_counter() - start)
    node.stop()
    resident, caches = ((now - then) / count for then, now in zip(before, after))
    text = f"resident memory of the coordinator for each of {count:,} files ({resident:,.0f} bytes), without what its store counts as caches ({caches:,.0f})"
    cluster.said.append(f"with {count:,} files {after[0] / 1e6:,.0f} MB of the coordinator are resident, {before[0] / 1e6:,.0f} MB before them")
    few, many = statistics.median(times["few"]), statistics.median(times["large"])
    cluster.said.append(f"empty files were made in the large directory at {rate:,.0f}/s by {CLIENTS}; it lists at {listed:,.0f} entries/s")
    return [
        Row(f"a lookup among {count:,} entries ({many * 1e6:,.0f} µs), to one among {FEW} ({few * 1e6:,.0f} µs)", many / few, "×", 1.3, True),
        Row(text, resident - caches, "bytes", 400, True),
    ]


GROUPS = {"create": create, "stat": stat, "untar": untar, "large": large}


class Cluster:
    """A coordinator, a node that writes, and others that have cached nothing."""

    def __init__(self, settings):
        self.coordinator = Coordinator(settings.home, settings.binaries)
        self.said, self.others = [], []
        self.writer = self.coordinator.node()
        # With two nodes it is a cluster: a close waits for its commit.
        self.fresh()

    def fresh(self):
        node = self.coordinator.node()
        self.others.append(node)
        return node

    def stop(self):
        for node in [self.writer, *self.others]:
            if os.path.ismount(node.mount):
                node.stop()
        self.coordinator.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GROUP", action="append", choices=list(GROUPS))
    parser.add_argument("--quick", action="store_true", help="a little of each: shows that everything runs")
    parser.add_argument("--write", metavar="FILE", help="put the table into this file")
    parser.add_argument("--seconds", type=float, default=5, help="of making files")
    parser.add_argument("--entries", type=int, default=16_000, help="that are looked up")
    parser.add_argument("--large", type=int, default=1_000_000, help="entries of the large directory")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="a folder on the disk to measure")
    parser.add_argument("--check", action="store_true", help="fail where less is reached than must be")
    settings = parser.parse_args()
    settings.binaries = os.environ.get("FASTCACHE_BIN_DIR", os.path.join(REPO, "target", "release"))
    settings.tree = TREE_FILES
    if settings.quick:
        settings.seconds, settings.entries, settings.large, settings.tree = 0.5, 800, 2_000, 500
    command = " ".join(["tests/bench_metadata.py", *sys.argv[1:]])
    settings.home = tempfile.mkdtemp(prefix="fastcache-metadata-", dir=settings.dir)
    rows, said = [], []
    try:
        for group in settings.only or GROUPS:
            # Each has a namespace of its own.
            home = settings.home
            settings.home = os.path.join(home, group)
            os.makedirs(settings.home)
            cluster = Cluster(settings)
            try:
                for row in GROUPS[group](cluster, settings):
                    print(row.line(), file=sys.stderr)
                    rows.append(row)
            finally:
                cluster.stop()
            said += cluster.said
            shutil.rmtree(settings.home, ignore_errors=True)
            settings.home = home
        described = machine.describe(settings.dir)
    finally:
        shutil.rmtree(settings.home, ignore_errors=True)
    lines = [
        f"Measured {date.today().isoformat()} at commit `{commit()}` on {described}. Command: `{command}`.",
        "", "| | reached | must |", "|---|---:|---:|", *[row.line() for row in rows], "", *[f"Also: {text}." for text in said],
    ]
    print("\n".join(lines))
    if settings.write:
        page.replace(settings.write, BEGIN, END, "\n".join(lines))
    if settings.check and not all(row.is_reached() for row in rows):
        sys.exit("less is reached than must be")


if __name__ == "__main__":
    main()
