//! Commands about users and virtual hosts.
//!
//! A password is hashed here, and only the hash leaves this process. If it is not an argument, it is read without
//! echo, or as one line of standard input.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use leveret_config::nearest::nearest;
use leveret_core::password::{PASSWORD_BYTES_MAX, PasswordHash};
use leveret_management::http::encode;

use super::client::Reply;
use super::client::{
    BAD_DATA, Failure, NO_USER, SOFTWARE, UNAVAILABLE, USAGE, misused, misused_as, node, print_done,
    print_info, print_json, print_message, print_value, warn,
};
use super::commands::Call;
use super::commands::{ask, connect};
use super::format::Formatter;

/// Tags with a meaning for the management API. Other tags are only stored and shown.
const TAGS_WITH_RIGHTS: [&str; 5] =
    ["administrator", "monitoring", "policymaker", "management", "impersonator"];
const MUST_BE_THERE: &str = "if-match: *\r\n";
const MUST_BE_NEW: &str = "if-none-match: *\r\n";

pub(super) fn add_user(call: &Call) -> Result<(), Failure> {
    let user = &call.args[0];
    check_user(call, user)?;
    let hash = hash_of(password(call, 1)?.as_bytes())?;
    print_info(call, &format!("Adding user \"{user}\" ..."))?;
    let reply = put_user(call, user, MUST_BE_NEW, &hash)?;
    if reply.status == 412 {
        return Err(Failure::error(SOFTWARE, reply.reason()));
    }
    succeeded(&reply)?;
    let advice = "Done. Don't forget to grant the user permissions to some virtual hosts! See 'leveretctl help \
                  set_permissions' to learn more.";
    match call.formatter() {
        Formatter::Json => print_json(&json!({"message": advice, "node": node(call), "status": "ok"})),
        _ => print_info(call, advice),
    }
}

pub(super) fn change_password(call: &Call) -> Result<(), Failure> {
    let user = &call.args[0];
    check_user(call, user)?;
    let hash = hash_of(password(call, 1)?.as_bytes())?;
    print_info(call, &format!("Changing password for user \"{user}\" ..."))?;
    user_done(call, &put_user(call, user, MUST_BE_THERE, &hash)?, user)
}

pub(super) fn clear_password(call: &Call) -> Result<(), Failure> {
    let user = &call.args[0];
    print_info(call, &format!("Clearing password for user \"{user}\" ..."))?;
    let (algorithm, hash) = PasswordHash::NoPassword.export();
    let body = json!({"password_hash": hash, "hashing_algorithm": algorithm});
    user_done(call, &put_user(call, user, MUST_BE_THERE, &body)?, user)
}

/// Prints the hash of a password, for a definitions file or a request. Needs no broker.
pub(super) fn hash_password(call: &Call) -> Result<(), Failure> {
    let password = password(call, 0)?;
    let mut salt = [0; 4];
    getrandom::fill(&mut salt).map_err(|error| no_entropy(&error))?;
    let (_, hash) = PasswordHash::as_rabbitmq(password.as_bytes(), salt).export();
    print_info(call, "The hash of the password, by rabbit_password_hashing_sha256:")?;
    print_message(call, &hash)
}

/// Checks a password in this process, with the hash from the broker.
pub(super) fn authenticate_user(call: &Call) -> Result<(), Failure> {
    let user = &call.args[0];
    let password = password(call, 1)?;
    print_info(call, &format!("Authenticating user \"{user}\" ..."))?;
    if tags_of_login(call, user, &password)?.is_some() {
        return print_message(call, "Success");
    }
    let why = if password.is_empty() {
        format!("user '{user}' attempted to log in with a blank password, which is prohibited")
    } else {
        format!("user '{user}' - invalid credentials")
    };
    Err(Failure::error(BAD_DATA, format_args!("Error: failed to authenticate user \"{user}\"\n{why}")))
}

/// Returns the tags of a user if the password is right.
fn tags_of_login(call: &Call, user: &str, password: &str) -> Result<Option<Vec<String>>, Failure> {
    let (mut hash, mut tags) = (PasswordHash::NoPassword, Vec::new());
    let columns = "name,password_hash,hashing_algorithm,tags";
    let refused = connect(call)?.rows(&format!("/api/users?columns={columns}"), &mut |row| {
        let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("name") == user {
            let imported = PasswordHash::import(text("hashing_algorithm"), text("password_hash"));
            hash = imported.map_err(|error| Failure::error(SOFTWARE, error))?;
            let listed = row.get("tags").and_then(Value::as_array).into_iter().flatten();
            tags = listed.filter_map(Value::as_str).map(str::to_string).collect();
        }
        Ok(())
    })?;
    match refused {
        Some(reply) => Err(Failure::refused(&reply)),
        None => Ok((hash.fits(password.as_bytes()) && !password.is_empty()).then_some(tags)),
    }
}

/// What to do instead of other expressions.
const NO_ERLANG: &str = "There is no Erlang: eval checks passwords only, with \
    rabbit_access_control:check_user_pass_login. trace_on copies what is published and delivered to an exchange, and \
    log_level = \"debug\" in the configuration file logs more";

