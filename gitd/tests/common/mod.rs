//! A gitd of one's own with a stand-in relay beside it, over real sockets, and the real `git`.

#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use grasp_gitd::{Config, relay::GrpcRelay};
use grasp_proto::{
    contract::{
        Command as Line,
        git::{
            AlignRequest, ClockRequest, CreateRequest, DeleteRefRequest, ListRefsRequest,
            MissingRequest, PutRefRequest, Ref, packs_client::PacksClient,
            repositories_client::RepositoriesClient,
        },
        relay::{
            AuthorizeRequest, AuthorizeResponse, CommandResult, CommitRequest, CommitResponse,
            Granted, KeepAliveRequest, KeepAliveResponse, Objects, Refused, Repository,
            authorize_response::Outcome,
            push_server::{Push, PushServer},
        },
    },
    process::settings::Settings,
    transport::{self, AuthorizedChannel, Endpoint, GrantKey, Guard, Role, Token, Tokens},
    words::{Identifier, Npub, Oid, RefKind, RefName, RepoId},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

/// How the stand-in judges pushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judgement {
    /// Branches and tags are signed for, pull requests are staged.
    Grant,
    /// Everything is signed for.
    GrantAll,
    /// Everything is staged: somebody else claims it.
    Stage,
    /// Everything is staged beside what waits there: the ref stays where it is.
    StageBeside,
    /// Nothing changes: what is pushed is thrown away.
    Unwanted,
    /// No, before the pack.
    Refuse(String),
    /// No, after the pack.
    RefuseCommit(String),
}

/// The stand-in relay's Push.
#[derive(Clone)]
pub struct StandIn {
    pub judgement: Arc<Mutex<Judgement>>,
    pub asked: Arc<Mutex<Vec<AuthorizeRequest>>>,
    /// It was restarted, and knows of no push.
    pub forgot: Arc<AtomicBool>,
    git: RepositoriesClient<AuthorizedChannel>,
}

#[tonic::async_trait]
impl Push for StandIn {
    async fn authorize(
        &self,
        request: Request<AuthorizeRequest>,
    ) -> Result<Response<AuthorizeResponse>, Status> {
        let request = request.into_inner();
        let nostr = request
            .commands
            .iter()
            .all(|command| command.name.starts_with("refs/nostr/"));
        let push_id = match request.push_id.as_str() {
            "" => "push".to_owned(),
            named => named.to_owned(),
        };
        self.asked.lock().unwrap().push(request);
        self.forgot.store(false, Ordering::SeqCst);
        let objects = match &*self.judgement.lock().unwrap() {
            Judgement::Refuse(reason) => {
                let reason = reason.clone();
                return Ok(Response::new(AuthorizeResponse {
                    outcome: Some(Outcome::Refused(Refused {
                        reason,
                        ..Refused::default()
                    })),
                }));
            }
            Judgement::Unwanted => Objects::Unwanted,
            Judgement::Stage | Judgement::StageBeside => Objects::Staged,
            Judgement::Grant if nostr => Objects::Staged,
            _ => Objects::SignedFor,
        };
        Ok(Response::new(AuthorizeResponse {
            outcome: Some(Outcome::Granted(Granted {
                push_id,
                objects: objects.into(),
                ..Granted::default()
            })),
        }))
    }

