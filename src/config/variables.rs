//! `${hostname}`, `${machine_id}` and `${env:NAME}` in values: one file for a whole fleet.
//!
//! Always true: what stands for nothing is refused, never left empty; what was filled in is not looked into
//! again.

use std::fs;

/// Where a machine's own id stands.
const MACHINE_ID: &str = "/etc/machine-id";

/// The text with its variables filled in.
///
/// # Errors
/// Which variable has no value, or what is wrong with how it is written.
#[cold]
pub(super) fn expand(text: &str) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("${") {
        let Some((name, after)) = behind.split_once('}') else {
            return Err(format!("\"{text}\" has a ${{ without its }}"));
        };
        expanded.push_str(before);
        expanded.push_str(&value_of(name)?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cold]
fn value_of(name: &str) -> Result<String, String> {
    let value = match name {
        "hostname" => rustix::system::uname().nodename().to_str().ok().map(str::to_string),
        "machine_id" => fs::read_to_string(MACHINE_ID).ok().map(|text| text.trim().to_string()),
        _ => match name.strip_prefix("env:") {
            Some(variable) => std::env::var(variable).ok(),
            None => {
                return Err(format!(
                    "${{{name}}} is not known; there are ${{hostname}}, ${{machine_id}} and ${{env:NAME}}"
                ));
            }
        },
    };
    let value = value.filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("${{{name}}} has no value on this machine"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_and_what_is_refused() {
        assert_eq!(expand("plain"), Ok("plain".to_string()));
        let path = std::env::var("PATH").expect("a PATH");
        assert_eq!(expand("a ${env:PATH} b"), Ok(format!("a {path} b")));
        let host = expand("${hostname}").expect("a machine has a name");
        assert_eq!(expand("x.${hostname}.${hostname}"), Ok(format!("x.{host}.{host}")));
        for (text, part) in [
            ("${nothing}", "there are ${hostname}"),
            ("${env:LEVERET_IS_NOT_SET}", "has no value"),
            ("${hostname", "without its }"),
        ] {
            let why = expand(text).expect_err("it is refused");
            assert!(why.contains(part), "{why}");
        }
    }
}
