//! Git's own server, in every version of its protocol.

use std::path::PathBuf;

use grasp_proto::{contract::relay::failed::Why, words::Oid};
use grasp_syncworker::hunt::fetch::{self, FetchError, Wanted};
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::BodyExt;

use crate::{
    backend,
    support::{Body, Repository, Seen, full, git, net, oid, serve, wanted, whole},
};

/// What the server speaks, whatever it is asked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V0,
    /// As servers of another make speak it: without a sideband.
    Plain,
    V1,
    V2,
}

const VERSIONS: [Version; 4] = [Version::V0, Version::Plain, Version::V1, Version::V2];

/// An advertisement without the sidebands it offers.
async fn without_sideband(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    head.headers.remove(header::CONTENT_LENGTH);
    let body = body.collect().await.unwrap().to_bytes();
    let mut text = String::from_utf8(body.to_vec()).unwrap();
    if let Some(at) = text.find(" side-band side-band-64k") {
        let cut = " side-band side-band-64k".len();
        text.replace_range(at..at + cut, "");
        let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
        // Behind the flush that ends the service's name.
        let start = start + 4 * usize::from(text[start..].starts_with("0000"));
        let length = usize::from_str_radix(&text[start..start + 4], 16).unwrap();
        text.replace_range(start..start + 4, &format!("{:04x}", length - cut));
    }
    Response::from_parts(head, full(text))
}

/// Git's server over everything below `root`. What it is asked is written down.
async fn server(root: PathBuf, version: Version) -> (String, Seen) {
    let seen = Seen::default();
    let log = seen.clone();
    let port = serve(move |mut request| {
        let (root, log) = (root.clone(), log.clone());
        async move {
            log.saw(format!("{} {}", request.method(), request.uri()));
            let headers = request.headers_mut();
            assert!(
                headers["user-agent"]
                    .to_str()
                    .unwrap()
                    .starts_with("graspd/")
            );
            match version {
                Version::V0 | Version::Plain => drop(headers.remove("git-protocol")),
                Version::V1 => {
                    headers.insert("git-protocol", HeaderValue::from_static("version=1"));
                }
                Version::V2 => assert_eq!(headers["git-protocol"], "version=2"),
            }
            let advertises = request.method() == Method::GET;
            let response = backend::answer(git().into(), &root, request)
                .await
                .unwrap_or_else(|error| {
                    let mut response = Response::new(full(error.to_string()));
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    response
                });
            match version {
                Version::Plain if advertises => without_sideband(response).await,
                _ => response,
            }
        }
    })
    .await;
    (format!("http://127.0.0.1:{port}/repo/.git"), seen)
}

async fn of(repository: &Repository, version: Version) -> String {
    server(repository.root().to_owned(), version).await.0
}

async fn fetch(wanted: &Wanted) -> Result<(Vec<u8>, Vec<Oid>), FetchError> {
    let pack = fetch::open(&net(), wanted).await?;
    let asked = pack.asked().to_vec();
    Ok((whole(pack).await?, asked))
}

async fn refusal(wanted: &Wanted) -> Why {
    let error = fetch(wanted).await.expect_err("a pack came");
    println!("{:?}: {error}", error.why);
    error.why
}

fn random(bytes: usize) -> Vec<u8> {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let state = RandomState::new();
    (0..bytes as u64)
        .map(|n| {
            let mut hasher = state.build_hasher();
            hasher.write_u64(n);
            hasher.finish().to_le_bytes()[0]
        })
        .collect()
}

#[tokio::test]
async fn tips_come_with_their_whole_history() {
    let there = Repository::new();
    let first = there.commit("a", "1");
    let second = there.commit("b", random(300_000));
    there.git(&["checkout", "-q", "-b", "other", &first.to_hex()]);
    let other = there.commit("c", "3");
    for version in VERSIONS {
        let (url, seen) = server(there.root().to_owned(), version).await;
        let here = Repository::new();
        let (pack, asked) = fetch(&wanted(&url, &[second, other, second]))
            .await
            .unwrap();
        assert_eq!(asked, [second, other], "{version:?}");
        here.take(&pack, &[second, other]);
        assert!(here.has(&first));
        // One question about the server, one for the pack.
        assert_eq!(seen.all().len(), 2, "{:?}", seen.all());
    }
}

#[tokio::test]
async fn only_the_difference_travels() {
    let there = Repository::new();
    let mut content = random(1_000_000);
    let first = there.commit("large", &content);
    content.extend_from_slice(b"and a line more");
    let second = there.commit("large", &content);
    for version in VERSIONS {
        let url = of(&there, version).await;
        let here = Repository::new();
        here.git(&[
            "fetch",
            "-q",
            &there.path().to_string_lossy(),
            &first.to_hex(),
        ]);
        let mut wanted = wanted(&url, &[second]);
        wanted.haves = vec![oid(7), first];
        let (pack, _) = fetch(&wanted).await.unwrap();
        assert!(pack.len() < 20_000, "{version:?}: {} bytes", pack.len());
        here.take(&pack, &[second]);
    }
}

