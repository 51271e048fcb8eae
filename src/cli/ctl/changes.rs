//! Commands that change something with one request.

use serde_json::{Map, Value};

use leveret_management::http::encode;

use super::access::done;
use super::client::{BAD_DATA, Failure, NO_USER, Reply, UNAVAILABLE, no_json, print_info, print_value};
use super::commands::connect;
use super::commands::{Action, Call};
use super::template::filled;

/// A request that changes something, with the texts that are printed.
pub(super) struct Change {
    verb: &'static str,
    /// The path of the request, after `/api/`: a template.
    pub(super) path: &'static str,
    /// The message printed before the request: a template.
    pub(super) banner: &'static str,
    /// The members of the body and the arguments with their values. Without members there is no body.
    body: &'static [(&'static str, Argument)],
    /// How replies are reported; the first that fits is used. Other replies are reported by [`done`].
    answers: &'static [Answer],
}

/// The number of an argument that is sent in the body.
pub(super) enum Argument {
    /// The argument is sent as a text.
    Text(usize),
    /// The argument is JSON.
    Json(usize),
}

/// How a reply is reported: which reply, the exit code, and a template that may also name parts of the reply. With exit
/// code 0, the text is printed; else it is the error.
pub(super) type Answer = (SelectedReply, u8, &'static str);

/// The replies that are reported in the same way.
pub(super) enum SelectedReply {
    /// The broker carried out the request.
    Success,
    /// The reply has this HTTP status.
    Status(u16),
    /// The reply has an error of this name.
    Error(&'static str),
}

pub(super) const NO_SUCH_USER: &[Answer] =
    &[(SelectedReply::Error("no_such_user"), NO_USER, "User \"{0}\" does not exist")];
/// rabbitmqctl has another text if the command is about permissions.
pub(super) const NO_SUCH_USER_OR_VHOST: &[Answer] = &[
    (SelectedReply::Error("no_such_user"), NO_USER, "User {0} does not exist"),
    (SelectedReply::Error("no_such_vhost"), UNAVAILABLE, "Virtual host {vhost} does not exist"),
];
pub(super) const NO_SUCH_PARAMETER: &[Answer] =
    &[(SelectedReply::Status(404), UNAVAILABLE, "Parameter does not exist")];
pub(super) const NO_SUCH_SHOVEL: &[Answer] = &[(
    SelectedReply::Status(404),
    UNAVAILABLE,
    "Shovel with the given name was not found on the target node '{node}' and / or virtual host '{vhost}'",
)];
/// The broker's reason is printed if the object does not exist.
pub(super) const NOT_FOUND: Answer = (SelectedReply::Status(404), BAD_DATA, "{reason}");

/// Returns a change by `PUT`, with a body.
pub(super) const fn put(
    path: &'static str,
    body: &'static [(&'static str, Argument)],
    banner: &'static str,
    answers: &'static [Answer],
) -> Action {
    Action::Change(Change { verb: "PUT", path, banner, body, answers })
}

/// Returns a change by `POST`.
pub(super) const fn post(path: &'static str, banner: &'static str, answers: &'static [Answer]) -> Action {
    Action::Change(Change { verb: "POST", path, banner, body: &[], answers })
}

/// Returns a change by `DELETE`.
pub(super) const fn delete(path: &'static str, banner: &'static str, answers: &'static [Answer]) -> Action {
    Action::Change(Change { verb: "DELETE", path, banner, body: &[], answers })
}

impl Change {
    /// Sends the request and reports the reply.
    pub(super) fn run(&self, call: &Call) -> Result<(), Failure> {
        print_info(call, &self.banner(call))?;
        let body = self.body(call)?;
        let reply = connect(call)?.ask(self.verb, &self.path(call), "", &body)?;
        let Some((_, code, text)) = self.answers.iter().find(|(selected, ..)| selected.is_it(&reply)) else {
            return done(call, &reply);
        };
        let value = |name: &str| reply.template_value(name).or_else(|| call.template_value(name));
        let text = filled(text, |name| Some(value(name).unwrap_or_default()));
        if *code != 0 {
            return Err(Failure::error(*code, text));
        }
        print_value(call, &text)
    }

