//! Model files through the command line: inspect, extract → verify → run, and every way in which files go bad.

use std::fs;

use crate::support::{Place, flip, gguf, package, talking, transcript, truncate};

const RUN: &str = "run Hello -n 12 --ignore-eos -q --temp 0 -m";

#[test]
fn inspect_transcript() {
    let place = Place::new();
    package(&place, "m");
    transcript!("inspect", place.run("inspect m").expect(0));
    let json = place.run("inspect m --json").expect(0).json();
    assert_eq!(json["architecture"], "glm-dsa");
    assert_eq!(json["missing"], serde_json::json!([]));
}

#[test]
fn inspect_lists_what_is_missing() {
    let place = Place::new();
    talking().write_dense(&place.path("model-dense.gguf"));
    let done = place.run("inspect model-dense.gguf").expect(0);
    assert!(done.stdout.contains("missing") && done.stdout.contains("ffn_gate_exps"), "{}", done.stdout);
}

#[test]
fn extract_verify_run_in_both_layouts() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    let reference = place.run(&format!("{RUN} m.gguf")).expect(0).stdout;
    for layout in ["layer-major", "expert-major"] {
        place.run(&format!("extract m.gguf {layout} --layout {layout} --dense -q")).expect(0);
        let done = place.run(&format!("verify {layout} -q")).expect(0);
        assert!(done.stdout.starts_with("ok: "), "{}", done.stdout);
        place.run(&format!("verify {layout} --against m.gguf -q")).expect(0);
        place.run(&format!("verify {layout} --quick -q")).expect(0);
        for bank in ["3", "all"] {
            assert_eq!(place.run(&format!("{RUN} {layout} --bank {bank}")).expect(0).stdout, reference);
        }
    }
}

#[test]
fn extract_transcript() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    transcript!("extract", place.run("extract m.gguf out --dense").expect(0));
    let json = place.run("extract m.gguf part --layers 2-3 --families gate,up --json").expect(0).json();
    assert_eq!((&json["layers"], &json["tensors"]), (&serde_json::json!(2), &serde_json::json!(4)));
}

#[test]
fn extract_never_overwrites_without_force() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    place.run("extract m.gguf out").expect(0);
    transcript!("extract-exists", place.run("extract m.gguf out --layout expert-major").expect(2));
    place.run("extract m.gguf out --layout expert-major --force -q").expect(0);
    place.run("extract -m m.gguf out2 -q").expect(0);
    place.run("extract m.gguf").expect(2);
    place.run("extract m.gguf out3 --layers 5-3").expect(2);
    place.run("extract m.gguf out3 --families nose").expect(2);
}

#[test]
fn verify_finds_a_flipped_byte() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    place.run("extract m.gguf out --dense -q").expect(0);
    flip(&place.path("out/layer_002.bin"), 10_000);
    let done = place.run("verify out -q").expect(7);
    assert!(done.stdout.contains("layer_002.bin") && done.stdout.contains("expert "), "{}", done.stdout);
    assert_eq!(done.stdout.lines().filter(|line| line.starts_with("bad: ")).count(), 1);
    assert!(done.stderr.contains("damaged bytes") && done.stderr.contains("1 bad entry"), "{}", done.stderr);
    let json = place.run("verify out -q --json").expect(7).json();
    assert_eq!(json["bad"].as_array().expect("list").len(), 1);
    place.run("verify out --against m.gguf -q").expect(7);
}

#[test]
fn verify_finds_every_bad_entry_of_swapped_layers() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    place.run("extract m.gguf out --dense -q").expect(0);
    let (a, b, c) =
        (place.path("out/layer_001.bin"), place.path("out/layer_003.bin"), place.path("out/swap"));
    fs::rename(&a, &c).and_then(|()| fs::rename(&b, &a)).and_then(|()| fs::rename(&c, &b)).expect("swapped");
    let done = place.run("verify out -q").expect(7);
    let bad = |file: &str| done.stdout.lines().filter(|l| l.starts_with("bad: ") && l.contains(file)).count();
    // Twelve experts of three families in each of the two.
    assert_eq!((bad("layer_001.bin"), bad("layer_003.bin")), (36, 36), "{}", done.stdout);
}

#[test]
fn verify_without_sums_says_that_it_checked_no_bytes() {
    let place = Place::new();
    package(&place, "m");
    let done = place.run("verify m -q").expect(0);
    assert!(done.stdout.contains("bytes not checked") && done.stderr.contains("--write-sums"), "{done:?}");
    place.run("verify m --write-sums -q").expect(0);
    assert!(place.run("verify m -q").expect(0).stdout.starts_with("ok: "));
    place.run("verify m --write-sums -q").expect(2);
    flip(&place.path("m/model-dense.gguf"), 40_000);
    place.run("verify m -q").expect(7);
}

