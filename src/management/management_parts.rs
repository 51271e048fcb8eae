//! Parts that several answers have, and limits.
//!
//! Always true: what is written is part of an object or list that has begun, or a whole one.

use super::json::Json;

/// Limits that somebody has set, of these virtual hosts or users.
pub(super) fn limits<'n>(
    json: &mut Json<'_>,
    key: &str,
    rows: impl Iterator<Item = (&'n str, [(&'static str, Option<u32>); 2])>,
) {
    json.raw(b"[");
    let mut is_first = true;
    for (name, limits) in rows.filter(|(_, limits)| limits.iter().any(|(_, limit)| limit.is_some())) {
        json.comma(&mut is_first);
        json.raw(b"{");
        let mut is_first_field = true;
        texts(json, &mut is_first_field, &[(key, name)]);
        json.name("value", &mut is_first_field);
        json.raw(b"{");
        let mut is_first_limit = true;
        for (name, limit) in limits.into_iter().filter_map(|(name, limit)| Some((name, limit?))) {
            numbers(json, &mut is_first_limit, &[(name, limit.into())]);
        }
        json.raw(b"}}");
    }
    json.raw(b"]");
}

/// Names and numbers of an object that has begun.
pub(super) fn numbers(json: &mut Json<'_>, is_first: &mut bool, numbers: &[(&str, u64)]) {
    for (name, number) in numbers {
        json.name(name, is_first);
        json.number(*number);
    }
}

pub(super) fn texts(json: &mut Json<'_>, is_first: &mut bool, texts: &[(&str, &str)]) {
    for (name, text) in texts {
        json.name(name, is_first);
        json.text(text);
    }
}

/// An object of texts.
pub(super) fn said(json: &mut Json<'_>, members: &[(&str, &str)]) {
    json.raw(b"{");
    texts(json, &mut true, members);
    json.raw(b"}");
}

/// An object of numbers.
pub(super) fn nested(json: &mut Json<'_>, members: &[(&str, u64)]) {
    json.raw(b"{");
    numbers(json, &mut true, members);
    json.raw(b"}");
}
