//! What one client may take, and that it costs no other anything.

use http::HeaderValue;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    client_async,
    tungstenite::{Error, client::IntoClientRequest},
};

use crate::support::{
    Client, Keys, Project, Repo, Service,
    events::{Draft, announcement},
    git::{self, remote_refs},
    service::free_port,
    soon, until, web,
};

/// A service behind a proxy on this machine, of which every client has these limits.
async fn behind_a_proxy(limits: &[(&str, &str)]) -> Service {
    let mut settings = vec![("NGIT_TRUSTED_PROXY_CIDRS", "127.0.0.0/8")];
    settings.extend(limits);
    Service::start_with(&settings).await
}

/// `git ls-remote`, as the client of this address.
async fn listed(url: &str, address: &str) -> git::Out {
    let header = format!("http.extraHeader=X-Forwarded-For: {address}");
    let directory = tempfile::tempdir().unwrap();
    git::run(directory.path(), &["-c", &header, "ls-remote", url]).await
}

async fn refused(service: &Service, limit: &str) -> u64 {
    let answer = service.get("/metrics").await.unwrap().text();
    let name = format!("ngit_limits_refused_total{{limit=\"{limit}\"}} ");
    let line = answer.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn a_crawler_is_refused_in_words_and_nobody_else_is() {
    let service = behind_a_proxy(&[("NGIT_GIT_REQUESTS_PER_MINUTE_PER_IP", "6")]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "crawled").await;
    let url = project.url(&service);
    let mut words = None;
    for _ in 0..7 {
        let out = listed(&url, "192.0.2.7").await;
        if !out.ok {
            words = Some(out.refused());
            break;
        }
    }
    let words = words.expect("a refusal");
    assert!(
        words.contains("too many requests from your address, try again in"),
        "{words}"
    );
    assert!(listed(&url, "192.0.2.8").await.ok);
    // The operator's own machines, and whoever comes without a proxy from there, are not limited.
    for _ in 0..9 {
        assert!(!remote_refs(&url).await.is_empty());
    }
    let path = Service::repository_path(&project.owner, "crawled");
    let page = web::request(
        "GET",
        service.port,
        &path,
        &[("X-Forwarded-For", "192.0.2.7")],
    );
    let page = service.fetch(page).await.unwrap();
    assert_eq!(page.status, 429);
    assert!(page.header("retry-after").parse::<u64>().unwrap() <= 60);
    assert_eq!(page.header("access-control-allow-origin"), "*");
    assert!(refused(&service, "git_requests").await >= 2);
    let metrics = service.get("/metrics").await.unwrap().text();
    assert!(
        metrics.contains("ngit_git_http_requests_total{request=\"info-refs\",status=\"refused\"}")
    );
    // What has not happened yet is there, too.
    assert!(metrics.contains("ngit_limits_refused_total{limit=\"git_bytes\"} 0"));
    assert!(metrics.contains("ngit_git_place_refused_total{reason=\"busy\"} 0"));
}

#[tokio::test]
async fn who_has_taken_too_much_is_refused_next_and_not_cut_off() {
    let service = behind_a_proxy(&[("NGIT_GIT_BYTES_PER_HOUR_PER_IP", "20000")]).await;
    let mut client = Client::connect(&service).await;
    let project = Project::announced(&service, &mut client, "large").await;
    project.repo.commit_bytes(300_000).await;
    project.update(&service, &mut client, &["main"]).await;
    let header = "http.extraHeader=X-Forwarded-For: 192.0.2.7";
    let url = project.url(&service);
    let (clone, out) = Repo::clone(&url, &["-c", header, "clone"]).await;
    out.good();
    assert_eq!(clone.oid("HEAD").await, project.repo.oid("main").await);
    let words = listed(&url, "192.0.2.7").await.refused();
    assert!(
        words.contains("too much data was taken from your address"),
        "{words}"
    );
    assert!(listed(&url, "192.0.2.8").await.ok);
    assert_eq!(refused(&service, "git_bytes").await, 1);
}

#[tokio::test]
async fn an_edge_that_leads_to_the_git_storage_directly_finds_the_same_limits() {
    let port = free_port();
    let service = behind_a_proxy(&[
        ("NGIT_GIT_REQUESTS_PER_MINUTE_PER_IP", "6"),
        (
            "NGIT_GITD_HTTP_ADDRESS",
            &format!("http://127.0.0.1:{port}"),
        ),
    ])
    .await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "edge").await;
    let path = Service::repository_path(&project.owner, "edge");
    let direct = format!("http://127.0.0.1:{port}{path}");
    until("a refusal", || async {
        !listed(&direct, "192.0.2.7").await.ok
    })
    .await;
    // Through the relay it is the same client.
    let words = listed(&project.url(&service), "192.0.2.7").await.refused();
    assert!(
        words.contains("too many requests from your address"),
        "{words}"
    );
    assert!(listed(&direct, "192.0.2.8").await.ok);
}

