//! Reconciliations (NIP-77), the side of those who hold the events.

use negentropy::{Id, Negentropy, NegentropyStorageVector};

use super::stored::Item;

/// Longest answer, in bytes: what does not fit is told in later rounds.
const FRAME: u64 = 60_000;

/// Why a reconciliation is over.
#[derive(Debug, thiserror::Error)]
pub enum ReconciliationError {
    /// The client's message is none of the protocol.
    #[error("this is no negentropy message ({0})")]
    Message(negentropy::Error),
    /// What is stored cannot be reconciled.
    #[error("what is stored cannot be compared ({0})")]
    Items(negentropy::Error),
    /// It was being prepared when its task ended.
    #[error("the reconciliation ended")]
    Task(#[from] tokio::task::JoinError),
}

impl ReconciliationError {
    /// What the client is told, with the prefix that machines read (NIP-01).
    pub fn reason(&self) -> String {
        match self {
            Self::Message(_) => format!("invalid: {self}"),
            _ => format!("error: {self}"),
        }
    }
}

/// A reconciliation that goes on: it holds the ids and times that it compares.
#[derive(Debug)]
pub struct Reconciliation(Box<Negentropy<'static, NegentropyStorageVector>>);

impl Reconciliation {
    /// Begins over these, with the client's first message, in hex; gives our first answer, in hex.
    ///
    /// # Errors
    /// The message is none of the protocol.
    pub async fn open(
        items: Vec<Item>,
        message: &str,
    ) -> Result<(Self, String), ReconciliationError> {
        let prepare = move || {
            let mut storage = NegentropyStorageVector::with_capacity(items.len());
            for (id, at) in items {
                storage.insert(at.as_secs(), Id::from_byte_array(id.to_bytes()))?;
            }
            storage.seal()?;
            Negentropy::owned(storage, FRAME)
        };
        // Sorting a large store takes its time.
        let prepared = tokio::task::spawn_blocking(prepare).await?;
        let mut this = Self(Box::new(prepared.map_err(ReconciliationError::Items)?));
        let answer = this.step(message)?;
        Ok((this, answer))
    }

    /// Our answer to the client's next message, both in hex. After an error it is over.
    ///
    /// # Errors
    /// The message is none of the protocol.
    pub fn step(&mut self, message: &str) -> Result<String, ReconciliationError> {
        // It was read as hex, of an even number of digits, before.
        let mut bytes = vec![0; message.len() / 2];
        let decoded = faster_hex::hex_decode(message.as_bytes(), &mut bytes);
        decoded
            .map_err(|_| ReconciliationError::Message(negentropy::Error::ParseEndsPrematurely))?;
        let answer = self.0.reconcile(&bytes);
        let answer = answer.map_err(ReconciliationError::Message)?;
        Ok(faster_hex::hex_string(&answer))
    }
}

#[cfg(test)]
mod tests {
    use nostr::{EventBuilder, Keys, Kind, event::FinalizeEvent};

    use super::*;

    #[tokio::test]
    async fn a_bad_message_is_the_clients() {
        let note = EventBuilder::new(Kind::TextNote, "")
            .finalize(&Keys::generate())
            .unwrap();
        let open = |message| Reconciliation::open(vec![(note.id, note.created_at)], message);
        // A version that is not there is answered with the one that is.
        let (mut opened, answer) = open("62").await.unwrap();
        assert_eq!(answer, "61");
        assert_eq!(opened.step("62").unwrap(), "61");
        for bad in ["ff", "00", "61000007"] {
            let error = open(bad).await.unwrap_err();
            assert!(error.reason().starts_with("invalid: "), "{bad}: {error}");
        }
        assert!(
            opened
                .step("ff")
                .unwrap_err()
                .reason()
                .starts_with("invalid: ")
        );
    }

    #[tokio::test]
    async fn both_sides_find_what_the_other_lacks() {
        let mut ours = Vec::new();
        let keys = Keys::generate();
        let mut theirs = NegentropyStorageVector::new();
        let mut expected = Vec::new();
        for number in 0..300 {
            let note = EventBuilder::new(Kind::TextNote, number.to_string())
                .finalize(&keys)
                .unwrap();
            let id = Id::from_byte_array(note.id.to_bytes());
            match number % 3 {
                0 => expected.push(id),
                _ => theirs.insert(note.created_at.as_secs(), id).unwrap(),
            }
            ours.push((note.id, note.created_at));
        }
        theirs.seal().unwrap();
        let mut client = Negentropy::owned(theirs, 0).unwrap();
        let mut message = faster_hex::hex_string(&client.initiate().unwrap());
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let mut opened: Option<Reconciliation> = None;
        loop {
            let answer = match &mut opened {
                None => {
                    let (new, answer) = Reconciliation::open(ours.clone(), &message).await.unwrap();
                    opened = Some(new);
                    answer
                }
                Some(opened) => opened.step(&message).unwrap(),
            };
            let mut bytes = vec![0; answer.len() / 2];
            faster_hex::hex_decode(answer.as_bytes(), &mut bytes).unwrap();
            match client
                .reconcile_with_ids(&bytes, &mut have, &mut need)
                .unwrap()
            {
                Some(next) => message = faster_hex::hex_string(&next),
                None => break,
            }
        }
        expected.sort_unstable();
        need.sort_unstable();
        assert!(have.is_empty());
        assert_eq!(need, expected);
    }
}
