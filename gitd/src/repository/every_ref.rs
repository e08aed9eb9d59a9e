//! Every ref of a repository, shown to readers or not, as its files say: what must not be lost of it.
//!
//! Read without libgit2, which takes ten times as long for a large `packed-refs`, and which refuses
//! some of what another server leaves.

use std::{collections::BTreeMap, fs, io, path::Path};

use grasp_proto::words::Oid;

use super::small::{self, Lies};

/// The longest file of one ref.
const LONGEST: u64 = 64 * 1024;

/// The refs of a repository that point to an object, by name. Loose ones are read first: one that is
/// being packed meanwhile is then found in one place or the other.
pub fn read(repository: &Path) -> io::Result<BTreeMap<String, Oid>> {
    let mut refs = BTreeMap::new();
    read_loose(repository, "refs", &mut refs)?;
    let packed = match small::read(&repository.join("packed-refs"), u64::MAX)? {
        Lies::File(packed) => packed,
        Lies::Nothing => Vec::new(),
        Lies::Other(what) => {
            tracing::warn!(repository = %repository.display(), what, "its packed-refs are not read");
            Vec::new()
        }
    };
    for line in packed.split(|byte| *byte == b'\n') {
        // Comments and what tags are of have no name.
        let line = std::str::from_utf8(line).ok();
        if let Some((oid, name)) = line.and_then(|line| line.split_once(' '))
            && let Ok(oid) = Oid::from_hex(oid)
            && !refs.contains_key(name)
        {
            refs.insert(name.to_owned(), oid);
        }
    }
    Ok(refs)
}

/// As git writes them into `packed-refs`; what tags are of is left for git to find.
pub fn packed(refs: &BTreeMap<String, Oid>) -> String {
    let lines = refs.iter().map(|(name, oid)| format!("{oid} {name}\n"));
    std::iter::once("# pack-refs with: sorted \n".to_owned())
        .chain(lines)
        .collect()
}

fn read_loose(
    repository: &Path,
    directory: &str,
    found: &mut BTreeMap<String, Oid>,
) -> io::Result<()> {
    let entries = match fs::read_dir(repository.join(directory)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(file) = entry.file_name().into_string() else {
            continue;
        };
        let name = format!("{directory}/{file}");
        if entry.file_type()?.is_dir() {
            read_loose(repository, &name, found)?;
        } else if !name.ends_with(".lock")
            && let Ok(Lies::File(text)) = small::read(&entry.path(), LONGEST)
            && let Ok(text) = str::from_utf8(&text)
            && let Ok(oid) = Oid::from_hex(text.trim())
        {
            // What has no value leads to another ref.
            found.insert(name, oid);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loose_refs_go_before_packed_ones_and_both_are_written_as_packed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let (one, two) = (Oid::from_bytes([1; 20]), Oid::from_bytes([2; 20]));
        fs::create_dir_all(path.join("refs/heads/a")).unwrap();
        fs::write(path.join("refs/heads/a/b"), format!("{two}\n")).unwrap();
        fs::write(path.join("refs/heads/c.lock"), format!("{two}\n")).unwrap();
        fs::write(path.join("refs/heads/alias"), "ref: refs/heads/main\n").unwrap();
        let packed_file = format!(
            "# pack-refs with: peeled fully-peeled sorted \n{one} refs/heads/a/b\n{one} refs/tags/t\n^{two}\n"
        );
        fs::write(path.join("packed-refs"), packed_file).unwrap();
        let refs = read(path).unwrap();
        let expected = [("refs/heads/a/b", two), ("refs/tags/t", one)];
        let expected = expected.map(|(name, oid)| (name.to_owned(), oid));
        assert_eq!(refs, BTreeMap::from(expected));
        fs::remove_dir_all(path.join("refs")).unwrap();
        fs::write(path.join("packed-refs"), packed(&refs)).unwrap();
        assert_eq!(read(path).unwrap(), refs);
    }
}
