//! The loss of every disk: what is left is the bucket.

use crate::node::Node;

/// kill -9 of everything, and every file the node kept is deleted. Only the bucket stays.
///
/// # Panics
/// When a process of the node did not run, or something cannot be deleted.
#[track_caller]
pub fn lose_everything(node: &Node) {
    node.kill_all();
    node.stop_by_force();
    let done = || {
        let (bucket, aside) = (node.dir().join("cloud"), node.outside().join("bucket"));
        let has_bucket = bucket.exists();
        if has_bucket {
            std::fs::rename(&bucket, &aside)?;
        }
        std::fs::remove_dir_all(node.dir())?;
        if has_bucket {
            std::fs::create_dir(node.dir())?;
            std::fs::rename(&aside, &bucket)?;
        }
        Ok::<(), std::io::Error>(())
    };
    done().unwrap_or_else(|e| panic!("the disks cannot be deleted: {e}"));
}
