"""A node that is started for a measurement, and what it says of itself."""
import json
import os
import subprocess
import sys


class Node:
    """A node of its own, in a folder; it writes through to a directory on the same disk, as `up` does by default."""

    def __init__(self, home, binaries, capacity, flags=()):
        self.ctl = os.path.join(binaries, "fastcache-ctl")
        self.dir = os.path.join(home, "node")
        self.mount = os.path.join(home, "mnt")
        os.makedirs(self.mount)
        self.run("up", "--mount", self.mount, "--detach", "--port", "0", "--nvme-capacity", capacity, *flags)

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
