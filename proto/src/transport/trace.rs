//! Traces: which request of the outside world the work at hand belongs to.
//!
//! A trace has its id whether or not it is handed to a collector, so that log lines of all processes
//! can be put together. With a collector set, each step is a span besides; without one, spans cost
//! nothing.
//!
//! What strangers say of traces is not followed: whoever could choose the id could mix his requests
//! into another's trace, and whoever could choose the flags could have everything of his recorded.
//! Their trace is linked to instead ([`Trace::begin_for`]).

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures::future::Either;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::calls::{self, Call};
use crate::process::telemetry;

/// One trace through all processes (W3C Trace Context): which request of the outside world the
/// work at hand belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    span: u64,
    sampled: bool,
}

tokio::task_local! {
    static TRACE: Trace;
}

impl Trace {
    /// A new trace, for work that begins here.
    pub fn begin() -> Self {
        Self {
            id: rand::random(),
            span: rand::random(),
            sampled: true,
        }
    }

    /// Reads a `traceparent` header; `None` if it is not one.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, id, span) = (parts.next()?, parts.next()?, parts.next()?);
        let flags = parts.next()?;
        let lengths = (version.len(), id.len(), span.len(), flags.len());
        let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if lengths != (2, 32, 16, 2) || ![version, id, span, flags].into_iter().all(hex) {
            return None;
        }
        let id = u128::from_str_radix(id, 16).ok().filter(|id| *id != 0)?;
        let span = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { id, span, sampled })
    }

    /// The trace that these headers name.
    pub fn from_headers(headers: &http::HeaderMap) -> Option<Self> {
        let value = headers.get("traceparent")?;
        Self::parse(value.to_str().ok()?)
    }

    /// The trace that the running task belongs to.
    pub fn current() -> Option<Self> {
        TRACE.try_with(|trace| *trace).ok()
    }

    /// The id, as it is written.
    pub fn id(&self) -> String {
        format!("{:032x}", self.id)
    }

    /// The id of the step at hand, as it is written.
    pub fn span(&self) -> String {
        format!("{:016x}", self.span)
    }

    /// Runs `work` as a step, `span`, of `parent`, which another process told us of; of a new trace if
    /// there is none. Log lines carry its id, calls the header.
    pub fn follow<F: Future>(
        parent: Option<Self>,
        span: Span,
        work: F,
    ) -> impl Future<Output = F::Output> {
        let trace = join(&span, parent).or(parent).unwrap_or_else(Self::begin);
        TRACE.scope(trace, work.instrument(span))
    }

    /// Runs `work`, which a stranger asked for with these headers, as a new trace that begins with
    /// `span`.
    pub fn begin_for<F: Future>(
        headers: &http::HeaderMap,
        span: Span,
        work: F,
    ) -> impl Future<Output = F::Output> {
        if telemetry::is_on()
            && let Some(theirs) = Self::from_headers(headers)
        {
            span.add_link(theirs.into());
        }
        Self::follow(None, span, work)
    }

    /// Runs `work` as a step, `span`, of the trace at hand, or as the first one of a new trace.
    pub fn within<F: Future>(span: Span, work: F) -> impl Future<Output = F::Output> {
        match (Self::current(), telemetry::is_on()) {
            (Some(_), false) => Either::Left(work),
            (current, _) => {
                let trace = join(&span, None).or(current).unwrap_or_else(Self::begin);
                Either::Right(TRACE.scope(trace, work.instrument(span)))
            }
        }
    }

    /// `work` for a task of its own, as part of what is at hand here.
    pub fn carry<F: Future>(work: F) -> impl Future<Output = F::Output> {
        match Self::current() {
            Some(trace) => Either::Left(TRACE.scope(trace, work.in_current_span())),
            None => Either::Right(work),
        }
    }

    /// Runs `work` as part of this trace.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        TRACE.scope(self, work)
    }
}

/// What a span is called outside, where spans are made: it has its parent from then on.
fn join(span: &Span, parent: Option<Trace>) -> Option<Trace> {
    if !telemetry::is_on() {
        return None;
    }
    if let Some(parent) = parent {
        let parent = opentelemetry::Context::new().with_remote_span_context(parent.into());
        let _ = span.set_parent(parent);
    }
    let context = span.context();
    let context = context.span().span_context().clone();
    context.is_valid().then(|| Trace {
        id: u128::from_be_bytes(context.trace_id().to_bytes()),
        span: u64::from_be_bytes(context.span_id().to_bytes()),
        sampled: context.is_sampled(),
    })
}

