//! The lines of a `.env` file, read as `docker compose` and systemd read them.
//!
//! - Blank lines, and lines that begin with `#` or `;`, say nothing; `export` before a name is skipped;
//!   spaces around `=` do not count. A name alone, which compose takes from the environment, is skipped.
//! - A value without quotes ends with its line, or before a `#` that has a space before it. A backslash
//!   at the end of the line continues it.
//! - A value in `'single quotes'` is what stands there. In `"double quotes"`, `\"`, `\\`, `\$`, `` \` ``
//!   are what they escape, and `\n`, `\r`, `\t` a newline, a return, a tab. Both may have several lines.
//! - Without single quotes, `$NAME`, `${NAME}` and `${NAME:-otherwise}` stand for what the environment, or
//!   an earlier line, says. systemd leaves them as they are; so that nothing is guessed, a name that is
//!   set nowhere is an error here.

use std::{fmt, iter::Peekable, str::CharIndices};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DotEnvError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// One of its lines cannot be understood.
    #[error("line {line}: {reason}")]
    Line {
        /// Which, counted from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// What the text of a file sets, in its order. `environment` says what a name stands for elsewhere.
pub fn parse(
    text: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Vec<(String, String)>, DotEnvError> {
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let mut reader = Reader {
        text: &text,
        rest: text.char_indices().peekable(),
        found: Vec::new(),
        environment: &environment,
    };
    while reader.rest.peek().is_some() {
        let at = reader.position();
        reader.assignment().map_err(|reason| DotEnvError::Line {
            line: text[..at].matches('\n').count() + 1,
            reason,
        })?;
    }
    Ok(reader.found)
}

/// A value as a line of such a file, which compose, systemd and [`parse`] read alike.
pub fn quote(value: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@+=%~^".contains(c);
    if value.chars().all(is_plain) {
        return value.to_owned();
    }
    if !value.contains('\'') {
        return format!("'{value}'");
    }
    let mut quoted = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted.push('"');
    quoted
}

struct Reader<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
    found: Vec<(String, String)>,
    environment: &'a dyn Fn(&str) -> Option<String>,
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

fn is_blank(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

impl Reader<'_> {
    fn position(&mut self) -> usize {
        self.rest.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, c)| *c)
    }

    fn next(&mut self) -> Option<char> {
        self.rest.next().map(|(_, c)| c)
    }

    fn skip_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.rest.next_if(|(_, c)| wanted(*c)).is_some() {}
    }

    /// One line, or the several that one assignment has.
    fn assignment(&mut self) -> Result<(), String> {
        self.skip_while(is_blank);
        if matches!(self.peek(), Some('#' | ';' | '\n') | None) {
            self.skip_while(|c| c != '\n');
            self.next();
            return Ok(());
        }
        let begin = self.position();
        self.skip_while(|c| c != '=' && c != '\n');
        let end = self.position();
        let mut name = self.text[begin..end].trim();
        if let Some(exported) = name
            .strip_prefix("export")
            .filter(|n| n.starts_with(is_blank))
        {
            name = exported.trim_start();
        }
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!(
                "{name:?} is no name of a variable; NAME=value is expected"
            ));
        }
        let name = name.to_owned();
        if self.next() != Some('=') {
            return Ok(());
        }
        self.skip_while(is_blank);
        let value = match self.peek() {
            Some('\'') => self.single_quoted()?,
            Some('"') => self.double_quoted()?,
            _ => self.unquoted()?,
        };
        self.found.push((name, value));
        Ok(())
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        self.next();
        let begin = self.position();
        self.skip_while(|c| c != '\'');
        let value = self.text[begin..self.position()].to_owned();
        match self.next() {
            Some(_) => self.end_of_quoted().map(|()| value),
            None => Err("a single quote is not closed".to_owned()),
        }
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        self.next();
        let mut value = String::new();
        loop {
            match self.next() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => break,
                Some('\\') => match self.next() {
                    Some(escaped @ ('"' | '\\' | '$' | '`')) => value.push(escaped),
                    Some('n') => value.push('\n'),
                    Some('r') => value.push('\r'),
                    Some('t') => value.push('\t'),
                    Some('\n') | None => {}
                    Some(other) => value.extend(['\\', other]),
                },
                Some('$') => value += &self.substituted()?,
                Some(c) => value.push(c),
            }
        }
        self.end_of_quoted().map(|()| value)
    }

    /// Behind a closing quote there is nothing but a comment.
    fn end_of_quoted(&mut self) -> Result<(), String> {
        self.skip_while(is_blank);
        match self.peek() {
            None | Some('\n' | '#') => {
                self.skip_while(|c| c != '\n');
                self.next();
                Ok(())
            }
            Some(c) => Err(format!("{c:?} stands behind the closing quote of a value")),
        }
    }

    fn unquoted(&mut self) -> Result<String, String> {
        let (mut value, mut before) = (String::new(), ' ');
        loop {
            match self.next() {
                None | Some('\n') => break,
                Some('#') if is_blank(before) => {
                    self.skip_while(|c| c != '\n');
                    self.next();
                    break;
                }
                Some('\\') if self.peek() == Some('\n') => {
                    self.next();
                }
                Some('$') => {
                    value += &self.substituted()?;
                    before = '$';
                }
                Some(c) => {
                    value.push(c);
                    before = c;
                }
            }
        }
        value.truncate(value.trim_end().len());
        Ok(value)
    }

    /// What the name behind a `$` stands for; without a name it is a `$`.
    fn substituted(&mut self) -> Result<String, String> {
        if self.peek() == Some('$') {
            self.next();
            return Ok("$".to_owned());
        }
        if self.peek() != Some('{') {
            let begin = self.position();
            if self.peek().is_none_or(|c| c.is_ascii_digit()) {
                return Ok("$".to_owned());
            }
            self.skip_while(is_of_name);
            return match self.text[begin..self.position()].to_owned() {
                name if name.is_empty() => Ok("$".to_owned()),
                name => self.lookup(&name, None),
            };
        }
        self.next();
        let begin = self.position();
        self.skip_while(|c| c != '}' && c != '\n');
        let inner = self.text[begin..self.position()].to_owned();
        if self.next() != Some('}') {
            return Err("${ is not closed".to_owned());
        }
        let (name, otherwise) = match inner.split_once(":-") {
            Some((name, otherwise)) => (name, Some(otherwise)),
            None => (inner.as_str(), None),
        };
        match !name.is_empty() && name.chars().all(is_of_name) {
            true => self.lookup(name, otherwise),
            false => Err(format!(
                "${{{inner}}} is not understood: ${{NAME}} or ${{NAME:-otherwise}}"
            )),
        }
    }

    fn lookup(&self, name: &str, otherwise: Option<&str>) -> Result<String, String> {
        let earlier = || self.found.iter().rev().find(|(found, _)| found == name);
        (self.environment)(name)
            .or_else(|| earlier().map(|(_, value)| value.clone()))
            .filter(|value| otherwise.is_none() || !value.is_empty())
            .or_else(|| otherwise.map(str::to_owned))
            .ok_or_else(|| {
                format!(
                    "${name} is set nowhere; a value with a $ of its own belongs in single quotes"
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        let environment = |name: &str| (name == "OUTSIDE").then(|| "world".to_owned());
        parse(text, environment).unwrap_or_else(|error| panic!("{text:?}: {error}"))
    }

    fn value(text: &str) -> String {
        let found = read(text);
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        found[0].1.clone()
    }

    #[test]
    fn lines_are_read_as_compose_and_systemd_read_them() {
        for (line, expected) in [
            ("A=b", "b"),
            ("export A=b", "b"),
            ("  A = b  ", "b"),
            ("A=\tb # why", "b"),
            ("A=b#c", "b#c"),
            ("A= # nothing", ""),
            ("A=", ""),
            ("A=My GRASP relay", "My GRASP relay"),
            ("A=It's here", "It's here"),
            ("A=say \"so\"", "say \"so\""),
            ("A='b # c' # why", "b # c"),
            ("A='$OUTSIDE'", "$OUTSIDE"),
            ("A=\"b \\\"c\\\" \\$d\"", "b \"c\" $d"),
            ("A=\"b\nc\"", "b\nc"),
            ("A=\"b\\nc\\td\"", "b\nc\td"),
            ("A='b\nc'", "b\nc"),
            ("A=b\\\nc", "bc"),
            ("A=C:\\path", "C:\\path"),
            ("A=$OUTSIDE", "world"),
            ("A=\"hello ${OUTSIDE}\"", "hello world"),
            ("A=${NOWHERE:-otherwise}", "otherwise"),
            ("A=5$ or $5", "5$ or $5"),
            ("A=a$$b", "a$b"),
            ("A=b=c", "b=c"),
            ("\u{feff}A=b\r\n", "b"),
        ] {
            assert_eq!(value(line), expected, "{line:?}");
        }
        assert_eq!(read("# a\n; b\n\n   \nNAME_ALONE\n"), []);
        let lines = read("A=1\nB=${A}2\nA=3\n");
        let pairs: Vec<(&str, &str)> = lines.iter().map(|(n, v)| (&**n, &**v)).collect();
        assert_eq!(pairs, [("A", "1"), ("B", "12"), ("A", "3")]);
    }

    #[test]
    fn what_cannot_be_understood_is_named_with_its_line() {
        for (text, line, expected) in [
            ("A=1\nB='never", 2, "single quote"),
            ("A=\"never\nclosed", 1, "double quote"),
            ("\n\nno assignment here", 3, "NAME=value"),
            ("A='b'c", 1, "behind the closing quote"),
            ("A=$NOWHERE", 1, "$NOWHERE is set nowhere"),
            ("A=${OUTSIDE", 1, "not closed"),
            ("A=${OUTSIDE?why}", 1, "not understood"),
            ("=b", 1, "no name"),
        ] {
            let error = parse(text, |name| (name == "OUTSIDE").then(String::new)).unwrap_err();
            let said = error.to_string();
            assert!(
                said.starts_with(&format!("line {line}:")),
                "{text:?}: {said}"
            );
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(value in "[^\\r\\x00]*") {
            let line = format!("NAME={}\n", quote(&value));
            prop_assert_eq!(read(&line), [("NAME".to_owned(), value)]);
        }

        #[test]
        fn no_text_is_a_panic(text in ".*") {
            let _ = parse(&text, |_| None);
        }
    }
}
