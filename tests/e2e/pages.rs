//! What people and browsers are shown: CORS, pages, NIP-11, health and metrics.

use serde_json::Value;

use crate::support::{Client, Keys, Project, Service, web};

/// Paths of every kind, found and not.
fn paths(project: &Project) -> Vec<(&'static str, String)> {
    let repository = Service::repository_path(&project.owner, &project.identifier);
    let nowhere = Service::repository_path(&Keys::generate(), "nowhere");
    let mut paths = vec![
        ("GET", "/".to_owned()),
        ("GET", "/nothing".to_owned()),
        ("POST", "/nothing".to_owned()),
        ("PUT", "/".to_owned()),
        ("GET", "/metrics".to_owned()),
        ("GET", "/readyz".to_owned()),
        ("GET", "/%00%ff".to_owned()),
        ("DELETE", repository.clone()),
    ];
    for repository in [repository, nowhere] {
        for (method, end) in [
            ("GET", ""),
            ("GET", "/info/refs?service=git-upload-pack"),
            ("GET", "/info/refs?service=git-receive-pack"),
            ("GET", "/info/refs?service=git-nonsense"),
            ("GET", "/info/refs"),
            ("POST", "/git-upload-pack"),
            ("POST", "/git-receive-pack"),
            ("GET", "/nothing"),
        ] {
            paths.push((method, format!("{repository}{end}")));
        }
    }
    paths
}

#[tokio::test]
async fn every_answer_allows_every_origin() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "cors").await;
    for (method, path) in paths(&project) {
        let origin = [("Origin", "https://client.example")];
        let request = web::request(method, service.port, &path, &origin);
        let answer = service.fetch(request).await.unwrap();
        let status = answer.status;
        assert!(status < 500, "{method} {path}: {status}");
        assert_eq!(
            answer.header("access-control-allow-origin"),
            "*",
            "{method} {path}: {status}"
        );
        let methods = answer.header("access-control-allow-methods");
        assert_eq!(methods, "GET, POST", "{method} {path}: {status}");
        let allowed = answer.header("access-control-allow-headers").to_lowercase();
        for name in [
            "content-type",
            "content-encoding",
            "git-protocol",
            "authorization",
            "accept",
            "x-requested-with",
        ] {
            let found = allowed.split(',').any(|part| part.trim() == name);
            assert!(found, "{name} missing: {method} {path}: {allowed}");
        }
    }
}

#[tokio::test]
async fn options_is_answered_with_no_content_everywhere() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "options").await;
    for (_, path) in paths(&project) {
        let preflight = [
            ("Origin", "https://client.example"),
            ("Access-Control-Request-Method", "POST"),
            (
                "Access-Control-Request-Headers",
                "content-type, git-protocol",
            ),
        ];
        let request = web::request("OPTIONS", service.port, &path, &preflight);
        let answer = service.fetch(request).await.unwrap();
        assert_eq!(answer.status, 204, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), "*", "{path}");
        assert_eq!(
            answer.header("access-control-allow-methods"),
            "GET, POST",
            "{path}"
        );
        assert!(answer.body.is_empty());
    }
}

#[tokio::test]
async fn a_repository_has_a_page_with_its_clone_command() {
    let service = Service::start().await;
    let mut client = Client::connect(&service).await;
    let project = Project::active(&service, &mut client, "page").await;
    let path = Service::repository_path(&project.owner, "page");
    let accept = [("Accept", "text/html")];
    let request = web::request("GET", service.port, &path, &accept);
    let answer = service.fetch(request).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/html"));
    let text = answer.text();
    assert!(text.contains("git clone"), "{text}");
    assert!(
        text.contains(&path) && text.contains(&service.domain()),
        "{text}"
    );
    assert!(text.contains("https://"), "no links to clients: {text}");
    // The command is a command: what it says to clone can be cloned.
    let command = text
        .lines()
        .find_map(|line| line.strip_prefix("<pre>git clone http"));
    let url = format!("http{}", command.unwrap().trim_end_matches("</pre>"));
    let (_clone, out) = crate::support::Repo::clone(&url, &[]).await;
    out.good();
}

