//! What the operator's tools ask of one process: `/metrics`, `/healthz`, `/readyz`, on a listener of
//! its own.
//!
//! It opens before the process does its work and closes after it, so that it can tell of both. It is
//! for a private network: nothing listens there unless an address is set.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::Semaphore, task::AbortHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::metrics::render_metrics;
use crate::transport::{Endpoint, Listener, Role};

/// Connections at once; more wait in the kernel.
const CONNECTIONS: usize = 32;
/// How long one may take with the head of a request, and be idle.
const HEAD: Duration = Duration::from_secs(75);
/// How long it may take to find out whether the process is ready: less than those who ask wait.
const PATIENCE: Duration = Duration::from_secs(4);

/// Whether a process is ready to do its work.
pub trait Ready: Send + Sync + 'static {
    /// `Err` tells an operator what is missing.
    fn ready(&self) -> BoxFuture<'_, Result<(), String>>;

    /// What an operator should know of a process that is ready: that it takes nothing new, and why.
    fn shortage(&self) -> Option<String> {
        None
    }
}

/// What `/readyz` answers: `Ok` with the text of a process that is ready, `Err` with that of one that is
/// not.
pub async fn readiness_text(ready: &dyn Ready) -> Result<String, String> {
    match ready.ready().await {
        Ok(()) => Ok(match ready.shortage() {
            Some(shortage) => format!("ready, but {shortage}\n"),
            None => "ready\n".to_owned(),
        }),
        Err(reason) => Err(format!("not ready: {reason}\n")),
    }
}

/// The metrics that an address for monitoring shows instead of the process's own.
pub trait MetricsPage: Send + Sync + 'static {
    /// As Prometheus text.
    fn render(&self) -> BoxFuture<'_, String>;
}

/// How a process stands, from its start to its end.
pub struct Standing {
    role: Role,
    ready: OnceLock<Arc<dyn Ready>>,
    stop: CancellationToken,
    page: Option<Arc<dyn MetricsPage>>,
}

/// An open listener; it closes when this is dropped.
#[derive(Debug)]
pub struct Listening(Option<AbortHandle>);

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Standing {
    /// A process that is starting, and stops when told so by `stop`.
    pub fn new(role: Role, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            role,
            ready: OnceLock::new(),
            stop,
            page: None,
        })
    }

    /// The same, with this page of metrics in the place of the process's own.
    pub fn showing(role: Role, stop: CancellationToken, page: Arc<dyn MetricsPage>) -> Arc<Self> {
        Arc::new(Self {
            role,
            ready: OnceLock::new(),
            stop,
            page: Some(page),
        })
    }

    /// The process is up: `ready` tells how it does from now on.
    pub fn is_up(&self, ready: Arc<dyn Ready>) {
        let _ = self.ready.set(ready);
    }

    /// Whether the process is ready, or why not, as `/readyz` answers it.
    async fn readiness(&self) -> Result<String, String> {
        if self.stop.is_cancelled() {
            return Err("not ready: it is stopping\n".to_owned());
        }
        let Some(ready) = self.ready.get() else {
            return Err("not ready: it is starting\n".to_owned());
        };
        let asked = timeout(PATIENCE, readiness_text(&**ready)).await;
        asked.unwrap_or_else(|_| Err("not ready: it cannot tell in time\n".to_owned()))
    }

    /// Answers at `endpoint`, if there is one, until what is returned is dropped.
    pub async fn listen(self: &Arc<Self>, endpoint: Option<&Endpoint>) -> io::Result<Listening> {
        let Some(endpoint) = endpoint else {
            return Ok(Listening(None));
        };
        let listener = endpoint.listen().await?;
        tracing::info!(address = %endpoint, "metrics and health are told here");
        let task = tokio::spawn(self.clone().serve(listener));
        Ok(Listening(Some(task.abort_handle())))
    }

    async fn serve(self: Arc<Self>, listener: Listener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = tokio::task::JoinSet::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD);
        loop {
            while connections.try_join_next().is_some() {}
            let place = Arc::clone(&room).acquire_owned().await;
            let connection = match listener.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let standing = self.clone();
            let answer = service_fn(move |request: Request<Incoming>| {
                let standing = standing.clone();
                async move { Ok::<_, Infallible>(standing.answer(&request).await) }
            });
            let connection = http.serve_connection(TokioIo::new(connection), answer);
            connections.spawn(async move {
                let _place = place;
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection");
                }
            });
        }
    }

    async fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
        }
        match request.uri().path() {
            "/metrics" => {
                let page = match &self.page {
                    Some(page) => page.render().await,
                    None => render_metrics(self.role.as_str()),
                };
                text(StatusCode::OK, page)
            }
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.readiness().await {
                Ok(ready) => text(StatusCode::OK, ready),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            _ => text(StatusCode::NOT_FOUND, "/metrics, /healthz or /readyz\n"),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};

    use super::*;

    struct Says(Result<(), String>);

    impl Ready for Says {
        fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async { self.0.clone() })
        }
    }

    async fn get(endpoint: &Endpoint, path: &str) -> (StatusCode, String) {
        let connection = endpoint.connect().await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(connection))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = Request::get(path).header("Host", "x");
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
        let answer = answer.await.unwrap();
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn it_tells_of_the_start_the_work_and_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = format!("unix:{}/m", directory.path().display());
        let endpoint: Endpoint = endpoint.parse().unwrap();
        let stop = CancellationToken::new();
        let standing = Standing::new(Role::Gitd, stop.clone());
        let listening = standing.listen(Some(&endpoint)).await.unwrap();
        let (status, why) = get(&endpoint, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(why.contains("starting"), "{why}");
        assert_eq!(get(&endpoint, "/healthz").await.0, StatusCode::OK);

        standing.is_up(Arc::new(Says(Ok(()))));
        assert_eq!(get(&endpoint, "/readyz").await.0, StatusCode::OK);
        let (status, metrics) = get(&endpoint, "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(metrics.contains("process_open_fds{role=\"gitd\"}"));
        assert_eq!(get(&endpoint, "/x").await.0, StatusCode::NOT_FOUND);

        stop.cancel();
        let (status, why) = get(&endpoint, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(why.contains("stopping"), "{why}");
        drop(listening);
        while endpoint.connect().await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    struct Short;

    impl Ready for Short {
        fn ready(&self) -> BoxFuture<'_, Result<(), String>> {
            Box::pin(async { Ok(()) })
        }

        fn shortage(&self) -> Option<String> {
            Some("new data is refused: the disk is full".to_owned())
        }
    }

    #[tokio::test]
    async fn one_that_takes_nothing_new_serves_and_says_so() {
        let standing = Standing::new(Role::Gitd, CancellationToken::new());
        standing.is_up(Arc::new(Short));
        let request = Request::get("/readyz").body(()).unwrap();
        let answer = standing.answer(&request).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "ready, but new data is refused: the disk is full\n");
    }

    #[tokio::test]
    async fn it_says_what_is_missing() {
        let standing = Standing::new(Role::Worker, CancellationToken::new());
        standing.is_up(Arc::new(Says(Err("the relay is away".to_owned()))));
        let (status, why) = {
            let answer = standing
                .answer(&Request::get("/readyz").body(()).unwrap())
                .await;
            let status = answer.status();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            (status, String::from_utf8_lossy(&body).into_owned())
        };
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(why, "not ready: the relay is away\n");
    }
}
