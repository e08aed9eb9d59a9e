//! Whether a database is as long as it says.
//!
//! The library maps the file into memory, where reading behind its end kills the process. LMDB notes the number
//! of the last page it ever took; the file may well be shorter, but only by pages at its end that
//! were freed before they were written. So where pages are missing, they must all be in the list of
//! free ones, which is looked through here in the file itself.

use std::{collections::BTreeSet, fs::File, io, os::unix::fs::FileExt, path::Path};

const MAGIC: u32 = 0xBEEF_C0DE;
/// The version of LMDB's format that is known here; what is said of another is the library's to judge.
const VERSION: u32 = 1;
/// What every page begins with: its number, flags, and how much of it is used.
const HEAD: usize = 16;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
/// Flag of a value that lies in pages of its own.
const LARGE: u16 = 1;
/// Pages of the list of free ones that are read at most: of more there is something else wrong.
const MOST: usize = 1 << 16;
/// No tree is deeper.
const DEEPEST: usize = 32;
/// "There is no such page".
const NONE: u64 = u64::MAX;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What a commit noted.
#[derive(Debug, Clone, Copy)]
struct Meta {
    page_size: usize,
    free: u64,
    tables: u64,
    last: u64,
    commit: u64,
}

impl Meta {
    /// Of the bytes of one of the two first pages (`MDB_meta` behind the page's head).
    fn parse(page: &[u8]) -> Option<Self> {
        if u32_at(page, HEAD)? != MAGIC || u32_at(page, HEAD + 4)? != VERSION {
            return None;
        }
        let page_size = u32_at(page, HEAD + 24)? as usize;
        let is_possible = page_size.is_power_of_two() && (256..=65536).contains(&page_size);
        is_possible.then_some(())?;
        Some(Self {
            page_size,
            free: u64_at(page, HEAD + 24 + 40)?,
            tables: u64_at(page, HEAD + 72 + 40)?,
            last: u64_at(page, HEAD + 120)?,
            commit: u64_at(page, HEAD + 128)?,
        })
    }
}

/// How many pages are missing that are in use; `None`: none, or this is nothing that we can tell it of.
pub fn missing(path: &Path) -> io::Result<Option<u64>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut first = [0; 256];
    if length < first.len() as u64 {
        return Ok(None);
    }
    file.read_exact_at(&mut first, 0)?;
    let Some(meta) = Meta::parse(&first) else {
        return Ok(None);
    };
    let size = meta.page_size as u64;
    if length < 2 * size {
        return Ok(Some(meta.last + 1 - length / size));
    }
    let mut second = [0; 256];
    file.read_exact_at(&mut second, size)?;
    let second = Meta::parse(&second).filter(|second| second.commit > meta.commit);
    let meta = second.unwrap_or(meta);
    let there = length / size;
    if there > meta.last {
        return Ok(None);
    }
    let all = meta.last + 1 - there;
    let is_there = |page: u64| page == NONE || page < there;
    if !is_there(meta.free) || !is_there(meta.tables) {
        return Ok(Some(all));
    }
    let mut list = FreeList {
        file,
        there,
        page_size: meta.page_size,
        left: MOST,
        missing: (there..=meta.last).take(MOST).collect(),
    };
    let looked = meta.free == NONE || list.look(meta.free, DEEPEST).is_some();
    let still = list.missing.len() as u64 + all.saturating_sub(MOST as u64);
    Ok(match looked && still == 0 {
        true => None,
        false => Some(still.max(1)),
    })
}

/// The tree of free pages, and which pages are to be found in it.
struct FreeList {
    file: File,
    there: u64,
    page_size: usize,
    left: usize,
    missing: BTreeSet<u64>,
}

impl FreeList {
    fn read(&mut self, page: u64, bytes: usize) -> Option<Vec<u8>> {
        let pages = bytes.div_ceil(self.page_size);
        self.left = self.left.checked_sub(pages)?;
        (page.checked_add(pages as u64)? <= self.there).then_some(())?;
        let mut read = vec![0; bytes];
        let at = page * self.page_size as u64;
        self.file.read_exact_at(&mut read, at).ok()?;
        Some(read)
    }

    /// Takes what is free out of what is missing; `None`: the tree cannot be read.
    fn look(&mut self, page: u64, deepest: usize) -> Option<()> {
        let bytes = self.read(page, self.page_size)?;
        let (flags, used) = (u16_at(&bytes, 10)?, usize::from(u16_at(&bytes, 12)?));
        for at in (HEAD..used).step_by(2) {
            let node = usize::from(u16_at(&bytes, at)?);
            let low = u64::from(u16_at(&bytes, node)?) | u64::from(u16_at(&bytes, node + 2)?) << 16;
            let high = u16_at(&bytes, node + 4)?;
            if flags & BRANCH != 0 {
                let child = low | u64::from(high) << 32;
                self.look(child, deepest.checked_sub(1)?)?;
            } else if flags & LEAF != 0 {
                let value = node + 8 + usize::from(u16_at(&bytes, node + 6)?);
                let length = usize::try_from(low).ok()?;
                if high & LARGE != 0 {
                    let large = self.read(u64_at(&bytes, value)?, HEAD + length)?;
                    self.strike(large.get(HEAD..)?)?;
                } else {
                    self.strike(bytes.get(value..value + length)?)?;
                }
            } else {
                return None;
            }
        }
        Some(())
    }

    /// A value: how many pages, and their numbers.
    fn strike(&mut self, value: &[u8]) -> Option<()> {
        let count = usize::try_from(u64_at(value, 0)?).ok()?;
        for number in 1..=count {
            self.missing.remove(&u64_at(value, 8 * number)?);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use heed::{Database, EnvOpenOptions, types::Bytes};

    use super::*;

    /// A database with many pages, some of them free.
    fn made(directory: &Path) {
        let mut options = EnvOpenOptions::new();
        options.map_size(1 << 28);
        // SAFETY: a file of this test's own.
        #[allow(unsafe_code)]
        let env = unsafe { options.open(directory) }.unwrap();
        for round in 0..6_u32 {
            let mut txn = env.write_txn().unwrap();
            let all: Database<Bytes, Bytes> = env.create_database(&mut txn, None).unwrap();
            for number in 0..3000_u32 {
                let key = number.to_be_bytes();
                if round % 3 == 2 {
                    all.delete(&mut txn, &key).unwrap();
                } else if number % 2 == 0 || round == 0 {
                    all.put(&mut txn, &key, &[7; 600]).unwrap();
                }
            }
            txn.commit().unwrap();
        }
        env.prepare_for_closing().wait();
    }

    #[test]
    fn what_is_cut_short_is_noticed_and_what_is_free_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        made(directory.path());
        let path = directory.path().join("data.mdb");
        assert_eq!(missing(&path).unwrap(), None);
        let whole = std::fs::read(&path).unwrap();
        // All that was there is deleted: pages at the end are free, and may never have been written.
        let cut = |pages: usize| {
            std::fs::write(&path, &whole[..whole.len() - pages * 4096]).unwrap();
            missing(&path).unwrap()
        };
        let free = (0..whole.len() / 4096).take_while(|pages| cut(*pages).is_none());
        assert!(free.count() > 1);
        for length in [whole.len() / 8, 20_000, 9_000, 5_000] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(
                missing(&path).unwrap().is_some(),
                "{length} of {}",
                whole.len()
            );
        }
        for other in [&b""[..], b"no database", &[7; 9_000]] {
            std::fs::write(&path, other).unwrap();
            assert_eq!(missing(&path).unwrap(), None);
        }
    }
}
