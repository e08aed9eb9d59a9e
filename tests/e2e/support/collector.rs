//! A collector of traces (OTLP over gRPC) that keeps what it is sent.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
};
use tokio::task::AbortHandle;
use tonic::{Request, Response, Status};

use super::service::free_port;

/// One step of a trace.
#[derive(Debug, Clone)]
pub struct Span {
    pub trace: Vec<u8>,
    pub id: Vec<u8>,
    pub parent: Vec<u8>,
    pub service: String,
    pub name: String,
    /// The traces it says it belongs with.
    pub links: Vec<Vec<u8>>,
}

#[derive(Debug, Default, Clone)]
struct Kept(Arc<Mutex<Vec<Span>>>);

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_process in request.into_inner().resource_spans {
            let resource = of_process.resource.unwrap_or_default();
            let service = text(&resource.attributes, "service.name");
            for span in of_process.scope_spans.into_iter().flat_map(|s| s.spans) {
                self.0.lock().unwrap().push(Span {
                    trace: span.trace_id,
                    id: span.span_id,
                    parent: span.parent_span_id,
                    service: service.clone(),
                    name: span.name,
                    links: span.links.into_iter().map(|link| link.trace_id).collect(),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector on a port of its own; gone when dropped.
pub struct Collector {
    pub port: u16,
    kept: Kept,
    task: AbortHandle,
}

impl Collector {
    pub fn start() -> Self {
        let (port, kept) = (free_port(), Kept::default());
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(kept.clone()))
            .serve(([127, 0, 0, 1], port).into());
        let task = tokio::spawn(async { server.await.unwrap() });
        Self {
            port,
            kept,
            task: task.abort_handle(),
        }
    }

    /// Where it is found.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Everything that has come.
    pub fn spans(&self) -> Vec<Span> {
        self.kept.0.lock().unwrap().clone()
    }

    /// The steps of the trace that has steps of all these names, if one has.
    pub fn trace_with(&self, names: &[&str]) -> Option<Vec<Span>> {
        let spans = self.spans();
        let ids: BTreeSet<&[u8]> = spans.iter().map(|span| &*span.trace).collect();
        ids.into_iter().find_map(|id| {
            let of_it = spans.iter().filter(|span| span.trace == id);
            let of_it: Vec<Span> = of_it.cloned().collect();
            let all = names
                .iter()
                .all(|name| of_it.iter().any(|span| span.name == *name));
            all.then_some(of_it)
        })
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}
