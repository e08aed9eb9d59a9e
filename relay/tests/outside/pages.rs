//! What is answered besides websockets and git.

use std::fmt::Write;

use crate::support::Service;

fn has_cors(answer: &str) {
    let head = answer.split("\r\n\r\n").next().unwrap().to_lowercase();
    assert!(
        head.contains("access-control-allow-origin: *\r\n"),
        "{answer}"
    );
    assert!(
        head.contains("access-control-allow-methods: get, post\r\n"),
        "{answer}"
    );
    assert!(
        head.contains("access-control-allow-headers: content-type"),
        "{answer}"
    );
}

#[tokio::test]
async fn every_answer_can_be_read_by_web_pages() {
    let service = Service::start().await;
    let npub = "npub180cvv07tjdrrgpa0j7j7tmnyl2yr6yr7l8j4s3evf6u64th6gkwsyjh6w6";
    for (request, status) in [
        ("GET / HTTP/1.1".to_owned(), 200),
        ("HEAD / HTTP/1.1".to_owned(), 200),
        ("POST / HTTP/1.1".to_owned(), 405),
        ("GET /healthz HTTP/1.1".to_owned(), 200),
        ("HEAD /readyz HTTP/1.1".to_owned(), 200),
        ("GET /icon.svg HTTP/1.1".to_owned(), 200),
        ("GET /nowhere HTTP/1.1".to_owned(), 404),
        ("HEAD /nowhere HTTP/1.1".to_owned(), 404),
        ("OPTIONS / HTTP/1.1".to_owned(), 204),
        (
            format!("OPTIONS /{npub}/x.git/git-upload-pack HTTP/1.1"),
            204,
        ),
        (format!("GET /{npub}/x.git HTTP/1.1"), 503),
        ("GET / HTTP/1.1\r\nUpgrade: websocket".to_owned(), 400),
    ] {
        let answer = service.http(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
        has_cors(&answer);
        if request.starts_with("HEAD") {
            assert!(answer.ends_with("\r\n\r\n"), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_path_is_escaped_where_it_is_shown() {
    let service = Service::start().await;
    let answer = service
        .http("GET /<script>alert(1)</script>?x HTTP/1.1")
        .await;
    assert!(!answer.contains("<script>alert"), "{answer}");
    let answer = service.http("GET /\"quoted'&amp HTTP/1.1").await;
    assert!(!answer.contains("/\"quoted"), "{answer}");
}

#[tokio::test]
async fn the_document_tells_the_limits_that_hold() {
    let settings = [
        ("NGIT_RELAY_NAME", "Näme"),
        ("NGIT_RELAY_FILTER_LIMIT", "77"),
    ];
    let service = Service::with(&settings, grasp_relay::session::Patience::default()).await;
    let answer = service
        .http("GET / HTTP/1.1\r\nAccept: text/html;q=0.1, Application/nostr+json")
        .await;
    assert!(
        answer.contains("content-type: application/nostr+json"),
        "{answer}"
    );
    has_cors(&answer);
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let document: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(document["name"], "Näme");
    assert_eq!(document["limitation"]["max_limit"], 77);
    assert_eq!(
        document["supported_grasps"],
        serde_json::json!(["GRASP-01", "GRASP-02"])
    );
    assert_eq!(document["icon"], "https://relay.example.com/icon.svg");
    assert_eq!(document["software"], "https://relay.example.com/#graspd");
    assert_eq!(document["self"], document["pubkey"]);
    assert_eq!(document["limitation"]["created_at_upper_limit"], 900);
    assert_eq!(document["limitation"]["max_message_length"], 5 << 20);
    assert_eq!(document["limitation"]["max_state_length"], 4 << 20);
    let nips = document["supported_nips"].as_array().unwrap();
    assert!(nips.contains(&67.into()) && !nips.contains(&50.into()));
    for unset in ["contact", "banner", "terms_of_service"] {
        assert_eq!(document.get(unset), None);
    }
    assert!(document["repo_acceptance_criteria"].is_string());
    assert!(document.get("curation").is_none());
}

#[tokio::test]
async fn readiness_tells_what_is_missing() {
    let service = Service::start().await;
    service.ready.set(false);
    let answer = service.http("GET /readyz HTTP/1.1").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("gitd does not answer"), "{answer}");
    assert!(
        service
            .http("GET /healthz HTTP/1.1")
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn metrics_are_told_and_can_be_switched_off() {
    let service = Service::start().await;
    let _client = service.client().await;
    let answer = service.http("GET /metrics HTTP/1.1").await;
    assert!(
        answer.contains("ngit_process_resident_bytes{role=\"relay\"}"),
        "{answer}"
    );
    let settings = [("NGIT_METRICS_ENABLED", "false")];
    let service = Service::with(&settings, grasp_relay::session::Patience::default()).await;
    assert!(
        service
            .http("GET /metrics HTTP/1.1")
            .await
            .starts_with("HTTP/1.1 404")
    );
}

#[tokio::test]
async fn a_huge_head_is_refused() {
    let service = Service::start().await;
    let mut request = "GET / HTTP/1.1".to_owned();
    for number in 0..50 {
        write!(request, "\r\nX-{number}: {}", "x".repeat(4000)).unwrap();
    }
    let answer = service.http(&request).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_where_web_pages_can_read_it() {
    let service = Service::start().await;
    let long = format!("GET /{} HTTP/1.1", "x".repeat(17 << 10));
    let mut many = "GET / HTTP/1.1".to_owned();
    let mut large = many.clone();
    for number in 0..200 {
        write!(many, "\r\nX-{number}: x").unwrap();
    }
    for number in 0..20 {
        write!(large, "\r\nX-{number}: {}", "x".repeat(4000)).unwrap();
    }
    for (request, status) in [(long, 414), (many, 431), (large, 431)] {
        let answer = service.http(&request).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        has_cors(&answer);
    }
}
