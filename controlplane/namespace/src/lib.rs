//! The namespace as a pure state machine: log records, state, rules of POSIX.