    fn banner(&self, call: &Call) -> String {
        filled(self.banner, |name| call.template_value(name))
    }

    fn path(&self, call: &Call) -> String {
        format!("/api/{}", filled(self.path, |name| Some(encode(&call.template_value(name)?))))
    }

    /// Returns the body of the request.
    fn body(&self, call: &Call) -> Result<String, Failure> {
        let mut body = Map::new();
        for (name, argument) in self.body {
            let value = match argument {
                Argument::Text(number) => Value::from(call.args[*number].as_str()),
                Argument::Json(number) => {
                    call.args[*number].parse().map_err(|error| no_json(name, &error))?
                }
            };
            body.insert((*name).to_string(), value);
        }
        Ok(if body.is_empty() { String::new() } else { Value::Object(body).to_string() })
    }
}

impl SelectedReply {
    fn is_it(&self, reply: &Reply) -> bool {
        match self {
            Self::Success => (200..300).contains(&reply.status),
            Self::Status(status) => reply.status == *status,
            Self::Error(name) => reply.error() == *name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::commands::{COMMANDS, parse};

    /// Returns the path, the banner and the body of a command line.
    fn request(line: &[&str]) -> (String, String, String) {
        let call = parse(line.iter().map(|word| word.into()));
        let command = COMMANDS.iter().find(|command| command.name == call.command).expect("a command");
        let Action::Change(change) = &command.action else { panic!("{} is no change", command.name) };
        (change.path(&call), change.banner(&call), change.body(&call).unwrap())
    }

    #[test]
    fn names_are_encoded_in_a_path_only() {
        let (path, banner, body) = request(&["clear_permissions", "-p", "a/b", "c d"]);
        assert_eq!(path, "/api/permissions/a%2Fb/c%20d");
        assert_eq!(banner, "Clearing permissions for user \"c d\" in vhost \"a/b\" ...");
        assert_eq!(body, "");
    }

    #[test]
    fn an_optional_argument_can_be_absent() {
        let (path, banner, _) = request(&["clear_topic_permissions", "u"]);
        assert_eq!(path, "/api/topic-permissions/%2F/u");
        assert_eq!(banner, "Clearing topic permissions for user \"u\" in vhost \"/\" ...");
        let (path, banner, _) = request(&["clear_topic_permissions", "u", "e"]);
        assert_eq!(path, "/api/topic-permissions/%2F/u/e");
        assert_eq!(banner, "Clearing topic permissions on \"e\" for user \"u\" in vhost \"/\" ...");
    }

    #[test]
    fn arguments_are_sent_as_texts_or_as_json() {
        let (_, _, body) = request(&["set_permissions", "u", "[1]", "b", "c"]);
        assert_eq!(body, r#"{"configure":"[1]","read":"c","write":"b"}"#);
        let (_, _, body) = request(&["set_global_parameter", "n", "[1]"]);
        assert_eq!(body, r#"{"value":[1]}"#);
    }

    #[test]
    fn rows_name_values_that_exist() {
        for command in COMMANDS {
            let Action::Change(change) = &command.action else { continue };
            let call = Call { args: vec!["x".to_string(); command.args.0], ..Call::default() };
            for (_, Argument::Text(number) | Argument::Json(number)) in change.body {
                assert!(*number < call.args.len(), "{}: {number}", command.name);
            }
            let body = serde_json::json!({"reason": "r", "messages": 1});
            let reply = Reply { status: 200, body };
            for (_, _, text) in change.answers {
                filled(text, |name| reply.template_value(name).or_else(|| call.template_value(name)));
            }
            for template in [change.path, change.banner] {
                filled(template, |name| call.template_value(name));
            }
        }
    }

    #[test]
    fn every_argument_is_sent() {
        for command in COMMANDS {
            let Action::Change(change) = &command.action else { continue };
            for number in 0..command.args.1 {
                let is_in_body = change.body.iter().any(|(_, argument)| {
                    matches!(argument, Argument::Text(at) | Argument::Json(at) if *at == number)
                });
                let is_in_path = change.path.contains(&format!("{{{number}}}"));
                assert!(is_in_body != is_in_path, "{}: {number}", command.name);
            }
        }
    }
}
