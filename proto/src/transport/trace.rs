//! Traces: which request of the outside world the work at hand belongs to.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

/// One trace through all processes (W3C Trace Context): which request of the outside world the
/// work at hand belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    parent: u64,
}

tokio::task_local! {
    static TRACE: Trace;
}

impl Trace {
    /// A new trace, for work that begins here.
    pub fn begin() -> Self {
        Self {
            id: rand::random(),
            parent: rand::random(),
        }
    }

    /// Reads a `traceparent` header; `None` if it is not one.
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, id, parent) = (parts.next()?, parts.next()?, parts.next()?);
        if version.len() != 2 || id.len() != 32 || parent.len() != 16 {
            return None;
        }
        let id = u128::from_str_radix(id, 16).ok().filter(|id| *id != 0)?;
        let parent = u64::from_str_radix(parent, 16).ok()?;
        Some(Self { id, parent })
    }

    /// The trace from these headers, or a new one.
    pub fn from_headers(headers: &http::HeaderMap) -> Self {
        headers
            .get("traceparent")
            .and_then(|value| value.to_str().ok())
            .and_then(Self::parse)
            .unwrap_or_else(Self::begin)
    }

    /// The trace that the running task belongs to.
    pub fn current() -> Option<Self> {
        TRACE.try_with(|trace| *trace).ok()
    }

    /// Runs `work` as part of this trace: its log lines carry the id, its calls the header.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        use tracing::Instrument;
        // Not within the span of whoever asks: a trace is handed on from task to task.
        let span =
            tracing::info_span!(parent: None, "trace", id = %format_args!("{:032x}", self.id));
        TRACE.scope(self, work.instrument(span))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-01", self.id, self.parent)
    }
}

/// The tower layer that runs every incoming call in its caller's trace.
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

impl<S, B> tower::Service<http::Request<B>> for Traced<S>
where
    S: tower::Service<http::Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let trace = Trace::from_headers(request.headers());
        Box::pin(trace.scope(self.0.call(request)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_carried_in_its_header() {
        let trace = Trace::begin();
        assert_eq!(Trace::parse(&trace.to_string()), Some(trace));
        assert_eq!(
            Trace::parse("00-00000000000000000000000000000000-0000000000000001-01"),
            None
        );
        assert_eq!(Trace::parse("nonsense"), None);
    }
}
