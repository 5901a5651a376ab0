//! One io_uring per core: operations, buffers, timers, sockets; the only unsafe I/O.
