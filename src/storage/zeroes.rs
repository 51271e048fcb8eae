//! Buffers that grow by zeroes.
//!
//! Why it exists: the standard library's `resize` writes them byte by byte in code that is made small, and
//! every stored message, block and read buffer grows by them.

/// As many as are copied at once.
const ZEROES: [u8; 1024] = [0; 1024];

/// A buffer that can be made longer by zeroes.
pub(super) trait ResizeZeroed {
    /// Makes it so many bytes long: what is too much is cut off, what is missing is zeroes.
    fn resize_zeroed(&mut self, len: usize);
}

impl ResizeZeroed for Vec<u8> {
    fn resize_zeroed(&mut self, len: usize) {
        self.truncate(len);
        self.reserve(len - self.len());
        while self.len() < len {
            let more = ZEROES.len().min(len - self.len());
            self.extend_from_slice(&ZEROES[..more]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_as_long_as_asked_for_and_what_is_new_is_zeroes() {
        for (before, after) in [(0, 0), (0, 1), (7, 3), (7, 1031), (5, 5000), (4096, 4096), (5000, 1)] {
            let mut buffer = vec![7; before];
            buffer.resize_zeroed(after);
            let kept = before.min(after);
            assert_eq!(buffer.len(), after);
            assert!(
                buffer[..kept].iter().all(|byte| *byte == 7) && buffer[kept..].iter().all(|byte| *byte == 0)
            );
        }
    }
}
