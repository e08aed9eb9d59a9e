//! Whether an event database that lies in the data path is one we can open.
//!
//! The library that keeps our events writes when it opens: it makes what it does not find and
//! brings older versions of its format up to its own. So what is there is looked at first, without
//! writing. The format is told by the names of its tables, its version, and by some events: they must
//! decode, have the ids they lie under, and be in the indexes where they would be looked for. That it is all
//! there is told before it is opened (`length`). Servers
//! built on the same library (nostr-lmdb, versions 1 and 2 of its format) left it like that.

mod length;

use std::{
    io,
    path::{Path, PathBuf},
};

use heed::{
    Database, Env, EnvFlags, EnvOpenOptions, RoTxn,
    byteorder::NativeEndian,
    types::{Bytes, U64},
};
use nostr::Event;
use nostr_database::FlatBufferDecode;

use crate::nip34;

/// The tables that every version has.
const TABLES: [&str; 6] = ["ci", "tci", "aci", "akci", "atci", "ktci"];
/// The version of the format that the library writes; one without a number is the first.
const VERSION: u64 = 2;
/// So many events are looked at.
const SAMPLE: usize = 100;
/// Tables that may be opened at once.
const MOST_TABLES: u32 = 16;
/// How much of a tag's value is in the indexes.
const TAG_VALUE: usize = 182;

/// What lies in the data path is no database of ours.
#[derive(Debug, thiserror::Error)]
#[error(
    "NGIT_RELAY_DATA_PATH is {}, and its data.mdb is no event database that can be used here: {reason}. \
     Nothing was changed in it. {remedy}",
    path.display()
)]
pub struct Foreign {
    path: PathBuf,
    reason: String,
    remedy: &'static str,
}

/// What to do about another server's.
const BRING_OVER: &str = "To bring its events over, set NGIT_RELAY_DATA_PATH to an empty directory, \
     start graspd, and hand them over while it runs: `graspd import events.jsonl`, a file with one event \
     to a line, or `graspd import ws://host:port`, the server that they are in, running elsewhere";
/// What to do about one that is damaged.
const PUT_BACK: &str = "Put a whole copy in its place, or move the directory aside and bring back a backup \
     (`graspd restore`); without either, start with an empty directory and hand over what events there are \
     elsewhere with `graspd import`, from a file with one event to a line or from another server";

/// Refuses a directory whose `data.mdb` is not as the library leaves it. Writes nothing. Blocks.
pub fn check(directory: &Path) -> Result<(), Foreign> {
    let refused = |reason, remedy| Foreign {
        path: directory.to_owned(),
        reason,
        remedy,
    };
    check_length(directory).map_err(|reason| refused(reason, PUT_BACK))?;
    look(directory).map_err(|reason| refused(reason, BRING_OVER))
}

/// Refuses what is cut short: reading behind its end would kill the process without a word.
fn check_length(directory: &Path) -> Result<(), String> {
    match length::missing(&directory.join("data.mdb")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("it cannot be read ({error})")),
        Ok(None) => Ok(()),
        Ok(Some(pages)) => Err(format!(
            "it is cut short, and {pages} of its pages are missing (a copy that did not end, or a damaged disk)"
        )),
    }
}

/// The database of a directory, opened for reading alone; `None`: there is none, or this process has it
/// open already.
fn open_read_only(directory: &Path) -> Result<Option<Env>, String> {
    match std::fs::metadata(directory.join("data.mdb")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("it cannot be read ({error})")),
        // As a process that was killed while making it leaves it.
        Ok(file) if file.len() == 0 => return Ok(None),
        Ok(_) => {}
    }
    let mut options = EnvOpenOptions::new();
    options.max_dbs(MOST_TABLES);
    let mut flags = EnvFlags::READ_ONLY;
    if !directory.join("lock.mdb").exists() {
        // Not even that is made. Nobody writes: who does has made it.
        flags |= EnvFlags::NO_LOCK;
    }
    // SAFETY: nothing truncates the file while it is mapped, and nobody writes it unless under the
    // lock that is taken if there is one.
    #[allow(unsafe_code)]
    let opened = unsafe { options.flags(flags).open(directory) };
    match opened {
        Ok(env) => Ok(Some(env)),
        // Opened by this process before, and so looked at before.
        Err(heed::Error::BadOpenOptions { .. }) => Ok(None),
        Err(error) => Err(format!("it cannot be opened ({error})")),
    }
}

fn look(directory: &Path) -> Result<(), String> {
    let Some(env) = open_read_only(directory)? else {
        return Ok(());
    };
    let looked = look_inside(&env);
    // Opened again with other options, it must be closed.
    env.prepare_for_closing().wait();
    looked.map_err(|error| format!("it cannot be read ({error})"))?
}

