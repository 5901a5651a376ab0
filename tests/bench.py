#!/usr/bin/env python3
"""Runs fio-profiles/ and two jobs of its own on fastcache mounts and on plain files of the same disk, and prints ratios.

A mount for each transport that this kernel has, /dev/fuse and FUSE over io_uring (switched on in the kernel meanwhile), and
each row is judged by the better one. Raw and the mounts take turns, round by round, so that what else the machine does hits all.
Each number is the median of the rounds. With --write FILE the table replaces what stands between the two markers in FILE.

The nodes are started here, with their stores, their directories for the cloud and the raw files in one temporary folder, and
are stopped again. Only Python's own library is used.
"""
import argparse
import glob
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date

from benchlib import jobs, machine, page, plot
from benchlib.node import Node

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PLOT = "benchmarks.svg"
MIB = 1 << 20


def write_file(path, size):
    """Random bytes, so that no layer can do better than store them."""
    with open(path, "wb", buffering=0) as file:
        left = size
        while left > 0:
            left -= file.write(os.urandom(min(left, 4 * MIB)))
        os.fsync(file.fileno())


def reread_requests(node):
    """FUSE requests made by reading a file again through a descriptor that has read it before, and by stat of it.

    The kernel may drop pages of its own accord in between; what the file system causes, it causes each time. So a
    reading that made requests is repeated, twice at most, and the last one counts.
    """
    path = os.path.join(node.mount, "bench")
    for _ in range(3):
        machine.drop_page_cache()
        with open(path, "rb", buffering=0) as file:
            while file.read(MIB):
                pass
            # The kernel forgets the access time when it really reads.
            os.stat(path)
            before = {}
            # Requests that the kernel made ahead of the reader may still be on their way.
            while before != (before := node.fuse_requests()):
                time.sleep(0.2)
            file.seek(0)
            while file.read(MIB):
                pass
            for _ in range(1000):
                os.stat(path)
            after = node.fuse_requests()
        asked = {name: n - before.get(name, 0) for name, n in after.items() if n != before.get(name, 0)}
        if not asked:
            break
        print(f"a re-read made FUSE requests: {asked}", file=sys.stderr)
    return asked


def commit():
    """The commit measured."""
    out = subprocess.run(
        ["git", "-C", REPO, "rev-parse", "--short", "HEAD"], check=False, stdout=subprocess.PIPE, text=True
    )
    return out.stdout.strip() or "unknown"


@dataclass
class Row:
    """A case with its medians: raw, and of each mount by its transport."""

    case: jobs.Case
    raw: jobs.Result
    mounts: dict

    @property
    def best(self):
        """The transport that it is judged by."""
        sign = -1 if self.case.kind == "latency" else 1
        return max(self.mounts, key=lambda name: sign * (self.mounts[name].latency if sign < 0 else self.mounts[name].value))

    @property
    def mount(self):
        return self.mounts[self.best]


def transports(settings, has_uring):
    """The flags of a node for each transport that is measured."""
    if "--fuse-transport" in settings.up:
        at = settings.up.index("--fuse-transport")
        return {settings.up[at + 1]: []}
    names = ["dev", "uring"] if has_uring else ["dev"]
    return {name: ["--fuse-transport", name] for name in names}


def measure(settings, home):
    """Medians of each case, raw and of the mounts, and what a re-read asked."""
    cases = [c for c in jobs.CASES if not settings.only or c.name in settings.only]
    results, asked = {case.name: {} for case in cases}, {}
    # Cases that want nodes of their own have them after the others.
    for flags, is_large in sorted({(case.up, case.is_large) for case in cases}):
        group = [case for case in cases if (case.up, case.is_large) == (flags, is_large)]
        with machine.fuse_over_io_uring() as has_uring:
            names = transports(settings, has_uring)
            for some in [[name] for name in names] if is_large else [names]:
                place = os.path.join(home, "-".join(["nodes", *flags]).replace("/", ""))
                found, said = measure_on(settings, place, group, flags, {name: names[name] for name in some})
                for case, of in found.items():
                    for target, values in of.items():
                        results[case].setdefault(target, []).extend(values)
                asked.update(said)
                shutil.rmtree(place, ignore_errors=True)

    def median(values):
        return jobs.Result(*(statistics.median(getattr(v, f) for v in values) for f in ("value", "latency", "cpu")))

    rows = []
    for case in cases:
        medians = {target: median(values) for target, values in results[case.name].items()}
        rows.append(Row(case, medians.pop("raw"), medians))
    return rows, asked


