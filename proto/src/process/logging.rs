//! Log lines: to standard error, as text or JSON, each with the role and the trace it belongs to.

use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::{
    settings::{BadSetting, Settings},
    telemetry::{self, Telemetry},
};
use crate::transport::{Role, Trace};

/// What the settings say about log lines.
struct LogSettings {
    filter: EnvFilter,
    json: bool,
}

impl LogSettings {
    fn read(settings: &Settings) -> Result<Self, BadSetting> {
        let filter = settings.parse_with("NGIT_LOG_LEVEL", |level| {
            let directives = directives(level)?;
            EnvFilter::try_new(directives).map_err(|error| format!("a log filter ({error})"))
        })?;
        let json = settings.parse_with("NGIT_LOG_FORMAT", |format| match format {
            "text" | "json" => Ok(format == "json"),
            _ => Err("text or json".to_owned()),
        })?;
        Ok(Self { filter, json })
    }
}

/// Refuses settings of log lines and traces that [`init_logging`] would refuse.
pub fn check_logging(settings: &Settings) -> Result<(), BadSetting> {
    LogSettings::read(settings)?;
    Telemetry::check(settings)
}

/// Starts logging at the level and in the format of the settings, and traces if a collector is set.
/// Every line carries the role, so that the lines of processes that share one terminal can be told
/// apart. Must be called within the runtime; what is returned is to be ended last.
pub fn init_logging(settings: &Settings, role: Role) -> Result<Telemetry, BadSetting> {
    let LogSettings { filter, json } = LogSettings::read(settings)?;
    let telemetry = Telemetry::start(settings, role)?;
    let spans = telemetry.tracer().map(|tracer| {
        // What those libraries do that carry the spans is not for them, nor are log lines.
        let ours =
            filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("grasp"));
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(ours.and(LevelFilter::INFO))
    });
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // Spans are for the collector; a line has their ids.
    let filter = filter.and(filter_fn(|metadata| metadata.is_event()));
    let registry = tracing_subscriber::registry().with(spans);
    let role = role.as_str();
    // A second call (tests, several roles in one process) leaves the first in place.
    let _ = match json {
        true => {
            let lines = lines.json().map_event_format(|inner| Json { inner, role });
            registry.with(lines.with_filter(filter)).try_init()
        }
        false => {
            let lines = lines
                .with_ansi(std::io::stderr().is_terminal())
                .without_time()
                .with_level(false)
                .map_event_format(|inner| Text { inner, role });
            registry.with(lines.with_filter(filter)).try_init()
        }
    };
    if std::env::var_os(super::PARENT).is_none() {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), "graspd is starting");
    }
    Ok(telemetry)
}

/// What a directive names as `ngit_grasp`, which this takes the place of.
const FORMER: &str = "ngit_grasp";
/// All crates of ours.
const OURS: [&str; 5] = [
    "graspd",
    "grasp_proto",
    "grasp_relay",
    "grasp_gitd",
    "grasp_syncworker",
];
const RIGHT: &str = "a level (trace, debug, info, warn, error or off) or directives like \
                     info,grasp_gitd=debug";

fn is_level(word: &str) -> bool {
    !word.is_empty() && word.parse::<LevelFilter>().is_ok()
}

/// The filter that is meant: what a directive names as `ngit_grasp` is every crate of ours, and what no
/// directive names is told when it is a warning. An error says what would be right.
fn directives(level: &str) -> Result<String, String> {
    // The event store tells of a migration of nothing at every first start.
    let mut all = vec!["warn".to_owned(), "nostr_lmdb=warn".to_owned()];
    let directives = level.split(',').map(str::trim);
    for directive in directives.filter(|directive| !directive.is_empty()) {
        if is_level(directive) {
            all.push(directive.to_ascii_lowercase());
            continue;
        }
        // Spans may have fields of any form; the library reads them.
        let (target, level) = match directive.rsplit_once('=') {
            Some((target, level)) if !level.contains([']', '}']) => (target, Some(level)),
            _ => (directive, None),
        };
        if let Some(level) = level
            && !is_level(level)
        {
            return Err(format!("{RIGHT}; {level:?} is no level"));
        }
        // To everybody but the library, a word alone is a level that was mistyped.
        if level.is_none() && !target.contains(['_', ':', '[']) && !OURS.contains(&target) {
            return Err(format!(
                "{RIGHT}; for all that a crate of this name says, {target}=trace"
            ));
        }
        let at = level.map_or_else(String::new, |level| {
            format!("={}", level.to_ascii_lowercase())
        });
        match target.strip_prefix(FORMER) {
            // A module of theirs is none of ours.
            Some(rest) if rest.is_empty() || rest.starts_with([':', '[']) => {
                all.extend(OURS.map(|name| format!("{name}{at}")));
            }
            _ => all.push(format!("{target}{at}")),
        }
    }
    Ok(all.join(","))
}

