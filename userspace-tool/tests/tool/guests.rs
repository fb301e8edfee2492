// SPDX-License-Identifier: GPL-2.0-only

//! Guests from start to end: what the program's exit status and its output say of them.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::common::{device, program, variable, Guest};

/// out %al, $0xf4 with this value.
fn debug_exit(value: u8) -> Vec<u8> {
    vec![0xb0, value, 0xe6, 0xf4]
}

/// `pacifica run` with the test's device.
fn run(device: &str, arguments: &[&str]) -> Command {
    let mut command = program();
    command
        .args(["run", "--device", device])
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// Runs a guest of a few instructions.
fn run_code(code: &[u8], arguments: &[&str]) -> Output {
    let device = device();
    let guest = Guest::new(code);
    let mut command = run(&device, &["--memory", "4M", "--kernel", guest.path()]);
    command.args(arguments).output().unwrap()
}

/// Runs Linux with these words on its command line, and more arguments.
fn run_linux(words: &str, arguments: &[&str]) -> Command {
    let (kernel, initrd) = (
        variable("PACIFICA_TEST_KERNEL"),
        variable("PACIFICA_TEST_INITRD"),
    );
    let words = format!("console=ttyS0 quiet {words}");
    let mut command = run(
        &device(),
        &["--kernel", &kernel, "--initrd", &initrd, "--append", &words],
    );
    command.args(arguments);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Both with interrupt controllers and without.
const IRQCHIPS: [&str; 2] = ["--irqchip=kernel", "--irqchip=none"];

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn the_debug_exit_port_sets_the_status() {
    for irqchip in IRQCHIPS {
        for (value, status) in [(0, 0), (1, 65), (13, 77), (64, 64), (255, 127)] {
            let output = run_code(&debug_exit(value), &[irqchip]);
            assert_eq!(output.status.code(), Some(status), "{output:?}");
            assert!(output.stderr.is_empty(), "{output:?}");
        }
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn the_summary_counts_exits_by_their_reasons() {
    // cpuid, ten times; then the debug exit.
    let mut code = [0x31, 0xc0, 0x0f, 0xa2].repeat(10);
    code.extend(debug_exit(0));
    for irqchip in IRQCHIPS {
        let output = run_code(&code, &[irqchip, "--summary"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report = text(&output.stderr);
        let mut lines = report.lines();
        let first = lines.next().unwrap();
        let end = "pacifica: the guest wrote 0x0 to the debug-exit port after ";
        assert!(first.starts_with(end) && first.ends_with(" s"), "{report}");
        let second = lines.next().unwrap();
        let (all, reasons) = second
            .strip_prefix("pacifica: ")
            .and_then(|rest| rest.split_once(" exits to the module: "))
            .unwrap_or_else(|| panic!("{report}"));
        assert!(
            all.replace(',', "").parse::<u64>().unwrap() >= 1,
            "{report}"
        );
        assert!(
            reasons.split(", ").any(|reason| reason == "1 io"),
            "{report}"
        );
        // KVM does not count CPUID apart.
        if !device().ends_with("kvm") {
            let cpuid = |reason: &str| reason == "10 cpuid";
            assert!(reasons.split(", ").any(cpuid), "{report}");
        }
        assert_eq!(lines.next(), None, "{report}");
    }
    let output = run_code(&[0x0f, 0x0b], &["--summary"]);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{report}");
    assert!(
        report.starts_with("pacifica: the guest crashed after "),
        "{report}"
    );
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn strings_go_out_byte_by_byte() {
    let mut code = vec![
        0x48, 0x8d, 0x35, 0x10, 0, 0, 0, // lea 0x10(%rip), %rsi
        0x66, 0xba, 0xf8, 0x03, //          mov $0x3f8, %dx
        0xb9, 6, 0, 0, 0, //                mov $6, %ecx
        0xf3, 0x6e, //                      rep outsb
    ];
    code.extend(debug_exit(0));
    code.push(0xf4);
    code.extend(b"hello\n");
    let output = run_code(&code, &[]);
    assert_eq!(text(&output.stdout), "hello\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn nothing_answers_with_ones() {
    // mov $0xd0000000, %ebx; mov (%rbx), %eax; not %eax; out %eax, $0xf4
    let memory = [0xbb, 0, 0, 0, 0xd0, 0x8b, 0x03, 0xf7, 0xd0, 0xe7, 0xf4];
    // mov $0x5000, %dx; in %dx, %eax; not %eax; out %eax, $0xf4
    let port = [0x66, 0xba, 0, 0x50, 0xed, 0xf7, 0xd0, 0xe7, 0xf4];
    for code in [&memory[..], &port] {
        let output = run_code(code, &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn resets_have_a_status_of_their_own() {
    // mov $0xfe, %al; out %al, $0x64
    let keyboard = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];
    // mov $0xcf9, %dx; mov $6, %al; out %al, %dx
    let register = [0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee, 0xf4];
    for code in [&keyboard[..], &register] {
        let output = run_code(code, &[]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn power_off_by_the_sleep_register() {
    // mov $0x604, %dx; mov $0x3400, %ax; out %ax, %dx
    let code = [
        0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x34, 0x66, 0xef, 0xf4,
    ];
    let output = run_code(&code, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn crashes_are_reported_with_the_registers() {
    for irqchip in IRQCHIPS {
        // ud2, without an interrupt table
        let output = run_code(&[0x0f, 0x0b], &[irqchip]);
        let report = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{report}");
        for word in ["triple fault", "RIP=", "CR3=", "EFER=", "GDT"] {
            assert!(report.contains(word), "{word}: {report}");
        }
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn halting_for_ever_is_a_crash_without_interrupts() {
    let output = run_code(&[0xf4], &["--irqchip=none"]);
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{report}");
    assert!(report.contains("RIP=0000000000200001"), "{report}");
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn processors_that_wait_for_their_start_end_with_the_first() {
    let output = run_code(&debug_exit(0), &["--cpus=3"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn bad_files_are_named() {
    let device = device();
    for (kernel, message) in [
        ("/", "is a directory"),
        ("/nowhere", "No such file"),
        ("/proc/self/status", "neither a bzImage"),
    ] {
        let output = run(&device, &["--kernel", kernel]).output().unwrap();
        let report = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{report}");
        assert!(
            report.contains(kernel) && report.contains(message),
            "{report}"
        );
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn linux_finds_its_processors_and_powers_off() {
    for cpus in [1, 2] {
        let mut command = run_linux("", &["--cpus", &cpus.to_string()]);
        let output = command.output().unwrap();
        let report = text(&output.stdout);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{report}{}",
            text(&output.stderr)
        );
        assert!(
            report.contains("ready") && report.contains(&format!("{cpus} CPU")),
            "{report}"
        );
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn linux_takes_input_and_reboots() {
    let mut command = run_linux("pacifica.shell", &[]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // All at once, long before anyone reads it: it waits in the pipe and in the program.
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"\n\nreboot -f\nreboot -f\n")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stdout));
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn too_little_memory_is_said_before_the_start() {
    let mut command = run_linux("", &["--memory", "16M"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--memory"), "{output:?}");
}