impl From<Trace> for SpanContext {
    fn from(trace: Trace) -> Self {
        Self::new(
            TraceId::from_bytes(trace.id.to_be_bytes()),
            SpanId::from_bytes(trace.span.to_be_bytes()),
            TraceFlags::default().with_sampled(trace.sampled),
            true,
            TraceState::default(),
        )
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.id, self.span)
    }
}

/// The tower layer that runs every incoming call in its caller's trace and counts it.
#[derive(Debug, Clone, Copy, Default)]
pub struct TraceLayer;

/// What [`TraceLayer`] makes of a service.
#[derive(Debug, Clone)]
pub struct Traced<S>(S);

impl<S> tower::Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced(inner)
    }
}

impl<S, B, C> tower::Service<http::Request<B>> for Traced<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = calls::method(request.uri().path());
        let parent = Trace::from_headers(request.headers());
        // Calls that belong to nothing, such as those that only wait for work, are no traces: what
        // comes of them may be.
        let span = match parent {
            Some(_) => tracing::info_span!(
                parent: None,
                "call",
                otel.name = method,
                otel.kind = "server",
                otel.status_code = tracing::field::Empty,
                rpc.system = "grpc",
                rpc.grpc.status_code = tracing::field::Empty,
            ),
            None => Span::none(),
        };
        let call = Call::served(method, span.clone());
        let answer = self.0.call(request);
        Box::pin(Trace::follow(parent, span, async move {
            let answer = answer.await;
            call.answered(answer.as_ref().ok());
            answer
        }))
    }
}

/// A channel whose calls carry the trace they belong to, and are counted.
#[derive(Debug, Clone)]
pub struct Outgoing<S>(pub(super) S);

impl<S, B, C> tower::Service<http::Request<B>> for Outgoing<S>
where
    S: tower::Service<http::Request<B>, Response = http::Response<C>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let method = calls::method(request.uri().path());
        let current = Trace::current();
        let span = match current {
            Some(_) => tracing::info_span!(
                "call",
                otel.name = method,
                otel.kind = "client",
                otel.status_code = tracing::field::Empty,
                rpc.system = "grpc",
                rpc.grpc.status_code = tracing::field::Empty,
            ),
            None => Span::none(),
        };
        let trace = current.map(|current| join(&span, None).unwrap_or(current));
        if let Some(value) = trace.and_then(|trace| trace.to_string().parse().ok()) {
            request.headers_mut().insert("traceparent", value);
        }
        let call = Call::made(method, span.clone());
        let answer = self.0.call(request);
        Box::pin(
            async move {
                let answer = answer.await;
                call.answered(answer.as_ref().ok());
                answer
            }
            .instrument(span),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_carried_in_its_header() {
        let trace = Trace::begin();
        assert_eq!(Trace::parse(&trace.to_string()), Some(trace));
        let unsampled = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        assert_eq!(Trace::parse(unsampled).unwrap().to_string(), unsampled);
        for bad in [
            "00-00000000000000000000000000000000-0000000000000001-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "nonsense",
        ] {
            assert_eq!(Trace::parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_stranger_begins_a_trace_of_his_own() {
        let mut headers = http::HeaderMap::new();
        let theirs = Trace::begin();
        headers.insert("traceparent", theirs.to_string().parse().unwrap());
        let ours = Trace::begin_for(&headers, Span::none(), async { Trace::current() });
        assert_ne!(ours.await.unwrap().id, theirs.id);
        let followed = Trace::follow(Some(theirs), Span::none(), async { Trace::current() });
        assert_eq!(followed.await, Some(theirs));
    }

    #[tokio::test]
    async fn steps_and_tasks_stay_in_their_trace() {
        let trace = Trace::begin();
        let seen = trace.scope(async {
            let step = Trace::within(Span::none(), async { Trace::current() }).await;
            let task = tokio::spawn(Trace::carry(async { Trace::current() }));
            (step, task.await.unwrap())
        });
        assert_eq!(seen.await, (Some(trace), Some(trace)));
        assert!(
            Trace::within(Span::none(), async { Trace::current() })
                .await
                .is_some()
        );
        assert!(Trace::carry(async { Trace::current() }).await.is_none());
    }
}