#[tokio::test]
async fn what_no_ref_names() {
    let there = Repository::new();
    let first = there.commit("a", "1");
    let second = there.commit("a", "2");
    for version in VERSIONS {
        let url = of(&there, version).await;
        let (only, both) = (wanted(&url, &[first]), wanted(&url, &[first, second]));
        if version == Version::V2 {
            Repository::new().take(&fetch(&only).await.unwrap().0, &[first]);
        } else {
            // The tip, which leads to it, was not asked for, and does not come.
            assert_eq!(refusal(&only).await, Why::NotThere);
        }
        let (pack, asked) = fetch(&both).await.unwrap();
        assert!(asked.contains(&second));
        Repository::new().take(&pack, &[first, second]);
    }
    there.git(&["config", "uploadpack.allowReachableSHA1InWant", "true"]);
    for version in VERSIONS {
        let url = of(&there, version).await;
        let here = Repository::new();
        here.take(&fetch(&wanted(&url, &[first])).await.unwrap().0, &[first]);
        assert!(!here.has(&second));
    }
}

#[tokio::test]
async fn tags_and_what_they_lead_to() {
    let there = Repository::new();
    let tagged = there.commit("a", "1");
    there.git(&["tag", "-a", "-m", "one", "v1"]);
    let tag = there.oid("refs/tags/v1");
    assert_ne!(tag, tagged);
    // Nothing but the tag leads to it any more.
    there.git(&["checkout", "-q", "--orphan", "new"]);
    let tip = there.commit("b", "2");
    there.git(&["branch", "-q", "-D", "main"]);
    for version in VERSIONS {
        let url = of(&there, version).await;
        for wants in [&[tag][..], &[tagged], &[tagged, tag, tip]] {
            let (pack, asked) = fetch(&wanted(&url, wants)).await.unwrap();
            assert_eq!(asked, wants, "{version:?}");
            Repository::new().take(&pack, wants);
        }
    }
}

#[tokio::test]
async fn what_is_missing_does_not_keep_the_rest() {
    let there = Repository::new();
    let first = there.commit("a", "1");
    let tip = there.commit("a", "2");
    let missing: Vec<Oid> = (1..=20).map(oid).collect();
    for reachable in ["false", "true"] {
        there.git(&["config", "uploadpack.allowReachableSHA1InWant", reachable]);
        for version in VERSIONS {
            let (url, seen) = server(there.root().to_owned(), version).await;
            let one = [missing[0], tip, missing[1]];
            let (pack, asked) = fetch(&wanted(&url, &one)).await.unwrap();
            assert_eq!(asked, [tip], "{version:?}");
            Repository::new().take(&pack, &[tip]);

            // More than are found out one by one: what refs lead to, then.
            let mut many = missing.clone();
            many.extend([first, tip]);
            let (pack, asked) = fetch(&wanted(&url, &many)).await.unwrap();
            assert_eq!(asked, [tip], "{version:?}");
            Repository::new().take(&pack, &[tip]);
            assert!(seen.all().len() < 16, "{:?}", seen.all());

            assert_eq!(refusal(&wanted(&url, &missing)).await, Why::NotThere);
        }
    }
}

#[tokio::test]
async fn repositories_that_have_nothing_for_us() {
    let empty = Repository::new();
    let other_hash = Repository::of_format("sha256");
    std::fs::write(other_hash.path().join("a"), "1").unwrap();
    other_hash.git(&["add", "a"]);
    other_hash.git(&["commit", "-q", "-m", "a"]);
    let source = Repository::new();
    source.commit("a", "1");
    let tip = source.commit("a", "2");
    let shallow = Repository::new();
    let from = format!("file://{}", source.path().display());
    shallow.git(&["fetch", "-q", "--depth=1", &from, "main:refs/heads/copy"]);
    for version in VERSIONS {
        for repository in [&empty, &other_hash, &shallow] {
            let url = of(repository, version).await;
            assert_eq!(
                refusal(&wanted(&url, &[tip])).await,
                Why::NotThere,
                "{version:?}"
            );
        }
        let url = of(&empty, version).await.replace("repo", "none");
        assert_eq!(refusal(&wanted(&url, &[tip])).await, Why::NotThere);
    }
}

#[tokio::test]
async fn a_pack_is_bounded() {
    let there = Repository::new();
    let tip = there.commit("large", random(500_000));
    let url = of(&there, Version::V2).await;
    let mut wanted = wanted(&url, &[tip]);
    wanted.max_bytes = 100_000;
    assert_eq!(refusal(&wanted).await, Why::Large);
    wanted.max_bytes = 1_000_000;
    assert!(fetch(&wanted).await.is_ok());
}

#[tokio::test]
async fn many_at_once() {
    let there = Repository::new();
    let tips: Vec<Oid> = (0..8).map(|n| there.commit("a", n.to_string())).collect();
    let url = of(&there, Version::V2).await;
    let fetches = tips.iter().map(|tip| {
        let wanted = wanted(&url, &[*tip]);
        async move { fetch(&wanted).await.unwrap().0 }
    });
    for (pack, tip) in futures::future::join_all(fetches).await.iter().zip(&tips) {
        Repository::new().take(pack, &[*tip]);
    }
}