#[test]
fn a_truncated_shard_is_named_with_its_numbers() {
    let place = Place::new();
    talking().write_split(place.path("").as_path(), "m", 3);
    place.run(&format!("{RUN} m-00002-of-00003.gguf")).expect(0);
    truncate(&place.path("m-00003-of-00003.gguf"), 10_000);
    transcript!("truncated-shard", place.run(&format!("{RUN} m-00001-of-00003.gguf")).expect(3));
}

#[test]
fn a_missing_shard_is_named() {
    let place = Place::new();
    talking().write_split(place.path("").as_path(), "m", 3);
    fs::remove_file(place.path("m-00002-of-00003.gguf")).expect("removed");
    transcript!("missing-shard", place.run(&format!("{RUN} m-00001-of-00003.gguf")).expect(3));
}

#[test]
fn an_lfs_pointer_is_recognised() {
    let place = Place::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 4096\n";
    fs::write(place.path("m.gguf"), pointer).expect("written");
    transcript!("lfs-pointer", place.run(&format!("{RUN} m.gguf")).expect(3));
}

#[test]
fn a_wrong_sidecar_is_refused() {
    let place = Place::new();
    package(&place, "m");
    let mut other = talking();
    other.config.n_routed_experts = 16;
    other.write_package(&place.path("other"), toy::Convention::Flat, toy::Layout::WholeTensor);
    let done = place.run(&format!("{RUN} m/model-dense.gguf --sidecar other/sidecar")).expect(3);
    assert!(done.stderr.contains("sidecar") && done.stderr.contains("hint:"), "{}", done.stderr);
}

/// Two copies give the text that one gives; something else under the same names is refused, as is the same folder twice.
#[test]
fn copies_on_several_drives_must_be_copies() {
    let place = Place::new();
    package(&place, "a");
    package(&place, "b");
    let one = place.run(&format!("{RUN} a")).expect(0);
    for extra in ["", " --stripe", " --reader sim", " --io-split 4"] {
        let two = place.run(&format!("{RUN} a --sidecar a --sidecar b{extra}")).expect(0);
        assert_eq!(two.stdout, one.stdout, "{extra}");
    }
    let twice = place.run(&format!("{RUN} a --sidecar a --sidecar a/../a")).expect(2);
    assert!(twice.stderr.contains("twice"), "{}", twice.stderr);
    let lonely = place.run(&format!("{RUN} a --stripe")).expect(2);
    assert!(lonely.stderr.contains("--stripe"), "{}", lonely.stderr);
    let mut other = talking();
    other.config.n_routed_experts = 16;
    other.write_package(&place.path("c"), toy::Convention::Flat, toy::Layout::WholeTensor);
    let done = place.run(&format!("{RUN} a --sidecar a --sidecar c")).expect(3);
    assert!(done.stderr.contains("no copies") && done.stderr.contains("hint:"), "{}", done.stderr);
    let done = place.run("verify a --sidecar a --sidecar b").expect(2);
    assert!(done.stderr.contains("one copy"), "{}", done.stderr);
}

#[test]
fn a_truncated_layer_and_a_broken_manifest_are_bad_files() {
    let place = Place::new();
    let package = package(&place, "m");
    truncate(&package.layer_file(2), 5_000);
    let done = place.run(&format!("{RUN} m")).expect(3);
    assert!(done.stderr.contains("layer_002.bin"), "{}", done.stderr);
    fs::write(&package.manifest, "{ \"schema_version\": 1").expect("written");
    let done = place.run(&format!("{RUN} m")).expect(3);
    assert!(done.stderr.contains("manifest.json"), "{}", done.stderr);
}

/// The sidecar shrinks after it was opened: the request ends with an error that names the place.
#[test]
#[cfg(unix)]
fn a_read_error_while_running_names_file_layer_and_expert() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;

    let place = Place::new();
    let package = package(&place, "m");
    let mut child = place
        .command()
        .args("chat -m m -n 4 --temp 0 --bank 3 --reader buffered".split(' '))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"hello\n").expect("written");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    // Something was said, so the experts are open and the bank is warm.
    stdout.fill_buf().expect("a reply");
    truncate(&package.layer_file(3), 100);
    input.write_all(b"go on, please, and tell me all of it\n").expect("written");
    drop(input);
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut stdout, &mut rest).expect("drained");
    let done = place.done(child.wait_with_output().expect("ends")).expect(6);
    for needle in ["cannot read expert", "layer 3", "layer_003.bin, offset"] {
        assert!(done.stderr.contains(needle), "{needle}: {}", done.stderr);
    }
}
