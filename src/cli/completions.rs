//! Completions of the command lines of `leveret` and `leveretctl`: `leveret completions bash`, `zsh` or `fish`.
//!
//! They are made from the tables of commands and options that the help is made from.

use std::fmt::Write;

use leveret_config::board::BOARDS;

use crate::{args, ctl};

/// The names of the shells.
pub const SHELLS: [&str; 3] = ["bash", "zsh", "fish"];

/// An option of a command line, as the completions need it.
#[derive(Clone, Debug)]
pub(crate) struct CompletedOption {
    /// Its names with their hyphens.
    pub(crate) names: Vec<String>,
    /// The name of its value; empty if it has none.
    pub(crate) value: &'static str,
    /// Its description in one line.
    pub(crate) about: String,
}

impl CompletedOption {
    /// Returns the possible values, if they are a list.
    fn values(&self) -> Option<String> {
        match self.names.last()?.as_str() {
            "--board" => {
                let mut names: Vec<&str> = BOARDS.iter().map(|board| board.name).chain(["auto"]).collect();
                names.sort_unstable();
                Some(names.join(" "))
            }
            "--log-level" => Some("error warn info debug trace off".to_string()),
            "--formatter" => Some("table json csv pretty_table".to_string()),
            _ => None,
        }
    }

    /// Returns whether the value is a file or a folder.
    fn is_path(&self) -> bool {
        ["FILE", "DIR", "PATH", "<file>", "<folder>"].contains(&self.value)
    }
}

/// A program with the first words and the options of its command line.
struct Program {
    name: &'static str,
    words: Vec<&'static str>,
    options: Vec<CompletedOption>,
}

fn programs() -> [Program; 2] {
    let (words, options) = args::completed();
    let program = Program { name: "leveret", words, options };
    let (words, options) = ctl::completed();
    [program, Program { name: "leveretctl", words, options }]
}

/// Returns the completion script of a shell; `None` for an unknown shell.
pub fn script(shell: &str) -> Option<String> {
    match shell {
        "bash" => Some(bash()),
        "zsh" => Some(zsh()),
        "fish" => Some(fish()),
        _ => None,
    }
}

const BASH: &str = r#"# bash completion for leveret and leveretctl, made by `leveret completions bash`
_leveret() {
    local current=$2 previous=$3 options commands word
    COMPREPLY=()
    case "${COMP_WORDS[0]##*/} ${COMP_WORDS[1]}" in
        leveretctl\ * | leveret\ ctl)
            options='@CTL_OPTIONS@' commands='@CTL_COMMANDS@' ;;
        *)
            options='@OPTIONS@' commands='@COMMANDS@' ;;
    esac
    case $previous in
@VALUES@    esac
    if [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
        return
    fi
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        # After a command, only names and files are completed.
        [[ $word != ctl && " $commands " == *" $word "* && $previous != help ]] && commands=
    done
    mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current"; [[ $commands ]] || compgen -f -- "$current")
}
complete -o filenames -F _leveret leveret leveretctl
"#;

fn bash() -> String {
    let mut text = BASH.to_string();
    let mut seen: Vec<String> = Vec::new();
    let mut cases = String::new();
    for (program, prefix) in programs().iter().zip(["", "CTL_"]) {
        let options: Vec<&str> =
            program.options.iter().flat_map(|option| &option.names).map(String::as_str).collect();
        text = text.replace(&format!("@{prefix}COMMANDS@"), &program.words.join(" "));
        text = text.replace(&format!("@{prefix}OPTIONS@"), &options.join(" "));
        for option in program.options.iter().filter(|option| !option.value.is_empty()) {
            let names = option.names.join(" | ");
            if seen.contains(&names) {
                continue;
            }
            let reply = match option.values() {
                Some(values) => {
                    format!("mapfile -t COMPREPLY < <(compgen -W '{values}' -- \"$current\"); return")
                }
                None if option.is_path() => {
                    "mapfile -t COMPREPLY < <(compgen -f -- \"$current\"); return".to_string()
                }
                None => "return".to_string(),
            };
            let _ = writeln!(cases, "        {names}) {reply} ;;");
            seen.push(names);
        }
    }
    text.replace("@VALUES@", &cases)
}

