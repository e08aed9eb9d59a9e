use std::convert::Infallible;

use futures::{Stream, StreamExt, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use proptest::prelude::*;
use tokio::{
    runtime::Builder,
    time::{Instant, sleep},
};

use super::{
    pack::{MOST_LINES, PACK_HEAD},
    *,
};

const SECOND: Duration = Duration::from_secs(1);

fn band(band: u8, payload: &[u8]) -> Bytes {
    let mut packet = format!("{:04x}", payload.len() + 5).into_bytes();
    packet.push(band);
    packet.extend_from_slice(payload);
    packet.into()
}

fn line(text: &str) -> Bytes {
    format!("{:04x}{text}\n", text.len() + 5).into()
}

const FLUSH: Bytes = Bytes::from_static(b"0000");
const HEAD_OF_ONE: &[u8] = b"PACK\0\0\0\x02\0\0\0\x01";

fn opened() -> [Bytes; 2] {
    [line("packfile"), band(1, HEAD_OF_ONE)]
}

fn lines(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Lines {
    let frames = pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)));
    Lines::new(StreamBody::new(frames))
}

/// Each piece after its time.
fn timed(pieces: impl Iterator<Item = (Duration, Bytes)> + Send + 'static) -> Lines {
    lines(stream::iter(pieces).then(|(time, piece)| async move {
        sleep(time).await;
        piece
    }))
}

fn at_once(pieces: impl IntoIterator<Item = Bytes, IntoIter: Send + 'static>) -> Lines {
    lines(stream::iter(pieces))
}

async fn pack(lines: Lines) -> Result<Pack, FetchError> {
    match begin(lines, Shape::Sections, 1 << 40).await? {
        Begun::Pack(pack) => Ok(*pack),
        Begun::Refused(words) => Err(FetchError::not_there(words)),
    }
}

async fn drain(lines: Lines) -> Result<u64, FetchError> {
    let mut pack = pack(lines).await?;
    let mut bytes = 0;
    while let Some(piece) = pack.next().await? {
        bytes += piece.len() as u64;
    }
    assert_eq!(pack.next().await, Ok(None));
    Ok(bytes)
}

#[tokio::test(start_paused = true)]
async fn a_drip_is_ended() {
    let drip = (0..).map(|_| (SECOND, band(1, b"x")));
    let begun = opened().map(|piece| (Duration::ZERO, piece));
    let started = Instant::now();
    let error = drain(timed(begun.into_iter().chain(drip)))
        .await
        .unwrap_err();
    assert_eq!(error.why, Why::Slow, "{error}");
    assert!(started.elapsed() < Duration::from_secs(25));
}

/// Whoever waits for something else beside it calls again and again.
#[tokio::test(start_paused = true)]
async fn a_drip_is_ended_though_the_wait_for_it_is_begun_anew() {
    let begun = opened().map(|piece| (Duration::ZERO, piece));
    let hour = (Duration::from_secs(3600), FLUSH);
    let mut pack = pack(timed(begun.into_iter().chain([hour]))).await.unwrap();
    let started = Instant::now();
    let error = loop {
        match timeout(SECOND, pack.next()).await {
            Err(_) | Ok(Ok(Some(_))) => {}
            Ok(end) => break end.unwrap_err(),
        }
    };
    assert_eq!(error.why, Why::Slow, "{error}");
    assert!(started.elapsed() < Duration::from_secs(25));
    assert_eq!(pack.next().await.unwrap_err(), error);
}

#[tokio::test(start_paused = true)]
async fn talk_is_no_progress() {
    let talk = (0..).map(|_| (SECOND, band(2, &[b'.'; 8000])));
    let begun = opened().map(|piece| (Duration::ZERO, piece));
    let error = drain(timed(begun.into_iter().chain(talk)))
        .await
        .unwrap_err();
    assert_eq!(error.why, Why::Slow, "{error}");

    let flood = opened()
        .into_iter()
        .chain((0..).map(|_| band(2, &vec![b'.'; 60_000])));
    let error = drain(at_once(flood)).await.unwrap_err();
    assert_eq!(error.why, Why::Unwell, "{error}");
}

