//! A stand-in for gitd: hands out the connections on which requests came.

use grasp_relay::session::Patience;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::support::Service;

pub const NPUB: &str = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6";

/// A connection to the stand-in whose request's head was read.
pub struct Upstream {
    pub head: String,
    pub stream: BufReader<TcpStream>,
}

pub async fn service(settings: &[(&'static str, &str)]) -> (Service, mpsc::Receiver<Upstream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel(10);
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let (head, stream) = read_head(BufReader::new(tcp)).await;
                let _ = sender.send(Upstream { head, stream }).await;
            });
        }
    });
    let mut all = vec![("NGIT_GITD_HTTP_ADDRESS", address.as_str())];
    all.extend(settings);
    (Service::with(&all, Patience::default()).await, requests)
}

async fn read_head(mut stream: BufReader<TcpStream>) -> (String, BufReader<TcpStream>) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && stream.read_line(&mut head).await.unwrap() > 0 {}
    (head.to_lowercase(), stream)
}

pub async fn send(service: &Service, head: &str) -> TcpStream {
    let mut client = TcpStream::connect(service.address).await.unwrap();
    let head = format!("{head}\r\nHost: relay.example.com\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client
}