/// Evaluates the Erlang expression with which scripts check a password: puppet's module does in every run.
pub(super) fn eval(call: &Call) -> Result<(), Failure> {
    let Some((user, password)) = checked_login(&call.args[0]) else {
        return Err(Failure::error(USAGE, NO_ERLANG));
    };
    let name = format!("<<\"{}\">>", escaped(&user));
    let result = match tags_of_login(call, &user, &password)? {
        Some(tags) => {
            format!("{{ok,{{user,{name},[{}],[{{rabbit_auth_backend_internal,none}}]}}}}", tags.join(","))
        }
        None => format!("{{refused,{name},\"user '~s' - invalid credentials\",[{name}]}}"),
    };
    print_value(call, &result)
}

/// Returns user and password of `rabbit_access_control:check_user_pass_login(list_to_binary("U"), list_to_binary("P")).`,
/// which may also have binaries, `<<"U">>`.
fn checked_login(expression: &str) -> Option<(String, String)> {
    let rest = expression.trim().strip_prefix("rabbit_access_control:check_user_pass_login")?;
    let rest = rest.trim_start().strip_prefix('(')?;
    let (user, rest) = binary(rest)?;
    let (password, rest) = binary(rest.trim_start().strip_prefix(',')?)?;
    let rest = rest.trim_start().strip_prefix(')')?.trim_start();
    ["", "."].contains(&rest).then_some((user, password))
}