/// Escapes a text for single quotes.
fn quoted(text: &str) -> String {
    text.replace('\'', "'\\''")
}

const ZSH_END: &str = "
if [[ $service == leveretctl ]]; then
    _leveretctl_arguments
elif [[ ${words[2]} == ctl && $CURRENT -gt 2 ]]; then
    shift words
    (( CURRENT-- ))
    _leveretctl_arguments
else
    _leveret_arguments
fi
";

fn zsh() -> String {
    let mut out =
        "#compdef leveret leveretctl\n# zsh completion, made by `leveret completions zsh`\n".to_string();
    for Program { name, words, options } in programs() {
        let _ = write!(out, "\n_{name}_arguments() {{\n    _arguments \\\n");
        for option in options {
            let action = match (option.value, option.values()) {
                ("", _) => String::new(),
                (_, Some(values)) => format!(":value:({values})"),
                _ if option.is_path() => ":value:_files".to_string(),
                _ => ":value: ".to_string(),
            };
            let about = quoted(&option.about.replace(':', "\\:").replace('[', "\\[").replace(']', "\\]"));
            for name in &option.names {
                let _ = writeln!(out, "        '{name}[{about}]{action}' \\");
            }
        }
        let _ =
            writeln!(out, "        '1:command:({})' \\\n        '*:argument:_files'\n}}", words.join(" "));
    }
    out + ZSH_END
}

fn fish() -> String {
    let [program, ctl] = programs();
    let ctl_words = ctl.words.join(" ");
    let mut out = "# fish completion, made by `leveret completions fish`\n".to_string();
    let in_ctl = "__fish_seen_subcommand_from ctl";
    let before_word = format!("{in_ctl}; and not __fish_seen_subcommand_from {ctl_words}");
    let parts = [
        ("leveret", &program, "__fish_use_subcommand", format!("not {in_ctl}")),
        ("leveret", &ctl, before_word.as_str(), in_ctl.to_string()),
        ("leveretctl", &ctl, "__fish_use_subcommand", String::new()),
    ];
    for (name, Program { words, options, .. }, begins, condition) in parts {
        let _ = writeln!(out, "complete -c {name} -f -n '{begins}' -a '{}'", words.join(" "));
        let when = if condition.is_empty() { String::new() } else { format!(" -n '{condition}'") };
        for option in options {
            let mut flags: Vec<String> = option
                .names
                .iter()
                .map(|name| match name.strip_prefix("--") {
                    Some(long) => format!("-l {long}"),
                    None => format!("-s {}", &name[1..]),
                })
                .collect();
            match (option.value, option.values()) {
                ("", _) => {}
                (_, Some(values)) => flags.push(format!("-x -a '{values}'")),
                _ if option.is_path() => flags.push("-r -F".to_string()),
                _ => flags.push("-x".to_string()),
            }
            let about = quoted(&option.about);
            let _ = writeln!(out, "complete -c {name}{when} {} -d '{about}'", flags.join(" "));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_has_a_script_with_every_command() {
        for shell in SHELLS {
            let text = script(shell).expect("it is a shell that we know");
            for word in programs().iter().flat_map(|program| program.words.clone()) {
                assert!(text.contains(word), "{shell}: {word}");
            }
            let placeholders = ["@COMMANDS@", "@CTL_COMMANDS@", "@OPTIONS@", "@CTL_OPTIONS@", "@VALUES@"];
            assert!(!placeholders.iter().any(|placeholder| text.contains(placeholder)), "{text}");
        }
        assert_eq!(script("csh"), None);
    }
}
