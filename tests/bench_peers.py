#!/usr/bin/env python3
"""Measures what one node reads from another: two nodes and their coordinator, all on this machine, over loopback.

What is read is on the first node's device and not on the second's, through whose mount it is read. It is in the bucket, too
(a directory), so that it can be evicted; whether much came from there is looked at, and ends the measurement.
Next to each number stands what plain TCP does between two processes of this machine, in turns in the same run, and what the
disk does that both nodes share here: one reads from it what the other writes to it. With --write FILE the table replaces what
stands between the two markers in FILE. Only Python's own library is used.
"""
import argparse
import json
import mmap
import multiprocessing
import os
import random
import secrets
import shutil
import socket
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date

from bench import MIB, REPO, commit, write_file
from bench_metadata import Row
from benchlib import machine, page
from benchlib.coordinator import Coordinator
from benchlib.node import find

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
CHUNK, BLOCK, HEADER = 4 * MIB, 4096, 64
# What has to come from the other node, not from the cloud.
FROM_PEER = 0.95
# How long the nodes may take to hear of each other.
HEARD_OF = 30
# Questions of one round of the TCP ping-pong.
PINGS = 2_000
# Reads and writes of the disk at once.
COPYING = 16
# Where a store is in memory.
MEMORY = "/dev/shm"


def exactly(stream, view):
    """Fills a buffer from a socket."""
    at = 0
    while at < len(view):
        got = stream.recv_into(view[at:])
        if got == 0:
            raise EOFError
        at += got


