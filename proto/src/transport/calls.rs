//! Internal calls, counted: which, how they ended, how long until they were answered.

use std::{collections::HashMap, sync::OnceLock, time::Instant};

use prost::Message;
use tonic::{Code, Status};
use tracing::Span;

/// The label of a method that is in no contract of ours.
const OTHER: &str = "other";

/// The method that a call's path names, as it stands in metrics and traces: one of our contracts, or
/// `other`. Nobody can make up labels.
pub fn method(path: &str) -> &'static str {
    static METHODS: OnceLock<HashMap<String, &'static str>> = OnceLock::new();
    let methods = METHODS.get_or_init(|| {
        let sets = [
            crate::contract::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
        ];
        let mut methods = HashMap::new();
        for set in sets {
            let set = prost_types::FileDescriptorSet::decode(set);
            for file in set.expect("our own build made it").file {
                for service in &file.service {
                    for method in &service.method {
                        let (service, method) = (service.name(), method.name());
                        let path = format!("/{}.{service}/{method}", file.package());
                        // Once for the process, for each method of a contract.
                        let label = Box::leak(format!("{service}/{method}").into_boxed_str());
                        methods.insert(path, &*label);
                    }
                }
            }
        }
        methods
    });
    methods.get(path).copied().unwrap_or(OTHER)
}

/// One call, from when it is made until it is answered or nobody wants to know any more.
pub struct Call {
    method: &'static str,
    made: bool,
    begun: Instant,
    span: Span,
    answered: bool,
}

impl Call {
    /// One that we answer.
    pub fn served(method: &'static str, span: Span) -> Self {
        Self::begin(method, false, span)
    }

    /// One that we make.
    pub fn made(method: &'static str, span: Span) -> Self {
        Self::begin(method, true, span)
    }

    fn begin(method: &'static str, made: bool, span: Span) -> Self {
        Self {
            method,
            made,
            begun: Instant::now(),
            span,
            answered: false,
        }
    }

    /// The answer began; `None`: there is none.
    pub fn answered<B>(mut self, answer: Option<&http::Response<B>>) {
        self.answered = true;
        let code = match answer {
            // Of an answer with a body the code comes last: only that of a stream can be bad then.
            Some(answer) => {
                Status::from_header_map(answer.headers()).map_or(Code::Ok, |s| s.code())
            }
            None => Code::Unavailable,
        };
        self.ended(code);
    }

    fn ended(&self, code: Code) {
        let code_name = name(code);
        self.span.record("rpc.grpc.status_code", code as i32);
        if code != Code::Ok {
            self.span.record("otel.status_code", "ERROR");
        }
        let taken = self.begun.elapsed().as_secs_f64();
        let labels = [("method", self.method), ("code", code_name)];
        let method = ("method", self.method);
        if self.made {
            metrics::counter!("ngit_grpc_client_calls_total", &labels).increment(1);
            metrics::histogram!("ngit_grpc_client_seconds", &[method]).record(taken);
        } else {
            metrics::counter!("ngit_grpc_server_calls_total", &labels).increment(1);
            metrics::histogram!("ngit_grpc_server_seconds", &[method]).record(taken);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.answered {
            self.ended(Code::Cancelled);
        }
    }
}

/// A code as it stands in metrics.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_methods_of_contracts_are_named() {
        assert_eq!(method("/grasp.relay.v1.Push/Authorize"), "Push/Authorize");
        assert_eq!(method("/grpc.health.v1.Health/Check"), "Health/Check");
        for strange in ["/grasp.relay.v1.Push/X1", "/x/y", "", "/"] {
            assert_eq!(method(strange), OTHER, "{strange}");
        }
    }
}
