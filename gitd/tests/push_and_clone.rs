//! Pushed and cloned with the real `git`, against a running gitd and a stand-in relay.

mod common;

use common::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_cloned_in_every_version() {
    let service = Service::start().await;
    let repo = repo(1, "größe -x");
    service.create(&repo).await;
    let path = work(service.directory.path(), "work", 3).await;
    git(&path, &["tag", "-a", "v1", "-m", "one"]).await;
    git(&path, &["push", "-q", &service.url(&repo), "main", "v1"]).await;
    let head = rev(&path, "main").await;
    for version in ["0", "1", "2"] {
        let name = format!("clone{version}");
        let protocol = format!("protocol.version={version}");
        git(
            service.directory.path(),
            &["-c", &protocol, "clone", "-q", &service.url(&repo), &name],
        )
        .await;
        let clone = service.directory.path().join(&name);
        assert_eq!(rev(&clone, "HEAD").await, head);
        assert_eq!(rev(&clone, "v1^{commit}").await, head);
        assert_eq!(git(&clone, &["branch", "--show-current"]).await, "main");
    }
}