/// Hands every event of a database that nobody has open to `take`, for as long as that says so. Writes
/// nothing; the database is looked at as by [`check`] first. Blocks.
pub fn read_events(directory: &Path, mut take: impl FnMut(Event) -> bool) -> Result<(), Foreign> {
    check(directory)?;
    let refused = |reason| Foreign {
        path: directory.to_owned(),
        reason,
        remedy: BRING_OVER,
    };
    let Some(env) = open_read_only(directory).map_err(refused)? else {
        return Ok(());
    };
    let mut read = || {
        let txn = env.read_txn()?;
        let events: Option<Database<Bytes, Bytes>> = env.open_database(&txn, None)?;
        let Some(events) = events else {
            return Ok(());
        };
        for entry in events.iter(&txn)? {
            let (id, bytes) = entry?;
            // Names of tables lie among the events; what cannot be read is no event.
            if id.len() == 32
                && let Ok(event) = Event::decode(bytes)
                && !take(event)
            {
                break;
            }
        }
        Ok::<_, heed::Error>(())
    };
    let outcome = read();
    env.prepare_for_closing().wait();
    outcome.map_err(|error| refused(format!("it cannot be read ({error})")))
}

fn look_inside(env: &Env) -> heed::Result<Result<(), String>> {
    let txn = env.read_txn()?;
    let events: Option<Database<Bytes, Bytes>> = env.open_database(&txn, None)?;
    let Some(events) = events else {
        return Ok(Ok(()));
    };
    if events.is_empty(&txn)? {
        return Ok(Ok(()));
    }
    let mut indexes = Vec::new();
    for name in TABLES {
        let table: Option<Database<Bytes, Bytes>> = match env.open_database(&txn, Some(name)) {
            Err(heed::Error::Mdb(heed::MdbError::Incompatible)) => None,
            table => table?,
        };
        match table {
            Some(table) => indexes.push(table),
            None => {
                let reason = format!("its tables are not those of nostr-lmdb ({name} is missing)");
                return Ok(Err(reason));
            }
        }
    }
    let metadata: Option<Database<Bytes, U64<NativeEndian>>> =
        env.open_database(&txn, Some("metadata"))?;
    let version = match metadata {
        Some(metadata) => metadata.get(&txn, b"db_version")?.unwrap_or(1),
        None => 1,
    };
    if version > VERSION {
        let reason =
            format!("it has version {version} of its format, and {VERSION} is the last known");
        return Ok(Err(reason));
    }
    // Names of tables lie among the events.
    let mut sample = 0;
    for entry in events.iter(&txn)? {
        let (id, bytes) = entry?;
        if id.len() != 32 {
            continue;
        }
        if let Err(reason) = fits(&txn, &indexes, id, bytes)? {
            return Ok(Err(reason));
        }
        sample += 1;
        if sample == SAMPLE {
            break;
        }
    }
    Ok(Ok(()))
}