#[tokio::test]
async fn a_client_has_so_many_events_over_all_its_connections() {
    let service = Service::start_with(&[
        ("NGIT_RELAY_EVENTS_PER_MINUTE_PER_IP", "10"),
        ("NGIT_UNLIMITED_CIDRS", "none"),
    ])
    .await;
    let (mut one, mut two) = (
        Client::connect(&service).await,
        Client::connect(&service).await,
    );
    let keys = Keys::generate();
    let event = |n: u64| Draft::new(1).content(n.to_string()).sign(&keys);
    for n in 0..5 {
        assert!(
            !one.publish(&event(n))
                .await
                .message
                .starts_with("rate-limited")
        );
        assert!(
            !two.publish(&event(9 + n))
                .await
                .message
                .starts_with("rate-limited")
        );
    }
    let reason = two.publish(&event(20)).await.rejected();
    assert!(
        reason.starts_with("rate-limited: too many events from your address"),
        "{reason}"
    );
    let reason = one.publish(&event(21)).await.rejected();
    assert!(
        reason.starts_with("rate-limited: too many events"),
        "{reason}"
    );
}

#[tokio::test]
async fn a_client_has_so_many_websockets_behind_a_proxy_too() {
    let service = behind_a_proxy(&[("NGIT_MAX_CONNECTIONS_PER_IP", "2")]).await;
    let connect = async |address: &'static str| {
        let tcp = TcpStream::connect(("127.0.0.1", service.port))
            .await
            .unwrap();
        let url = format!("ws://localhost:{}/", service.port);
        let mut request = url.into_client_request().unwrap();
        let address = HeaderValue::from_static(address);
        request.headers_mut().insert("x-forwarded-for", address);
        client_async(request, tcp).await
    };
    let one = connect("192.0.2.7").await.unwrap();
    let _two = connect("192.0.2.7").await.unwrap();
    let Err(Error::Http(refused)) = connect("192.0.2.7").await else {
        panic!("a third websocket");
    };
    assert_eq!(refused.status(), 429);
    let _other = connect("192.0.2.8").await.unwrap();
    drop(one);
    until("room again", || async {
        connect("192.0.2.7").await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_peer_with_too_many_connections_is_told_and_heard_again_later() {
    let service = Service::start_with(&[
        ("NGIT_MAX_CONNECTIONS_PER_IP", "3"),
        ("NGIT_UNLIMITED_CIDRS", "none"),
    ])
    .await;
    let address = ("127.0.0.1", service.port);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    let ask = async || {
        let asked = web::request("GET", service.port, "/healthz", &[]);
        soon("an answer", service.fetch(asked)).await.unwrap()
    };
    let mut answer = ask().await;
    // One of them may have been turned away while whoever waited for the start was still connected.
    if answer.status == 200 {
        held.push(TcpStream::connect(address).await.unwrap());
        answer = ask().await;
    }
    assert_eq!(
        (answer.status, answer.text().trim()),
        (429, "too many connections from your address")
    );
    held.clear();
    until("room again", || async {
        let answer = service.get("/healthz").await;
        answer.is_ok_and(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn what_waits_has_its_room_and_its_lists_are_bounded() {
    let service = Service::start_with(&[
        ("NGIT_PURGATORY_MAX_BYTES_PER_AUTHOR", "1048576"),
        ("NGIT_RELAY_EVENTS_PER_MINUTE", "0"),
    ])
    .await;
    let mut client = Client::connect(&service).await;
    let (flooder, other) = (Keys::generate(), Keys::generate());
    let large = |number: usize| {
        let draft = announcement(&service, &flooder, &format!("flood-{number}"));
        draft.content("x".repeat(150_000)).sign(&flooder)
    };
    for number in 0..6 {
        client.publish(&large(number)).await.waits();
    }
    let words = client.publish(&large(6)).await.rejected();
    assert!(
        words.starts_with("error: too much by this author"),
        "{words}"
    );
    let small = announcement(&service, &other, "small").sign(&other);
    client.publish(&small).await.waits();
    // Another version of what waits takes its place.
    client.publish(&large(0)).await.waits();

    let urls = (0..99).map(|n| format!("https://{n}.example/x.git"));
    let more = ["clone".to_owned()].into_iter().chain(urls);
    let most = announcement(&service, &other, "urls").tag(more);
    client.publish(&most.sign(&other)).await.waits();
    let more = announcement(&service, &other, "more").tag(
        ["relays".to_owned()]
            .into_iter()
            .chain((0..100).map(|n| format!("wss://{n}.example"))),
    );
    let refused = client.publish(&more.sign(&other)).await;
    refused.rejected_as("invalid: more than 100 URLs in relays");
    let accept = [("Accept", "application/nostr+json")];
    let request = web::request("GET", service.port, "/", &accept);
    let document = service.fetch(request).await.unwrap().text();
    assert!(document.contains("\"max_urls_per_list\":100"), "{document}");
}

#[tokio::test]
async fn what_strangers_may_store_from_one_address_is_bounded() {
    let service = Service::start_with(&[
        ("NGIT_UNLIMITED_CIDRS", "none"),
        ("NGIT_STRANGERS_MAX_BYTES_PER_IP", "210000"),
        ("NGIT_RELAY_EVENTS_PER_MINUTE", "0"),
    ])
    .await;
    let mut client = Client::connect(&service).await;
    let request = |kind: u16| {
        let draft = Draft::new(kind).content("x".repeat(70_000));
        draft.sign(&Keys::generate())
    };
    for kind in [5, 10_317, 5] {
        client.publish(&request(kind)).await.served();
    }
    let words = client.publish(&request(10_317)).await.rejected();
    assert!(
        words.starts_with("rate-limited: too much was sent"),
        "{words}"
    );
    assert_eq!(refused(&service, "strangers").await, 1);
    // Whoever has something here goes on.
    let project = Project::active(&service, &mut client, "here").await;
    let draft = Draft::new(5).content("x".repeat(100_000));
    client.publish(&draft.sign(&project.owner)).await.served();
}