/// The trace a line belongs to, where traces are sent to somebody.
fn trace() -> Option<Trace> {
    telemetry::is_on().then(Trace::current).flatten()
}

/// Puts time, level, role and trace at the head of every line.
struct Text<F> {
    inner: F,
    role: &'static str,
}

impl<S, N, F> FormatEvent<S, N> for Text<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let level = *event.metadata().level();
        let colours = writer.has_ansi_escapes();
        let (dim, colour, plain) = match level {
            _ if !colours => ("", "", ""),
            Level::ERROR => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
            Level::WARN => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
            Level::INFO => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
            _ => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
        };
        write!(writer, "{dim}")?;
        SystemTime.format_time(&mut writer)?;
        write!(
            writer,
            "{plain} {colour}{level:>5}{plain} role={} ",
            self.role
        )?;
        if let Some(trace) = trace() {
            let (id, span) = (trace.id(), trace.span());
            write!(writer, "trace_id={id} span_id={span} ")?;
        }
        self.inner.format_event(context, writer, event)
    }
}

/// The same in a line that is an object, behind its time and level.
struct Json<F> {
    inner: F,
    role: &'static str,
}

impl<S, N, F> FormatEvent<S, N> for Json<F>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let mut line = String::new();
        self.inner
            .format_event(context, Writer::new(&mut line), event)?;
        let head = line.find(",\"fields\":").unwrap_or(line.len());
        write!(writer, "{},\"role\":\"{}\"", &line[..head], self.role)?;
        if let Some(trace) = trace() {
            let (id, span) = (trace.id(), trace.span());
            write!(writer, ",\"trace_id\":\"{id}\",\"span_id\":\"{span}\"")?;
        }
        writer.write_str(&line[head..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_the_server_before_mean_this_one() {
        let always = "warn,nostr_lmdb=warn";
        let read = |level| directives(level).unwrap();
        assert_eq!(read("info"), format!("{always},info"));
        let ours = "graspd=debug,grasp_proto=debug,grasp_relay=debug,grasp_gitd=debug,grasp_syncworker=debug";
        assert_eq!(
            read("ngit_grasp=debug, actix_web=info,"),
            format!("{always},{ours},actix_web=info")
        );
        assert_eq!(read("ngit_grasp::sync=debug"), format!("{always},{ours}"));
        assert_eq!(
            read("ngit_graspy=debug"),
            format!("{always},ngit_graspy=debug")
        );
        assert!(EnvFilter::try_new(read("ngit_grasp=debug,hyper=off")).is_ok());
    }

    #[test]
    fn levels_are_of_any_case_and_what_is_none_is_refused() {
        for (level, expected) in [
            ("INFO", "info"),
            ("Debug", "debug"),
            ("OFF", "off"),
            ("warn,grasp_gitd=TRACE", "warn,grasp_gitd=trace"),
            ("grasp_relay", "grasp_relay"),
            (
                "grasp_gitd[push{repo=x}]=debug",
                "grasp_gitd[push{repo=x}]=debug",
            ),
            ("[push]", "[push]"),
        ] {
            let read = directives(level).unwrap();
            assert_eq!(read, format!("warn,nostr_lmdb=warn,{expected}"));
            assert!(EnvFilter::try_new(&read).is_ok(), "{read}");
        }
        for level in [
            "verbose",
            "infoo",
            "warning",
            "hyper",
            "hyper=loud",
            "info;debug",
            "hyper=",
        ] {
            let right = directives(level).unwrap_err();
            assert!(right.contains("a level"), "{level}: {right}");
        }
    }
}
