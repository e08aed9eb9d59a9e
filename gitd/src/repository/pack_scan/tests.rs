//! The scanner against packs made by hand and by git.

#[path = "../../../tests/made_pack/mod.rs"]
#[allow(dead_code)] // It is made for the tests from outside, too.
mod made_pack;

use std::{io::Write as _, process::Stdio};

use proptest::prelude::*;

use self::made_pack::{number, object, pack};
use super::*;
use crate::repository::git;

const LIMITS: PackLimits = PackLimits {
    objects: 1000,
    blob_bytes: 1 << 30,
    metadata_bytes: 8 << 20,
    delta_bytes: 32 << 20,
    inflated_bytes: 2 << 30,
    inflated_ratio: 64,
};

fn delta(base: u64, result: u64) -> Vec<u8> {
    [number(base), number(result), vec![0x91, 0, 1]].concat()
}

fn scan(limits: PackLimits, pack: &[u8], piece: usize) -> Result<PackScanner, BadPack> {
    let mut scanner = PackScanner::new(limits);
    for piece in pack.chunks(piece) {
        scanner.scan(piece)?;
    }
    Ok(scanner)
}

fn refused(limits: PackLimits, pack: &[u8]) -> BadPack {
    let refusals = [1, 7, pack.len()].map(|piece| scan(limits, pack, piece).err());
    assert!(refusals.iter().all(|refusal| *refusal == refusals[0]));
    refusals[0].clone().expect("it is refused")
}

#[test]
fn a_plain_pack_passes_in_pieces_of_any_size() {
    let instructions = delta(5, 1 << 20);
    let mut bytes = pack(&[
        object(1, 5, b"", b"hello"),
        object(3, 100_000, b"", &vec![b'x'; 100_000]),
        object(7, instructions.len() as u64, &[1; 20], &instructions),
        object(6, instructions.len() as u64, &[0x81, 0x05], &instructions),
        object(3, 0, b"", b""),
    ]);
    let length = bytes.len();
    bytes.extend(b"what comes behind it");
    for piece in [1, 2, 19, 1000, bytes.len()] {
        let scanner = scan(LIMITS, &bytes, piece).unwrap();
        assert!(scanner.is_done());
        assert_eq!(scanner.received, length as u64);
        assert_eq!(scanner.largest_in_memory(), 1 << 20);
    }
    assert!(!scan(LIMITS, &bytes[..length - 1], 10).unwrap().is_done());
    assert!(scan(LIMITS, &pack(&[]), 10).unwrap().is_done());
}

#[test]
fn what_is_too_large_is_refused_by_its_header() {
    let most = LIMITS.metadata_bytes;
    for (kind, name) in [(1, "commit"), (2, "tree"), (4, "tag")] {
        // Nothing of its content has come.
        let header = &object(kind, most + 1, b"", b"")[..5];
        let bytes = [&pack(&[vec![]])[..12], header].concat();
        let refusal = refused(LIMITS, &bytes);
        assert!(
            matches!(refusal, BadPack::TooLarge { kind, bytes, .. } if kind == name && bytes == most + 1)
        );
    }
    let blob = object(3, LIMITS.blob_bytes + 1, b"", b"");
    assert!(matches!(
        refused(LIMITS, &pack(&[blob])),
        BadPack::TooLarge { kind: "file", .. }
    ));
    let instructions = delta(5, LIMITS.delta_bytes + 1);
    let bomb = object(7, instructions.len() as u64, &[1; 20], &instructions);
    let words = refused(LIMITS, &pack(&[bomb])).to_string();
    assert!(words.contains("core.bigFileThreshold"), "{words}");
}

#[test]
fn many_small_deltas_of_large_results_are_refused_together() {
    let instructions = delta(5, LIMITS.delta_bytes);
    let one = object(6, instructions.len() as u64, &[5], &instructions);
    let few = pack(&vec![one.clone(); 60]);
    assert!(scan(LIMITS, &few, 100).is_ok());
    let many = pack(&vec![one; 100]);
    assert!(matches!(refused(LIMITS, &many), BadPack::Inflates { .. }));
    let count = BadPack::TooMany {
        count: 1001,
        most: 1000,
    };
    assert_eq!(refused(LIMITS, &pack(&vec![vec![]; 1001])), count);
}

#[test]
fn what_is_damaged_is_refused() {
    let shorter = object(3, 4, b"", b"hello");
    let longer = object(3, 6, b"", b"hello");
    let no_type = object(5, 5, b"", b"hello");
    let no_result = object(7, 1, &[1; 20], &[5]);
    let endless = [vec![0x90], vec![0xff; 12]].concat();
    let no_zlib = [&object(3, 5, b"", b"")[..1], &[0xaa; 40]].concat();
    for object in [shorter, longer, no_type, no_result, endless, no_zlib] {
        let refusal = refused(LIMITS, &pack(&[object]));
        assert!(matches!(refusal, BadPack::Damaged(_)), "{refusal}");
    }
    assert_eq!(
        refused(LIMITS, b"PACK\0\0\0\x04\0\0\0\0"),
        BadPack::NotAPack
    );
    assert_eq!(refused(LIMITS, b"0000PACK....."), BadPack::NotAPack);
}

#[test]
fn what_git_packs_passes() {
    let directory = tempfile::tempdir().unwrap();
    let git = |args: &[&str], input: &[u8]| {
        let mut command = git::command(directory.path());
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        output.stdout
    };
    git(&["init", "-q", "--bare", "."], b"");
    let mut ids = Vec::new();
    for version in 0..50u32 {
        let lines = (0..2000u32).map(|line| format!("{}\n", line.min(1900 + version) * 7919));
        ids.extend(git(
            &["hash-object", "-w", "--stdin"],
            lines.collect::<String>().as_bytes(),
        ));
    }
    let packed = git(&["pack-objects", "--stdout", "-q"], &ids);
    for piece in [1, 4096, packed.len()] {
        let scanner = scan(LIMITS, &packed, piece).unwrap();
        assert!(scanner.is_done());
        assert_eq!(scanner.received, packed.len() as u64);
        assert!(scanner.largest_in_memory() > 0);
    }
}

proptest! {
    #[test]
    fn the_size_of_the_pieces_changes_nothing(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        piece in 1usize..50,
    ) {
        let count = 1 + u32::try_from(bytes.len() % 3).unwrap();
        let pack = [b"PACK\0\0\0\x02".to_vec(), count.to_be_bytes().to_vec(), bytes].concat();
        let whole = scan(LIMITS, &pack, pack.len()).map(|scanner| (scanner.is_done(), scanner.received));
        let parts = scan(LIMITS, &pack, piece).map(|scanner| (scanner.is_done(), scanner.received));
        prop_assert_eq!(whole, parts);
    }
}
