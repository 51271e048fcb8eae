//! Commands that list objects.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use leveret_management::columns::{ListedKind, TYPED};
use leveret_management::definition_columns::DEFINITION_TEXT;
use leveret_management::definition_columns::VALUE_TEXT;
use leveret_management::http::encode;

use super::client::{BAD_DATA, Failure, misused, no_such_user, print_info};
use super::commands::connect;
use super::commands::{Action, Call};
use super::format::Printer;
use super::template::filled;

/// A request for a list of objects, with the text and the columns that are printed.
pub(super) struct List {
    /// The path of the listing, after `/api/`: a template.
    pub(super) path: &'static str,
    /// The message printed before the rows: a template.
    pub(super) banner: &'static str,
    /// The columns that are shown.
    columns: &'static [&'static str],
    /// The columns that the arguments may name instead.
    choice: Option<Choice>,
}

/// The columns of a kind of object.
struct Choice {
    names: fn() -> Vec<&'static str>,
    /// Columns of RabbitMQ whose cells are empty.
    empty: &'static [&'static str],
}

/// Returns a list that always has these columns.
pub(super) const fn list(
    path: &'static str,
    banner: &'static str,
    columns: &'static [&'static str],
) -> Action {
    Action::List(List { path, banner, columns, choice: None })
}

/// Returns a list of `K`, whose columns the arguments may name.
pub(super) const fn list_of<K: ListedKind>(
    path: &'static str,
    banner: &'static str,
    columns: &'static [&'static str],
) -> Action {
    let choice = Choice { names: names_of::<K>, empty: K::WITHOUT_FIGURE };
    Action::List(List { path, banner, columns, choice: Some(choice) })
}

fn names_of<K: ListedKind>() -> Vec<&'static str> {
    K::COLUMNS.iter().map(|(name, _)| *name).collect()
}

impl List {
    /// Returns the columns that the arguments may name, if the list accepts any.
    pub(super) fn known_columns(&self) -> Option<Vec<&'static str>> {
        let names = (self.choice.as_ref()?.names)();
        Some(names.into_iter().filter(|name| *name != TYPED).collect())
    }

    /// Lists the objects.
    pub(super) fn run(&self, call: &Call) -> Result<(), Failure> {
        let columns = match &self.choice {
            Some(choice) if !call.args.is_empty() => chosen(call, choice)?,
            _ => self.columns.to_vec(),
        };
        print(call, self, &columns)
    }
}

/// Returns the columns that the arguments name.
fn chosen<'a>(call: &'a Call, choice: &Choice) -> Result<Vec<&'a str>, Failure> {
    // Scripts write columns as "name messages" or as "name,messages".
    let asked: Vec<&str> = call.args.iter().flat_map(|word| word.split([' ', ',', '\t'])).collect();
    let asked: Vec<&str> = asked.into_iter().filter(|word| !word.is_empty()).collect();
    let names = (choice.names)();
    let is_known = |name: &&&str| {
        **name == "arguments" && names.contains(&TYPED)
            || **name != TYPED && names.contains(name)
            || choice.empty.contains(name)
    };
    let unknown: Vec<&str> = asked.iter().filter(|name| !is_known(name)).copied().collect();
    if unknown.is_empty() {
        return Ok(asked);
    }
    let why = format!("Info key(s) {} are not supported", unknown.join(", "));
    Err(misused(call, &why))
}

/// Requests rows and prints them.
fn print(call: &Call, list: &List, columns: &[&str]) -> Result<(), Failure> {
    let mut client = connect(call)?;
    print_info(call, &filled(list.banner, |name| call.template_value(name)))?;
    let stdout = io::stdout();
    let is_terminal = stdout.is_terminal();
    let mut out = io::BufWriter::new(stdout.lock());
    // rabbitmqctl prints no header for this one.
    let has_header = !call.silent && !call.no_headers && call.command != "list_user_topic_permissions";
    let printer = Printer::new(&mut out, call.formatter(), columns, has_header);
    let mut printer = printer.for_terminal(is_terminal).for_report(call.in_report);
    let sent = |name: &&str| match *name {
        "arguments" => TYPED.to_string(),
        "definition" => DEFINITION_TEXT.to_string(),
        "value" => VALUE_TEXT.to_string(),
        name => name.to_string(),
    };
    let asked: Vec<String> = columns.iter().map(sent).collect();
    let path = filled(list.path, |name| Some(encode(&call.template_value(name)?)));
    let path = format!("/api/{path}?columns={}", asked.join(","));
    let refused = client.rows(&path, &mut |row| {
        let cells: Vec<Value> =
            asked.iter().map(|name| row.get(name).cloned().unwrap_or(Value::Null)).collect();
        printer.row(&cells).map_err(Failure::from)
    })?;
    match refused {
        Some(reply) if reply.error() == "no_such_vhost" => {
            return Err(Failure::new(BAD_DATA, reply.reason()));
        }
        Some(reply) if reply.error() == "no_such_user" => {
            let user = call.args.first().map_or("", String::as_str);
            return Err(no_such_user(user));
        }
        Some(reply) => return Err(Failure::refused(&reply)),
        None => {}
    }
    match list.choice {
        Some(_) => printer.end()?,
        None => printer.end_of_fixed_columns()?,
    }
    out.flush().map_err(Failure::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::commands::COMMANDS;

    #[test]
    fn lists_name_columns_of_their_kind() {
        for command in COMMANDS {
            let Action::List(list) = &command.action else { continue };
            let names = list.choice.as_ref().map(|choice| (choice.names)());
            for column in list.columns {
                assert!(
                    names.as_ref().is_none_or(|names| names.contains(column)),
                    "{}: {column}",
                    command.name
                );
            }
        }
    }
}
