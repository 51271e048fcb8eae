//! Bodies that identify themselves: a reader can tell which body it is, and whether it is complete.

use leveret_test_support::random::Random;

/// Returns the bytes of a body from its number.
pub(super) fn body_of(content: u64) -> Vec<u8> {
    let length = match content % 23 {
        0 => 5000,
        1..4 => 900,
        _ => content as usize % 300,
    };
    let mut random = Random::new(content);
    let mut bytes: Vec<u8> = (0..length).map(|_| random.below(256) as u8).collect();
    bytes.extend_from_slice(&content.to_le_bytes());
    bytes
}

/// Returns the number of a body, or `None` if it is incomplete.
pub(super) fn content_of(body: &[u8]) -> Option<u64> {
    let tail = body.len().checked_sub(8)?;
    let content = u64::from_le_bytes(body[tail..].try_into().ok()?);
    (body_of(content) == body).then_some(content)
}
