//! Mutual TLS between processes, over real gRPC.

mod authority;

use authority::Authority;
use grasp_proto::{
    process::settings::{BadSetting, Settings},
    transport::{Endpoint, Guard, Role, Token, Tokens, serve, standard_routes},
};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code,
    service::{Routes, interceptor::InterceptedService},
};
use tonic_health::{
    pb::{HealthCheckRequest, health_client::HealthClient, health_server::HealthServer},
    server::{HealthReporter, HealthService},
};

/// The address of gRPC as a process with these settings has it.
fn endpoint(mut pairs: Vec<(&'static str, String)>, address: &str) -> Result<Endpoint, BadSetting> {
    pairs.push(("NGIT_RELAY_GRPC_ADDRESS", address.to_owned()));
    Settings::from_pairs(pairs).endpoint("NGIT_RELAY_GRPC_ADDRESS")
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

/// What a call to a server comes to that never heard it.
fn unheard(outcome: Result<(), Code>) -> bool {
    matches!(outcome, Err(Code::Unavailable | Code::Unknown))
}

async fn check(endpoint: &Endpoint, token: &Token) -> Result<(), Code> {
    let mut client = HealthClient::new(endpoint.authorized(token));
    let answer = client.check(HealthCheckRequest::default()).await;
    answer.map(|_| ()).map_err(|status| status.code())
}

fn tokens() -> Tokens {
    Tokens {
        relay: Token::random(),
        gitd: Token::random(),
        worker: Token::random(),
    }
}

#[tokio::test]
async fn only_who_shows_a_certificate_of_ours_is_heard_and_his_credential_says_as_whom() {
    let (ours, others) = (Authority::new(), Authority::new());
    let address = format!("https://localhost:{}", free_port());
    let server = endpoint(ours.settings("localhost"), &address).unwrap();
    let tokens = tokens();
    let stop = CancellationToken::new();
    // A service that the relay alone may call, as Admin is.
    let reporter = HealthReporter::new();
    let health = HealthServer::new(HealthService::from_health_reporter(reporter));
    let guarded = InterceptedService::new(health, Guard::new(&tokens, &[Role::Relay]));
    let serving = tokio::spawn(serve(
        server.listen().await.unwrap(),
        Routes::new(guarded),
        stop.clone(),
    ));
    // Somebody who never shakes hands holds up nobody.
    let plain = address.trim_start_matches("https://");
    let silent = tokio::net::TcpStream::connect(plain).await.unwrap();

    let worker = endpoint(ours.settings("syncworker"), &address).unwrap();
    assert_eq!(check(&worker, &tokens.relay).await, Ok(()));
    assert_eq!(
        check(&worker, &tokens.worker).await,
        Err(Code::PermissionDenied)
    );
    assert_eq!(
        check(&worker, &Token::random()).await,
        Err(Code::Unauthenticated)
    );
    // Another authority's certificate; ours behind one who believes another; none; plain text.
    let mut strange = others.settings("syncworker");
    strange[2].1 = ours.path("ca").display().to_string();
    let mut doubting = ours.settings("syncworker");
    doubting[2].1 = others.path("ca").display().to_string();
    for settings in [strange, doubting] {
        let client = endpoint(settings, &address).unwrap();
        assert!(unheard(check(&client, &tokens.relay).await));
    }
    let open: Endpoint = format!("http://{plain}").parse().unwrap();
    assert!(unheard(check(&open, &tokens.relay).await));
    let mut stranger = tokio::net::TcpStream::connect(plain).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "plain text was answered");
    stop.cancel();
    drop(stranger);
    drop(silent);
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_must_be_who_it_is_looked_for_as() {
    let ours = Authority::new();
    let port = free_port();
    let tokens = tokens();
    let stop = CancellationToken::new();
    let server = endpoint(ours.settings("gitd"), &format!("https://127.0.0.1:{port}")).unwrap();
    let routes = standard_routes(&tokens).await;
    let serving = tokio::spawn(serve(server.listen().await.unwrap(), routes, stop.clone()));
    let client = endpoint(ours.settings("relay"), &format!("https://localhost:{port}")).unwrap();
    assert!(unheard(check(&client, &tokens.relay).await));
    stop.cancel();
    serving.await.unwrap().unwrap();
}

#[test]
fn nothing_falls_back_to_plain_text() {
    let ours = Authority::new();
    let settings = ours.settings("relay");
    let said = |pairs: Vec<(&'static str, String)>, address: &str| {
        endpoint(pairs, address).unwrap_err().to_string()
    };
    assert!(said(settings.clone(), "http://relay:1").contains("https://host:port"));
    assert!(said(Vec::new(), "https://relay:1").contains("NGIT_INTERNAL_TLS_CERT"));
    assert!(endpoint(settings.clone(), "unix:/run/relay.sock").is_ok());
    let mut incomplete = settings.clone();
    incomplete.pop();
    assert!(said(incomplete, "https://relay:1").contains("NGIT_INTERNAL_TLS_CA"));
    for (place, name) in ["CERT", "KEY", "CA"].into_iter().enumerate() {
        for wrong in ["/nowhere", "/dev/null"] {
            let mut pairs = settings.clone();
            pairs[place].1 = wrong.to_owned();
            let said = said(pairs, "https://relay:1");
            assert!(
                said.contains(&format!("NGIT_INTERNAL_TLS_{name}")),
                "{said}"
            );
            assert!(said.contains(wrong) && said.contains("PEM"), "{said}");
        }
    }
    // One that is not the certificate's.
    let mut pairs = settings;
    pairs[1] = ours.settings("gitd").swap_remove(1);
    assert!(said(pairs, "https://relay:1").contains("NGIT_INTERNAL_TLS_KEY"));
    // For an edge that leads git's paths there, and said by whoever writes it.
    let mut pairs = ours.settings("x");
    pairs.push(("NGIT_GITD_HTTP_ADDRESS", "http://gitd:1".to_owned()));
    assert!(
        Settings::from_pairs(pairs)
            .endpoint("NGIT_GITD_HTTP_ADDRESS")
            .is_ok()
    );
}
