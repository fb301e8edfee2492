// SPDX-License-Identifier: GPL-2.0-only

//! The commands that need no hypervisor.

use std::path::Path;
use std::process::Output;

use crate::common::{device, program};

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output: Output = program().args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn exec_puts_the_node_at_dev_kvm_and_leaves_nothing_behind() {
    let there = Path::new("/dev/kvm").exists();
    let entries = || std::fs::read_dir("/dev").unwrap().count();
    let before = entries();
    // Any character device will do as the node. All other nodes are where they were.
    let script = "test -c /dev/kvm && cat /dev/kvm && echo >/dev/null && test -c /dev/zero && ls /dev | wc -l && exit 42";
    let (status, output, error) = run(&["exec", "--device", "/dev/null", "--", "sh", "-c", script]);
    if error.contains("user namespaces") {
        eprintln!("skipped: {error}");
        return;
    }
    assert_eq!(status, Some(42), "{error}");
    assert_eq!(output.trim().parse(), Ok(before + usize::from(!there)));
    assert_eq!((Path::new("/dev/kvm").exists(), entries()), (there, before));
}

#[test]
fn exec_stays_in_its_directory() {
    let (status, output, error) = run(&["exec", "--device", "/dev/null", "--", "pwd"]);
    if !error.contains("user namespaces") {
        let here = std::env::current_dir().unwrap();
        assert_eq!(
            (status, output.trim()),
            (Some(0), here.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn exec_says_what_is_missing() {
    let (status, _, error) = run(&["exec", "--device", "/dev/there-is-none", "--", "true"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("there is no /dev/there-is-none"), "{error}");
    let (status, _, error) = run(&["exec", "--device", "/dev/null", "--", "/no/such/program"]);
    assert!(
        status == Some(127) || error.contains("user namespaces"),
        "{error}"
    );
}

#[test]
fn check_names_every_step_and_a_remedy() {
    let (status, output, _) = run(&["check", "--device", "/dev/there-is-none"]);
    assert_eq!(status, Some(1));
    for what in [
        "processor vendor",
        "SVM (AMD-V)",
        "nested paging (NPT)",
        "kernel version",
        "module kvm_amd",
        "module pacifica",
        "device node",
        "permission",
        "API version",
        "making a machine",
    ] {
        let line = output
            .lines()
            .find(|line| line.get(4..).is_some_and(|rest| rest.starts_with(what)));
        let verdict = line.map(|line| &line[..2]);
        assert!(
            matches!(verdict, Some("ok" | "??" | "NO")),
            "{what}: {output}"
        );
    }
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("NO") || line.starts_with("??") {
            assert!(
                lines
                    .peek()
                    .is_some_and(|next| next.trim_start().starts_with("->")),
                "{line}"
            );
        }
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn program_and_module_have_one_version() {
    let loaded = std::fs::read_to_string("/sys/module/pacifica/version");
    if device() == "/dev/kvm" {
        assert!(loaded.is_err(), "the module is not the one under test");
        return;
    }
    let loaded = loaded.expect("the module has a version");
    let (status, output, _) = run(&["--version"]);
    assert_eq!(
        (status, output),
        (Some(0), format!("pacifica {}\n", loaded.trim()))
    );
    let (_, output, _) = run(&["check"]);
    assert!(
        output.contains(&format!("loaded, version {}\n", loaded.trim())),
        "{output}"
    );
}

#[test]
fn completions_and_manual_come_from_the_same_source() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, output, _) = run(&["completions", shell]);
        assert_eq!(status, Some(0));
        assert!(output.contains("irqchip"), "{shell}");
    }
    let (status, output, _) = run(&["man"]);
    assert_eq!(status, Some(0));
    assert!(output.contains(".TH pacifica"), "{output}");
}

#[test]
fn a_machine_that_is_printed_can_be_read_again() {
    let place = std::env::temp_dir().join(format!("pacifica-machine-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    let words = [
        "run",
        "--kernel",
        "/k",
        "--disk",
        "/d,ro",
        "--net",
        "tap=t",
        "--print-config",
    ];
    let (status, first, error) = run(&words);
    assert_eq!((status, &*error), (Some(0), ""));
    std::fs::write(place.join("machine.toml"), &first).unwrap();
    let directory = place.to_str().unwrap();
    let file = format!("{directory}/machine.toml");
    for words in [&["run", directory][..], &["run", "--config", &file]] {
        let (status, second, error) = run(&[words, &["--print-config"]].concat());
        assert_eq!((status, &second, &*error), (Some(0), &first, ""));
    }
    std::fs::write(&file, "kernel = '/k'\ncolour = 'red'\n").unwrap();
    let (status, _, error) = run(&["run", directory]);
    assert_eq!(status, Some(1));
    assert!(
        error.contains("colour") && error.contains("machine.toml"),
        "{error}"
    );
    std::fs::remove_dir_all(&place).unwrap();
}

#[test]
fn an_image_is_not_made_over_something() {
    let (status, _, error) = run(&["image", "debian", "/"]);
    assert_eq!(status, Some(1));
    assert!(error.contains("making / failed"), "{error}");
}

#[test]
fn wrong_usage_has_status_2() {
    for arguments in [
        &[][..],
        &["run"],
        &["fly"],
        &["exec"],
        &["completions", "dos"],
        &["image"],
        &["image", "debian"],
        &["image", "plan9", "x"],
    ] {
        assert_eq!(run(arguments).0, Some(2), "{arguments:?}");
    }
}
