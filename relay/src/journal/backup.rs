//! The journal as it is at one moment, as lines of a backup, and made anew out of them.

use std::path::Path;

use heed::RoTxn;
use serde::{Deserialize, Serialize};

use super::{Databases, JournalError, Record, check, decode, encode, open};

/// What the journal had at one moment. While it lives, the file grows with what is written.
pub struct Snapshot(pub(super) Option<(RoTxn<'static>, Databases)>);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Snapshot(…)")
    }
}

/// A record, or something of the shelf, as a line of a backup.
#[derive(Serialize, Deserialize)]
struct Line {
    /// The key, in hex.
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    record: Option<Record>,
    /// In hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shelved: Option<String>,
}

impl Line {
    fn to_json(&self) -> String {
        serde_json::to_string(self).expect("it is plain data")
    }
}

fn unhex(text: &str) -> Result<Vec<u8>, JournalError> {
    let mut bytes = vec![0; text.len() / 2];
    faster_hex::hex_decode(text.as_bytes(), &mut bytes)
        .map_err(|_| JournalError::Key(text.len()))?;
    Ok(bytes)
}

impl Snapshot {
    /// Shows `see` each record, and all that is on the shelf, as a line of JSON, until it has seen
    /// enough. Blocks.
    pub fn lines(&self, mut see: impl FnMut(String) -> bool) -> Result<(), JournalError> {
        let Some((txn, databases)) = &self.0 else {
            return Ok(());
        };
        for entry in databases.records.iter(txn)? {
            let Some((key, record)) = decode(entry?) else {
                continue;
            };
            let line = Line {
                key: faster_hex::hex_string(&key),
                record: Some(record),
                shelved: None,
            };
            if !see(line.to_json()) {
                return Ok(());
            }
        }
        for entry in databases.shelf.iter(txn)? {
            let (key, value) = entry?;
            let line = Line {
                key: faster_hex::hex_string(key),
                record: None,
                shelved: Some(faster_hex::hex_string(value)),
            };
            if !see(line.to_json()) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Makes a journal in `directory` out of the lines of a backup. Gives how many there were. Blocks.
pub fn restore(
    directory: &Path,
    lines: impl Iterator<Item = std::io::Result<String>>,
) -> Result<u64, JournalError> {
    let (env, databases) = open(directory)?;
    let mut txn = env.write_txn()?;
    let mut count = 0;
    for line in lines {
        let line: Line = serde_json::from_str(&line?).map_err(std::io::Error::from)?;
        let key = unhex(&line.key)?;
        check(&key)?;
        if let Some(record) = &line.record {
            databases.records.put(&mut txn, &key, &encode(record))?;
        }
        if let Some(value) = &line.shelved {
            databases.shelf.put(&mut txn, &key, &unhex(value)?)?;
        }
        count += 1;
    }
    txn.commit()?;
    Ok(count)
}
