//! Where a fetch may be led.

use std::sync::{Arc, atomic::Ordering};

use grasp_proto::contract::relay::failed::Why;
use grasp_syncworker::hunt::fetch;
use http::{Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, net::TcpListener};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{RootCertStore, ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};

use crate::{
    backend,
    support::{
        Body, Names, Repository, Seen, failure, full, git, net, net_of, net_with, raw, serve,
        wanted, whole, why,
    },
};

fn to(location: &str) -> Response<Body> {
    let mut response = Response::new(full("elsewhere"));
    *response.status_mut() = StatusCode::FOUND;
    let location = location.parse().unwrap();
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// Redirects everything to `location`, `{path}` in it being the request's.
async fn redirecting(location: impl Into<String>) -> (u16, Seen) {
    let (location, seen) = (location.into(), Seen::default());
    let log = seen.clone();
    let port = serve(move |request| {
        log.saw(request.uri().to_string());
        let path = request.uri().path_and_query().unwrap().as_str();
        let location = location.replace("{path}", path);
        async move { to(&location) }
    })
    .await;
    (port, seen)
}

#[tokio::test]
async fn a_repository_that_has_moved_on_its_server_is_followed() {
    let there = Repository::new();
    let tip = there.commit("a", "1");
    let root = there.root().to_owned();
    let seen = Seen::default();
    let log = seen.clone();
    let port = serve(move |request| {
        let (root, log) = (root.clone(), log.clone());
        async move {
            log.saw(request.uri().to_string());
            let path = request.uri().path_and_query().unwrap().as_str();
            let host = request.headers()[header::HOST].to_str().unwrap();
            if let Some(rest) = path.strip_prefix("/first") {
                to(&format!("http://user:pass@{host}/old{rest}"))
            } else if let Some(rest) = path.strip_prefix("/old") {
                to(&format!("/repo/.git{rest}"))
            } else {
                backend::answer(git().into(), &root, request).await.unwrap()
            }
        }
    })
    .await;
    let names = Names::default().with("moved.example", &[&["127.0.0.1"]]);
    let (net, names) = net_of(names);
    let wanted = wanted(&format!("http://moved.example:{port}/first"), &[tip]);
    let pack = fetch::open(&net, &wanted).await.unwrap();
    Repository::new().take(&whole(pack).await.unwrap(), &[tip]);
    let query = "info/refs?service=git-upload-pack";
    let expected = [
        format!("/first/{query}"),
        format!("/old/{query}"),
        format!("/repo/.git/{query}"),
        "/repo/.git/git-upload-pack".to_owned(),
    ];
    assert_eq!(seen.all(), expected);
    assert_eq!(names.lookups.load(Ordering::Relaxed), 1);
}

/// Whoever has names without number could aim all workers at one server with it, past its budget.
#[tokio::test]
async fn no_other_server_is_gone_to() {
    let there = Repository::new();
    let tip = there.commit("a", "1");
    let root = there.root().to_owned();
    let seen = Seen::default();
    let log = seen.clone();
    let victim = serve(move |request| {
        let (root, log) = (root.clone(), log.clone());
        async move {
            log.saw(request.uri().to_string());
            backend::answer(git().into(), &root, request).await.unwrap()
        }
    })
    .await;
    let names = Names::default()
        .with("here.example", &[&["127.0.0.1"]])
        .with("www.here.example", &[&["127.0.0.1"]])
        .with("victim.example", &[&["127.0.0.1"]]);
    let (net, _) = net_of(names);
    let query = "info/refs?service=git-upload-pack";
    for host in [
        "victim.example",
        "www.here.example",
        "here.example",
        "127.0.0.1",
    ] {
        let location = format!("http://u:secret@{host}:{victim}/repo/.git/{query}");
        let (port, _) = redirecting(location).await;
        let url = format!("http://here.example:{port}/repo.git");
        let error = fetch::open(&net, &wanted(&url, &[tip])).await.unwrap_err();
        let expected = format!("it redirects to another server, http://{host}:{victim}");
        assert_eq!((error.why, error.detail), (Why::Forbidden, expected));
    }
    assert_eq!(seen.all(), Vec::<String>::new());
    // It is not that nothing could be had there.
    let url = format!("http://victim.example:{victim}/repo/.git");
    assert!(fetch::open(&net, &wanted(&url, &[tip])).await.is_ok());
}

#[tokio::test]
async fn redirects_lead_to_forbidden_places_in_vain() {
    let (trap, caught) = redirecting("/").await;
    let names = Names::default()
        .with("public.example", &[&["127.0.0.1"]])
        .with("inside.example", &[&["10.0.0.1", "192.168.0.1"]]);
    let (net, _) = net_of(names);
    for location in [
        "http://inside.example{path}",
        "http://10.0.0.1{path}",
        "http://169.254.169.254{path}",
        "http://[::ffff:10.0.0.1]{path}",
        "http://[fd00::1]{path}",
        "http://public.example:22{path}",
        "https://public.example{path}",
        "file:///etc/passwd",
        "file://{path}",
        "ftp://public.example{path}",
        "gopher://public.example/x",
        "http://public.example/a/login/page",
    ] {
        let (port, _) = redirecting(location).await;
        let url = format!("http://public.example:{port}/repo.git");
        assert_eq!(why(&net, &url).await, Why::Forbidden, "{location}");
    }
    let (port, _) = redirecting("http://").await;
    assert_eq!(
        why(&net, &format!("http://127.0.0.1:{port}/r.git")).await,
        Why::Unwell
    );
    // The conversation is not led away from its middle.
    let away = format!("http://127.0.0.1:{trap}/x/git-upload-pack");
    let port = serve(move |request| {
        let away = away.clone();
        async move {
            if request.method() == "POST" {
                return to(&away);
            }
            let mut response = Response::new(full("000eversion 2\n000afetch\n0000"));
            let kind = "application/x-git-upload-pack-advertisement"
                .parse()
                .unwrap();
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
    })
    .await;
    assert_eq!(
        why(&net, &format!("http://127.0.0.1:{port}/r.git")).await,
        Why::Forbidden
    );
    assert_eq!(caught.all(), Vec::<String>::new());
}

#[tokio::test]
async fn loops_end() {
    let (port, seen) = redirecting("{path}").await;
    assert_eq!(
        why(&net(), &format!("http://127.0.0.1:{port}/r.git")).await,
        Why::Forbidden
    );
    assert_eq!(seen.all().len(), 6);
}

#[tokio::test]
async fn urls_that_are_not_for_us() {
    let names = Names::default()
        .with("inside.example", &[&["10.0.0.1"]])
        .with(
            "wrapped.example",
            &[&["::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"]],
        );
    let (net, names) = net_of(names);
    for url in [
        "file:///etc/passwd",
        "ssh://git@name.example/x",
        "git://name.example/x",
        "ftp://name.example/x",
        "data:text/plain,x",
        "http://127.0.0.1:22/x",
        "http://inside.example/x",
        "http://wrapped.example/x",
        "http://10.0.0.1/x",
        "http://0.0.0.0:8080/x",
        "http://0xa.1/x",
        "http://167772161/x",
        "http://[::]:8080/x",
        "http://[fe80::1]/x",
        "http://[::ffff:192.168.0.1]/x",
        "http://[64:ff9b::a00:1]/x",
        "http://[2002:a00:1::1]/x",
        "http://[2001:0:a00:1::1]/x",
    ] {
        assert_eq!(why(&net, url).await, Why::Forbidden, "{url}");
    }
    assert_eq!(names.lookups.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_name_is_looked_up_once_for_a_connection_and_judged_each_time() {
    let there = Repository::new();
    let tip = there.commit("a", "1");
    let rebinding = || {
        Names::default().with(
            "changing.example",
            &[&["127.0.0.1"], &["10.0.0.1"], &["10.0.0.2"]],
        )
    };
    for closing in [false, true] {
        let root = there.root().to_owned();
        let port = serve(move |request| {
            let root = root.clone();
            async move {
                let mut response = backend::answer(git().into(), &root, request).await.unwrap();
                if closing {
                    let close = "close".parse().unwrap();
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                response
            }
        })
        .await;
        let (net, names) = net_of(rebinding());
        let url = format!("http://changing.example:{port}/repo/.git");
        let result = fetch::open(&net, &wanted(&url, &[tip])).await;
        let lookups = names.lookups.load(Ordering::Relaxed);
        match closing {
            false => {
                whole(result.unwrap()).await.unwrap();
                assert_eq!(lookups, 1);
            }
            // Another connection is another look-up, and its answer is judged like the first.
            true => {
                assert_eq!(result.unwrap_err().why, Why::Forbidden);
                assert_eq!(lookups, 2);
            }
        }
    }
}

#[tokio::test]
async fn credentials_are_neither_sent_nor_told() {
    let seen = Seen::default();
    let log = seen.clone();
    let port = raw(move |head, mut stream| {
        log.saw(head.clone());
        async move {
            if !head.contains("/first/") {
                return;
            }
            let host = head.lines().find_map(|line| line.strip_prefix("host: "));
            let to = format!(
                "http://user:s3cret@{}/r.git/info/refs?service=git-upload-pack",
                host.unwrap()
            );
            let answer =
                format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let error = failure(
        &net(),
        &format!("http://user:s3cret@127.0.0.1:{port}/r.git#s3cret"),
    )
    .await;
    assert_eq!(error.why, Why::Server);
    let redirected = failure(&net(), &format!("http://u:s3cret@127.0.0.1:{port}/first")).await;
    // It is there, as it has answered once.
    assert_eq!(redirected.why, Why::Unwell, "{redirected}");
    assert!(!redirected.detail.contains("s3cret"), "{redirected}");
    let heads = seen.all();
    assert_eq!(heads.len(), 3, "{heads:?}");
    for head in heads {
        let head = head.to_lowercase();
        assert!(
            !head.contains("authorization") && !head.contains("user:"),
            "{head}"
        );
        assert!(head.contains("accept-encoding: identity"), "{head}");
    }
    assert!(!error.detail.contains("s3cret"), "{error}");
}

/// A server in TLS under `secure.example`, and the certificate that vouches for it.
async fn secure(location: String) -> (u16, RootCertStore) {
    let made = rcgen::generate_simple_self_signed(["secure.example".to_owned()]).unwrap();
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
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else {
                continue;
            };
            let service = hyper::service::service_fn(|_| {
                let answer = to(&location);
                async { Ok::<_, std::convert::Infallible>(answer) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    });
    (port, roots)
}

#[tokio::test]
async fn tls_is_checked_and_not_left() {
    let (plain, caught) = redirecting("/").await;
    let (port, roots) = secure(format!("http://127.0.0.1:{plain}/r.git")).await;
    let names = || {
        Names::default()
            .with("secure.example", &[&["127.0.0.1"]])
            .with("other.example", &[&["127.0.0.1"]])
    };
    let (trusting, _) = net_with(names(), roots);
    let error = failure(&trusting, &format!("https://secure.example:{port}/r.git")).await;
    assert_eq!(error.why, Why::Forbidden);
    assert_eq!(error.detail, "it redirects from https to http");
    // The name must be the certificate's, and the certificate one that is trusted.
    assert_eq!(
        why(&trusting, &format!("https://other.example:{port}/r.git")).await,
        Why::Server
    );
    let (net, _) = net_of(names());
    assert_eq!(
        why(&net, &format!("https://secure.example:{port}/r.git")).await,
        Why::Server
    );
    // And a server must speak it.
    assert_eq!(
        why(&net, &format!("https://secure.example:{plain}/r.git")).await,
        Why::Server
    );
    assert_eq!(caught.all(), Vec::<String>::new());
}

/// Runs itself again with proxies in its environment, which only a process of its own can have.
#[tokio::test]
async fn proxies_of_the_environment_are_ignored() {
    const TARGET: &str = "GRASP_TEST_PROXY_TARGET";
    if let Ok(url) = std::env::var(TARGET) {
        assert_eq!(why(&net(), &url).await, Why::Busy);
        return;
    }
    let proxied = Seen::default();
    let log = proxied.clone();
    let proxy = raw(move |head, _stream| {
        log.saw(head);
        async {}
    })
    .await;
    let port = serve(|_| async {
        let mut response = Response::new(full("busy"));
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        response
    })
    .await;
    let proxy = format!("http://127.0.0.1:{proxy}");
    let mut again = tokio::process::Command::new(std::env::current_exe().unwrap());
    again
        .args([
            "--exact",
            "redirects::proxies_of_the_environment_are_ignored",
        ])
        .env(TARGET, format!("http://127.0.0.1:{port}/r.git"));
    for name in [
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ] {
        again.env(name, &proxy);
    }
    again.env_remove("no_proxy").env_remove("NO_PROXY");
    let output = again.output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    assert_eq!(proxied.all(), Vec::<String>::new());
}
