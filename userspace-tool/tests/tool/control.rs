// SPDX-License-Identifier: GPL-2.0-only

//! Machines that are asked from the outside: ps, pause, resume, stat, stop.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use crate::common::{device, program, variable, Guest};
use crate::devices::Place;
use crate::terminal::ECHO_GUEST;

/// A command that must succeed: what it says.
pub(crate) fn say(words: &[&str]) -> String {
    let output = program().args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words:?}: {output:?}");
    text
}

/// A command that must fail: what it says of that.
pub(crate) fn fail(words: &[&str]) -> String {
    let output = program().args(words).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A machine with pipes for its console.
pub(crate) fn start(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

/// Waits for these words of a machine: all that it says up to them.
pub(crate) fn expect(machine: &mut Child, words: &str) -> String {
    let output = machine.stdout.as_mut().unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(words.as_bytes()) {
        let mut byte = [0];
        let count = output.read(&mut byte).unwrap();
        let text = String::from_utf8_lossy(&seen);
        assert_eq!(count, 1, "{words:?} expected: {text}");
        seen.extend(byte);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn a_machine_rests_and_goes_on() {
    let (device, guest) = (device(), Guest::new(ECHO_GUEST));
    let name = format!("echo-{}", std::process::id());
    let words = ["--device", &device, "--memory", "4M", "--cpus", "2"];
    let mut command = program();
    let command = command.args(["run", "--name", &name, "--kernel", guest.path()]);
    let mut machine = start(command.args(words));
    expect(&mut machine, ">");
    let line = |state: &str| {
        let list = say(&["ps"]);
        let line = list.lines().find(|line| line.starts_with(&name));
        let line = line.unwrap_or_else(|| panic!("{list}"));
        assert!(line.contains(state) && line.contains(&device), "{line}");
    };
    line("running");
    // All its threads are confined.
    for thread in std::fs::read_dir(format!("/proc/{}/task", machine.id())).unwrap() {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    }
    let mut input = machine.stdin.take().unwrap();
    for round in 0..20 {
        say(&["pause", &name]);
        line("paused");
        let before = say(&["stat", &name, "--json"]);
        // It waits in the pipe, or in the program.
        let word = format!("<{round}>");
        input.write_all(word.as_bytes()).unwrap();
        assert_eq!(say(&["stat", &name, "--json"]), before);
        say(&["resume", &name]);
        expect(&mut machine, &word);
    }
    let counters: serde_json::Value =
        serde_json::from_str(&say(&["stat", &name, "--json"])).unwrap();
    assert!(counters["exits"].as_u64() > Some(20), "{counters}");
    assert!(say(&["stat", &name])
        .lines()
        .any(|line| line.ends_with(" exits")));
    // A name belongs to one.
    let second = [
        "run",
        "--name",
        &name,
        "--device",
        &device,
        "--kernel",
        guest.path(),
    ];
    assert!(fail(&second).contains(&name));
    // One that rests can be ended, too.
    say(&["pause", &name]);
    say(&["stop", &name, "--patience", "0"]);
    assert_eq!(machine.wait().unwrap().code(), Some(0));
    assert!(!say(&["ps"]).contains(&name));
    assert!(fail(&["pause", &name]).contains(&name));
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn a_guest_hears_the_power_button() {
    // The input device's first event is the button's.
    let script = "\
        insmod /lib/evdev.ko && insmod /lib/button.ko
        exec 3</dev/input/event0 && echo listening && head -c 1 <&3 >/dev/null
    ";
    let place = Place::new("button", script);
    let name = format!("button-{}", std::process::id());
    let mut command = program();
    let kernel = variable("PACIFICA_TEST_KERNEL");
    let words = [
        "run",
        "--name",
        &name,
        "--device",
        &device(),
        "--kernel",
        &kernel,
    ];
    let command = command
        .args(words)
        .args(["--initrd", &place.path("initrd")]);
    let mut machine =
        start(command.args(["--append", "console=ttyS0 quiet pacifica.run=/bin/script"]));
    expect(&mut machine, "listening");
    // As patient as the host is.
    say(&["stop", &name, "--patience", "3000"]);
    expect(&mut machine, "the end: 0");
    assert_eq!(machine.wait().unwrap().code(), Some(0));
}
