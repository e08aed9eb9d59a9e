//! Remote relays over TLS.

use std::{io, net::IpAddr, sync::Arc};

use futures::future::BoxFuture;
use grasp_proto::contract::relay::{Level, RelayState};
use grasp_syncworker::net::Resolve;
use nostr::Keys;
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{RootCertStore, ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use crate::{
    remote::{Manners, Remote},
    stand::{Direct, Project, Stand, config, event, net_with, timing, told, until, work_on},
};

const NAME: &str = "relay.example";

/// Every name is this machine.
struct Here;

impl Resolve for Here {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        assert_eq!(host, NAME);
        Box::pin(async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) })
    }
}

/// An edge in TLS before a relay, and the certificate that vouches for it.
async fn edge(remote: &Remote) -> (String, RootCertStore) {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let behind = remote.url.strip_prefix("ws://").unwrap().to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, behind) = (acceptor.clone(), behind.clone());
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let mut relay = TcpStream::connect(behind).await.unwrap();
                    let _ = copy_bidirectional(&mut stream, &mut relay).await;
                }
            });
        }
    });
    (format!("wss://{NAME}:{port}"), roots)
}

#[tokio::test]
async fn a_relay_is_synced_over_tls_by_its_name_and_its_document_is_read_so_too() {
    let project = Project::new(200);
    let manners = Manners {
        limitation: Some(json!({"max_subscriptions": 3, "max_limit": 50})),
        subscriptions: 3,
        ..Manners::default()
    };
    let remote = Remote::start(manners, project.all.clone()).await;
    let (url, roots) = edge(&remote).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&url])]));
    stand.lease(&url, 1);
    let net = net_with(Arc::new(Here), roots);
    let _worker = work_on(net, Arc::new(Direct(stand.clone())), config(), timing());
    until("all of the past is here", || stand.has(&project.all)).await;
    until("it is said", || stand.is(&url, RelayState::Connected)).await;
    let limits = remote
        .history()
        .into_iter()
        .map(|asked| asked.filters[0].limit);
    assert!(limits.into_iter().all(|limit| limit == Some(50)));
    let live = event(&Keys::generate(), 10317, 1_800_000_000, &[]);
    remote.publish(live.clone());
    until("what is new comes", || stand.has([&live])).await;
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_no_relay() {
    let project = Project::new(0);
    let remote = Remote::start(Manners::default(), project.all.clone()).await;
    let (url, _) = edge(&remote).await;
    let stand = Stand::new();
    stand.tell(told(vec![project.target(Level::Full, &[&url])]));
    stand.lease(&url, 1);
    let (other, roots) = edge(&remote).await;
    assert_ne!(other, url);
    let net = net_with(Arc::new(Here), roots);
    let _worker = work_on(net, Arc::new(Direct(stand.clone())), config(), timing());
    until("it is said why", || {
        let report = stand.report(&url);
        report.is_some_and(|report| report.last_error.starts_with("TLS with relay.example"))
    })
    .await;
    assert!(stand.known().held.is_empty());
}
