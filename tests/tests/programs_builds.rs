//! Promise: compilers and build systems work on the mount: cargo with path dependencies, make -j of some hundred files.
//!
//! `FASTCACHE_PROGRAMS_LONG=1` (make test-programs): a larger C project.

use fastcache_tests::{Node, drop_page_cache, run, serial};
use std::path::Path;
use std::process::Command;

/// A shell script, each command of which must succeed; its output.
#[track_caller]
fn shell(at: &Path, script: &str) -> String {
    run(Command::new("timeout")
        .args(["500", "bash", "-euo", "pipefail", "-c", script])
        .current_dir(at))
}

#[test]
fn cargo_builds_a_workspace_with_path_dependencies() {
    let _one = serial();
    let node = Node::start_default();
    shell(
        node.mount(),
        r#"mkdir work; cd work
        printf '[workspace]\nmembers = ["app", "one", "two", "three"]\nresolver = "2"\n' > Cargo.toml
        lib() { mkdir -p $1/src
            printf '[package]\nname = "%s"\nversion = "0.1.0"\nedition = "2021"\n[dependencies]\n' $1 > $1/Cargo.toml
            for dep in ${2:-}; do printf '%s = { path = "../%s" }\n' $dep $dep >> $1/Cargo.toml; done; }
        lib three; lib two three; lib one "two three"; lib app "one two"
        echo 'pub fn three() -> u32 { 3 }' > three/src/lib.rs
        echo 'pub fn two() -> u32 { three::three() - 1 }' > two/src/lib.rs
        echo 'pub fn one() -> u32 { three::three() - two::two() }
              #[cfg(test)] mod tests { #[test] fn one() { assert_eq!(super::one(), 1); } }' > one/src/lib.rs
        echo 'fn main() { println!("{}", one::one() + two::two()); }' > app/src/main.rs
        # A build script that writes, and code that includes what it wrote.
        echo 'fn main() { let dir = std::env::var("OUT_DIR").unwrap();
              std::fs::write(format!("{dir}/made.rs"), "pub const MADE: u32 = 42;").unwrap();
              println!("cargo:rerun-if-changed=build.rs"); }' > three/build.rs
        echo 'include!(concat!(env!("OUT_DIR"), "/made.rs"));' >> three/src/lib.rs
        cargo build --offline -q
        test "$(target/debug/app)" = 3
        cargo test --offline -q -p one >/dev/null"#,
    );
    let work = node.at("work");
    let build = || {
        let out = shell(&work, "cargo build --offline -v 2>&1");
        let fresh = out
            .lines()
            .filter(|l| l.trim_start().starts_with("Fresh"))
            .count();
        let dirty = out
            .lines()
            .filter(|l| l.trim_start().starts_with("Compiling"))
            .count();
        (fresh, dirty)
    };
    // Times and contents are right: nothing is built twice, also when all of it comes from the cloud.
    assert_eq!(build(), (4, 0));
    node.flush();
    node.evict();
    drop_page_cache();
    assert_eq!(build(), (4, 0), "from the cloud");
    shell(&work, "echo 'pub fn more() {}' >> two/src/lib.rs");
    assert_eq!(
        build(),
        (1, 3),
        "two changed: two, one and app are built again"
    );
    assert_eq!(shell(&work, "target/debug/app"), "3\n");
    shell(&work, "cargo clean -q; test ! -e target");
}

#[test]
fn make_with_many_jobs_builds_a_c_project_and_finds_nothing_to_do_afterwards() {
    let _one = serial();
    let node = Node::start_default();
    let files = if std::env::var_os("FASTCACHE_PROGRAMS_LONG").is_some() {
        600
    } else {
        120
    };
    shell(
        node.mount(),
        &format!(
            r##"mkdir project; cd project
            for n in $(seq 1 {files}); do
                d=src/d$((n % 10)); mkdir -p $d include
                echo "int f$n(int);" > include/f$n.h
                printf '#include "f%d.h"\n#include <string.h>\nint f%d(int x) {{ return x + %d; }}\n' $n $n $n > $d/f$n.c
            done
            {{ for n in $(seq 1 {files}); do echo "#include \"f$n.h\""; done
               echo '#include <stdio.h>'; echo 'int main(void) {{ int s = 0;'
               for n in $(seq 1 {files}); do echo "s = f$n(s);"; done; echo 'printf("%d\n", s); return 0; }}'; }} > src/main.c
            cat > Makefile <<'END'
SRC := $(wildcard src/*.c src/*/*.c)
OBJ := $(SRC:src/%.c=build/%.o)
program: libparts.a build/main.o
	$(CC) -o $@ build/main.o libparts.a
libparts.a: $(filter-out build/main.o,$(OBJ))
	rm -f $@; ar rcs $@ $^
build/%.o: src/%.c
	@mkdir -p $(@D)
	$(CC) -O1 -Iinclude -MMD -MP -c -o $@ $<
-include $(OBJ:.o=.d)
END
            make -s -j8
            make -q"##
        ),
    );
    let project = node.at("project");
    let sum = format!("{}\n", files * (files + 1) / 2);
    assert_eq!(shell(&project, "./program"), sum);
    node.flush();
    node.evict();
    drop_page_cache();
    assert_eq!(
        shell(&project, "make -q && ./program"),
        sum,
        "from the cloud"
    );
    // A header that changes rebuilds what includes it, and nothing else.
    let built = shell(
        &project,
        "echo >> include/f7.h; make -j8 2>&1 | grep -c -- '-c -o'",
    );
    assert_eq!(built.trim(), "2");
    assert_eq!(shell(&project, "make -q && ./program"), sum);
    shell(
        &project,
        "cp -a . ../copy; diff -r . ../copy; cd ../copy; make -q; rm -rf ../project",
    );
}
