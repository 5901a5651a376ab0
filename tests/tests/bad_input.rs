//! Promise: whatever an operator or a stranger gives to it, fastcache answers with a sentence that names what is wrong
//! and says what to do; it starts nothing half, and what runs already goes on.

mod bad_input {
    mod limits;
    mod place;
    mod settings;
    mod storage;
    mod strangers;
    mod taken;
}
