//! What anybody may store: how much of it, and for how long.

use super::*;

/// A request of so many bytes and a little more.
fn request(seed: u8, kind: Kind, at: u64, bytes: usize) -> Event {
    let text = "x".repeat(bytes);
    sign(
        seed,
        kind,
        at,
        &[tag(&["t", &text]), tag(&["relay", "ALL_RELAYS"])],
    )
}

const BYTES: usize = 50 << 10;

#[tokio::test]
async fn an_author_who_has_nothing_here_stores_so_much() {
    let inside = Inside::new().await;
    inside.active(1, "x", &[]).await;
    for (seed, kind) in [
        (51, nip34::DELETION),
        (54, nip34::VANISH),
        (55, nip34::GRASP_LIST),
    ] {
        inside.served(&request(seed, kind, 1, BYTES)).await;
    }
    let more = request(51, nip34::DELETION, 2, BYTES);
    inside.served(&more).await;
    let refused = request(51, nip34::DELETION, 3, BYTES);
    for verdict in [
        inside.admit(&refused).await,
        inside.admit_synced(&refused).await,
    ] {
        assert!(verdict.message.starts_with("rate-limited: "), "{verdict:?}");
        assert!(!verdict.ok && !inside.serves(&refused).await);
    }
    // What is here is here.
    assert!(inside.admit(&more).await.message.starts_with("duplicate: "));
    // The operator's, and those of who belongs here, are not counted.
    let verdict = inside.door.admit(refused, Origin::Operator).await;
    assert_eq!(verdict, Verdict::served());
    for at in 1..5 {
        inside.served(&request(1, nip34::DELETION, at, BYTES)).await;
    }
    // Nor does a list make its author belong here.
    inside
        .served(&request(52, nip34::GRASP_LIST, 1, BYTES))
        .await;
    inside.served(&request(52, nip34::DELETION, 1, BYTES)).await;
    let refused = inside.admit(&request(52, nip34::DELETION, 2, BYTES)).await;
    assert!(!refused.ok, "{refused:?}");
}

#[tokio::test]
async fn versions_of_a_list_count_once() {
    let inside = Inside::new().await;
    for at in 1..10 {
        inside
            .served(&request(50, nip34::GRASP_LIST, at, BYTES))
            .await;
    }
    assert!(
        inside
            .serves(&request(50, nip34::GRASP_LIST, 9, BYTES))
            .await
    );
}

#[tokio::test]
async fn what_strangers_stored_goes_unless_they_belong_here_by_then() {
    let inside = Inside::new().await;
    let list = |seed| request(seed, nip34::GRASP_LIST, 1, 10);
    let vanished = request(52, nip34::VANISH, 1, 10);
    inside.served(&list(50)).await;
    inside.served(&list(51)).await;
    inside.served(&vanished).await;
    let last = request(53, nip34::DELETION, 1, 70 << 10);
    inside.served(&last).await;
    inside.active(51, "x", &[]).await;
    inside.passes(COUNTS_FOR.saturating_sub(DAY)).await;
    assert!(inside.serves(&list(50)).await && inside.serves(&vanished).await);
    inside.passes(DAY).await;
    assert!(!inside.serves(&list(50)).await && !inside.serves(&vanished).await);
    assert!(inside.serves(&list(51)).await);
    // That the author vanished is known all the same.
    let verdict = inside.admit(&list(52)).await;
    assert_eq!(verdict, Verdict::rejected("blocked: deleted by its author"));
    // And there is room again.
    inside
        .served(&request(53, nip34::DELETION, 2, 70 << 10))
        .await;
    inside.served(&list(50)).await;
}
