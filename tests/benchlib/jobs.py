"""The jobs: each runs on a folder, which is the mount or plain ext4, and says how fast it was."""
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from .machine import busy_seconds, drop_page_cache

PROFILES = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))), "fio-profiles")
MIB = 1 << 20
SMALL_DIRS = 100


@dataclass
class Result:
    """Of one run: the number that the case is about, the median latency in µs, processor time in µs an operation."""

    value: float
    latency: float = 0
    cpu: float = 0


@dataclass
class Case:
    """A row. `must` is what it has to reach: of raw for a ratio, µs over raw, files/s, or µs of processor time."""

    name: str
    text: str
    unit: str
    kind: str = "ratio"
    must: float | None = None
    aim: float | None = None
    # Most µs of processor time that an operation may cost beyond raw.
    cpu_must: float | None = None
    # Of `up`, for nodes of its own.
    up: tuple = ()
    # So much is written that its nodes come one after the other: the cloud keeps what was replaced for a while.
    is_large: bool = False


CASES = [
    Case("seq_read", "1 MiB direct reads, depth 16", "MB/s", "ratio", 0.72, 0.85),
    Case("rand_read_128k", "128 KiB random direct reads, depth 16", "MB/s", "ratio", 0.72, 0.85),
    Case("rand_read_d1", "4 KiB random direct reads, one at a time", "IOPS", "latency", 25, 15),
    Case("rand_read", "4 KiB random direct reads, depth 32 × 2 jobs", "IOPS", "ratio", 0.80, 0.95, cpu_must=12),
    Case("rand_read_crc_cold", "the same, checksum pages beyond their memory (128 KiB)", "IOPS", "ratio", None, 0.60,
         up=("--checksum-memory", "128KiB")),
    Case("rand_write", "4 KiB random direct writes, depth 32", "IOPS", "ratio", 0.65, 0.85),
    Case("checkpoint_write", "1 MiB direct writes, depth 16, fsync", "MB/s", "ratio", 0.50, 0.70),
    Case("buffered_write", "a new file, 1 MiB buffered writes of one thread, fsync", "MB/s", "ratio", 0.50, 0.80),
    Case("buffered_read", "1 MiB buffered reads of one thread, cold page cache", "MB/s", "ratio", 0.80, 1.00),
    Case("reread", "1 MiB buffered reads, read before", "MB/s"),
    Case("open_read_close", "open, read and close of small files, warm pages", "files/s", "absolute", 15_000, 40_000),
    Case("open_read_close_cold", "the same, cold pages", "files/s", "ratio", 0.50, 0.80),
    Case("small_files", "new files of 16 KiB, 2 jobs", "files/s"),
    Case("mixed", "16 KiB random, 70 % reads, depth 16", "IOPS"),
    Case("ingest", "4 GiB of new data, 1 MiB direct writes, uploaded to the same disk meanwhile (from 2 GiB on)", "MB/s",
         is_large=True),
]

# Random writes scatter a file's blocks in the store, and new data needs a new file.
OWN_FILE = ("mixed", "rand_write", "ingest", "buffered_write")
# These are laid out before anything is measured.
LAID_OUT = ("bench", "mixed", "rand_write")
# Times the size of a file: uploads and writes are to go on side by side for a while.
SIZES = {"ingest": 4}


def run(case, folder, settings):
    """One run of a case."""
    if case.name.startswith("open_read_close"):
        return open_read_close(os.path.join(folder, "small"), is_cold=case.name.endswith("cold"))
    return fio(case, folder, settings)


def fio(case, folder, settings):
    profile = case.name
    env = dict(
        os.environ,
        GLIBC_TUNABLES="glibc.malloc.hugetlb=1",
        FIO_FILE=os.path.join(folder, profile if profile in OWN_FILE else "bench"),
        FIO_DIR=os.path.join(folder, "new"),
        FIO_SIZE=str(SIZES.get(profile, 1) * settings.size),
        FIO_RUNTIME=str(settings.runtime),
        FIO_NRFILES=str(settings.files),
    )
    os.makedirs(env["FIO_DIR"], exist_ok=True)
    if profile in ("buffered_read", "reread"):
        drop_page_cache()
    if profile == "reread":
        with open(env["FIO_FILE"], "rb", buffering=0) as file:
            while file.read(MIB):
                pass
    busy = busy_seconds()
    out = subprocess.run(
        ["fio", "--output-format=json", f"{profile}.fio"],
        cwd=PROFILES, env=env, check=True, stdout=subprocess.PIPE, text=True, timeout=600,
    ).stdout
    busy = busy_seconds() - busy
    job = json.loads(out[out.index("{"):])["jobs"][0]
    if job.get("error"):
        sys.exit(f"fio {profile}: error {job['error']}")
    sides = [job["read"], job["write"]]
    latencies = [
        s["clat_ns"]["percentile"]["50.000000"] / 1000 for s in sides if s["total_ios"] and "percentile" in s["clat_ns"]
    ]
    operations = sum(s["total_ios"] for s in sides)
    result = Result(0, max(latencies, default=0), busy * 1e6 / max(operations, 1))
    if case.unit == "MB/s":
        if profile == "buffered_write":
            # Only the time with the fsync means anything: the writes alone went into memory.
            result.value = sum(s["io_bytes"] for s in sides) / job["job_runtime"] / 1000
        else:
            result.value = sum(s["bw_bytes"] for s in sides) / 1e6
    elif case.unit == "files/s":
        # Only what is between the first open and the last close: fio counts the writes' time alone.
        result.value = 2 * settings.files / (job["job_runtime"] / 2 / 1000)
    else:
        result.value = sum(s["iops"] for s in sides)
    return result


def small_path(folder, n):
    """Where a small file is: a hundred folders, as a data set of samples has."""
    return os.path.join(folder, f"{n % SMALL_DIRS:02}", f"{n:05}")


def make_small(folder, count):
    """The small files of 4 KiB that are opened, read and closed."""
    for n in range(min(count, SMALL_DIRS)):
        os.makedirs(os.path.dirname(small_path(folder, n)), exist_ok=True)
    for n in range(count):
        with open(small_path(folder, n), "wb", buffering=0) as file:
            file.write(os.urandom(4096))


def open_read_close(folder, is_cold):
    """One thread opens, reads and closes every small file in the order of their making."""
    names = sorted(os.path.join(at, name) for at, _, files in os.walk(folder) for name in files)

    def sweep():
        start = time.perf_counter()
        for name in names:
            fd = os.open(name, os.O_RDONLY)
            if len(os.read(fd, 4096)) != 4096:
                sys.exit(f"{name} is not 4 KiB long")
            os.close(fd)
        return time.perf_counter() - start

    sweep()
    if is_cold:
        drop_page_cache()
    busy = busy_seconds()
    seconds = sweep()
    busy = busy_seconds() - busy
    return Result(len(names) / seconds, seconds * 1e6 / len(names), busy * 1e6 / len(names))
