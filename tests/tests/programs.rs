//! Promise: programs need no changes: git, SQLite, tar, rsync, a compiler.

use fastcache_tests::{
    Node, SourceTree, assert_same_tree, count_files, drop_page_cache, output_of, run, serial,
};
use std::path::Path;
use std::process::Command;

/// A shell script, each command of which must succeed.
#[track_caller]
fn shell(at: &Path, script: &str) -> String {
    run(Command::new("timeout")
        .args(["300", "bash", "-euo", "pipefail", "-c", script])
        .current_dir(at)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "t")
        .env("GIT_AUTHOR_EMAIL", "t@localhost")
        .env("GIT_COMMITTER_NAME", "t")
        .env("GIT_COMMITTER_EMAIL", "t@localhost"))
}

#[test]
fn git_clone_gc_and_fsck() {
    let _one = serial();
    let node = Node::start_default();
    let origin = node.outside().join("origin");
    std::fs::create_dir(&origin).expect("mkdir");
    shell(
        &origin,
        "git init -q -b main .
         for n in $(seq 1 60); do
             mkdir -p d$((n % 7))
             seq $n $((n * 300)) > d$((n % 7))/f$n
             head -c $((n * 1000)) /dev/urandom > d$((n % 7))/random
             git add -A; git commit -qm \"commit $n\"
         done
         git tag v1; git checkout -qb side HEAD~20; echo side > side; git add side; git commit -qm side
         git checkout -q main",
    );
    let clone = node.at("clone");
    shell(
        node.mount(),
        &format!("git clone -q 'file://{}' clone", origin.display()),
    );
    shell(
        &clone,
        "git fsck --full --strict
         git checkout -q side 2>/dev/null || git checkout -q -b side origin/side
         git checkout -q main
         for n in 1 2 3; do echo change $n >> d1/f1; git commit -qam \"more $n\"; done
         git merge -q -m merge side
         git gc -q --aggressive --prune=now
         git fsck --full --strict
         test -z \"$(git status --porcelain)\"
         git worktree add -q ../worktree HEAD~1
         git stash list",
    );
    node.flush();
    node.evict();
    drop_page_cache();
    shell(
        &clone,
        "git fsck --full --strict; test -z \"$(git status --porcelain)\"; git log --oneline | wc -l",
    );
    shell(
        &clone,
        &format!(
            "git push -q 'file://{}' HEAD:refs/heads/back",
            origin.display()
        ),
    );
    let of = |at: &Path, what: &str| shell(at, &format!("git rev-parse {what}"));
    assert_eq!(of(&clone, "HEAD"), of(&origin, "back"));
}

#[test]
fn sqlite_keeps_its_integrity() {
    let _one = serial();
    let node = Node::start_default();
    for journal in ["delete", "wal"] {
        let name = format!("{journal}.db");
        let script = format!(
            "{{ echo 'PRAGMA journal_mode={journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT, b BLOB);
                 CREATE INDEX i ON t(v);'
               for n in $(seq 1 100); do
                   echo \"BEGIN; INSERT INTO t(v, b) WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c
                       WHERE x < 100) SELECT 'row ' || ({journal_n} * x * $n), randomblob(500) FROM c; COMMIT;\"
               done
               echo 'DELETE FROM t WHERE id % 7 = 0; UPDATE t SET v = v || v WHERE id % 5 = 0; VACUUM;'
             }} | sqlite3 -bail {name}",
            journal_n = if journal == "wal" { 2 } else { 1 }
        );
        shell(node.mount(), &script);
        let check = |when: &str| {
            let out = shell(
                node.mount(),
                &format!("sqlite3 {name} 'PRAGMA integrity_check; SELECT count(*) FROM t;'"),
            );
            assert_eq!(out, "ok\n8572\n", "{journal}, {when}");
        };
        check("at once");
        node.flush();
        node.evict();
        check("from the cloud");
    }
    // Two writers at once: the locks work.
    shell(
        node.mount(),
        "sqlite3 two.db 'CREATE TABLE t(who INTEGER, n INTEGER)'
         for who in 1 2; do
             (for n in $(seq 1 50); do sqlite3 -cmd '.timeout 60000' two.db \"INSERT INTO t VALUES($who, $n)\"; done) &
         done; wait
         test \"$(sqlite3 two.db 'SELECT count(*) FROM t')\" = 100
         test \"$(sqlite3 two.db 'PRAGMA integrity_check')\" = ok",
    );
}

#[test]
fn tar_and_rsync_agree() {
    let _one = serial();
    let tree = SourceTree::new(1_500, 20_000_000);
    let node = Node::start_default();
    let source = tree.path();

    run(Command::new("tar")
        .arg("-C")
        .arg(&source)
        .args(["--format=posix", "--sparse", "-cpf"])
        .arg(node.at("a.tar"))
        .arg("."));
    std::fs::create_dir(node.at("tar")).expect("mkdir");
    run(Command::new("tar")
        .arg("-C")
        .arg(node.at("tar"))
        .arg("-xpf")
        .arg(node.at("a.tar")));
    // tar sets a directory's times last; all of them agree.
    assert_same_tree(&source, &node.at("tar"));
    run(Command::new("tar")
        .arg("-C")
        .arg(node.at("tar"))
        .arg("-df")
        .arg(node.at("a.tar")));

    let rsync = || {
        let mut from = source.clone().into_os_string();
        from.push("/");
        run(Command::new("rsync")
            .args(["-aH", "--stats", "--itemize-changes"])
            .arg(from)
            .arg(node.at("rsync")))
    };
    rsync();
    assert_same_tree(&source, &node.at("rsync"));
    node.flush();
    node.evict();
    let second = rsync();
    let line = |what: &str| {
        second
            .lines()
            .find(|l| l.starts_with(what))
            .unwrap_or_else(|| panic!("{second}"))
            .to_owned()
    };
    assert_eq!(
        line("Number of regular files transferred"),
        "Number of regular files transferred: 0"
    );
    assert_eq!(
        line("Total transferred file size"),
        "Total transferred file size: 0 bytes"
    );
    assert!(
        !second
            .lines()
            .any(|l| l.starts_with('>') || l.starts_with('c')),
        "{second}"
    );
    assert!(count_files(&node.at("rsync")) >= 1_500);
}

#[test]
fn a_compiler_builds_and_the_result_runs() {
    let _one = serial();
    let node = Node::start_default();
    shell(
        node.mount(),
        r#"mkdir src; cd src
        for n in $(seq 1 30); do echo "int f$n(void) { return $n; }" > f$n.c; done
        { for n in $(seq 1 30); do echo "int f$n(void);"; done
          echo '#include <stdio.h>'
          echo 'int main(void) { int s = 0;'; for n in $(seq 1 30); do echo "s += f$n();"; done
          echo 'printf("%d\n", s); return 0; }'; } > main.c
        { echo 'OBJ := $(patsubst %.c,%.o,$(wildcard *.c))'; echo 'program: $(OBJ)'
          printf '\tcc -o $@ $^\n'; } > Makefile
        make -s -j4
        test "$(./program)" = 465
        make -q    # times are right: nothing is to be done
        touch f7.c; make -s; ./program >/dev/null"#,
    );
    node.flush();
    node.evict();
    drop_page_cache();
    assert_eq!(run(&mut Command::new(node.at("src/program"))), "465\n");
    let tests = output_of(Command::new("make").arg("-q").current_dir(node.at("src")));
    assert!(tests.status.success());
}
