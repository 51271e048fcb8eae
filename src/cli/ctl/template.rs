//! Fills the templates of paths and texts in the table of commands.

/// Fills a template. `{0}` is replaced by the value of the name `0`, and `{0:?}` by the value in quotes. A part
/// in brackets is left out if a name in it has no value. Brackets cannot be nested.
///
/// # Panics
/// A name outside of brackets has no value.
pub(super) fn filled(template: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let parts = template.split(['[', ']']).map(|part| filled_part(part, &value)).enumerate();
    parts
        .filter_map(|(at, part)| {
            assert!(part.is_some() || at % 2 == 1, "a name in {template:?} has no value");
            part
        })
        .collect()
}

fn filled_part(part: &str, value: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut pieces = part.split('{');
    let mut out = pieces.next()?.to_string();
    for (name, rest) in pieces.filter_map(|piece| piece.split_once('}')) {
        match name.strip_suffix(":?") {
            Some(name) => out += &format!("{:?}", value(name)?),
            None => out += &value(name)?,
        }
        out += rest;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::super::commands::Call;
    use super::*;

    #[test]
    fn names_in_a_value_are_not_replaced() {
        let call = Call { args: vec!["{vhost}".into()], vhost: Some("[{0}]".into()), ..Call::default() };
        let text = filled("of \"{0}\" in {vhost} ...", |name| call.template_value(name));
        assert_eq!(text, "of \"{vhost}\" in [{0}] ...");
    }

    #[test]
    fn a_value_can_be_quoted() {
        assert_eq!(filled("no {0:?}!", |_| Some("a\"b".into())), "no \"a\\\"b\"!");
    }

    #[test]
    fn a_part_in_brackets_needs_its_value() {
        let template = "users/{0}[/in/{1}]/all";
        assert_eq!(filled(template, |name| Some(name.into())), "users/0/in/1/all");
        assert_eq!(filled(template, |name| (name == "0").then(|| "a".into())), "users/a/all");
    }
}