/// Whether one event is as the library would have it.
fn fits(
    txn: &RoTxn<'_>,
    indexes: &[Database<Bytes, Bytes>],
    id: &[u8],
    bytes: &[u8],
) -> heed::Result<Result<(), String>> {
    let Ok(event) = Event::decode(bytes) else {
        return Ok(Err("its events are written in another way".to_owned()));
    };
    if event.id.as_bytes() != id || !event.verify_id() {
        return Ok(Err("its events are not what they are filed as".to_owned()));
    }
    let [by_time, by_tag, by_author, by_author_and_kind, ..] = indexes else {
        return Ok(Ok(()));
    };
    let time = (u64::MAX - event.created_at.as_secs()).to_be_bytes();
    let author = event.pubkey.as_bytes().as_slice();
    let kind = event.kind.as_u16().to_be_bytes();
    let mut keys = vec![
        (by_time, vec![&time[..], id]),
        (by_author, vec![author, &time[..], id]),
        (by_author_and_kind, vec![author, &kind[..], &time[..], id]),
    ];
    let mut value = nip34::values(&event, "d")
        .next()
        .unwrap_or_default()
        .as_bytes()
        .to_vec();
    if event.kind.is_addressable() && !value.is_empty() {
        value.resize(TAG_VALUE, 0);
        keys.push((by_tag, vec![b"d", &value, &time[..], id]));
    }
    for (index, key) in keys {
        if index.get(txn, &key.concat())? != Some(id) {
            return Ok(Err("its indexes are built in another way".to_owned()));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use nostr::{Filter, Kind};
    use nostr_lmdb::NostrLmdb;

    use super::*;
    use crate::{
        config::Backend,
        nip34::testing::{event, keys},
        store::Store,
    };

    /// A database as the library makes it, closed again.
    async fn made(directory: &Path) {
        let lmdb = NostrLmdb::builder(directory).build().await.unwrap();
        for at in 1..=30 {
            let announcement = event(
                &keys(1),
                nip34::ANNOUNCEMENT,
                at,
                &[&["d", &format!("{at}")]],
            );
            let comment = event(&keys(2), Kind::Custom(1111), at, &[&["a", "x"]]);
            for event in [announcement, comment] {
                nostr_database::NostrDatabase::save_event(&lmdb, &event)
                    .await
                    .unwrap();
            }
        }
        drop(lmdb);
    }

    /// Changes what lies there, once nobody else has it open.
    fn change(directory: &Path, work: impl FnOnce(&Env, &mut heed::RwTxn<'_>)) {
        let mut options = EnvOpenOptions::new();
        options.max_dbs(MOST_TABLES).map_size(1 << 30);
        let env = loop {
            // SAFETY: a file of this test's own.
            #[allow(unsafe_code)]
            match unsafe { options.open(directory) } {
                Ok(env) => break env,
                // The library lets go of it when its own thread ends, and heed keeps it open.
                Err(heed::Error::BadOpenOptions { env, .. }) => {
                    env.prepare_for_closing().wait();
                }
                Err(error) => panic!("{error}"),
            }
        };
        let mut txn = env.write_txn().unwrap();
        work(&env, &mut txn);
        txn.commit().unwrap();
        env.prepare_for_closing().wait();
    }

    fn clear(env: &Env, txn: &mut heed::RwTxn<'_>, name: &str) {
        let table: Option<Database<Bytes, Bytes>> = env.open_database(txn, Some(name)).unwrap();
        table.unwrap().clear(txn).unwrap();
    }

    /// What is said of a database that was changed so, which must be left as it is.
    async fn refusal(work: impl FnOnce(&Env, &mut heed::RwTxn<'_>)) -> String {
        let directory = tempfile::tempdir().unwrap();
        made(directory.path()).await;
        change(directory.path(), work);
        let file = directory.path().join("data.mdb");
        let before = std::fs::read(&file).unwrap();
        let refused = check(directory.path()).unwrap_err().to_string();
        assert!(std::fs::read(&file).unwrap() == before, "it was written to");
        assert!(refused.contains("graspd import ws://"), "{refused}");
        refused
    }

    #[tokio::test]
    async fn what_an_older_version_left_is_opened() {
        let directory = tempfile::tempdir().unwrap();
        check(directory.path()).unwrap();
        made(directory.path()).await;
        change(directory.path(), |env, txn| {
            clear(env, txn, "kci");
            clear(env, txn, "metadata");
        });
        std::fs::remove_file(directory.path().join("lock.mdb")).unwrap();
        check(directory.path()).unwrap();
        assert!(!directory.path().join("lock.mdb").exists());
        let store = Store::open(Backend::Lmdb, directory.path()).await.unwrap();
        let found = store.query(Filter::new().kind(nip34::ANNOUNCEMENT)).await;
        assert_eq!(found.unwrap().len(), 30);
    }

    #[tokio::test]
    async fn what_is_of_another_kind_is_refused_as_it_is() {
        let newer = refusal(|env, txn| {
            let metadata: Option<Database<Bytes, U64<NativeEndian>>> =
                env.open_database(txn, Some("metadata")).unwrap();
            metadata.unwrap().put(txn, b"db_version", &3).unwrap();
        });
        assert!(newer.await.contains("version 3"));
        let unindexed = refusal(|env, txn| clear(env, txn, "tci"));
        assert!(unindexed.await.contains("indexes"));
        let other = refusal(|env, txn| {
            let events: Database<Bytes, Bytes> = env.open_database(txn, None).unwrap().unwrap();
            events.put(txn, &[0; 32], b"something else").unwrap();
        });
        assert!(other.await.contains("another way"));
    }

    #[tokio::test]
    async fn what_is_cut_short_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        made(directory.path()).await;
        // Closed for good, as it was not when the library let go of it.
        change(directory.path(), |_, _| {});
        let file = directory.path().join("data.mdb");
        let whole = std::fs::read(&file).unwrap();
        for length in [whole.len() / 2, 9_000, 5_000] {
            std::fs::write(&file, &whole[..length]).unwrap();
            let refused = check(directory.path()).unwrap_err().to_string();
            assert!(refused.contains("cut short"), "{refused}");
            assert!(refused.contains("graspd restore"), "{refused}");
        }
        std::fs::write(&file, &whole).unwrap();
        check(directory.path()).unwrap();
    }

    #[test]
    fn other_databases_and_other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        change(directory.path(), |env, txn| {
            let notes: Database<Bytes, Bytes> = env.create_database(txn, Some("note")).unwrap();
            notes.put(txn, b"key", b"value").unwrap();
        });
        let refused = check(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("tables"), "{refused}");
        for content in [&b""[..], b"no database", &[7; 9_000]] {
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("data.mdb"), content).unwrap();
            assert_eq!(check(directory.path()).is_ok(), content.is_empty());
        }
    }
}
