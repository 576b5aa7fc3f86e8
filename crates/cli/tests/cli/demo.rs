//! The embedded demo: unpacked, checked, repaired, shared between processes, and the same text for every bank.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::Place;

const RUN: [&str; 6] = ["run", "Once upon a time", "-n", "24", "-q", "--ignore-eos"];

fn unpacked(place: &Place) -> PathBuf {
    let cache = place.path("cache").join("slotbank");
    let mut folders: Vec<PathBuf> = fs::read_dir(&cache)
        .unwrap_or_else(|e| panic!("{}: {e}", cache.display()))
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("demo-")))
        .collect();
    assert_eq!(folders.len(), 1, "{folders:?}");
    folders.remove(0)
}

fn run(place: &Place, extra: &[&str]) -> String {
    let mut args = RUN.to_vec();
    args.extend(extra);
    place.run_args(&args).expect(0).stdout
}

fn first_layer(folder: &Path) -> PathBuf {
    let mut bins: Vec<PathBuf> = fs::read_dir(folder.join("sidecar"))
        .expect("a sidecar")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "bin"))
        .collect();
    bins.sort();
    bins.swap_remove(0)
}

#[test]
fn the_floor_and_everything_resident_give_the_same_text() {
    let place = Place::new();
    let plan = place.run("plan --json").expect(0).json();
    let floor = plan["model"]["top_k"].as_u64().expect("top_k").to_string();
    for sampling in [&["--temp", "0"][..], &["--temp", "0.8", "--seed", "11"]] {
        let with = |bank: &str| run(&place, &[sampling, &["--bank", bank]].concat());
        let all = with("all");
        assert!(all.len() > 40, "{all:?}");
        assert_eq!(all, with(&floor));
        assert_eq!(all, with("auto"));
    }
}

#[test]
fn its_experts_are_read_from_disk() {
    let place = Place::new();
    let json = place
        .run_args(&["run", "Once upon a time", "-n", "24", "--bank", "4", "--json", "-q"])
        .expect(0)
        .json();
    assert!(json["stats"]["experts"]["bytes_read"].as_u64().expect("bytes") > 1_000_000, "{json}");
}

#[test]
fn a_damaged_cache_is_repaired() {
    let place = Place::new();
    let text = run(&place, &[]);
    let folder = unpacked(&place);
    let layer = first_layer(&folder);
    let sound = fs::read(&layer).expect("a layer");
    let mut damaged = sound.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(&layer, damaged).expect("damaged");
    assert_eq!(run(&place, &[]), text);
    assert_eq!(fs::read(&layer).expect("a layer"), sound);

    fs::write(folder.join("model-dense.gguf"), b"GGUF").expect("damaged");
    fs::remove_file(&layer).expect("damaged");
    assert_eq!(run(&place, &[]), text);
}

#[test]
fn processes_that_start_at_once_do_not_disturb_each_other() {
    let place = Place::new();
    let children: Vec<_> = (0..4)
        .map(|_| {
            place.command().args(RUN).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
        })
        .collect();
    let texts: Vec<String> = children
        .into_iter()
        .map(|child| place.done(child.wait_with_output().expect("ends")).expect(0).stdout)
        .collect();
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    unpacked(&place);
}

#[test]
fn a_cache_that_cannot_be_written_falls_back_and_says_so() {
    let place = Place::new();
    // A file in the way stops root as well, which permissions would not.
    fs::write(place.path("cache"), b"").expect("written");
    let done = place.run_args(&["run", "Once upon a time", "-n", "4"]).expect(0);
    assert!(done.stderr.contains("note: the demo lies in"), "{}", done.stderr);
}

#[test]
fn it_verifies_inspects_and_chats() {
    let place = Place::new();
    place.run("inspect").expect(0);
    place.run("plan").expect(0);
    place.run("verify -q").expect(0);
    let mut child = place
        .command()
        .args("chat -q -n 24 --temp 0".split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"Tell me a story about a fox.\n")
        .expect("written");
    let done = place.done(child.wait_with_output().expect("ends")).expect(0);
    assert!(done.stdout.trim().len() > 10, "{done:?}");
}