/// Reads a binary at the start of an Erlang expression. Returns it and the rest.
fn binary(expression: &str) -> Option<(String, &str)> {
    let expression = expression.trim_start();
    let forms = [("list_to_binary(\"", ")"), ("<<\"", ">>")];
    let (rest, end) = forms.iter().find_map(|(begin, end)| Some((expression.strip_prefix(begin)?, end)))?;
    let (mut text, mut letters) = (String::new(), rest.char_indices());
    loop {
        match letters.next()? {
            (at, '"') => return Some((text, rest[at + 1..].strip_prefix(end)?)),
            (_, '\\') => match letters.next()?.1 {
                letter @ ('"' | '\\' | '\'') => text.push(letter),
                // Other escapes are control characters and codes.
                _ => return None,
            },
            (_, letter) => text.push(letter),
        }
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

pub(super) fn set_user_tags(call: &Call) -> Result<(), Failure> {
    let (user, tags) = (&call.args[0], &call.args[1..]);
    print_info(call, &format!("Setting tags for user \"{user}\" to [{}] ...", tags.join(", ")))?;
    user_done(call, &put_user(call, user, MUST_BE_THERE, &json!({"tags": tags.join(",")}))?, user)?;
    // The broker accepts any tag, as RabbitMQ does.
    for tag in tags.iter().flat_map(|tags| tags.split(',')).map(str::trim) {
        if !tag.is_empty() && !TAGS_WITH_RIGHTS.contains(&tag) {
            let meant = TAGS_WITH_RIGHTS.iter().find(|known| known.starts_with(tag)).copied();
            let meant = meant.or_else(|| nearest(tag, TAGS_WITH_RIGHTS));
            let meant = meant.map(|meant| format!(" did you mean {meant}?")).unwrap_or_default();
            warn(&format!(
                "Warning: the tag \"{tag}\" gives no rights;{meant} Tags with rights: {}",
                TAGS_WITH_RIGHTS.join(", ")
            ));
        }
    }
    Ok(())
}

pub(super) fn add_vhost(call: &Call) -> Result<(), Failure> {
    let vhost = &call.args[0];
    print_info(call, &format!("Adding vhost \"{vhost}\" ..."))?;
    let body = vhost_metadata(call).map(|metadata| metadata.to_string());
    done(call, &ask(call, "PUT", &["vhosts", vhost], &body.unwrap_or_default())?)
}

/// Returns the metadata given by options as an object; `None` without such options.
fn vhost_metadata(call: &Call) -> Option<Value> {
    let options = ["description", "tags", "default-queue-type"];
    let given =
        options.iter().filter_map(|option| Some((option.replace('-', "_"), call.value(option)?.into())));
    let metadata: serde_json::Map<String, Value> = given.collect();
    (!metadata.is_empty()).then_some(Value::Object(metadata))
}

pub(super) fn update_vhost_metadata(call: &Call) -> Result<(), Failure> {
    let vhost = &call.args[0];
    let metadata = vhost_metadata(call).ok_or_else(|| misused(call, "not enough arguments."))?;
    if let Some(kind) = call.value("default-queue-type")
        && !["quorum", "stream", "classic"].contains(&kind)
    {
        let why = format!("Default queue type must be one of: quorum, stream, classic. Provided: {kind}");
        return Err(misused(call, &why));
    }
    print_info(call, &format!("Updating metadata of vhost \"{vhost}\" ..."))?;
    let path = format!("/api/vhosts/{}", encode(vhost));
    done(call, &connect(call)?.ask("PUT", &path, MUST_BE_THERE, &metadata.to_string())?)
}

// ---- passwords

/// Returns the password: from an argument, from the terminal, or from a line of standard input.
fn password(call: &Call, at: usize) -> Result<String, Failure> {
    let password = match call.args.get(at) {
        Some(password) => password.clone(),
        None if io::stdin().is_terminal() => prompt().map_err(|error| unreadable(&error))?,
        None => {
            let mut line = String::new();
            let mut stdin = io::BufReader::new(io::stdin().lock().take(2 * PASSWORD_BYTES_MAX as u64));
            let count = stdin.read_line(&mut line).map_err(|error| unreadable(&error))?;
            if count == 0 {
                return Err(Failure::new(
                    USAGE,
                    "Error: there is no password in the arguments or on standard input",
                ));
            }
            // A further line is an error if it has arrived already; this does not wait for one.
            if !stdin.buffer().is_empty() && line.len() <= PASSWORD_BYTES_MAX {
                return Err(Failure::new(
                    USAGE,
                    "Error: standard input has more than one line: the password must be one line",
                ));
            }
            line.trim_end_matches(['\n', '\r']).to_string()
        }
    };
    // The password was not given as an argument, so standard input was empty, or Enter was pressed too early.
    if password.is_empty() && call.args.get(at).is_none() {
        return Err(Failure::new(
            USAGE,
            "Error: the password is empty; a user that needs none (because it logs in with a certificate) is \
             created with any password, followed by clear_password",
        ));
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(Failure::new(
            BAD_DATA,
            format!("Error: a password has at most {PASSWORD_BYTES_MAX} bytes"),
        ));
    }
    Ok(password)
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(USAGE, format!("Error: the password cannot be read: {error}"))
}

/// Reads a password without showing it.
fn prompt() -> io::Result<String> {
    let stdin = io::stdin();
    write!(io::stderr(), "Password: ")?;
    let shown = tcgetattr(&stdin)?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    let mut line = String::new();
    let read = stdin.lock().take(PASSWORD_BYTES_MAX as u64 + 2).read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Flush, &shown)?;
    writeln!(io::stderr())?;
    read.map(|_| line.trim_end_matches(['\n', '\r']).to_string())
}

/// Returns the hash of a password as JSON. No password matches the hash of an empty password.
pub(super) fn hash_of(password: &[u8]) -> Result<Value, Failure> {
    let mut failed = None;
    let mut entropy = |bytes: &mut [u8]| failed = getrandom::fill(bytes).err();
    let hash = match password {
        b"" => PasswordHash::NoPassword,
        password => PasswordHash::of(password, &mut entropy),
    };
    if let Some(error) = failed {
        return Err(no_entropy(&error));
    }
    let (algorithm, text) = hash.export();
    Ok(json!({"password_hash": text, "hashing_algorithm": algorithm}))
}

fn no_entropy(error: &getrandom::Error) -> Failure {
    Failure::new(SOFTWARE, format!("Error: the system returns no random bytes: {error}"))
}

// ---- answers

fn put_user(call: &Call, user: &str, condition: &str, body: &Value) -> Result<Reply, Failure> {
    connect(call)?.ask("PUT", &format!("/api/users/{}", encode(user)), condition, &body.to_string())
}

fn check_user(call: &Call, user: &str) -> Result<(), Failure> {
    if user.is_empty() {
        return Err(misused_as(BAD_DATA, call, "Bad argument: user cannot be an empty string"));
    }
    Ok(())
}

pub(super) fn done(call: &Call, reply: &Reply) -> Result<(), Failure> {
    succeeded(reply)?;
    print_done(call)
}

/// Returns an error if the broker refused a change.
fn succeeded(reply: &Reply) -> Result<(), Failure> {
    match (reply.status, reply.error()) {
        (200..300, _) => Ok(()),
        (_, "no_such_vhost") => Err(Failure::new(BAD_DATA, reply.reason())),
        _ => Err(Failure::error(UNAVAILABLE, reply.reason())),
    }
}

/// Handles a reply, with rabbitmqctl's text for an unknown user.
fn user_done(call: &Call, reply: &Reply, user: &str) -> Result<(), Failure> {
    if reply.error() == "no_such_user" {
        return Err(Failure::error(NO_USER, format_args!("User \"{user}\" does not exist")));
    }
    done(call, reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_check_of_a_password_is_evaluated() {
        let check = "rabbit_access_control:check_user_pass_login";
        let found = |arguments: &str| checked_login(&format!("{check}{arguments}"));
        let login = |user: &str, password: &str| Some((user.to_string(), password.to_string()));
        assert_eq!(
            found(r#"(list_to_binary("pat"), list_to_binary("se\"cr\\et"))."#),
            login("pat", r#"se"cr\et"#)
        );
        assert_eq!(found(r#"(<<"pat">>,<<"é">>)"#), login("pat", "é"));
        for wrong in [
            "",
            "().",
            r#"(list_to_binary("a"))."#,
            r#"(list_to_binary("a"), list_to_binary("b")). halt()."#,
            r#"(list_to_binary("a"), list_to_binary("b\x41"))."#,
            r#"(list_to_binary("a"), list_to_binary("b"#,
        ] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
        assert_eq!(checked_login("rabbit_misc:version()."), None);
    }
}
