//! What a process is told: flag, environment variable, `.env` file, default – in this order of
//! precedence, the same name everywhere.
//!
//! [`VARIABLES`] is the one list: the flags, `graspd config`, the warning about unknown names and
//! the configuration reference in `docs/` are all made from it.

mod bounds;
pub mod dot_env;
mod variables;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

pub use bounds::bounds_of;
use dot_env::DotEnvError;
pub use variables::{VARIABLES, Variable};

use crate::transport::{BadTls, Endpoint, Role, Tls, Token, Tokens};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment.
    Environment,
    /// A `.env` file.
    DotEnv(PathBuf),
    /// Nobody set it.
    Default,
    /// Worked out by the process itself, for the reason given.
    Derived(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Environment => f.write_str("environment"),
            Self::DotEnv(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
            Self::Derived(why) => f.write_str(why),
        }
    }
}

/// A value that cannot be used: which, what it is, where from, and what would be right.
#[derive(Debug, Clone, thiserror::Error)]
pub struct BadSetting {
    /// The variable.
    pub name: &'static str,
    /// What it is.
    pub value: String,
    /// Where that came from.
    pub origin: Source,
    /// What would be right.
    pub expected: String,
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is ", self.name)?;
        match self.value.is_empty() {
            true if self.origin == Source::Default => f.write_str("not set")?,
            true => write!(f, "empty (from {})", self.origin)?,
            false => write!(f, "{:?} (from {})", self.value, self.origin)?,
        }
        write!(f, "; it must be {}", self.expected)
    }
}

/// The effective settings of a process, each with where it came from.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    values: BTreeMap<&'static str, (String, Source)>,
    /// Those of them that were set under another name.
    by_other_name: BTreeSet<&'static str>,
    unknown: Vec<String>,
}

/// Names that mean one of ours elsewhere.
const ALSO_KNOWN_AS: [(&str, &str); 2] = [
    ("RUST_LOG", "NGIT_LOG_LEVEL"),
    ("NGIT_HOLDING_RETENTION_SECS", "NGIT_ARCHIVE_RETENTION_SECS"),
];

impl Settings {
    /// The environment and the `.env` file in `directory`, below what `flags` say.
    ///
    /// # Errors
    /// A `.env` file that cannot be read or understood.
    pub fn load(
        flags: impl IntoIterator<Item = (&'static str, String)>,
        directory: &Path,
    ) -> Result<Self, DotEnvError> {
        let mut settings = Self::default();
        let file = directory.join(".env");
        if file.is_file() {
            let text = std::fs::read_to_string(&file)?;
            for (name, value) in dot_env::parse(&text, |name| std::env::var(name).ok())? {
                settings.take(&name, value, Source::DotEnv(file.clone()));
            }
        }
        settings.take_environment();
        for (name, value) in flags {
            settings.set(name, value, Source::Flag);
        }
        Ok(settings)
    }

    /// The environment alone: a child process, whose parent has read everything else for it.
    pub fn of_child() -> Self {
        let mut settings = Self::default();
        settings.take_environment();
        settings
    }

    fn take_environment(&mut self) {
        for (name, value) in std::env::vars_os() {
            // What is no text is refused by who reads it, rather than left out unseen.
            if let Some(name) = name.to_str() {
                let value = value.to_string_lossy().into_owned();
                self.take(name, value, Source::Environment);
            }
        }
    }

    /// What was set, secrets included, to be put into a child's environment.
    pub fn for_child(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.values
            .iter()
            .map(|(name, (value, _))| (*name, value.as_str()))
    }

    /// Settings that say just this, for tests and for starting roles in one process.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let mut settings = Self::default();
        for (name, value) in pairs {
            settings.take(name, value, Source::Environment);
        }
        settings
    }

    fn take(&mut self, name: &str, value: String, source: Source) {
        let name = match ALSO_KNOWN_AS.iter().find(|(other, _)| *other == name) {
            // By its own name it counts, whichever of one place is read first.
            Some((_, own)) if self.is_set_by_name(own, &source) => return,
            Some((_, own)) => {
                self.by_other_name.insert(own);
                own
            }
            None => {
                self.by_other_name.remove(name);
                name
            }
        };
        match Variable::named(name) {
            // An empty variable, as compose files leave them, is an unset one.
            Some(variable) if !value.is_empty() => self.set(variable.name, value, source),
            None if name.starts_with("NGIT_") => self.unknown.push(name.to_owned()),
            _ => {}
        }
    }

    /// Whether a setting has a value under its own name, from this place.
    fn is_set_by_name(&self, name: &str, source: &Source) -> bool {
        let set = self.values.get(name);
        set.is_some_and(|(_, from)| from == source) && !self.by_other_name.contains(name)
    }

