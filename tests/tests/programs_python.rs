//! Promise: Python's temporary files and processes work on the mount, and so does loading a model through a mapping.

use fastcache_tests::{Node, drop_page_cache, run, serial};
use std::path::Path;
use std::process::Command;

#[track_caller]
fn python(at: &Path, script: &str) -> String {
    run(Command::new("timeout")
        .args(["200", "python3", "-c", script])
        .env("TMPDIR", at)
        .current_dir(at))
}

#[test]
fn temporary_files_of_every_kind() {
    let _one = serial();
    let node = Node::start_default();
    python(
        node.mount(),
        r#"
import os, tempfile, shutil
assert tempfile.gettempdir() == os.getcwd()
with tempfile.TemporaryFile() as f:         # O_TMPFILE is refused, so it is unlinked at once
    f.write(b"x" * 5_000_000); f.seek(0)
    assert f.read() == b"x" * 5_000_000
    assert os.fstat(f.fileno()).st_nlink == 0
with tempfile.NamedTemporaryFile("w+", delete=True) as f:
    f.write("name"); f.flush()
    assert open(f.name).read() == "name" and os.stat(f.name).st_mode & 0o777 == 0o600
assert not os.path.exists(f.name)
with tempfile.SpooledTemporaryFile(max_size=10) as f:
    f.write(b"more than ten bytes"); f.seek(5); assert f.read() == b"than ten bytes"
with tempfile.TemporaryDirectory() as d:
    for n in range(50):
        os.makedirs(f"{d}/{n}/{n}"); open(f"{d}/{n}/{n}/f", "w").write(str(n))
    os.symlink("nowhere", f"{d}/dangling")
    shutil.copytree(f"{d}/7", f"{d}/copy"); shutil.move(f"{d}/copy", f"{d}/moved")
    assert open(f"{d}/moved/7/f").read() == "7"
fd, name = tempfile.mkstemp(); os.close(fd); os.unlink(name)
assert os.listdir() == []
"#,
    );
}

#[test]
fn processes_share_files_sockets_locks_and_maps() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::write(
        node.at("work.py"),
        r#"
import fcntl, mmap, multiprocessing as mp, os, struct, sys
def count(_):
    for _ in range(200):
        with open("counter", "r+") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            n = int(f.read()); f.seek(0); f.write(str(n + 1)); f.flush()
def mapped(args):
    name, slot = args
    with open(name, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        for n in range(1000):
            m[slot * 4096:slot * 4096 + 8] = struct.pack("<q", n + 1)
    return slot
def put(q, n):
    q.put((os.getpid(), "x" * n))
if __name__ == "__main__":
    for how in ["fork", "spawn", "forkserver"]:
        mp.set_start_method(how, force=True)
        open("counter", "w").write("0")
        open("map", "wb").truncate(4 * 4096)
        with mp.Pool(4) as pool:
            pool.map(count, range(4))
            assert sorted(pool.map(mapped, [("map", n) for n in range(4)])) == [0, 1, 2, 3]
        assert open("counter").read() == "800", (how, open("counter").read())
        data = open("map", "rb").read()
        assert all(struct.unpack_from("<q", data, n * 4096)[0] == 1000 for n in range(4)), how
        q = mp.Queue()
        children = [mp.Process(target=put, args=(q, 100_000)) for _ in range(4)]
        [c.start() for c in children]
        assert all(len(q.get(timeout=60)[1]) == 100_000 for _ in children)
        [c.join() for c in children]
        with mp.Manager() as manager:        # its socket is in TMPDIR
            d = manager.dict(); d["k"] = how
            assert d["k"] == how
    print("ok")
"#,
    )
    .expect("write");
    let out = run(Command::new("timeout")
        .args(["200", "python3", "work.py"])
        .env("TMPDIR", node.mount())
        .current_dir(node.mount()));
    assert_eq!(out, "ok\n");
}

/// The layout of safetensors: the length of a JSON header, the header with name and offsets of each tensor, the tensors.
#[test]
fn a_model_is_loaded_through_a_mapping_by_several_processes() {
    let _one = serial();
    let node = Node::start_default();
    std::fs::write(
        node.at("model.py"),
        r#"
import hashlib, json, mmap, multiprocessing as mp, os, random, struct, sys
NAME = "model.safetensors"
def save():
    r = random.Random(1)
    tensors = {f"layer{n}.weight": r.randbytes(r.randrange(1, 5_000_000)) for n in range(16)}
    header, at = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [at, at + len(data)],
                        "sha": hashlib.sha256(data).hexdigest()}
        at += len(data)
    text = json.dumps(header).encode()
    with open(NAME + ".tmp", "wb") as f:
        f.write(struct.pack("<Q", len(text))); f.write(text)
        for data in tensors.values():
            f.write(data)
        f.flush(); os.fsync(f.fileno())
    os.rename(NAME + ".tmp", NAME)
def load(seed):
    with open(NAME, "rb") as f:
        m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
    m.madvise(mmap.MADV_WILLNEED)
    (n,) = struct.unpack_from("<Q", m, 0)
    header = json.loads(m[8:8 + n])
    names = list(header)
    random.Random(seed).shuffle(names)
    for name in names:
        a, b = header[name]["data_offsets"]
        assert hashlib.sha256(memoryview(m)[8 + n + a:8 + n + b]).hexdigest() == header[name]["sha"], name
    return len(names)
if __name__ == "__main__":
    if sys.argv[1] == "save":
        save()
    else:
        with mp.Pool(4) as pool:
            assert pool.map(load, range(8)) == [16] * 8
    print("ok")
"#,
    )
    .expect("write");
    let model = |what: &str| {
        let out = run(Command::new("timeout")
            .args(["200", "python3", "model.py", what])
            .current_dir(node.mount()));
        assert_eq!(out, "ok\n");
    };
    model("save");
    model("load");
    node.flush();
    node.evict();
    drop_page_cache();
    model("load");
    drop_page_cache();
    model("load");
}
