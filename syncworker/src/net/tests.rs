use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;

use super::*;

/// Answers each look-up with the next of its answers, the last one for ever.
struct Fixed(Vec<Vec<&'static str>>, AtomicUsize);

impl Resolve for Fixed {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let turn = self.1.fetch_add(1, Ordering::Relaxed).min(self.0.len() - 1);
        let answer = self.0[turn].iter().map(|ip| ip.parse().unwrap()).collect();
        Box::pin(async { Ok(answer) })
    }
}

fn net(allowed: Allowed, answers: Vec<Vec<&'static str>>) -> (Net, Arc<Fixed>) {
    let resolver = Arc::new(Fixed(answers, AtomicUsize::new(0)));
    let tls = Arc::new(tls(RootCertStore::empty()));
    (
        Net::with(allowed, Arc::clone(&resolver) as _, tls),
        resolver,
    )
}

const LOOPBACK: Allowed = Allowed {
    non_global: false,
    loopback: true,
};

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn forbidden_addresses_are_never_dialled() {
    let (net, resolver) = net(
        Allowed::default(),
        vec![vec!["127.0.0.1", "10.0.0.1", "::1"]],
    );
    let (_listener, port) = listener().await;
    for host in [
        "name.example",
        "127.0.0.1",
        "[::1]",
        "::1",
        "::ffff:127.0.0.1",
        "[::ffff:7f00:1]",
        "169.254.169.254",
        "0.0.0.0",
        "fe80::1%lo",
        "[fe80::1%25lo]",
        "1:2",
        "",
    ] {
        let refused = net.dial(host, port).await;
        assert!(
            matches!(refused, Err(NetError::Forbidden(_))),
            "{host} {refused:?}"
        );
    }
    // What is no name is not looked up.
    assert_eq!(resolver.1.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn only_the_allowed_addresses_of_a_name_are_dialled() {
    let (net, resolver) = net(
        LOOPBACK,
        vec![vec!["10.1.2.3", "127.0.0.1"], vec!["10.1.2.3"]],
    );
    let (listener, port) = listener().await;
    let stream = net.dial("name.example", port).await.unwrap();
    assert!(stream.nodelay().unwrap());
    assert_eq!(stream.peer_addr().unwrap(), listener.local_addr().unwrap());
    assert_eq!(resolver.1.load(Ordering::Relaxed), 1);
    // The name means something else now, and nothing was remembered.
    let refused = net.dial("name.example", port).await;
    assert!(
        matches!(refused, Err(NetError::Forbidden(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn the_next_address_is_tried() {
    let (net, _) = net(LOOPBACK, vec![vec!["127.0.0.2", "::1", "127.0.0.1"]]);
    let (_listener, port) = listener().await;
    let stream = net.dial("name.example", port).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap().ip().to_string(), "127.0.0.1");
}

#[tokio::test]
async fn ports_of_other_protocols_and_other_schemes_are_refused() {
    let (net, resolver) = net(LOOPBACK, vec![vec!["127.0.0.1"]]);
    for port in [0, 22, 25, 6379] {
        let refused = net.dial("name.example", port).await;
        assert!(matches!(refused, Err(NetError::Forbidden(_))), "{port}");
    }
    for url in [
        "file:///etc/passwd",
        "ssh://name.example/x",
        "ftp://name.example/x",
    ] {
        let refused = net.connect(&url.parse().unwrap()).await;
        assert!(matches!(refused, Err(NetError::Forbidden(_))), "{url}");
    }
    assert_eq!(resolver.1.load(Ordering::Relaxed), 0);
}

/// TCP has no way there, on any machine.
const NO_WAY: &str = "255.255.255.255";

#[tokio::test]
async fn our_own_network_is_no_fault_of_the_servers() {
    let anywhere = Allowed {
        non_global: true,
        loopback: true,
    };
    let (listener, closed) = listener().await;
    drop(listener);
    let of = |addresses: Vec<&'static str>| async move {
        let (net, _) = net(anywhere, vec![addresses]);
        net.dial("name.example", closed).await.unwrap_err()
    };
    let nowhere = of(vec![NO_WAY]).await;
    assert!(matches!(nowhere, NetError::Ours(_)), "{nowhere:?}");
    // Where one of its addresses can be reached, it is the server's.
    for addresses in [
        vec![NO_WAY, "127.0.0.1"],
        vec!["127.0.0.1", NO_WAY],
        vec!["127.0.0.1", "127.0.0.2"],
    ] {
        let refused = of(addresses).await;
        assert!(matches!(refused, NetError::Connect { .. }), "{refused:?}");
    }
}

/// Fails every look-up.
struct Failing(fn() -> io::Error);

impl Resolve for Failing {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async { Err(self.0()) })
    }
}

/// How the system's resolver begins.
const AT: &str = "failed to lookup address information: ";

/// Never ends one.
struct Mute;

impl Resolve for Mute {
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_resolver_that_is_away_is_ours_and_a_name_that_is_not_is_theirs() {
    let of = |resolver: Arc<dyn Resolve>| async {
        let net = Net::with(LOOPBACK, resolver, Arc::new(tls(RootCertStore::empty())));
        net.dial("name.example", 443).await.unwrap_err()
    };
    let ours: [fn() -> io::Error; 3] = [
        || io::Error::other(format!("{AT}Temporary failure in name resolution")),
        || io::Error::other(format!("{AT}Try again")),
        || io::Error::from(Errno::MFILE),
    ];
    for error in ours {
        let error = of(Arc::new(Failing(error))).await;
        assert!(matches!(error, NetError::Ours(_)), "{error:?}");
    }
    let error = of(Arc::new(Mute)).await;
    assert!(matches!(error, NetError::Ours(_)), "{error:?}");
    let theirs: [fn() -> io::Error; 2] = [
        || io::Error::other(format!("{AT}Name or service not known")),
        || io::Error::other(format!("{AT}No address associated with hostname")),
    ];
    for error in theirs {
        let error = of(Arc::new(Failing(error))).await;
        assert!(matches!(error, NetError::Resolve { .. }), "{error:?}");
    }
}

#[test]
fn families_take_turns() {
    let ips = ["2a00::1", "2a00::2", "2a00::1", "2a00::3", "9.9.9.9"];
    let ips = ips.map(|ip| ip.parse().unwrap());
    let order: Vec<_> = in_turn(ips.into_iter())
        .iter()
        .map(|ip| ip.to_string())
        .collect();
    assert_eq!(order, ["2a00::1", "9.9.9.9", "2a00::2", "2a00::3"]);
}

#[test]
fn credentials_are_not_shown() {
    let url = "https://user:secret@name.example/x?y#z".parse().unwrap();
    assert_eq!(http::shown(&url), "https://name.example/x?y");
}