    /// Sets one value, whatever it was.
    pub fn set(&mut self, name: &'static str, value: String, source: Source) {
        self.values.insert(name, (value, source));
    }

    /// Names that begin with `NGIT_` and are no setting.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        self.unknown.iter().map(String::as_str)
    }

    /// Says in the log which `NGIT_` variables nobody knows.
    pub fn warn(&self) {
        for name in self.unknown() {
            tracing::warn!("{name} is not a setting of graspd; it is ignored");
        }
    }

    /// The value of a variable or its default; `None` if it has neither.
    pub fn get(&self, name: &'static str) -> Option<&str> {
        debug_assert!(Variable::named(name).is_some(), "{name} is not in the list");
        match self.values.get(name) {
            Some((value, _)) => Some(value),
            None => Variable::named(name)?.default,
        }
    }

    /// Whether somebody set it.
    pub fn is_set(&self, name: &'static str) -> bool {
        self.values.contains_key(name)
    }

    fn source(&self, name: &'static str) -> Source {
        match self.values.get(name) {
            Some((_, source)) => source.clone(),
            None => Source::Default,
        }
    }

    /// Says that the value of `name` cannot be used.
    pub fn bad(&self, name: &'static str, expected: impl Into<String>) -> BadSetting {
        let hidden = Variable::named(name).is_some_and(|variable| variable.secret);
        let value = match self.get(name) {
            Some(_) if hidden => "(hidden)",
            value => value.unwrap_or_default(),
        };
        BadSetting {
            name,
            value: value.to_owned(),
            origin: self.source(name),
            expected: expected.into(),
        }
    }

    /// A value that must be there, read by `read`, which says what would be right if it cannot.
    pub fn parse_with<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, BadSetting> {
        let value = self
            .get(name)
            .ok_or_else(|| self.bad(name, "set; it has no default"))?;
        read(value).map_err(|expected| self.bad(name, expected))
    }

    /// A value that must be there; `expected` says what would be right.
    pub fn parse<T: FromStr>(&self, name: &'static str, expected: &str) -> Result<T, BadSetting> {
        self.parse_with(name, |value| value.parse().map_err(|_| expected.to_owned()))
    }

    /// A switch: `true`, `false`, `1`, `0`, `yes`, `no`, `on`, `off`; unset is off.
    pub fn switch(&self, name: &'static str) -> Result<bool, BadSetting> {
        match self.get(name).unwrap_or("false").to_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(self.bad(name, "true or false")),
        }
    }

    /// A secret: the variable itself, or the content of the file that `file` names.
    pub fn secret(
        &self,
        name: &'static str,
        file: &'static str,
    ) -> Result<Option<String>, BadSetting> {
        if let Some(value) = self.get(name) {
            return Ok(Some(value.to_owned()));
        }
        let Some(path) = self.get(file) else {
            return Ok(None);
        };
        match std::fs::read_to_string(path) {
            Ok(content) if content.trim().is_empty() => {
                Err(self.bad(file, "a file with something in it"))
            }
            Ok(content) => Ok(Some(content.trim().to_owned())),
            Err(error) => Err(self.bad(file, format!("a readable file ({error})"))),
        }
    }

    /// The three credentials of internal calls; every one must be set.
    pub fn tokens(&self) -> Result<Tokens, BadSetting> {
        Ok(Tokens {
            relay: self.token_of(Role::Relay)?,
            gitd: self.token_of(Role::Gitd)?,
            worker: self.token_of(Role::Worker)?,
        })
    }

    /// The credential of one role, which must be set.
    pub fn token_of(&self, role: Role) -> Result<Token, BadSetting> {
        let (name, file) = match role {
            Role::Relay => (
                "NGIT_INTERNAL_TOKEN_RELAY",
                "NGIT_INTERNAL_TOKEN_RELAY_FILE",
            ),
            Role::Gitd => ("NGIT_INTERNAL_TOKEN_GITD", "NGIT_INTERNAL_TOKEN_GITD_FILE"),
            Role::Worker => (
                "NGIT_INTERNAL_TOKEN_WORKER",
                "NGIT_INTERNAL_TOKEN_WORKER_FILE",
            ),
        };
        let text = self
            .secret(name, file)?
            .ok_or_else(|| self.bad(name, "set, when the processes start apart"))?;
        Token::parse(&text).map_err(|_| self.bad(name, "at least 16 visible ASCII characters"))
    }

    /// An internal address, which must be set. Where certificates are, calls go encrypted or stay on
    /// this machine: there is no falling back. gitd's HTTP alone may be plain all the same, for an edge
    /// that leads git's paths to it.
    pub fn endpoint(&self, name: &'static str) -> Result<Endpoint, BadSetting> {
        let tls = self.tls()?;
        match self.parse_with(name, |text| Endpoint::parse(text, tls.as_ref()))? {
            Endpoint::Tcp(_) if tls.is_some() && name != "NGIT_GITD_HTTP_ADDRESS" => Err(self.bad(
                name,
                "https://host:port or unix:/path, as NGIT_INTERNAL_TLS_CERT is set",
            )),
            endpoint => Ok(endpoint),
        }
    }

    /// What internal connections over the network show each other; `None`: nothing is set.
    fn tls(&self) -> Result<Option<Tls>, BadSetting> {
        const NAMES: [&str; 3] = [
            "NGIT_INTERNAL_TLS_CERT",
            "NGIT_INTERNAL_TLS_KEY",
            "NGIT_INTERNAL_TLS_CA",
        ];
        if !NAMES.iter().any(|name| self.is_set(name)) {
            return Ok(None);
        }
        let [certificate, key, authority] = NAMES.map(|name| {
            let expected = "set, as the others of NGIT_INTERNAL_TLS_CERT, _KEY and _CA are";
            self.get(name).ok_or_else(|| self.bad(name, expected))
        });
        let loaded = Tls::load(certificate?.as_ref(), key?.as_ref(), authority?.as_ref());
        loaded.map(Some).map_err(|error| {
            let name = match &error {
                BadTls::Certificate(_) => NAMES[0],
                BadTls::Key(_) => NAMES[1],
                BadTls::Authority(_) => NAMES[2],
            };
            self.bad(name, error.to_string())
        })
    }

    /// Where monitoring is answered, which need not be set: without TLS, as none of the credentials of
    /// internal calls is asked for there.
    pub fn monitoring(&self, name: &'static str) -> Result<Option<Endpoint>, BadSetting> {
        match self.is_set(name) {
            true => self
                .parse_with(name, |text| Endpoint::parse(text, None))
                .map(Some),
            false => Ok(None),
        }
    }

    /// Every variable with its effective value and where that came from, secrets hidden.
    pub fn effective(&self) -> impl Iterator<Item = (&'static Variable, Option<&str>, Source)> {
        VARIABLES.iter().map(|variable| {
            let value = self.get(variable.name);
            let shown = match value {
                Some(_) if variable.secret => Some("(hidden)"),
                value => value,
            };
            (variable, shown, self.source(variable.name))
        })
    }
}

