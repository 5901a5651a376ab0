"""A coordinator in a process of its own, and the nodes that use it."""
import json
import os
import socket
import subprocess
import time
import urllib.request

from .node import Node, find

# What nodes and coordinator have in common unless told otherwise: no bucket, so that nothing is uploaded meanwhile.
BUCKET = ("--cloud-provider", "none")


class Coordinator:
    """On a free port, with its state in a folder."""

    def __init__(self, home, binaries, bucket=BUCKET):
        self.home, self.binaries, self.bucket, self.nodes = home, binaries, bucket, 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        state = os.path.join(home, "coordinator")
        with open(os.path.join(home, "coordinator.log"), "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(binaries, "fastcache-ctl"), "coordinator", "--listen", self.address, "--state-dir", state, *bucket],
                stdout=log, stderr=log,
            )
        host, port = self.address.split(":")
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((host, int(port))).close()
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def resident(self):
        """Resident memory of its process, bytes."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise RuntimeError("no VmRSS")

    def metric(self, name):
        """What its `/metrics` says, a number."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as answer:
            for line in answer.read().decode("utf-8").splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        raise RuntimeError(f"no metric {name}")

    def store_caches(self):
        """What its store has in caches that are bounded: blocks it read, and changes that no table has yet; bytes."""
        return sum(self.metric(f"fastcache_namespace_{name}_bytes") for name in ("cache", "write_buffer"))

    def node(self, capacity="2GiB", flags=()):
        """One more node, with nothing cached."""
        self.nodes += 1
        home = os.path.join(self.home, f"node-{self.nodes}")
        os.makedirs(home)
        return Node(home, self.binaries, capacity, ["--coordinator", self.address, *self.bucket, *flags])

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def backlog(node):
    """Chunks and bytes that a node would have uploaded."""
    stats = json.loads(node.run("status", "--json"))
    return find(stats, "dirty_chunks") or 0, find(stats, "dirty_bytes") or 0
