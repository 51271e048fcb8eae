//! The frames of a content that comes in: a method with content, its header, its body.
//!
//! Always true: a frame that does not belong where it comes is seen; what was announced is what comes.

/// How far a content is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Content {
    /// There is none: a method comes next.
    #[default]
    None,
    /// Its header comes next.
    Header,
    /// So many octets of its body come next.
    Body(u64),
}

impl Content {
    /// A method came that has a content. `false`: it is out of place.
    #[must_use]
    pub fn begin(&mut self) -> bool {
        core::mem::replace(self, Self::Header) == Self::None
    }

    /// Its header came. `false`: it is out of place.
    #[must_use]
    pub fn take_header(&mut self, body_len: u64) -> bool {
        let after = if body_len == 0 { Self::None } else { Self::Body(body_len) };
        core::mem::replace(self, after) == Self::Header
    }

    /// So many octets of its body came. `false`: they are out of place, or more than were announced.
    #[must_use]
    pub fn take_body(&mut self, len: usize) -> bool {
        let Self::Body(left) = *self else { return false };
        let Some(left) = left.checked_sub(len as u64) else { return false };
        *self = if left == 0 { Self::None } else { Self::Body(left) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_where() {
        let mut content = Content::default();
        assert!(!content.take_body(1) && content.begin() && !content.take_body(1));
        assert!(content.take_header(5) && content.take_body(2) && !content.take_body(4));
        assert!(content.take_body(3) && content == Content::None);
        assert!(content.begin() && content.take_header(0) && content == Content::None);
        assert!(content.begin() && !content.begin(), "one content within another");
    }
}