/// A command-line flag for every variable.
pub fn flags() -> impl Iterator<Item = clap::Arg> {
    VARIABLES.iter().map(|variable| {
        let flag = clap::Arg::new(variable.name)
            .long(variable.flag())
            .value_name("VALUE")
            .help(variable.meaning)
            .global(true);
        match variable.switch {
            true => flag.num_args(0..=1).default_missing_value("true"),
            false => flag,
        }
    })
}

/// What the flags made by [`flags`] were given.
pub fn given(matches: &clap::ArgMatches) -> Vec<(&'static str, String)> {
    VARIABLES
        .iter()
        .filter_map(|variable| {
            let value = matches.get_one::<String>(variable.name)?;
            Some((variable.name, value.clone()))
        })
        .collect()
}

/// The configuration reference, as the markdown file in `docs/` has it.
pub fn reference() -> String {
    use fmt::Write;
    let mut page = String::from(
        "# Configuration\n\n\
         Flag, environment variable, `.env` file in the working directory, default: in this order\n\
         of precedence. `graspd config` prints what is in effect and where each value came from, in\n\
         lines that can be read back; `graspd config --check` fails if the start would refuse a value\n\
         or not know a name. A `.env` file is read as `docker compose` and systemd read it: `NAME=value`,\n\
         `export` before it or spaces around the `=` or not, `# comments` on lines of their own or behind\n\
         a value, values in `'single'` or `\"double\"` quotes, and `${NAME}` for other variables.\n\
         This page is generated from the code (`graspd config --reference`).\n\n\
         | variable | flag | default | meaning |\n|---|---|---|---|\n",
    );
    for variable in VARIABLES {
        let default = match variable.default {
            Some("") => "empty".to_owned(),
            Some(value) => format!("`{value}`"),
            None => "unset".to_owned(),
        };
        let (name, flag, meaning) = (variable.name, variable.flag(), variable.meaning);
        let bounds = bounds_of(name).map_or_else(String::new, |bounds| {
            format!(" From {} to {}.", bounds.start(), bounds.end())
        });
        writeln!(
            page,
            "| `{name}` | `--{flag}` | {default} | {meaning}{bounds} |"
        )
        .expect("writing to a string does not fail");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precedence_is_flag_environment_file_default() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(".env");
        std::fs::write(&file, "NGIT_RELAY_NAME=file\nNGIT_LOG_FORMAT=json\n").unwrap();
        let flags = [("NGIT_RELAY_NAME", "flag".to_owned())];
        let settings = Settings::load(flags, directory.path()).unwrap();
        assert_eq!(settings.get("NGIT_RELAY_NAME"), Some("flag"));
        assert_eq!(settings.source("NGIT_LOG_FORMAT"), Source::DotEnv(file));
        assert_eq!(settings.get("NGIT_BIND_ADDRESS"), Some("127.0.0.1:7334"));
    }

    #[test]
    fn a_line_without_quotes_is_read_as_it_stands() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(".env");
        let lines = "NGIT_RELAY_NAME=My GRASP relay\nNGIT_LOG_FORMAT=json\n";
        std::fs::write(&file, lines).unwrap();
        let settings = Settings::load([], directory.path()).unwrap();
        assert_eq!(settings.get("NGIT_RELAY_NAME"), Some("My GRASP relay"));
        assert_eq!(settings.get("NGIT_LOG_FORMAT"), Some("json"));
        std::fs::write(&file, "NGIT_RELAY_NAME=\"never closed\n").unwrap();
        assert!(Settings::load([], directory.path()).is_err());
    }

    #[test]
    fn another_name_counts_less_than_its_own_in_one_place() {
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()));
            let settings = Settings::from_pairs(pairs);
            settings.get("NGIT_LOG_LEVEL").unwrap().to_owned()
        };
        let (own, other) = (("NGIT_LOG_LEVEL", "warn"), ("RUST_LOG", "debug"));
        assert_eq!(of(&[other]), "debug");
        assert_eq!(of(&[own, other]), "warn");
        assert_eq!(of(&[other, own]), "warn");
        let mut settings = Settings::default();
        let file = Source::DotEnv(PathBuf::from(".env"));
        settings.take("RUST_LOG", "debug".to_owned(), file);
        settings.take("RUST_LOG", "trace".to_owned(), Source::Environment);
        assert_eq!(settings.get("NGIT_LOG_LEVEL"), Some("trace"));
    }

    #[test]
    fn a_switch_needs_no_value_on_the_command_line() {
        let read = |words: &[&str]| {
            let command = clap::Command::new("x").args(flags());
            let matches = command.try_get_matches_from(words).unwrap();
            Settings::from_pairs(given(&matches))
        };
        for words in [&["x", "--archive-all"][..], &["x", "--archive-all", "true"]] {
            assert!(read(words).switch("NGIT_ARCHIVE_ALL").unwrap(), "{words:?}");
        }
        assert!(
            !read(&["x", "--archive-all=false"])
                .switch("NGIT_ARCHIVE_ALL")
                .unwrap()
        );
    }

    #[test]
    fn a_bad_value_is_named_with_what_would_be_right() {
        let pairs = [("NGIT_RELAY_FILTER_LIMIT", "many".to_owned())];
        let settings = Settings::from_pairs(pairs);
        let error = settings
            .parse::<u32>("NGIT_RELAY_FILTER_LIMIT", "a number")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "NGIT_RELAY_FILTER_LIMIT is \"many\" (from environment); it must be a number"
        );
    }

    #[test]
    fn secrets_are_hidden_and_strangers_named() {
        let settings = Settings::from_pairs([
            ("NGIT_INTERNAL_TOKEN_GITD", "short".to_owned()),
            ("NGIT_DOMIAN", "x".to_owned()),
        ]);
        assert_eq!(settings.unknown, ["NGIT_DOMIAN"]);
        assert!(
            !settings
                .bad("NGIT_INTERNAL_TOKEN_GITD", "longer")
                .to_string()
                .contains("short")
        );
        let shown = settings
            .effective()
            .find(|(v, ..)| v.secret && v.name.ends_with("GITD"));
        assert_eq!(shown.unwrap().1, Some("(hidden)"));
        let unset = Settings::default().bad("NGIT_INTERNAL_TOKEN_GITD", "set");
        assert_eq!(
            unset.to_string(),
            "NGIT_INTERNAL_TOKEN_GITD is not set; it must be set"
        );
    }

    #[test]
    fn every_flag_is_unique() {
        let mut flags: Vec<_> = VARIABLES.iter().map(Variable::flag).collect();
        flags.sort();
        flags.dedup();
        assert_eq!(flags.len(), VARIABLES.len());
    }
}