    async fn keep_alive(
        &self,
        _: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveResponse>, Status> {
        match self.forgot.load(Ordering::SeqCst) {
            true => Err(Status::not_found("no such push")),
            false => Ok(Response::new(KeepAliveResponse {})),
        }
    }

    async fn commit(
        &self,
        request: Request<CommitRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let request = request.into_inner();
        let judgement = self.judgement.lock().unwrap().clone();
        let refused = match judgement {
            Judgement::RefuseCommit(reason) => reason,
            Judgement::Unwanted | Judgement::StageBeside => String::new(),
            ref judgement => {
                self.apply(&request, *judgement == Judgement::GrantAll)
                    .await?
            }
        };
        let results = request.commands.into_iter().map(|command| CommandResult {
            name: command.name,
            refused: refused.clone(),
            old: None,
        });
        let results = results.collect();
        Ok(Response::new(CommitResponse {
            results,
            ..CommitResponse::default()
        }))
    }
}

impl StandIn {
    /// Does what the commands say, as if a state had said so.
    async fn apply(&self, request: &CommitRequest, signed_for: bool) -> Result<String, Status> {
        let mut git = self.git.clone();
        let repository = request.repository.clone();
        let mut listed = git
            .list_refs(ListRefsRequest {
                repository: repository.clone(),
                ..ListRefsRequest::default()
            })
            .await?
            .into_inner();
        let mut refs = std::collections::BTreeMap::new();
        while let Some(batch) = listed.message().await? {
            for r in batch.refs {
                if !r.name.starts_with("refs/nostr/") {
                    refs.insert(r.name, r.oid);
                }
            }
        }
        let mut aligned = false;
        for command in &request.commands {
            let line = Line::try_from(command.clone())?;
            if let RefKind::Nostr(_) = line.name.kind() {
                git.put_ref(PutRefRequest {
                    repository: repository.clone(),
                    incarnation: request.incarnation.clone(),
                    r#ref: Some(Ref::new(&line.name, Some(line.new))),
                    expected: None,
                    signed_for,
                })
                .await?;
                continue;
            }
            aligned = true;
            if line.new.is_zero() {
                refs.remove(line.name.as_str());
            } else {
                refs.insert(line.name.to_string(), line.new.as_bytes().to_vec());
            }
        }
        if aligned {
            let head = ["refs/heads/main", "refs/heads/master"]
                .into_iter()
                .find(|name| refs.contains_key(*name))
                .unwrap_or_default()
                .to_owned();
            let refs = refs.into_iter().map(|(name, oid)| Ref { name, oid });
            git.align(AlignRequest {
                repository,
                incarnation: request.incarnation.clone(),
                refs: refs.collect(),
                head,
                expected: Vec::new(),
            })
            .await?;
        }
        Ok(String::new())
    }
}

/// A running gitd and its stand-in relay.
pub struct Service {
    pub directory: tempfile::TempDir,
    pub relay: StandIn,
    pub git: RepositoriesClient<AuthorizedChannel>,
    pub base: String,
    tokens: Tokens,
    stop: CancellationToken,
    stop_relay: CancellationToken,
    running: Option<JoinHandle<()>>,
    relay_running: Option<JoinHandle<()>>,
    settings: Settings,
}

impl Service {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(more: &[(&'static str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = |name: &str| format!("unix:{}/{name}", directory.path().display());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let tokens = Tokens {
            relay: Token::random(),
            gitd: Token::random(),
            worker: Token::random(),
        };
        let mut pairs = vec![
            (
                "NGIT_GIT_DATA_PATH",
                directory.path().join("git").display().to_string(),
            ),
            ("NGIT_GITD_GRPC_ADDRESS", socket("g")),
            ("NGIT_GITD_HTTP_ADDRESS", format!("http://{address}")),
            ("NGIT_RELAY_GRPC_ADDRESS", socket("r")),
            (
                "NGIT_INTERNAL_TOKEN_RELAY",
                tokens.relay.expose().to_owned(),
            ),
            ("NGIT_INTERNAL_TOKEN_GITD", tokens.gitd.expose().to_owned()),
            (
                "NGIT_INTERNAL_TOKEN_WORKER",
                tokens.worker.expose().to_owned(),
            ),
            ("NGIT_SHUTDOWN_GRACE_SECS", "5".to_owned()),
            ("NGIT_DOMAIN", address.to_string()),
        ];
        pairs.extend(
            more.iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let settings = Settings::from_pairs(pairs);
        let gitd: Endpoint = settings.endpoint("NGIT_GITD_GRPC_ADDRESS").unwrap();
        let git = RepositoriesClient::new(gitd.authorized(&tokens.relay));
        let relay = StandIn {
            judgement: Arc::new(Mutex::new(Judgement::Grant)),
            asked: Arc::default(),
            forgot: Arc::default(),
            git: git.clone(),
        };
        let mut service = Self {
            directory,
            relay,
            git,
            base: format!("http://{address}"),
            tokens,
            stop: CancellationToken::new(),
            stop_relay: CancellationToken::new(),
            running: None,
            relay_running: None,
            settings,
        };
        service.start_relay().await;
        service.start_gitd().await;
        service
    }

    pub async fn start_relay(&mut self) {
        let endpoint = self.settings.endpoint("NGIT_RELAY_GRPC_ADDRESS").unwrap();
        let listener = endpoint.listen().await.unwrap();
        let guard = Guard::new(&self.tokens, &[Role::Gitd]);
        let push = InterceptedService::new(PushServer::new(self.relay.clone()), guard);
        let routes = transport::standard_routes(&self.tokens)
            .await
            .add_service(push);
        self.stop_relay = CancellationToken::new();
        let served = transport::serve(listener, routes, self.stop_relay.clone());
        self.relay_running = Some(tokio::spawn(async { served.await.unwrap() }));
    }

    pub async fn stop_relay(&mut self) {
        self.stop_relay.cancel();
        self.relay_running.take().unwrap().await.unwrap();
    }

    pub async fn start_gitd(&mut self) {
        self.stop = CancellationToken::new();
        let config = Config::from_settings(&self.settings).unwrap();
        let stop = self.stop.clone();
        self.running = Some(tokio::spawn(async {
            grasp_gitd::run(config, stop).await.unwrap();
        }));
        // The listeners open at once or never; a connection waits in the kernel from then on.
        let address = self.base.trim_start_matches("http://").to_owned();
        while tokio::net::TcpStream::connect(&address).await.is_err() {
            tokio::task::yield_now().await;
            assert!(!self.running.as_ref().unwrap().is_finished());
        }
        // A connection to the gitd of before may break off only at the next call.
        while self.git.clone().clock(ClockRequest {}).await.is_err() {
            tokio::task::yield_now().await;
        }
    }

    pub async fn stop_gitd(&mut self) {
        self.stop.cancel();
        self.running.take().unwrap().await.unwrap();
    }

    pub fn judge(&self, judgement: Judgement) {
        *self.relay.judgement.lock().unwrap() = judgement;
    }

    /// Packs, as somebody with this role reaches it.
    pub fn packs(&self, role: Role) -> PacksClient<AuthorizedChannel> {
        let gitd = self.settings.endpoint("NGIT_GITD_GRPC_ADDRESS").unwrap();
        PacksClient::new(gitd.authorized(self.tokens.of(role)))
    }

    /// The relay as gitd asks it.
    pub fn grpc_relay(&self) -> GrpcRelay {
        let relay = self.settings.endpoint("NGIT_RELAY_GRPC_ADDRESS").unwrap();
        GrpcRelay::new(&relay, &self.tokens.gitd)
    }

    /// What the relay seals grants with.
    pub fn grant_key(&self) -> GrantKey {
        GrantKey::new(&self.tokens)
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("git")
    }

    pub fn url(&self, repo: &RepoId) -> String {
        format!("{}/{repo}", self.base)
    }

    pub fn view(&self, repo: &RepoId) -> PathBuf {
        self.data()
            .join(repo.owner.to_string())
            .join(format!("{}.git", repo.identifier))
    }

    /// The only pool there is.
    pub fn pool(&self) -> PathBuf {
        let mut pools = self.pools();
        assert_eq!(pools.len(), 1, "{pools:?}");
        pools.pop().unwrap()
    }

    pub fn pools(&self) -> Vec<PathBuf> {
        let shelves = children(&self.data().join(".pools"));
        shelves.iter().flat_map(|shelf| children(shelf)).collect()
    }

    pub async fn create(&self, repo: &RepoId) -> String {
        let request = CreateRequest {
            repository: Some(Repository::from(repo)),
            ..CreateRequest::default()
        };
        let answer = self.git.clone().create(request).await.unwrap();
        answer.into_inner().incarnation
    }

    pub async fn refs(&self, repo: &RepoId) -> Vec<(String, Oid)> {
        let request = ListRefsRequest {
            repository: Some(repo.into()),
            ..ListRefsRequest::default()
        };
        let mut stream = self
            .git
            .clone()
            .list_refs(request)
            .await
            .unwrap()
            .into_inner();
        let mut refs = Vec::new();
        while let Some(batch) = stream.message().await.unwrap() {
            for r in batch.refs {
                refs.push((r.name, Oid::from_slice(&r.oid).unwrap()));
            }
        }
        refs
    }

    pub async fn missing(&self, repo: &RepoId, oid: Oid, staged: bool) -> bool {
        let request = MissingRequest {
            identifier: repo.identifier.to_string(),
            oids: vec![oid.as_bytes().to_vec()],
            commits: Vec::new(),
            staged_in: staged.then(|| repo.into()),
        };
        let answer = self.git.clone().missing(request).await.unwrap();
        !answer.into_inner().missing.is_empty()
    }

    pub async fn align(
        &self,
        repo: &RepoId,
        refs: &[(&str, Oid)],
        expected: &[(&str, Option<Oid>)],
    ) -> Result<u32, Status> {
        let name = |name: &str| RefName::parse(name).unwrap();
        let refs = refs.iter().map(|(n, oid)| Ref::new(&name(n), Some(*oid)));
        let expected = expected.iter().map(|(n, oid)| Ref::new(&name(n), *oid));
        let request = AlignRequest {
            repository: Some(repo.into()),
            refs: refs.collect(),
            expected: expected.collect(),
            ..AlignRequest::default()
        };
        let answer = self.git.clone().align(request).await?;
        Ok(answer.into_inner().changed)
    }

    pub async fn put_ref(
        &self,
        repo: &RepoId,
        name: &str,
        oid: Oid,
        signed_for: bool,
    ) -> Result<(), Status> {
        let request = PutRefRequest {
            repository: Some(repo.into()),
            r#ref: Some(Ref::new(&RefName::parse(name).unwrap(), Some(oid))),
            signed_for,
            ..PutRefRequest::default()
        };
        self.git.clone().put_ref(request).await.map(|_| ())
    }

    pub async fn delete_ref(&self, repo: &RepoId, name: &str) -> Result<(), Status> {
        let request = DeleteRefRequest {
            repository: Some(repo.into()),
            name: name.to_owned(),
            ..DeleteRefRequest::default()
        };
        self.git.clone().delete_ref(request).await.map(|_| ())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.cancel();
        self.stop_relay.cancel();
    }
}

/// What is in a directory, by name; nothing if it is not there.
pub fn children(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A repository of somebody's.
pub fn repo(owner: u8, identifier: &str) -> RepoId {
    RepoId {
        owner: Npub::from_bytes([owner; 32]),
        identifier: Identifier::parse(identifier).unwrap(),
    }
}

/// Runs git in a directory, whatever comes of it.
pub async fn try_git(directory: &Path, args: &[&str]) -> Output {
    let directory = directory.to_owned();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    tokio::task::spawn_blocking(move || {
        Command::new("git")
            .current_dir(directory)
            .args(args)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_AUTHOR_NAME", "A")
            .env("GIT_AUTHOR_EMAIL", "a@example.com")
            .env("GIT_COMMITTER_NAME", "A")
            .env("GIT_COMMITTER_EMAIL", "a@example.com")
            .env("LC_ALL", "C")
            .output()
            .unwrap()
    })
    .await
    .unwrap()
}

/// Everything a command said.
pub fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs git in a directory; it must end well. Gives what it printed.
pub async fn git(directory: &Path, args: &[&str]) -> String {
    let output = try_git(directory, args).await;
    assert!(output.status.success(), "git {args:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A clone of nothing, with `commits` commits on `main`.
pub async fn work(directory: &Path, name: &str, commits: usize) -> PathBuf {
    let path = directory.join(name);
    git(directory, &["init", "-q", "-b", "main", name]).await;
    for n in 0..commits {
        commit(&path, &format!("file{n}"), &format!("content {n}\n")).await;
    }
    path
}

/// The pack of some revisions, a thin one where they leave something out.
pub async fn pack(path: &Path, revs: &[&str]) -> Vec<u8> {
    let (path, revs) = (path.to_owned(), revs.join("\n"));
    tokio::task::spawn_blocking(move || {
        let script = format!("printf '{revs}\n' | git pack-objects --stdout --revs --thin -q");
        let output = Command::new("sh")
            .current_dir(path)
            .args(["-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        output.stdout
    })
    .await
    .unwrap()
}

/// The packs of a view or a pool that are not about to go.
pub fn packs(path: &Path) -> usize {
    let gone = std::fs::read_to_string(path.join("rolled-up")).unwrap_or_default();
    let files = children(&path.join("objects/pack"));
    let names = files
        .iter()
        .filter_map(|file| file.file_name()?.to_str()?.strip_suffix(".idx"));
    names
        .filter(|name| !gone.lines().any(|line| line == *name))
        .count()
}

/// A bare repository with one branch of so many commits, a thousand small files in each.
pub async fn crowd(directory: &Path, name: &str, commits: usize) -> PathBuf {
    use std::fmt::Write;
    let path = directory.join(name);
    git(directory, &["init", "-q", "--bare", "-b", "main", name]).await;
    let mut stream = String::new();
    for commit in 0..commits {
        let time = 1_600_000_000 + commit;
        let _ = write!(
            stream,
            "commit refs/heads/main\ncommitter A <a@example.com> {time} +0000\ndata 1\nc\n"
        );
        for file in 0..1000 {
            let content = format!("{commit} {file}\n");
            let length = content.len();
            let shelf = file % 10;
            let _ = write!(
                stream,
                "M 100644 inline {shelf}/{file}\ndata {length}\n{content}"
            );
        }
    }
    let (importing, file) = (path.clone(), path.join("stream"));
    tokio::task::spawn_blocking(move || {
        std::fs::write(&file, stream).unwrap();
        let done = Command::new("git")
            .current_dir(importing)
            .args(["fast-import", "--quiet"])
            .stdin(std::fs::File::open(&file).unwrap())
            .status();
        assert!(done.unwrap().success());
    })
    .await
    .unwrap();
    path
}

/// Sends one request as it is and reads the answer to its end.
pub async fn raw(service: &Service, request: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = service.base.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

pub async fn post(service: &Service, path: &str, headers: &str, body: &[u8]) -> String {
    let length = body.len();
    let service_name = path.rsplit('/').next().unwrap();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\
         Content-Type: application/x-{service_name}-request\r\n{headers}\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    raw(service, &request).await
}

/// A pkt-line.
pub fn line(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

/// Asks for objects in a version of the protocol; gives the whole answer.
pub async fn want(service: &Service, repo: &RepoId, version: u8, wants: &[&str]) -> String {
    let mut body = String::new();
    if version == 2 {
        body.push_str(&line("command=fetch"));
        body.push_str("0001");
        for want in wants {
            body.push_str(&line(&format!("want {want}\n")));
        }
        body.push_str(&line("done\n"));
        body.push_str("0000");
    } else {
        for (n, want) in wants.iter().enumerate() {
            let capabilities = if n == 0 { " side-band-64k" } else { "" };
            body.push_str(&line(&format!("want {want}{capabilities}\n")));
        }
        body.push_str("0000");
        body.push_str(&line("done\n"));
    }
    let headers = format!("Git-Protocol: version={version}\r\n");
    let path = format!("/{repo}/git-upload-pack");
    post(service, &path, &headers, body.as_bytes()).await
}

/// Writes a file and commits it. Gives the commit.
pub async fn commit(path: &Path, file: &str, content: &str) -> Oid {
    std::fs::write(path.join(file), content).unwrap();
    git(path, &["add", "."]).await;
    git(path, &["commit", "-q", "-m", file]).await;
    rev(path, "HEAD").await
}

/// What a name stands for.
pub async fn rev(path: &Path, name: &str) -> Oid {
    Oid::from_hex(&git(path, &["rev-parse", name]).await).unwrap()
}
