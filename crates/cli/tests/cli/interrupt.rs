//! Ctrl-C, as the signal that a terminal sends.
#![cfg(unix)]

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Place, package};

fn start(place: &Place, args: &str) -> Child {
    place
        .command()
        .args(args.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// As `kill -INT`; the shell's own tool, so that this test needs no unsafe code.
fn interrupt(child: &Child) {
    let done = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(done.success());
}

fn wait(child: &mut Child) -> i32 {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("our child") {
            return status.code().unwrap_or(-1);
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "an interrupted process must end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_first_one_stops_the_generation_with_figures_and_130() {
    let place = Place::new();
    package(&place, "m");
    let mut child = start(&place, "run Hello -m m -n 4000 -c 4096 --ignore-eos --bank 3");
    let mut first = [0; 1];
    let mut stdout = child.stdout.take().expect("piped");
    stdout.read_exact(&mut first).expect("some text");
    // Someone has to drain the pipe, or the process waits for room and not for us.
    let drain = std::thread::spawn(move || {
        let mut rest = Vec::new();
        stdout.read_to_end(&mut rest).expect("the rest");
        rest
    });
    interrupt(&child);
    assert_eq!(wait(&mut child), 130);
    let rest = drain.join().expect("drained");
    assert!(rest.ends_with(b"\n"));
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("UTF-8");
    assert!(stderr.contains("interrupted") && stderr.contains("hit rate"), "{stderr}");
}

#[test]
fn a_full_context_ends_a_run_with_a_note() {
    let place = Place::new();
    package(&place, "m");
    let done = place.run("run Hello -m m -n 4000 -c 48 --ignore-eos --bank 3").expect(0);
    assert!(done.stderr.contains("the context of 48 positions is full"), "{}", done.stderr);
}