def serve_tcp(listener, size):
    """Sends so many bytes, or answers questions of a header with a header and a block (size 0)."""
    stream, _ = listener.accept()
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if size > 0:
        part = bytes(MIB)
        for _ in range(size // MIB):
            stream.sendall(part)
        return
    question, answer = memoryview(bytearray(HEADER)), bytes(HEADER + BLOCK)
    try:
        while True:
            exactly(stream, question)
            stream.sendall(answer)
    except EOFError:
        pass


def with_tcp(size, act):
    """`act(socket)` against a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = multiprocessing.Process(target=serve_tcp, args=(listener, size))
        other.start()
        with socket.create_connection(listener.getsockname()) as stream:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            done = act(stream)
        other.join()
    return done


def tcp_transfer(size):
    """Bytes a second of one connection."""
    def receive(stream):
        part = memoryview(bytearray(MIB))
        start, left = time.perf_counter(), size
        while left > 0:
            left -= stream.recv_into(part)
        return size / (time.perf_counter() - start)

    return with_tcp(size, receive)


def tcp_pings():
    """How long a block takes that is asked for with a header, each, seconds."""
    def ask(stream):
        question, answer = bytes(HEADER), memoryview(bytearray(HEADER + BLOCK))
        times = []
        for _ in range(PINGS):
            start = time.perf_counter()
            stream.sendall(question)
            exactly(stream, answer)
            times.append(time.perf_counter() - start)
        return times

    return with_tcp(0, ask)


def read_whole(path, is_direct):
    """Bytes a second of reading a file in sequence, a MiB at a time."""
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if is_direct else 0))
    with mmap.mmap(-1, MIB) as part:
        start, at = time.perf_counter(), 0
        while got := os.preadv(fd, [part], at):
            at += got
        taken = time.perf_counter() - start
    os.close(fd)
    return at / taken


def copy_direct(source, target, size):
    """Bytes a second of copying a file on one disk, past the page cache, so many MiB at once."""
    pages = mmap.mmap(-1, COPYING * 2 * MIB)
    pages.madvise(mmap.MADV_HUGEPAGE)
    buffers = [memoryview(pages)[n * 2 * MIB:][:MIB] for n in range(COPYING)]
    for buffer in buffers:
        buffer[0] = 1
    ends = [os.open(source, os.O_RDONLY | os.O_DIRECT), os.open(target, os.O_RDWR | os.O_CREAT | os.O_DIRECT)]

    def share(number):
        for at in range(number * MIB, size, COPYING * MIB):
            os.preadv(ends[0], [buffers[number]], at)
            os.pwritev(ends[1], [buffers[number]], at)

    start = time.perf_counter()
    with ThreadPoolExecutor(COPYING) as threads:
        list(threads.map(share, range(COPYING)))
    taken = time.perf_counter() - start
    for end in ends:
        os.close(end)
    return size / taken


def read_places(path, places):
    """How long 4 KiB at each of these places take, past the page cache, seconds."""
    times, fd = [], os.open(path, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as block:
        for at in places:
            start = time.perf_counter()
            if os.preadv(fd, [block], at) != BLOCK:
                sys.exit(f"a read of {path} at {at} was short")
            times.append(time.perf_counter() - start)
    os.close(fd)
    return times


class Two:
    """Two nodes that know each other, and their coordinator."""

    def __init__(self, settings, stores=None):
        cloud = ["--cloud-provider", "dir", "--cloud-dir", os.path.join(settings.home, "cloud")]
        os.environ["FASTCACHE_CLUSTER_TOKEN"] = secrets.token_hex(16)
        self.coordinator, self.nodes = Coordinator(settings.home, settings.binaries, cloud), []
        flags = ["--listen", "127.0.0.1:0", *settings.up]
        try:
            for number in range(2):
                place = ["--nvme", os.path.join(stores, f"store-{number}")] if stores else []
                self.nodes.append(self.coordinator.node(settings.capacity, [*flags, *place]))
            until = time.monotonic() + HEARD_OF
            while any(len(find(self.stats(node), "peers")["peers"]) != 1 for node in self.nodes):
                if time.monotonic() > until:
                    sys.exit("the nodes do not hear of each other")
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise

    @staticmethod
    def stats(node):
        return json.loads(node.run("status", "--json"))

    def fetched(self):
        """Bytes that the second node got from the first, and all that it fetched."""
        stats = self.stats(self.nodes[1])
        return find(stats, "peer_fetched_bytes"), find(stats, "fetched_bytes")

    def forget(self, path):
        """Nothing of a file is on the second node any more; all of it is on the first."""
        self.nodes[1].run("evict", path)

    def stop(self):
        for node in self.nodes:
            if os.path.ismount(node.mount):
                node.stop()
        self.coordinator.stop()


def medians(rounds):
    """The median of each of what the rounds have."""
    return [statistics.median(column) for column in zip(*rounds)]


def in_turns(two, settings, path, more):
    """Rates of rounds: plain TCP, through the mount direct and buffered, and of `more()`."""
    found = []
    for number in range(settings.rounds):
        row = [tcp_transfer(settings.size)]
        for is_direct in (True, False):
            two.forget(path)
            row.append(read_whole(path, is_direct))
        row.append(more())
        row[0] = (row[0] + tcp_transfer(settings.size)) / 2
        print("round {}: TCP {:.2f} GB/s, direct {:.2f}, buffered {:.2f}, disk {:.2f}".format(number + 1, *(rate / 1e9 for rate in row)), file=sys.stderr)
        found.append(row)
    return medians([[rate / row[0] for rate in row[1:]] for row in found]), [rate / 1e9 for rate in medians(found)]


def large(two, settings, path):
    """A file in sequence."""
    source, target = (os.path.join(settings.home, name) for name in ("raw", "copy"))
    write_file(source, settings.size)
    write_file(target, settings.size)
    ratios, (tcp, direct, slow, disk) = in_turns(two, settings, path, lambda: copy_direct(source, target, settings.size))
    os.remove(source)
    os.remove(target)
    return [
        Row(f"a file in sequence, 1 MiB direct reads ({direct:.2f} GB/s; plain TCP {tcp:.2f} GB/s)", ratios[0], "of TCP", 0.6),
        Row(f"the same through the page cache ({slow:.2f} GB/s)", ratios[1], "of TCP", None),
        Row(f"what the disk of both allows: a file copied on it, direct, {COPYING} MiB at once ({disk:.2f} GB/s)", ratios[2], "of TCP", None),
    ]


def memory(two, settings, path):
    """The same where both stores are in memory."""
    ratios, (tcp, direct, slow, _) = in_turns(two, settings, path, lambda: 0)
    return [
        Row(f"both stores in memory: 1 MiB direct reads ({direct:.2f} GB/s; plain TCP {tcp:.2f} GB/s)", ratios[0], "of TCP", None),
        Row(f"the same through the page cache ({slow:.2f} GB/s)", ratios[1], "of TCP", None),
    ]


def small(two, settings, path):
    """Latencies: a ping-pong, the first 4 KiB of a chunk, and 4 KiB that the second node has itself."""
    chosen, found = random.Random(3), []
    for number in range(settings.rounds):
        two.forget(path)
        pings = tcp_pings()
        chunks = list(range(settings.size // CHUNK))
        chosen.shuffle(chunks)
        far = read_places(path, [chunk * CHUNK + chosen.randrange(CHUNK // BLOCK) * BLOCK for chunk in chunks])
        read_whole(path, True)
        time.sleep(1)
        near = read_places(path, [chosen.randrange(settings.size // BLOCK) * BLOCK for _ in chunks])
        row = [statistics.median(times) * 1e6 for times in (pings, far, near)] + [statistics.quantiles(far, n=100)[98] * 1e6]
        print("round {}: ping-pong {:.0f} µs, 4 KiB of the other {:.0f}, of this node {:.0f}; 99 % of the other {:.0f}".format(number + 1, *row), file=sys.stderr)
        found.append(row)
    ping, far, near, most = medians(found)
    text = f"4 KiB of a chunk that only the other node has (99 %: {most:.0f} µs; a header and 4 KiB over plain TCP: {ping:.0f} µs; of its own device: {near:.0f} µs)"
    return [Row(text, far, "µs", 150, True)]


GROUPS = {"large": large, "small": small, "memory": memory}


def measure(settings, groups, stores=None):
    """The rows of these groups, on two nodes of their own."""
    two, rows = Two(settings, stores), []
    try:
        write_file(os.path.join(two.nodes[0].mount, "large"), settings.size)
        two.nodes[0].settle()
        path = os.path.join(two.nodes[1].mount, "large")
        for group in groups:
            rows += GROUPS[group](two, settings, path)
        by_peer, by_all = two.fetched()
        # A disk that stands still for a moment makes a hedge.
        if by_peer < by_all * FROM_PEER:
            sys.exit(f"only {by_peer} of the {by_all} bytes that were fetched came from the other node")
    finally:
        two.stop()
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="GROUP", action="append", choices=list(GROUPS))
    parser.add_argument("--quick", action="store_true", help="a little of each: shows that everything runs")
    parser.add_argument("--write", metavar="FILE", help="put the table into this file")
    parser.add_argument("--up", metavar="FLAG", action="append", default=[], help="for fastcache-ctl up, as --up=--flag")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024, help="MiB of the file")
    parser.add_argument("--capacity", default="3GiB", help="of each store")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="a folder on the disk to measure")
    parser.add_argument("--check", action="store_true", help="fail where less is reached than must be")
    settings = parser.parse_args()
    settings.binaries = os.environ.get("FASTCACHE_BIN_DIR", os.path.join(REPO, "target", "release"))
    if settings.quick:
        settings.rounds, settings.size = 1, 128
    command = " ".join(["tests/bench_peers.py", *sys.argv[1:]])
    settings.size *= MIB
    settings.home = tempfile.mkdtemp(prefix="fastcache-peers-", dir=settings.dir)
    groups, rows, home = settings.only or list(GROUPS), [], settings.home
    try:
        on_disk = [group for group in groups if group != "memory"]
        for number, (some, place) in enumerate(((on_disk, None), ([g for g in groups if g == "memory"], MEMORY))):
            if not some:
                continue
            settings.home = os.path.join(home, str(number))
            os.makedirs(settings.home)
            with tempfile.TemporaryDirectory(prefix="fastcache-peers-", dir=place or settings.home) as stores:
                rows += measure(settings, some, stores if place else None)
        described = machine.describe(settings.dir)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    lines = [
        f"Measured {date.today().isoformat()} at commit `{commit()}` on {described}. Command: `{command}` "
        f"({settings.rounds} rounds, a file of {settings.size // MIB} MiB, medians).",
        "", "| | reached | must |", "|---|---:|---:|", *[row.line() for row in rows],
    ]
    print("\n".join(lines))
    if settings.write:
        page.replace(settings.write, BEGIN, END, "\n".join(lines))
    if settings.check and not all(row.is_reached() for row in rows):
        sys.exit("less is reached than must be")


if __name__ == "__main__":
    main()
