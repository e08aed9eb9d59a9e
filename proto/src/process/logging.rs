//! Log lines: to standard error, as text or JSON, each with the role and the trace it belongs to.

use std::io::IsTerminal;

use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, LevelFilter, filter_fn},
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use super::{
    settings::{BadSetting, Settings},
    telemetry::Telemetry,
};
use crate::transport::{Role, Trace};

/// Starts logging at the level and in the format of the settings, and traces if a collector is set.
/// Every line carries the role, so that the lines of processes that share one terminal can be told
/// apart. Must be called within the runtime; what is returned is to be ended last.
pub fn init_logging(settings: &Settings, role: Role) -> Result<Telemetry, BadSetting> {
    let filter = settings.parse_with("NGIT_LOG_LEVEL", |level| {
        EnvFilter::try_new(directives(level)).map_err(|error| format!("a log filter ({error})"))
    })?;
    let json = settings.parse_with("NGIT_LOG_FORMAT", |format| match format {
        "text" | "json" => Ok(format == "json"),
        _ => Err("text or json".to_owned()),
    })?;
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
                .map_event_format(|inner| Text { inner, role });
            registry.with(lines.with_filter(filter)).try_init()
        }
    };
    Ok(telemetry)
}

/// The filter that is meant: what a directive names as `ngit_grasp`, which this takes the place of, is
/// every crate of ours, and what no directive names is told when it is a warning.
fn directives(level: &str) -> String {
    const OURS: [&str; 5] = [
        "graspd",
        "grasp_proto",
        "grasp_relay",
        "grasp_gitd",
        "grasp_syncworker",
    ];
    // The event store tells of a migration of nothing at every first start.
    let mut all = vec!["warn".to_owned(), "nostr_lmdb=warn".to_owned()];
    for directive in level.split(',').map(str::trim) {
        match directive.strip_prefix("ngit_grasp") {
            Some(rest) if rest.is_empty() || rest.starts_with(['=', ':', '[']) => {
                // A module of theirs is none of ours.
                let at = rest
                    .rsplit_once('=')
                    .map_or(String::new(), |(_, level)| format!("={level}"));
                all.extend(OURS.map(|name| format!("{name}{at}")));
            }
            _ => all.push(directive.to_owned()),
        }
    }
    all.retain(|directive| !directive.is_empty());
    all.join(",")
}

/// Puts the role and the trace at the head of every line.
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
        write!(writer, "role={} ", self.role)?;
        if let Some(trace) = Trace::current() {
            let (id, span) = (trace.id(), trace.span());
            write!(writer, "trace_id={id} span_id={span} ")?;
        }
        self.inner.format_event(context, writer, event)
    }
}

/// The same in a line that is an object.
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
        write!(writer, "{{\"role\":\"{}\",", self.role)?;
        if let Some(trace) = Trace::current() {
            let (id, span) = (trace.id(), trace.span());
            write!(writer, "\"trace_id\":\"{id}\",\"span_id\":\"{span}\",")?;
        }
        writer.write_str(line.strip_prefix('{').unwrap_or(&line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_the_server_before_mean_this_one() {
        let always = "warn,nostr_lmdb=warn";
        assert_eq!(directives("info"), format!("{always},info"));
        let ours = "graspd=debug,grasp_proto=debug,grasp_relay=debug,grasp_gitd=debug,grasp_syncworker=debug";
        assert_eq!(
            directives("ngit_grasp=debug, actix_web=info,"),
            format!("{always},{ours},actix_web=info")
        );
        assert_eq!(
            directives("ngit_grasp::sync=debug"),
            format!("{always},{ours}")
        );
        assert_eq!(
            directives("ngit_graspy=debug"),
            format!("{always},ngit_graspy=debug")
        );
        assert!(EnvFilter::try_new(directives("ngit_grasp=debug,hyper=off")).is_ok());
    }
}
