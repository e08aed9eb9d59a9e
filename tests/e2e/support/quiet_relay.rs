//! Other people's relays that have nothing to say: they answer every question with its end.

use std::sync::{Arc, Mutex};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};
use tokio_tungstenite::{accept_async, tungstenite::Message};

#[derive(Debug, Default)]
struct Log {
    open: usize,
    most_open: usize,
}

/// A relay on a port of its own; gone when dropped.
pub struct QuietRelay {
    pub port: u16,
    log: Arc<Mutex<Log>>,
    task: AbortHandle,
}

impl Drop for QuietRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Open(Arc<Mutex<Log>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().unwrap().open -= 1;
    }
}

impl QuietRelay {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let log = Arc::new(Mutex::new(Log::default()));
        let of_task = log.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, of_task.clone()));
            }
        });
        Self {
            port,
            log,
            task: task.abort_handle(),
        }
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// Websocket connections that are open.
    pub fn open(&self) -> usize {
        self.log.lock().unwrap().open
    }

    /// The most there ever were at once.
    pub fn most_open(&self) -> usize {
        self.log.lock().unwrap().most_open
    }
}

async fn converse(stream: TcpStream, log: Arc<Mutex<Log>>) {
    // A question over plain HTTP is none that it understands.
    let Ok(mut socket) = accept_async(stream).await else {
        return;
    };
    {
        let mut log = log.lock().unwrap();
        log.open += 1;
        log.most_open = log.most_open.max(log.open);
    }
    let _open = Open(log);
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else {
            continue;
        };
        let question: Value = serde_json::from_str(&text).unwrap();
        let answer = match question[0].as_str() {
            Some("REQ") => json!(["EOSE", question[1]]),
            Some("NEG-OPEN") => json!(["NEG-ERR", question[1], "blocked: not here"]),
            _ => continue,
        };
        if socket
            .send(Message::text(answer.to_string()))
            .await
            .is_err()
        {
            return;
        }
    }
}