#[tokio::test(start_paused = true)]
async fn slow_but_moving_is_never_ended() {
    let piece = band(1, &vec![7; 35_000]);
    let slow = (0..7200).map(move |_| (SECOND / 2, piece.clone()));
    let begun = opened().map(|piece| (Duration::ZERO, piece));
    let pieces = begun.into_iter().chain(slow).chain([(SECOND, FLUSH)]);
    let started = Instant::now();
    assert_eq!(drain(timed(pieces)).await, Ok(12 + 252_000_000));
    assert!(started.elapsed() > Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn a_drip_that_is_let_be_at_first_is_ended_later() {
    let piece = band(1, &[7; 5_000]);
    let drip = (0..).map(move |_| (SECOND, piece.clone()));
    let begun = opened().map(|piece| (Duration::ZERO, piece));
    let started = Instant::now();
    let error = drain(timed(begun.into_iter().chain(drip)))
        .await
        .unwrap_err();
    assert_eq!(error.why, Why::Slow);
    assert_eq!(error.detail, "it came slower than 32 KiB a second");
    let took = started.elapsed().as_secs();
    assert!((120..240).contains(&took), "{took}");
}

/// As servers of v0 answer that have no sideband.
#[tokio::test]
async fn a_plain_pack_is_taken_as_it_is() {
    let plain = |pieces: Vec<Bytes>| async {
        let mut pack = match begin(at_once(pieces), Shape::Plain, 1 << 20).await? {
            Begun::Pack(pack) => pack,
            Begun::Refused(words) => return Err(FetchError::not_there(words)),
        };
        let mut bytes = Vec::new();
        while let Some(piece) = pack.next().await? {
            assert!(piece.len() <= 64 << 10);
            bytes.extend_from_slice(&piece);
        }
        assert_eq!(pack.next().await, Ok(None));
        Ok(bytes)
    };
    let mut whole = HEAD_OF_ONE.to_vec();
    whole.resize(200_000, 7);
    let ack = format!("ACK {}", oid(1));
    for front in [vec![], vec![line("NAK")], vec![line(&ack), line("NAK")]] {
        let mut all = front.concat();
        all.extend_from_slice(&whole);
        for cut in [1_000, 3, 200_100] {
            let pieces = all.chunks(cut).map(Bytes::copy_from_slice).collect();
            assert_eq!(plain(pieces).await.as_ref(), Ok(&whole));
        }
    }
    let large = vec![line("NAK"), HEAD_OF_ONE.into(), vec![7; 2 << 20].into()];
    for (pieces, why) in [
        (large, Why::Large),
        (vec![], Why::Unwell),
        (vec![line("NAK")], Why::Unwell),
        (vec![line("NAK"), "PACK".into()], Why::Unwell),
        (vec![line("NAK"), "PAC".into()], Why::Unwell),
        (vec![line("NAK"), band(1, HEAD_OF_ONE)], Why::Unwell),
        (vec![line("ERR no")], Why::NotThere),
    ] {
        assert_eq!(plain(pieces).await.unwrap_err().why, why);
    }
}

#[tokio::test(start_paused = true)]
async fn our_own_time_is_not_the_servers() {
    let pieces = opened()
        .into_iter()
        .chain((0..50).map(|_| band(1, b"small")))
        .chain([FLUSH]);
    let mut pack = pack(at_once(pieces)).await.unwrap();
    let mut count = 0;
    while let Some(_piece) = pack.next().await.unwrap() {
        count += 1;
        sleep(Duration::from_secs(600)).await;
    }
    assert_eq!(count, 51);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_counts_is_waited_for() {
    let alive = (0..50).map(|_| (5 * SECOND, band(1, b"")));
    let mut pieces = vec![(Duration::ZERO, line("packfile"))];
    pieces.extend(alive);
    pieces.extend([(SECOND, band(1, HEAD_OF_ONE)), (SECOND, FLUSH)]);
    assert_eq!(drain(timed(pieces.into_iter())).await, Ok(12));

    let silent = [(Duration::ZERO, line("packfile")), (61 * SECOND, FLUSH)];
    let error = drain(timed(silent.into_iter())).await.unwrap_err();
    assert_eq!(error.why, Why::Unwell, "{error}");
}

#[tokio::test]
async fn how_packs_end_badly() {
    let after = |pieces: &[Bytes]| {
        let pieces: Vec<_> = opened().into_iter().chain(pieces.iter().cloned()).collect();
        drain(at_once(pieces))
    };
    let said = after(&[band(3, b"fatal: \x1b[31mdisk\x07\r\n")])
        .await
        .unwrap_err();
    assert_eq!(said.why, Why::Unwell);
    assert_eq!(said.detail, "it says: fatal:  [31mdisk");
    let half = Bytes::from_static(b"00ff\x01abc");
    let bad: [&[Bytes]; 5] = [
        &[],
        &[half],
        &[band(4, b"x")],
        &[line("ERR no")],
        &["0001".into()],
    ];
    for bad in bad {
        let error = after(bad).await.unwrap_err();
        assert_eq!(error.why, Why::Unwell, "{bad:?} {error}");
    }
    assert_eq!(after(&[FLUSH]).await, Ok(12));
}

#[tokio::test]
async fn how_packs_do_not_begin() {
    let of = |pieces: &[Bytes]| drain(at_once(pieces.to_vec()));
    let why = |result: Result<u64, FetchError>| result.unwrap_err().why;
    let packfile = line("packfile");
    let empty = band(1, b"PACK\0\0\0\x02\0\0\0\0");
    assert_eq!(why(of(&[]).await), Why::Unwell);
    assert_eq!(why(of(std::slice::from_ref(&packfile)).await), Why::Unwell);
    assert_eq!(why(of(&[packfile.clone(), FLUSH]).await), Why::Unwell);
    assert_eq!(why(of(&[packfile.clone(), empty]).await), Why::NotThere);
    assert_eq!(
        why(of(&[packfile.clone(), band(1, b"KCAP\0\0\0\x02\0\0\0\x01")]).await),
        Why::Unwell
    );
    assert_eq!(
        why(of(&[packfile.clone(), band(1, b"PACK\0\0\0\x09\0\0\0\x01")]).await),
        Why::Unwell
    );
    let shallow = format!("shallow {}", "1".repeat(40));
    assert_eq!(
        why(of(&[line("shallow-info"), line(&shallow)]).await),
        Why::NotThere
    );
    assert_eq!(
        why(of(&[line("ERR upload-pack: not our ref 0")]).await),
        Why::NotThere
    );
    let lines = vec![line("acknowledgments"); MOST_LINES + 1];
    assert_eq!(why(of(&lines).await), Why::Unwell);
    // In pieces it is the same.
    let pieces = [
        packfile,
        band(1, b"PA"),
        band(1, b"CK\0\0\0\x02\0\0\0"),
        band(1, b"\x01"),
        FLUSH,
    ];
    assert_eq!(of(&pieces).await, Ok(12));
}

#[tokio::test]
async fn a_pack_that_is_too_large_is_ended() {
    let endless = opened()
        .into_iter()
        .chain((0..).map(|_| band(1, &vec![0; 60_000])));
    let Begun::Pack(mut pack) = begin(at_once(endless), Shape::Sections, 1_000_000)
        .await
        .unwrap()
    else {
        panic!("refused");
    };
    let error = loop {
        match pack.next().await {
            Ok(Some(_)) => {}
            end => break end.unwrap_err(),
        }
    };
    assert_eq!(error.why, Why::Large);
    assert!(pack.bytes() < 1_100_000);
}

fn oid(byte: u8) -> Oid {
    Oid::from_bytes([byte; 20])
}

async fn dialect(pieces: Vec<Bytes>, wants: &[Oid]) -> Result<Dialect, FetchError> {
    let wants = wants.iter().copied().collect();
    advertisement::read(&mut at_once(pieces), &wants).await
}

fn v0_lines(first: &[&str], capabilities: &str) -> Vec<Bytes> {
    let refs = [
        format!("{} HEAD\0{capabilities}", oid(1)),
        format!("{} refs/heads/main", oid(1)),
        format!("{} refs/tags/v1", oid(2)),
        format!("{} refs/tags/v1^{{}}", oid(3)),
        format!("{} refs/tags/v2", oid(4)),
        format!("{} refs/tags/v2^{{}}", oid(1)),
    ];
    let mut pieces: Vec<Bytes> = first.iter().map(|text| line(text)).collect();
    if first.first().is_some_and(|text| text.starts_with('#')) {
        pieces.insert(1, FLUSH);
    }
    pieces.extend(refs.iter().map(|text| line(text)));
    pieces.push(FLUSH);
    pieces
}

#[tokio::test]
async fn refs_of_v0_and_v1_lead_to_what_is_wanted() {
    let service = "# service=git-upload-pack";
    let all = "side-band side-band-64k thin-pack ofs-delta agent=git/2 symref=HEAD:refs/heads/main";
    for first in [&[service][..], &[service, "version 1"], &[]] {
        let wants = [oid(1), oid(3), oid(4), oid(9)];
        let Dialect::V0(v0) = dialect(v0_lines(first, all), &wants).await.unwrap() else {
            panic!("v2");
        };
        assert_eq!(v0.sideband, Sideband::Large);
        assert!(v0.thin_pack && v0.ofs_delta && v0.agent && !v0.unadvertised);
        let ask = |want| v0.found.ask_for(&oid(want));
        assert_eq!(
            [1, 3, 4, 9].map(ask),
            [Some(oid(1)), Some(oid(2)), Some(oid(4)), None]
        );
        // Nothing is held of what nobody wants.
        assert_eq!(ask(2), None);
    }
    let more = format!("{all} allow-reachable-sha1-in-want");
    let open = dialect(v0_lines(&[service], &more), &[]).await.unwrap();
    assert!(matches!(open, Dialect::V0(v0) if v0.unadvertised));
}

#[tokio::test]
async fn what_advertisements_cannot_be() {
    let zero = Oid::ZERO;
    let service = line("# service=git-upload-pack");
    let shallow = format!("shallow {}", oid(1));
    let first = format!("{} HEAD\0side-band-64k", oid(1));
    let long = format!("{} HEAD", "1".repeat(64));
    let cases = [
        (
            vec![service.clone(), FLUSH, line("ERR not found\x1b")],
            Why::NotThere,
        ),
        (vec![service.clone(), service.clone()], Why::Unwell),
        (vec![], Why::Unwell),
        (vec![line("<html>")], Why::Unwell),
        (vec![Bytes::from_static(b"<html><body>")], Why::Unwell),
        (vec![line(&long)], Why::NotThere),
        (vec![line(&first)], Why::Unwell),
        (vec![line(&first), line(&shallow), FLUSH], Why::NotThere),
        (vec![line("version 2"), line("ls-refs"), FLUSH], Why::Unwell),
        (
            vec![
                line("version 2"),
                line("fetch"),
                line("object-format=sha256"),
                FLUSH,
            ],
            Why::NotThere,
        ),
    ];
    for (pieces, why) in cases {
        let error = dialect(pieces.clone(), &[]).await.unwrap_err();
        assert_eq!(error.why, why, "{pieces:?} {error}");
    }
    let bare = vec![line(&format!("{} HEAD", oid(1))), FLUSH];
    let bare = dialect(bare, &[]).await.unwrap();
    assert!(matches!(bare, Dialect::V0(v0) if v0.sideband == Sideband::None));
    for empty in [
        vec![service.clone(), FLUSH, FLUSH],
        vec![
            line(&format!("{zero} capabilities^{{}}\0side-band-64k")),
            FLUSH,
        ],
    ] {
        let Dialect::V0(v0) = dialect(empty, &[zero]).await.unwrap() else {
            panic!("v2");
        };
        assert_eq!(v0.found.ask_for(&zero), None);
    }
}

#[tokio::test]
async fn endless_advertisements_end() {
    let name = "x".repeat(60_000);
    let endless = (0..).map(move |_| line(&format!("{} refs/heads/{name}\0side-band", oid(1))));
    let error = advertisement::read(&mut at_once(endless), &HashSet::new())
        .await
        .unwrap_err();
    assert_eq!(
        (error.why, &*error.detail),
        (Why::Unwell, "the list of refs is too long")
    );
}

#[tokio::test(start_paused = true)]
async fn an_advertisement_that_drips_ends() {
    let first = [line("version 2")].map(|piece| (Duration::ZERO, piece));
    let drip = (0..).map(|_| (SECOND, line("x")));
    let mut drip = timed(first.into_iter().chain(drip));
    let error = advertisement::read(&mut drip, &HashSet::new())
        .await
        .unwrap_err();
    assert_eq!(error.why, Why::Slow, "{error}");
}

#[tokio::test]
async fn ls_refs_is_read() {
    let refs = [
        line("unborn HEAD symref-target:refs/heads/main"),
        line(&format!("{} refs/heads/main", oid(1))),
        line(&format!("{} refs/tags/v1 peeled:{}", oid(2), oid(3))),
        FLUSH,
    ];
    let wants = [1, 3, 9].map(oid).into_iter().collect();
    let found = advertisement::read_refs(&mut at_once(refs), &wants)
        .await
        .unwrap();
    assert_eq!(
        [1, 2, 3, 9].map(|want| found.ask_for(&oid(want))),
        [Some(oid(1)), None, Some(oid(2)), None]
    );
    let mut wants = vec![oid(9), oid(3), oid(1)];
    assert_eq!(narrow(&mut wants, Some(&found)), [oid(2), oid(1)]);
    assert_eq!(wants, [oid(3), oid(1)]);
}

#[test]
fn words_of_servers() {
    let words = format!("upload-pack: not our ref {}.", oid(0xab));
    assert_eq!(objects_in(&words), [oid(0xab)]);
    assert_eq!(objects_in(&"a".repeat(64)), []);
    assert_eq!(told(&vec![b'x'; 100_000]).len(), MOST_TOLD);
    assert_eq!(told(b"a\nb\0c\xff\n"), "a b c\u{fffd}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes, in whatever pieces, it ends, and in one of the ways that have a name.
    #[test]
    fn nothing_panics(
        parts in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
                prop::collection::vec(any::<u8>(), 0..40).prop_map(|payload| {
                    let mut packet = format!("{:04x}", payload.len() + 4).into_bytes();
                    packet.extend_from_slice(&payload);
                    packet.into()
                }),
                (0_u8..5, prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(n, p)| band(n, &p)),
                prop::sample::select(vec![
                    FLUSH, "0001".into(), "0002".into(), "0003".into(), "0004".into(), "0005".into(),
                    "fff0".into(), "ffff".into(), "00zz".into(), "-001".into(),
                    line("version 1"), line("version 2"), line("# service=git-upload-pack"),
                    line("fetch=shallow"), line("packfile"), line("NAK"), line("ERR x"),
                    line("1111111111111111111111111111111111111111 HEAD\0side-band"),
                    line("1111111111111111111111111111111111111111 HEAD peeled:11"),
                    band(1, HEAD_OF_ONE), band(1, b""),
                ]),
            ],
            0..20,
        ),
        cut in 1_usize..50,
    ) {
        let all: Vec<u8> = parts.concat();
        let pieces: Vec<Bytes> = all.chunks(cut).map(Bytes::copy_from_slice).collect();
        let wants: HashSet<Oid> = [oid(0x11)].into();
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let _ = advertisement::read(&mut at_once(pieces.clone()), &wants).await;
            let _ = advertisement::read_refs(&mut at_once(pieces.clone()), &wants).await;
            for shape in [Shape::Sections, Shape::Sideband, Shape::Plain] {
                if let Ok(Begun::Pack(mut pack)) = begin(at_once(pieces.clone()), shape, 100).await {
                    while let Ok(Some(piece)) = pack.next().await {
                        assert!(!piece.is_empty());
                    }
                }
            }
        });
    }

    /// The framing is git's, wherever the pieces are cut.
    #[test]
    fn what_is_sent_comes(payload in prop::collection::vec(any::<u8>(), 1..3000), size in 1_usize..700, cut in 1_usize..900) {
        let mut all: Vec<u8> = opened().concat();
        for part in payload.chunks(size) {
            all.extend_from_slice(&band(1, part));
        }
        all.extend_from_slice(&FLUSH);
        let pieces: Vec<Bytes> = all.chunks(cut).map(Bytes::copy_from_slice).collect();
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let came = runtime.block_on(async {
            let mut pack = pack(at_once(pieces)).await.unwrap();
            let mut came = Vec::new();
            while let Some(piece) = pack.next().await.unwrap() {
                came.extend_from_slice(&piece);
            }
            came
        });
        prop_assert_eq!(&came[PACK_HEAD..], &payload[..]);
    }
}
