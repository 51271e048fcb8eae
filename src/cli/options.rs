//! The options of one command line, as a table: what is read, what the help says and what an error names
//! come from it.
//!
//! Always true: an option that is understood is in the help, and an error names what the help names.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use lexopt::Arg;

use leveret_config::describe_unknown;

/// The column at which the help says what an option does.
const ABOUT_COLUMN: usize = 24;

/// One option that a `T` takes.
pub struct OptionRow<T> {
    /// Its name, such as `--config`.
    pub name: &'static str,
    /// One letter that means the same.
    pub letter: Option<char>,
    /// What its value is called in the help; empty for an option without one.
    pub value: &'static str,
    /// What the help says of it, line by line.
    pub about: &'static str,
    /// What it does.
    pub action: Action<T>,
}

/// What an option does.
pub enum Action<T> {
    /// It says something, perhaps by its value.
    Take(fn(&mut T, &mut Given<'_>) -> Result<(), BadArguments>),
    /// It asks for the help, whatever else is said.
    Help,
    /// It asks for the version, whatever else is said.
    Version,
}

/// What stood next in a command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// An option, which is taken.
    Option,
    /// A word that is none.
    Word(OsString),
    /// Help is asked for.
    Help,
    /// The version is asked for.
    Version,
    /// Nothing.
    End,
}

/// Options that belong together, under a heading.
pub struct Section<T: 'static> {
    /// What stands above them in the help.
    pub heading: &'static str,
    /// The options.
    pub rows: &'static [OptionRow<T>],
}

/// All options of a command line.
pub struct Table<T: 'static>(pub &'static [Section<T>]);

/// An option that was given, and where its value is to be had.
pub struct Given<'p> {
    name: &'static str,
    parser: &'p mut lexopt::Parser,
}

impl<T> OptionRow<T> {
    /// An option with a value.
    pub const fn new(
        name: &'static str,
        value: &'static str,
        about: &'static str,
        take: fn(&mut T, &mut Given<'_>) -> Result<(), BadArguments>,
    ) -> Self {
        Self { name, letter: None, value, about, action: Action::Take(take) }
    }

    /// `-h` and `--help`.
    pub const fn help() -> Self {
        Self { name: "--help", letter: Some('h'), value: "", about: "print this", action: Action::Help }
    }

    /// `-V` and `--version`.
    pub const fn version() -> Self {
        Self {
            name: "--version",
            letter: Some('V'),
            value: "",
            about: "print the version",
            action: Action::Version,
        }
    }
}

impl<T> Table<T> {
    fn rows(&self) -> impl Iterator<Item = &'static OptionRow<T>> {
        self.0.iter().flat_map(|section| section.rows)
    }

    /// The names of all options, as the help has them.
    pub fn names(&self) -> Vec<&'static str> {
        self.rows().map(|row| row.name).collect()
    }

    /// Reads what comes next; if that is an option, with its value.
    ///
    /// # Errors
    /// There is no such option, or its value makes no sense.
    pub fn next(&self, options: &mut T, parser: &mut lexopt::Parser) -> Result<Next, BadArguments> {
        let asked = match parser.next()? {
            None => return Ok(Next::End),
            Some(Arg::Value(word)) => return Ok(Next::Word(word)),
            Some(Arg::Short(letter)) => format!("-{letter}"),
            Some(Arg::Long(name)) => format!("--{name}"),
        };
        let is_letter = |letter: char| asked == format!("-{letter}");
        let Some(row) = self.rows().find(|row| asked == row.name || row.letter.is_some_and(is_letter)) else {
            return Err(BadArguments::new(describe_unknown("option", &asked, &self.names())));
        };
        match row.action {
            Action::Help => return Ok(Next::Help),
            Action::Version => return Ok(Next::Version),
            Action::Take(take) => take(options, &mut Given { name: row.name, parser })?,
        }
        Ok(Next::Option)
    }

    /// The sections of the help that those options make whose names `is_shown`.
    pub fn help(&self, is_shown: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        for section in self.0 {
            text += &format!("{}\n", section.heading);
            for row in section.rows.iter().filter(|row| is_shown(row.name)) {
                let mut left = match row.letter {
                    Some(letter) => format!("  -{letter}, {}", row.name),
                    None => format!("  {}", row.name),
                };
                if !row.value.is_empty() {
                    left += &format!(" {}", row.value);
                }
                // Two blanks at the least, however long the option is.
                let width = ABOUT_COLUMN.max(left.len() + 2);
                let about = row.about.replace('\n', &format!("\n{:ABOUT_COLUMN$}", ""));
                text += &format!("{left:width$}{about}\n");
            }
            text.push('\n');
        }
        text
    }
}

impl Given<'_> {
    /// Its value as a path.
    ///
    /// # Errors
    /// It has none.
    pub fn path(&mut self) -> Result<PathBuf, BadArguments> {
        Ok(self.parser.value()?.into())
    }

    /// Its value, understood.
    ///
    /// # Errors
    /// It has none, or one that makes no sense.
    pub fn value<V: FromStr<Err: fmt::Display>>(&mut self) -> Result<V, BadArguments> {
        let text = self.parser.value()?;
        let text = text.to_str().ok_or_else(|| self.bad(format_args!("{text:?} is not UTF-8")))?;
        text.parse().map_err(|error| self.bad(format_args!("{error}")))
    }

    /// Its value as a whole number from `min` to `max`.
    ///
    /// # Errors
    /// It has none, or one that is no such number.
    pub fn number<N>(&mut self, min: N, max: N) -> Result<N, BadArguments>
    where
        N: FromStr + PartialOrd + fmt::Display,
    {
        let text: String = self.value()?;
        match text.parse() {
            Ok(number) if min <= number && number <= max => Ok(number),
            _ => Err(self.bad(format_args!("{text:?} is not a whole number from {min} to {max}"))),
        }
    }

    /// Its value makes no sense, for this reason.
    pub fn bad(&self, why: fmt::Arguments<'_>) -> BadArguments {
        BadArguments::new(format!("{}: {why}", self.name))
    }
}

/// Why the arguments make no sense, as one sentence.
#[derive(Debug, PartialEq, Eq)]
pub struct BadArguments {
    /// What is wrong.
    pub sentence: String,
    /// What the program ends with.
    pub exit_code: u8,
    /// Whose help lists what there is.
    pub program: &'static str,
}

impl BadArguments {
    /// `leveret` ends with 1.
    pub const fn new(sentence: String) -> Self {
        Self { sentence, exit_code: 1, program: "leveret" }
    }

    /// A word where there is no place for one.
    pub fn one_too_many(word: &OsStr) -> Self {
        Self::new(format!("{word:?} is one argument too many"))
    }
}

impl From<lexopt::Error> for BadArguments {
    fn from(error: lexopt::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl fmt::Display for BadArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} --help lists what there is)", self.sentence, self.program)
    }
}

impl Error for BadArguments {}
