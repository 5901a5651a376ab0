//! Promise (P7): the bucket alone rebuilds the file system. Every disk of the node is deleted after kill -9; what was
//! said to be persisted is there again, with equal bytes.

mod bucket_history {
    mod coordinators;
    mod random;
    mod rebuilt;
    mod reverted;
}