#[tokio::test]
async fn what_is_not_hosted_has_a_page_that_escapes_its_path() {
    let service = Service::start().await;
    let attack = "%3Cscript%3Ealert(1)%3C/script%3E";
    let nowhere = Service::repository_path(&Keys::generate(), "nowhere");
    for path in [
        nowhere.clone(),
        format!("/{attack}"),
        format!("/<b>{attack}")
            .replace('<', "%3c")
            .replace('>', "%3e"),
        Service::repository_path(&Keys::generate(), "<script>alert(1)<script>"),
        format!("/x?{attack}"),
        "/x?q='\"><script>alert(1)"
            .replace('"', "%22")
            .replace('<', "%3c")
            .replace('>', "%3e"),
    ] {
        let request = web::request("GET", service.port, &path, &[("Accept", "text/html")]);
        let answer = service.fetch(request).await.unwrap();
        assert_eq!(answer.status, 404, "{path}");
        assert!(
            answer.header("content-type").starts_with("text/html"),
            "{path}"
        );
        let text = answer.text();
        assert!(!text.contains("<script>alert"), "{path}: {text}");
        assert!(!text.is_empty());
    }
    let text = service.get(&nowhere).await.unwrap().text();
    assert!(
        text.contains("nowhere"),
        "does not say what was asked for: {text}"
    );
}

#[tokio::test]
async fn a_repository_that_waits_is_not_shown_as_hosted_elsewhere() {
    let service = Service::start().await;
    let keys = Keys::generate();
    let path = Service::repository_path(&keys, "nowhere");
    let path = format!("{path}/info/refs?service=git-receive-pack");
    let answer = service.get(&path).await.unwrap();
    assert_eq!(answer.status, 404);
    assert!(!answer.body.is_empty());
}

async fn nip11(service: &Service) -> Value {
    let accept = [("Accept", "application/nostr+json")];
    let request = web::request("GET", service.port, "/", &accept);
    let answer = service.fetch(request).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .header("content-type")
            .starts_with("application/nostr+json")
    );
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn nip_11_tells_what_the_service_is() {
    let secret = Keys::generate();
    let service = Service::start_with(&[
        ("NGIT_RELAY_NAME", "The name"),
        ("NGIT_RELAY_DESCRIPTION", "What it is for"),
        (
            "NGIT_RELAY_OWNER_NSEC",
            &secret.secret_key().to_secret_hex(),
        ),
        ("NGIT_RELAY_MAX_SUBSCRIPTIONS", "7"),
        ("NGIT_RELAY_FILTER_LIMIT", "11"),
    ])
    .await;
    let document = nip11(&service).await;
    assert_eq!(document["name"], "The name");
    assert_eq!(document["description"], "What it is for");
    assert_eq!(document["pubkey"], secret.public_key().to_hex());
    for field in ["icon", "software", "version", "repo_acceptance_criteria"] {
        assert!(document[field].is_string(), "{field}: {document}");
    }
    assert_eq!(
        document["supported_grasps"],
        serde_json::json!(["GRASP-01", "GRASP-02"])
    );
    assert!(document.get("curation").is_none(), "{document}");
    let nips = document["supported_nips"].as_array().unwrap();
    for nip in [1, 9, 11, 34] {
        assert!(nips.contains(&nip.into()), "{nip}: {document}");
    }
    assert_eq!(document["limitation"]["max_subscriptions"], 7, "{document}");
    assert_eq!(document["limitation"]["max_limit"], 11, "{document}");
}

#[tokio::test]
async fn a_browser_is_shown_a_landing_page() {
    let service = Service::start().await;
    let request = web::request("GET", service.port, "/", &[("Accept", "text/html")]);
    let answer = service.fetch(request).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/html"));
    let text = answer.text();
    let init = format!(
        "ngit init --name my-project --grasp-server http://{}<",
        service.domain()
    );
    assert!(text.contains(&init), "{text}");
    let hint = format!("/ws%3A%2F%2Flocalhost%3A{}/my-project", service.port);
    assert!(text.contains(&hint), "{text}");
}

#[tokio::test]
async fn health_readiness_and_metrics_are_answered() {
    let service = Service::start().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(service.get(path).await.unwrap().status, 200);
    }
    let answer = service.get("/metrics").await.unwrap();
    assert_eq!(answer.status, 200);
    let text = answer.text();
    for role in ["relay", "gitd"] {
        let wanted = format!("ngit_process_resident_bytes{{role=\"{role}\"}}");
        assert!(text.contains(&wanted), "{wanted}: {text}");
    }
}

#[tokio::test]
async fn metrics_can_be_switched_off() {
    let service = Service::start_with(&[("NGIT_METRICS_ENABLED", "false")]).await;
    assert_eq!(service.get("/metrics").await.unwrap().status, 404);
}
