//! What git clients send.

use std::{collections::HashSet, fs, path::Path, sync::Arc};

use bytes::BytesMut;
use grasp_gitd::{
    Config,
    busiest::Busiest,
    relay::GrpcRelay,
    repository::{
        Repositories,
        consolidate::Consolidator,
        intake::{Intake, IntakeLimits, Refused},
        layout::QUARANTINE,
        pack_scan::{PackLimits, PackScanner},
        places::Places,
        unsigned::Limits,
    },
    smart_http::{
        self, Server, Version,
        advertise::LsRefs,
        asked,
        commands::Request,
        pace::Budget,
        pkt_line::{self, BadPacket, Packet, Passing},
    },
};
use grasp_proto::{
    process::disk::DiskSpace,
    transport::Listener,
    words::{Identifier, Npub, Oid, RefName, RepoId},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{runtime, service};

async fn packets(mut data: &[u8]) -> Result<Vec<Packet>, BadPacket> {
    let mut packets = Vec::new();
    while let Some(packet) = pkt_line::read(&mut data).await? {
        packets.push(packet);
    }
    Ok(packets)
}

fn written(packets: &[Packet]) -> BytesMut {
    let mut out = BytesMut::new();
    for packet in packets {
        match packet {
            Packet::Line(line) => pkt_line::put(&mut out, line),
            Packet::Flush => out.extend_from_slice(pkt_line::FLUSH),
            Packet::Delimiter => out.extend_from_slice(b"0001"),
            Packet::ResponseEnd => out.extend_from_slice(b"0002"),
        }
    }
    out
}

/// Packets: what is read is written as it was, and who only watches them go by sees the same.
pub fn pkt_lines(data: &[u8]) {
    let read = runtime().block_on(packets(data));
    let (mut whole, mut pieces) = (Passing::default(), Passing::default());
    whole.see(data);
    for byte in data {
        pieces.see(&[*byte]);
    }
    assert_eq!(whole.wanted(), pieces.wanted());
    if let Ok(packets) = read {
        assert!(written(&packets).eq_ignore_ascii_case(data));
        assert_eq!(whole.wanted(), Some(0));
    }
}

/// The head of a push: commands, capabilities, options.
pub fn receive_pack_request(data: &[u8]) {
    let read = async {
        let mut body = data;
        Request::read(&mut body, &mut Budget::new(64 << 20).share()).await
    };
    let Ok(request) = runtime().block_on(read) else {
        return;
    };
    assert!(request.lines.len() <= data.len() / 84);
    // What cannot be read is refused by itself.
    let commands = request
        .lines
        .iter()
        .filter_map(|line| line.command.clone().ok());
    let commands: Vec<_> = commands.collect();
    let names: HashSet<&RefName> = commands.iter().map(|command| &command.name).collect();
    assert_eq!(names.len(), commands.len());
    for command in &commands {
        assert_eq!(
            RefName::parse(command.name.as_str()).as_ref(),
            Ok(&command.name)
        );
    }
}

fn is_oid(text: &[u8]) -> bool {
    let hex = text.get(..40).and_then(|hex| std::str::from_utf8(hex).ok());
    hex.is_some_and(|hex| Oid::from_hex(hex).is_ok())
}

/// What a reader asks, of any version: what is handed on to git asks for the same, and claims nothing
/// that was not found.
pub fn upload_pack_request(data: &[u8]) {
    runtime().block_on(async {
        let _ = LsRefs::read(&mut { data }).await;
        let Ok(before) = asked::asked(data).await else {
            return;
        };
        let Ok(claims) = asked::claims(data).await else {
            return;
        };
        for version in [Version::V0, Version::V1, Version::V2] {
            let mut handed_on = Vec::new();
            let result = asked::hand_on(data, version, &claims, &mut handed_on).await;
            result.expect("it was read before");
            let after = asked::asked(&handed_on[..])
                .await
                .expect("it is a request still");
            assert_eq!(format!("{:?}", after.wants), format!("{:?}", before.wants));
            assert!(handed_on.len() <= data.len() + data.len() / 40);
            let told = packets(&handed_on).await.expect("packets");
            let zero = b"have 0000000000000000000000000000000000000000\n";
            let claims_something = told.iter().any(|packet| match packet {
                Packet::Line(line) => {
                    line.starts_with(b"have ") && line != zero && is_oid(&line[5..])
                }
                _ => false,
            });
            assert!(!claims_something);
        }
    });
}

/// A bare repository, as pools are.
fn pool() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for part in ["objects/pack", "objects/info", "refs", "incoming"] {
        fs::create_dir_all(directory.path().join(part)).expect("a directory");
    }
    let files = [
        ("HEAD", "ref: refs/heads/main\n"),
        (
            "config",
            "[core]\n\trepositoryformatversion = 0\n\tbare = true\n",
        ),
    ];
    for (name, content) in files {
        fs::write(directory.path().join(name), content).expect("a file");
    }
    directory
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

const PACK_LIMITS: PackLimits = PackLimits {
    objects: 10_000,
    blob_bytes: 1 << 20,
    metadata_bytes: 1 << 16,
    delta_bytes: 1 << 16,
    inflated_bytes: 1 << 22,
    inflated_ratio: 64,
};

/// What a pack says of its objects is the same in whatever pieces it comes.
fn pack_headers(data: &[u8]) {
    let scan = |piece: usize| {
        let mut scanner = PackScanner::new(PACK_LIMITS);
        let scanned = data.chunks(piece).try_for_each(|piece| scanner.scan(piece));
        scanned.map(|()| (scanner.is_done(), scanner.largest_in_memory()))
    };
    let (whole, bytes) = (scan(data.len().max(1)), scan(1));
    assert_eq!(whole, bytes);
    if let Ok((_, largest)) = whole {
        assert!(largest <= PACK_LIMITS.metadata_bytes.max(PACK_LIMITS.delta_bytes));
    }
}

/// A pack, as it comes in: whatever it is, nothing of it is left until it is published.
pub fn pack_intake(data: &[u8]) {
    pack_headers(data);
    let pool = pool();
    let quarantines = pool.path().join(QUARANTINE);
    fs::create_dir_all(&quarantines).expect("a directory");
    let places = Places::new(1);
    let limits = IntakeLimits::new(PACK_LIMITS);
    let intake = Intake {
        pool: pool.path(),
        own: None,
        max_bytes: 1 << 20,
        limits: &limits,
        part: None,
        places: &places,
        client: None,
        disk: &DiskSpace::unlimited(),
    };
    runtime().block_on(async {
        match intake.receive(&mut { data }, None).await {
            Ok(quarantine) => {
                assert!(quarantine.bytes().expect("its size") <= data.len() as u64 + 32);
            }
            Err(Refused::Ours(error)) => panic!("our side failed: {error}"),
            Err(refused) => {
                let said = refused.to_string();
                assert!(
                    !said.contains(pool.path().to_str().unwrap_or("/")),
                    "{said}"
                );
                assert!(!said.contains('\n'), "{said}");
            }
        }
    });
    assert!(is_empty(&quarantines));
    assert!(is_empty(&pool.path().join("objects/pack")));
}

/// The owner of the one repository that is there: the key of zeros but for the last bit.
fn owner() -> Npub {
    let mut key = [0; 32];
    key[31] = 1;
    Npub::from_bytes(key)
}

/// Raw bytes to gitd's port, behind which an empty repository lies: `/<owner>/x.git`.
pub fn http(data: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_str().expect("a path").to_owned();
    let settings = service::settings(&[
        ("NGIT_GIT_DATA_PATH", &path),
        ("NGIT_GRASP06_ENABLE", "true"),
    ]);
    let config = Config::from_settings(&settings).expect("settings");
    runtime().block_on(async move {
        let limits = Limits {
            all: 1 << 20,
            of_one: 1 << 20,
        };
        let (consolidator, _pools) = Consolidator::new();
        let intake = IntakeLimits::new(config.pack_limits);
        let consolidator = Arc::new(consolidator);
        let (root, keep) = (config.data.clone(), config.keep.clone());
        let opened = Repositories::open(root, consolidator, limits, intake, keep);
        let repositories = Arc::new(opened.expect("repositories"));
        repositories.prepare_prs().expect("spaces");
        let repo = RepoId {
            owner: owner(),
            identifier: Identifier::parse("x").expect("a name"),
        };
        repositories.create(&repo, &[]).expect("a repository");
        let kill = CancellationToken::new();
        let server = Arc::new(Server {
            repositories,
            // Nobody answers there: no push is granted.
            relay: Arc::new(GrpcRelay::new(&config.relay, &config.tokens.gitd)),
            readers: Places::new(2),
            writers: Places::new(2),
            stagers: Places::new(2),
            commands: Budget::new(1 << 20),
            read_ahead: Budget::new(1 << 20),
            requests: Budget::new(1 << 20),
            tasks: TaskTracker::new(),
            kill: kill.clone(),
            max_pack_bytes: 1 << 20,
            max_staged_pack_bytes: 1 << 20,
            prs: true,
            domain: "grasp.example".to_owned(),
            door: config.door,
            busiest: Busiest::new(1),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let serving = smart_http::serve(server, Listener::Tcp(listener), stop.clone());
        let serving = tokio::spawn(serving);
        let answer = service::answer(address, data).await;
        service::check_http(&answer);
        stop.cancel();
        kill.cancel();
        serving.abort();
    });
}