def measure_on(settings, home, cases, flags, names):
    """All results of these cases, on a node of each of these transports with these flags, and what a re-read asked there."""
    folders, nodes = {"raw": os.path.join(home, "raw")}, {}
    os.makedirs(folders["raw"])
    is_first = not flags and not cases[0].is_large
    try:
        for name, transport in names.items():
            place = os.path.join(home, name)
            os.makedirs(place)
            nodes[name] = Node(place, settings.binaries, settings.capacity, [*settings.up, *transport, *flags])
            folders[name] = nodes[name].mount
        print("laying out the files", file=sys.stderr)
        for folder in folders.values():
            for name in jobs.LAID_OUT if is_first else ("bench",):
                write_file(os.path.join(folder, name), settings.size)
            if is_first:
                jobs.make_small(os.path.join(folder, "small"), settings.small)
        for node in nodes.values():
            node.settle()
        results = {case.name: {target: [] for target in folders} for case in cases}
        for turn in range(settings.rounds):
            for case in cases:
                first = turn % len(folders)
                order = [*folders.items()]
                for target, folder in order[first:] + order[:first]:
                    result = jobs.run(case, folder, settings)
                    results[case.name][target].append(result)
                    print(
                        f"round {turn + 1}  {case.name:20} {target:6} {result.value:12,.0f} {case.unit:8}"
                        f"{result.latency:10,.0f} µs {result.cpu:10,.1f} µs of processor an operation",
                        file=sys.stderr,
                    )
                    if target in nodes:
                        nodes[target].settle()
        asked = {}
        for node in nodes.values() if is_first else ():
            asked.update(reread_requests(node))
    finally:
        for node in nodes.values():
            node.stop()
    return results, asked


def processor(row):
    """What an operation costs beyond raw, in µs of processor time: its text, and whether it is what it must be."""
    over, must = row.mount.cpu - row.raw.cpu, row.case.cpu_must
    limit = "" if must is None else f" (≤ {must:,.0f})"
    return f"{over:,.1f} µs{limit}", must is None or over <= must


def reached(row):
    """What a case is judged by: its text, and whether it is what it must be."""
    case, raw, mount = row.case, row.raw, row.mount
    if case.kind == "latency":
        over = mount.latency - raw.latency
        return f"+{over:,.0f} µs", case.must is None or over <= case.must
    if case.kind == "absolute":
        return f"{mount.value:,.0f}/s", case.must is None or mount.value >= case.must
    ratio = mount.value / raw.value
    return f"{ratio:.2f}", case.must is None or ratio >= case.must


def wanted(case, value):
    """What a case must reach or aims at, as text."""
    if value is None:
        return "–"
    return {"latency": f"≤ +{value:,.0f} µs", "absolute": f"≥ {value:,.0f}/s"}.get(case.kind, f"≥ {value:.2f}")


