"""The machine below: its name, its page cache, how busy it is."""
import contextlib
import os
import platform

TICKS = os.sysconf("SC_CLK_TCK")
# Whether the kernel offers FUSE over io_uring to mounts; it comes with Linux 6.14.
URING = "/sys/module/fuse/parameters/enable_uring"


@contextlib.contextmanager
def fuse_over_io_uring():
    """Has the kernel offer FUSE over io_uring, and puts back what was there. False where it cannot."""
    try:
        with open(URING, "r+", encoding="ascii") as file:
            before = file.read()
            file.write("Y")
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        with open(URING, "w", encoding="ascii") as file:
            file.write(before)


def drop_page_cache():
    """Forgets file contents, and keeps names and attributes."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("1")


def busy_seconds():
    """Processor time that the whole machine has spent on something since it was started, all cores together."""
    with open("/proc/stat", encoding="ascii") as file:
        user, nice, system, _idle, _iowait, irq, softirq = map(int, file.readline().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def describe(path):
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
