#!/usr/bin/env python3
"""lanes.py [--aside NAMES] [--alone NAMES] COMMAND... [-- ARGUMENT...]: runs test binaries in two lanes.

COMMAND is `cargo test` with what is to be tested; the arguments go to each binary. Suites that mostly wait are named by
--aside: they run one after the other, as they are named, beside all the rest, which run one after the other, too; the
lane that is through first takes over what is left of those that wait. What is named by --alone runs when both lanes are
through: it measures, or changes something that the whole machine has. A suite that is not named is one of the rest.

What the rest and those alone say is seen as they say it. What the suites aside say is kept until they end, and comes in
one piece between two of the others. Fails when one of them does, and names it; all run.
"""

import argparse
import collections
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, NamedTuple

# What cargo runs first.
KINDS = ["lib", "bin", "test"]


class Suite(NamedTuple):
    """A test binary, as cargo tells of it."""

    kind: str
    name: str
    executable: str
    folder: Path

    def start(self, arguments: list[str], output: IO[bytes] | None) -> subprocess.Popen:
        """Runs it as cargo does."""
        env = os.environ | {"CARGO_MANIFEST_DIR": str(self.folder)}
        merged = None if output is None else subprocess.STDOUT
        return subprocess.Popen([self.executable, *arguments], cwd=self.folder, env=env, stdout=output, stderr=merged)


def built(command: list[str]) -> list[Suite]:
    """Builds the test binaries, in cargo's order."""
    command = command + ["--no-run", "--message-format=json-render-diagnostics"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)
    suites = []
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message["reason"] == "compiler-artifact" and message["profile"]["test"] and message["executable"]:
            target, folder = message["target"], Path(message["manifest_path"]).parent
            suites.append(Suite(target["kind"][0], target["name"], message["executable"], folder))
    return sorted(suites, key=lambda suite: (KINDS.index(suite.kind), suite.name))


def title(suite: Suite) -> str:
    """The line above what a suite says."""
    return f"     Running {suite.name} ({os.path.relpath(suite.executable)})"


class Aside:
    """The lane of those that wait."""

    def __init__(self, suites: list[Suite], arguments: list[str]):
        self.left = collections.deque(suites)
        self.said: queue.Queue[str] = queue.Queue()
        self.failed: list[str] = []
        self.running: tuple[Suite, IO[bytes]] | None = None
        self.lane = threading.Thread(target=self.run, args=(arguments,), daemon=True)
        self.lane.start()

    def next(self) -> Suite | None:
        """The next that nobody runs yet."""
        try:
            return self.left.popleft()
        except IndexError:
            return None

    def run(self, arguments: list[str]) -> None:
        """Runs them one after the other."""
        while suite := self.next():
            with tempfile.TemporaryFile() as output:
                started = time.monotonic()
                process = suite.start(arguments, output)
                self.running = (suite, output)
                if process.wait() != 0:
                    self.failed.append(suite.name)
                text, self.running = self.text(output), None
            self.said.put(f"{title(suite)}, aside, {time.monotonic() - started:.0f} s\n{text}")

    @staticmethod
    def text(output: IO[bytes]) -> str:
        """What was written so far. The process writes at the same place: nothing is moved."""
        size = os.fstat(output.fileno()).st_size
        return os.pread(output.fileno(), size, 0).decode(errors="replace")

    def tell(self) -> None:
        """Prints what those said that ended meanwhile."""
        while not self.said.empty():
            print(self.said.get(), flush=True)

    def wait(self) -> None:
        """Waits for the end of the lane, and prints what each says."""
        while self.lane.is_alive():
            self.lane.join(1)
            self.tell()
        self.tell()

    def give_up(self, *_: object) -> None:
        """This is to end: says what would be lost."""
        self.tell()
        if self.running is not None:
            suite, output = self.running
            print(f"{title(suite)}, aside, not done\n{self.text(output)}", flush=True)
        os._exit(128 + signal.SIGTERM)


def main() -> int:
    """Runs them all."""
    line = sys.argv[1:]
    end = line.index("--") if "--" in line else len(line)
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--aside", type=str.split, default=[])
    parser.add_argument("--alone", type=str.split, default=[])
    options, command = parser.parse_known_args(line[:end])
    arguments = line[end + 1 :]
    suites = built(command)
    named = options.aside + options.alone
    unknown = set(named) - {suite.name for suite in suites}
    if unknown:
        sys.exit(f"no such suite: {' '.join(sorted(unknown))}")

    aside = Aside([suite for name in options.aside for suite in suites if suite.name == name], arguments)
    signal.signal(signal.SIGTERM, aside.give_up)
    failed = []

    def run(lane: Iterable[Suite]) -> None:
        for suite in lane:
            print(title(suite), flush=True)
            if suite.start(arguments, None).wait() != 0:
                failed.append(suite.name)
            aside.tell()

    run([suite for suite in suites if suite.name not in named])
    run(iter(aside.next, None))
    aside.wait()
    run([suite for suite in suites if suite.name in options.alone])
    failed += aside.failed
    if failed:
        print(f"failed: {' '.join(failed)}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