def table(settings, rows, asked, home):
    """Markdown."""
    names = list(rows[0].mounts)
    lines = [
        f"Measured {date.today().isoformat()} at commit `{commit()}` on {machine.describe(home)}.",
        f"Command: `{settings.command}` ({settings.rounds} rounds of {settings.runtime} s, files of "
        f"{settings.size // MIB} MiB, {settings.small:,} small files, stores of {settings.capacity}; medians). Raw is a plain "
        "file on the same disk; the last four columns are of the better transport.",
        "",
        f"| profile | | raw | {' | '.join(names)} | reached | must | aim | raw p50 | mount p50 | processor, mount − raw |",
        f"|---|---|---:|{'---:|' * len(names)}---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        case, best = row.case, row.best
        text, is_enough = reached(row)
        cost, is_cheap = processor(row)
        mounts = " | ".join(f"{mount.value:,.0f}" for mount in row.mounts.values())
        lines.append(
            f"| {case.name} | {case.text} | {row.raw.value:,.0f} {case.unit} | {mounts} "
            f"| {text if is_enough else f'**{text}**'} ({best}) | {wanted(case, case.must)} | {wanted(case, case.aim)} "
            f"| {row.raw.latency:,.0f} µs | {row.mount.latency:,.0f} µs | {cost if is_cheap else f'**{cost}**'} |"
        )
    said = "none" if not asked else ", ".join(f"{n} {k}" for k, n in sorted(asked.items()))
    lines += ["", f"![What the mount reaches of the raw disk]({PLOT})"]
    lines += ["", f"FUSE requests made by reading a file again through an open descriptor and by stat of it: {said}."]
    return "\n".join(lines)


def bars(rows):
    """What the plot shows: the rows that are a ratio of raw."""
    return [(row.case.text, row.mount.value / row.raw.value, row.case.must) for row in rows if row.case.kind == "ratio"]


def put_into(path, text, rows):
    """Replaces what is between the markers, and the plot beside the file."""
    title = f"The mount, as a part of what the raw disk does (at {commit()}; black: must)"
    with open(os.path.join(os.path.dirname(path), PLOT), "w", encoding="utf-8") as file:
        file.write(plot.svg(bars(rows), title))
    page.replace(path, BEGIN, END, text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round: shows that everything runs")
    parser.add_argument("--write", metavar="FILE", help="put the table into this file, and the plot beside it")
    parser.add_argument("--only", metavar="CASE", action="append", choices=[c.name for c in jobs.CASES])
    parser.add_argument("--up", metavar="FLAG", action="append", default=[], help="for fastcache-ctl up, as --up=--flag")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runtime", type=int, default=4, help="seconds of each run")
    parser.add_argument("--size", type=int, default=1024, help="MiB of a file")
    parser.add_argument("--files", type=int, default=2000, help="new files of each of the two jobs")
    parser.add_argument("--small", type=int, default=10_000, help="files of 4 KiB that are read")
    parser.add_argument("--capacity", default="8GiB", help="of the store")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="a folder on the disk to measure")
    parser.add_argument("--check", action="store_true", help="fail where less is reached than must be")
    settings = parser.parse_args()
    is_make = sys.argv[1:] == ["--write", "docs/benchmarks.md"]
    settings.command = "make bench" if is_make else " ".join(["tests/bench.py", *sys.argv[1:]])
    settings.binaries = os.environ.get("FASTCACHE_BIN_DIR", os.path.join(REPO, "target", "release"))
    if settings.quick:
        settings.rounds, settings.runtime, settings.size, settings.files, settings.small = 1, 1, 128, 200, 500
    settings.size *= MIB
    if not shutil.which("fio"):
        sys.exit("fio is not installed: tests/setup/install.sh bench")
    home = tempfile.mkdtemp(prefix="fastcache-bench-", dir=settings.dir)
    try:
        rows, asked = measure(settings, home)
        text = table(settings, rows, asked, home)
    finally:
        for mount in glob.glob(os.path.join(home, "*", "*", "mnt")):
            if os.path.ismount(mount):
                subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(home, ignore_errors=True)
    print(text)
    if settings.write:
        put_into(settings.write, text, rows)
    if asked:
        sys.exit(f"a re-read made FUSE requests: {asked}")
    if settings.check:
        low = [row.case.name for row in rows if not (reached(row)[1] and processor(row)[1])]
        if low:
            sys.exit(f"below what must be: {', '.join(low)}")


if __name__ == "__main__":
    main()
