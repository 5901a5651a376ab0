#!/usr/bin/env python3
"""within.py MINUTES COMMAND [ARGUMENT...]: runs a command that has to end in time.

If it does not, this says what each of its processes was doing, ends them, and fails with 124: a test that hangs is then
a failure with a reason, and not a run that never ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def text(path: Path) -> str:
    """A file of /proc; empty when the process is gone or the kernel does not say."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def below(pid: int) -> list[int]:
    """A process and those below it."""
    children = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        children += [int(child) for child in text(thread / "children").split()]
    return [pid] + [p for child in children for p in below(child)]


def describe(pid: int) -> None:
    """Says what the threads of a process do."""
    proc = Path(f"/proc/{pid}")
    print(f"---- {pid} {text(proc / 'cmdline').replace(chr(0), ' ')}")
    for thread in sorted(proc.glob("task/*")):
        state = text(thread / "stat").rpartition(") ")[2][:1]
        call = text(thread / "syscall").split(" ")[0]
        print(f"  {text(thread / 'comm')}: state {state}, system call {call}, {text(thread / 'wchan')}")
        print("".join(f"    {line}\n" for line in text(thread / "stack").splitlines()), end="")
    if shutil.which("gdb"):
        gdb = ["gdb", "--batch", "-nx", "-p", str(pid), "-ex", "thread apply all bt 40"]
        try:
            said = subprocess.run(gdb, capture_output=True, text=True, errors="replace", timeout=60, check=False).stdout
        except subprocess.TimeoutExpired:
            said = "# gdb did not end"
        print("\n".join(line for line in said.splitlines() if line.startswith(("Thread", "#"))))


def end(pids: list[int], how: signal.Signals) -> None:
    """Sends all of them a signal."""
    for pid in pids:
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            pass


def main() -> int:
    """Runs the command."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    minutes = float(sys.argv[1])
    with subprocess.Popen(sys.argv[2:]) as command:
        try:
            status = command.wait(minutes * 60)
            return status if status >= 0 else 128 - status
        except KeyboardInterrupt:
            return 130
        except subprocess.TimeoutExpired:
            pids = below(command.pid)
            print(f"not done after {minutes:g} minutes: {' '.join(sys.argv[2:])}")
            for pid in pids:
                describe(pid)
            sys.stdout.flush()
            end(pids, signal.SIGTERM)
            time.sleep(10)
            end(pids, signal.SIGKILL)
            return 124


if __name__ == "__main__":
    sys.exit(main())
