//! Every exit code, and what a person reads with it. 130 is in `interrupt`, 7 and most of 3 in `sidecar`.

use std::fs;

use crate::support::{Place, gguf, package, silent, talking, transcript};

/// Numbers that cannot be right are our problem until shown otherwise; no bad input may come out as text.
#[test]
fn logits_that_are_no_numbers_are_1() {
    let place = Place::new();
    let mut toy = talking();
    toy.constants.push(("output_norm.weight".into(), f32::NAN));
    toy.write(&place.path("m.gguf"));
    transcript!("internal-broken-logits", place.run("run Hello -m m.gguf -q").expect(1));
    let done = place.run("logits m.gguf --tokens 1,2 -q").expect(1);
    assert!(done.stderr.contains("not finite"), "{}", done.stderr);
}

#[test]
fn usage_is_2() {
    let place = Place::new();
    transcript!("usage-unknown-flag", place.run("run Hello --slots 4").expect(2));
    transcript!("usage-bad-bank", place.run("run Hello --bank many").expect(2));
    transcript!("usage-no-such-file", place.run("plan absent.gguf").expect(2));
    transcript!("usage-empty-prompt", place.run_args(&["run", ""]).expect(2));
    let done = place.run("plan a.gguf -m b.gguf").expect(2);
    assert!(done.stderr.contains("cannot be used with"), "{}", done.stderr);
    place.run("run Hello --temp -1").expect(2);
    place.run("run Hello --top-p 2").expect(2);
    place.run("logits").expect(2);
    place.run("frobnicate").expect(2);
}

#[test]
fn options_that_do_not_suit_the_model_are_2() {
    let place = Place::new();
    gguf(&place, "m.gguf");
    transcript!("usage-moe-topk", place.run("plan m.gguf --moe-topk 13").expect(2));
    transcript!("usage-context", place.run("plan m.gguf -c 100000000").expect(2));
}

#[test]
fn a_bad_file_is_3() {
    let place = Place::new();
    fs::write(place.path("m.gguf"), "<!DOCTYPE html><html>rate limited</html>").expect("written");
    transcript!("bad-html", place.run("run Hello -m m.gguf").expect(3));
    fs::write(place.path("cut.gguf"), b"GGUF\x03\0\0\0").expect("written");
    transcript!("bad-cut-header", place.run("run Hello -m cut.gguf").expect(3));
    fs::create_dir(place.path("empty")).expect("created");
    place.run("run Hello -m empty").expect(3);
}

#[test]
fn an_unsupported_architecture_is_4() {
    let place = Place::new();
    let path = gguf(&place, "m.gguf");
    let bytes = fs::read(&path).expect("read");
    // The same length, so that every other offset stays where it is; the keys keep their old prefix.
    let at = bytes.windows(7).position(|w| w == b"glm-dsa").expect("the architecture's value");
    let mut other = bytes.clone();
    other[at..at + 7].copy_from_slice(b"glm9moe");
    fs::write(&path, other).expect("written");
    transcript!("unsupported-architecture", place.run("run Hello -m m.gguf").expect(4));
}

#[test]
fn what_does_not_fit_is_5() {
    let place = Place::new();
    package(&place, "m");
    transcript!("bank-below-floor", place.run("run Hello -m m --bank 2").expect(5));
    transcript!("bank-bytes-below-floor", place.run("run Hello -m m --bank 4KiB").expect(5));
    let prompt = "many words ".repeat(40);
    transcript!("prompt-too-long", place.run_args(&["run", &prompt, "-m", "m", "-c", "32", "-q"]).expect(5));
}

#[test]
fn a_failed_write_is_6() {
    let place = Place::new();
    package(&place, "m");
    fs::create_dir(place.path("folder")).expect("created");
    place.run("run Hello -m m -n 1 -q --trace folder").expect(6);
    place.run("run Hello -m m -n 1 -q --dump folder").expect(6);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_stdout_is_6_and_not_a_panic() {
    let place = Place::new();
    package(&place, "m");
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("linux has it");
    let output = place.command().args(["plan", "m"]).stdout(full).output().expect("starts");
    let done = place.done(output).expect(6);
    assert!(done.stderr.contains("cannot write to standard output"), "{}", done.stderr);
}

#[test]
fn no_command_panics_on_a_model_without_a_vocabulary() {
    let place = Place::new();
    silent().write(&place.path("m.gguf"));
    for args in ["run Hello -m m.gguf", "chat -m m.gguf", "eval m.gguf --sample 1 --prompt a"] {
        let done = place.run(args).expect(4);
        assert!(done.stderr.lines().count() < 24 && !done.stderr.contains("panicked"), "{}", done.stderr);
    }
    for args in ["plan m.gguf", "inspect m.gguf", "verify m.gguf -q"] {
        place.run(args).expect(0);
    }
}

#[test]
fn a_dense_model_folder_without_its_experts_is_incomplete() {
    let place = Place::new();
    let package = package(&place, "m");
    fs::remove_dir_all(&package.sidecar).expect("removed");
    transcript!("no-experts", place.run("run Hello -m m").expect(3));
}
