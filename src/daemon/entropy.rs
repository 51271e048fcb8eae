//! Random bytes of the system.

/// Random bytes for names. Without any the process cannot keep its promises, but a board early in its boot
/// may block here for a moment, and then goes on.
pub(super) fn entropy(bytes: &mut [u8]) {
    if let Err(error) = getrandom::fill(bytes) {
        panic!("the system gives no random bytes: {error}");
    }
}
