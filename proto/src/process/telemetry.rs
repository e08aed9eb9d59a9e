//! Traces, handed to a collector (OpenTelemetry, OTLP over gRPC).
//!
//! Nothing of it exists unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set: spans are then never made.
//! Where it is, they wait in a queue of bounded size and are sent by a thread of their own. Neither a
//! slow collector nor one that is away holds anything up: what finds no room is dropped.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, SpanData, SpanExporter,
        Tracer,
    },
};
use tokio::{runtime::Handle, time::timeout};

use super::settings::{BadSetting, Settings};
use crate::transport::Role;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";

/// Spans that wait to be sent, at most; more are dropped.
const QUEUE: usize = 4_096;
/// Spans that are sent at once.
const BATCH: usize = 512;
/// How long spans are gathered.
const GATHERED: Duration = Duration::from_secs(2);
/// How long sending a batch may take.
const SEND: Duration = Duration::from_secs(5);
/// How long the last spans may take when the process ends.
const LAST: Duration = Duration::from_secs(2);
/// How often it is said that the collector cannot be reached.
const SAID: Duration = Duration::from_secs(600);

static ON: AtomicBool = AtomicBool::new(false);

/// Whether spans are handed to a collector.
pub fn is_on() -> bool {
    ON.load(Relaxed)
}

/// The way to the collector, if one is set. What waits is sent when [`Telemetry::end`] is called.
#[derive(Debug, Default)]
#[must_use = "the last spans are lost unless it is ended"]
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// As the settings say. Must be called within a runtime, which does the sending.
    pub(super) fn start(settings: &Settings, role: Role) -> Result<Self, BadSetting> {
        let sampler = sampler(settings)?;
        if settings.get(ENDPOINT).is_none() {
            return Ok(Self::default());
        }
        let endpoint = endpoint(settings)?;
        let channel = endpoint.connect_timeout(SEND).connect_lazy();
        let inner = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(SEND)
            .build()
            .map_err(|error| settings.bad(ENDPOINT, format!("one that can be used ({error})")))?;
        let exporter = Exporter {
            inner: Arc::new(inner),
            runtime: Handle::current(),
            said: Mutex::default(),
        };
        let batch = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(GATHERED)
            .build();
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(batch)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(sampler)
            .with_resource(resource(settings, role))
            .build();
        ON.store(true, Relaxed);
        Ok(Self {
            provider: Some(provider),
        })
    }

    /// Refuses what [`Telemetry::start`] would refuse.
    pub(super) fn check(settings: &Settings) -> Result<(), BadSetting> {
        sampler(settings)?;
        match settings.get(ENDPOINT) {
            Some(_) => endpoint(settings).map(drop),
            None => Ok(()),
        }
    }

    /// What makes the spans.
    pub(super) fn tracer(&self) -> Option<Tracer> {
        Some(self.provider.as_ref()?.tracer("graspd"))
    }

    /// Sends what waits, for as long as that is worth waiting for. To be called while the runtime
    /// still runs, and not by one of its threads.
    pub fn end(self) {
        if let Some(provider) = self.provider {
            let _ = provider.shutdown_with_timeout(LAST);
        }
    }
}

/// Where the collector is.
fn endpoint(settings: &Settings) -> Result<tonic::transport::Endpoint, BadSetting> {
    settings.parse_with(ENDPOINT, |text| {
        let right = "the address of an OTLP/gRPC collector like http://127.0.0.1:4317";
        let uri: http::Uri = text.parse().map_err(|_| right.to_owned())?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http"), Some(_)) => tonic::transport::Endpoint::from_shared(text.to_owned())
                .map_err(|error| format!("{right} ({error})")),
            _ => Err(right.to_owned()),
        }
    })
}

fn resource(settings: &Settings, role: Role) -> Resource {
    let own = format!("graspd-{}", role.as_str());
    let name = settings.get("OTEL_SERVICE_NAME").unwrap_or(&own).to_owned();
    let instance = format!(
        "{}-{}",
        rustix::system::uname().nodename().to_string_lossy(),
        std::process::id()
    );
    Resource::builder()
        .with_service_name(name)
        .with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
            KeyValue::new("graspd.role", role.as_str()),
        ])
        .build()
}

/// Which traces are kept (OpenTelemetry's words for it).
fn sampler(settings: &Settings) -> Result<Sampler, BadSetting> {
    let share = settings.parse_with(SAMPLER_ARG, |text| match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("a share of all traces from 0 to 1".to_owned()),
    })?;
    settings.parse_with(SAMPLER, |name| {
        let (followed, name) = match name.strip_prefix("parentbased_") {
            Some(name) => (true, name),
            None => (false, name),
        };
        let own = match name {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => Sampler::TraceIdRatioBased(share),
            _ => {
                return Err("always_on, always_off or traceidratio, \
                            or one of them behind parentbased_"
                    .to_owned());
            }
        };
        Ok(match followed {
            true => Sampler::ParentBased(Box::new(own)),
            false => own,
        })
    })
}

/// Sends spans, and says so now and then if it cannot.
#[derive(Debug)]
struct Exporter {
    inner: Arc<opentelemetry_otlp::SpanExporter>,
    runtime: Handle,
    said: Mutex<Option<Instant>>,
}

impl Exporter {
    fn failed(&self, why: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= SAID) {
            *said = Some(Instant::now());
            drop(said);
            tracing::warn!("traces are lost, their collector does not take them: {why}");
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let (inner, spans) = (Arc::clone(&self.inner), batch.len() as u64);
        // The thread that asks has no clock and no sockets of its own.
        let sent = self
            .runtime
            .spawn(async move { timeout(SEND, inner.export(batch)).await });
        let sent = match sent.await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(OTelSdkError::Timeout(SEND)),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        };
        let outcome = if sent.is_ok() { "sent" } else { "lost" };
        metrics::counter!("ngit_trace_spans_total", "outcome" => outcome).increment(spans);
        if let Err(error) = &sent {
            self.failed(&error.to_string());
        }
        sent
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Nobody else has it before the first batch.
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.set_resource(resource);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samplers_are_read_and_what_is_none_is_refused() {
        let read = |name: &str, share: &str| {
            let pairs = [(SAMPLER, name), (SAMPLER_ARG, share)];
            let pairs = pairs.map(|(name, value)| (name, value.to_owned()));
            sampler(&Settings::from_pairs(pairs)).map(|sampler| format!("{sampler:?}"))
        };
        assert_eq!(read("", "").unwrap(), "ParentBased(AlwaysOn)");
        assert_eq!(read("always_off", "").unwrap(), "AlwaysOff");
        assert_eq!(
            read("parentbased_traceidratio", "0.25").unwrap(),
            "ParentBased(TraceIdRatioBased(0.25))"
        );
        for (name, share) in [("sometimes", ""), ("always_on", "2"), ("always_on", "x")] {
            assert!(read(name, share).is_err(), "{name} {share}");
        }
    }

    #[tokio::test]
    async fn a_collector_is_an_http_address_or_the_start_is_refused() {
        for bad in ["collector:4317", "https://collector.example", "ftp://x"] {
            let settings = Settings::from_pairs([(ENDPOINT, bad.to_owned())]);
            assert!(Telemetry::start(&settings, Role::Gitd).is_err(), "{bad}");
        }
        let off = Telemetry::start(&Settings::default(), Role::Gitd).unwrap();
        assert!(off.tracer().is_none() && !is_on());
    }
}
