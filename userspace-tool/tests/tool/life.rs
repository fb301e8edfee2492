// SPDX-License-Identifier: GPL-2.0-only

//! Machines that are saved, and come back: on the same device and on the other one; that go back to
//! a snapshot; that become two.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;
use std::thread;

use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;
use selftests::{modules, patience};

use crate::common::{device, program, variable, Guest};
use crate::control::{expect, fail, say, start};
use crate::devices::{answer_arp, Neighbour, Place};
use crate::terminal::ECHO_GUEST;

/// The machine of a guest that echoes, when it runs.
fn echo(name: &str) -> Child {
    let (device, guest) = (device(), Guest::new(ECHO_GUEST));
    let words = ["run", "--name", name, "--device", &device, "--memory", "4M"];
    let mut command = program();
    let command = command
        .args(words)
        .args(["--cpus", "2", "--kernel", guest.path()]);
    let mut machine = start(command);
    expect(&mut machine, ">");
    machine
}

/// Says something to a machine.
fn tell(machine: &mut Child, words: &str) {
    let input = machine.stdin.as_mut().unwrap();
    input.write_all(words.as_bytes()).unwrap();
}

/// Ends a machine hard.
fn end(mut machine: Child) {
    machine.kill().unwrap();
    machine.wait().unwrap();
}

/// Brings a machine back under this name.
fn restore(file: &str, name: &str, device: &str) -> Child {
    let words = ["restore", file, "--name", name, "--device", device];
    start(program().args(words))
}

fn name(word: &str) -> String {
    format!("{word}-{}", std::process::id())
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn a_saved_machine_goes_on_where_it_was() {
    let (name, device) = (name("saved"), device());
    let place = Place::empty("saved");
    let (packed, mapped) = (place.path("packed"), place.path("mapped"));
    let mut machine = echo(&name);
    tell(&mut machine, "a");
    expect(&mut machine, "a");
    say(&["save", &name, &packed]);
    // It has gone on meanwhile.
    tell(&mut machine, "b");
    expect(&mut machine, "b");
    say(&["pause", &name]);
    say(&["save", &name, &mapped, "--mapped"]);
    assert!(say(&["ps"]).contains("paused"));
    end(machine);
    let sizes = [&packed, &mapped].map(|file| fs::metadata(file).unwrap().len());
    assert!(sizes[0] < 1 << 20 && sizes[1] > 4 << 20, "{sizes:?}");
    for file in [&packed, &mapped, &mapped] {
        let mut machine = restore(file, &name, &device);
        tell(&mut machine, "cd");
        // It does not begin again.
        assert_eq!(expect(&mut machine, "cd"), "cd");
        // What comes back can be saved again.
        say(&["save", &name, &packed]);
        say(&["stop", &name, "--patience", "0"]);
        assert_eq!(machine.wait().unwrap().code(), Some(0));
    }
    // A file that is damaged is refused, with the reason.
    let whole = fs::read(&packed).unwrap();
    for (bytes, reason) in [
        (&whole[..whole.len() - 1], "damaged"),
        (&whole[..4096], "damaged"),
        (&whole[..10], "not finished"),
        (&b"#!/bin/sh\n"[..], "not finished"),
    ] {
        fs::write(&packed, bytes).unwrap();
        let said = fail(&["restore", &packed, "--device", &device]);
        assert!(said.contains(reason), "{said}");
    }
    let mut bytes = whole;
    bytes[4100] ^= 1;
    fs::write(&packed, &bytes).unwrap();
    let said = fail(&["restore", &packed, "--device", &device]);
    assert!(said.contains("checksum of its memory"), "{said}");
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn an_end_in_the_middle_of_saving_leaves_the_old_file() {
    let (name, device) = (name("killed"), device());
    let place = Place::empty("killed");
    let file = place.path("file");
    let machine = echo(&name);
    say(&["save", &name, &file]);
    let old = fs::read(&file).unwrap();
    let drafts = || {
        let entries = fs::read_dir(place.path("")).unwrap();
        let hidden = |name: &std::ffi::OsString| name.to_string_lossy().starts_with(".file");
        entries
            .filter(|entry| hidden(&entry.as_ref().unwrap().file_name()))
            .count()
    };
    // The machine takes no step: whoever saves is in the middle.
    let process = Pid::from_raw(machine.id() as i32);
    kill(process, Signal::SIGSTOP).unwrap();
    // What it says of its end is not the test's to say.
    let save = || start(program().args(["save", &name, &file]).stderr(Stdio::null()));
    let mut saving = save();
    patience::until("a draft", || drafts() == 1).unwrap();
    saving.kill().unwrap();
    saving.wait().unwrap();
    assert_eq!(fs::read(&file).unwrap(), old);
    // And now the machine ends.
    let mut saving = save();
    patience::until("another draft", || drafts() == 2).unwrap();
    end(machine);
    assert_eq!(saving.wait().unwrap().code(), Some(1));
    assert_eq!(drafts(), 1);
    assert_eq!(fs::read(&file).unwrap(), old);
    let mut machine = restore(&file, &name, &device);
    tell(&mut machine, "on");
    expect(&mut machine, "on");
    end(machine);
}

/// A guest that writes to its disk and asks its neighbour with each word that it is told, and looks
/// whether all that it has written is still there.
const WORKER: &str = "\
    mke2fs /dev/vda
    mount -t ext4 /dev/vda /run
    ip link set eth0 up
    ip addr add 10.8.0.2/24 dev eth0
    echo listening
    n=0
    while read -r word; do
        n=$((n + 1))
        dd if=/dev/urandom of=/run/$n bs=64k count=16 conv=fsync
        dd if=/dev/urandom of=/tmp/$n bs=64k count=16
        sha256sum /run/$n /tmp/$n >>/tmp/sums
        echo 3 >/proc/sys/vm/drop_caches
        sha256sum -c /tmp/sums
        until arping -I eth0 -c 1 -w 9 10.8.0.1; do :; done
        echo \"round $n: $word\"
        [ $word != last ] || break
    done </dev/console
    echo \"generations: $(dmesg | grep -c 'virtual machine fork')\"
    umount /run
    mount -t ext4 -o ro /dev/vda /run
    sha256sum -c /tmp/sums
";

/// The machine of that guest, with a disk of 64 MiB, when it listens.
fn worker(place: &Place, name: &str, neighbour: &Neighbour) -> Child {
    let disk = place.disk("disk.raw", &[]);
    let opened = fs::File::options().write(true).open(&disk).unwrap();
    opened.set_len(64 << 20).unwrap();
    let socket = place.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    // The neighbour of each machine that comes; it ends with the test.
    let neighbour = neighbour.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, neighbour) = (stream.unwrap(), neighbour.clone());
            thread::spawn(move || answer_arp(&stream, &neighbour));
        }
    });
    let net = format!("socket={socket},mac=52:54:00:00:00:08");
    let (device, kernel) = (device(), variable("PACIFICA_TEST_KERNEL"));
    let mut command = program();
    let command = command
        .args(["run", "--name", name, "--device", &device, "--cpus", "2"])
        .args(["--kernel", &kernel, "--initrd", &place.path("initrd")])
        .args(["--disk", &disk, "--net", &net, "--memory", "256M"]);
    let append = "console=ttyS0 quiet pacifica.run=/bin/script";
    let mut machine = start(command.args(["--append", append]));
    expect(&mut machine, "listening");
    machine
}

/// The guest's last words: all that it has written is there.
fn leave(mut machine: Child, round: usize) {
    tell(&mut machine, "last\n");
    expect(&mut machine, &format!("round {round}: last"));
    let rest = expect(&mut machine, "the end: 0");
    assert!(!rest.contains("FAILED"), "{rest}");
    // It has heard that it was brought back.
    let heard = rest.contains("generations: ") && !rest.contains("generations: 0");
    assert!(heard, "{rest}");
    assert_eq!(machine.wait().unwrap().code(), Some(0));
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn linux_with_a_disk_and_a_network_comes_back_on_either_device() {
    let place = Place::new("worker", WORKER);
    let (name, file, own) = (name("worker"), place.path("file"), device());
    let disk = place.path("disk.raw");
    let net = format!("socket={}", place.path("socket"));
    let mut machine = worker(&place, &name, &Neighbour::default());
    tell(&mut machine, "first\n");
    expect(&mut machine, "round 1: first");
    // The two devices take turns, where there are both.
    let other = "/dev/kvm";
    let both = own != other && modules::can_load_kvm().is_ok();
    if both {
        modules::load_kvm(&["enable_virt_at_load=0"]).unwrap();
    }
    let places = match both {
        true => vec![&*own, other, &*own],
        false => vec![&*own],
    };
    let count = places.len();
    for (nth, device) in places.into_iter().enumerate() {
        // It is in the middle of something, and its disk stays as it is from now on.
        tell(&mut machine, "on\n");
        say(&["pause", &name]);
        say(&["save", &name, &file]);
        end(machine);
        // The file alone decides nothing about disks and networks.
        let said = fail(&["restore", &file, "--device", device, "--disk", &disk]);
        assert!(said.contains(&net) && said.contains("--trust"), "{said}");
        let words = ["restore", &file, "--name", &name, "--device", device];
        let mut command = program();
        machine = start(match nth {
            0 => command.args(words).args(["--disk", &disk, "--net", &net]),
            _ => command.args(words).arg("--trust"),
        });
        expect(&mut machine, &format!("round {}: on", nth + 2));
    }
    leave(machine, count + 2);
    if both {
        modules::unload_kvm().unwrap();
    }
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn linux_with_a_disk_and_a_network_goes_back_to_its_snapshot() {
    let place = Place::new("back", WORKER);
    let name = name("back");
    let mut machine = worker(&place, &name, &Neighbour::default());
    assert!(fail(&["reset", &name]).contains("no snapshot"));
    if device() == "/dev/kvm" {
        assert!(fail(&["snapshot", &name]).contains("/dev/pacifica"));
        return end(machine);
    }
    tell(&mut machine, "first\n");
    expect(&mut machine, "round 1: first");
    say(&["snapshot", &name]);
    for word in ["a", "b", "c"] {
        tell(&mut machine, &format!("{word}\n"));
        expect(&mut machine, &format!("round 2: {word}"));
        let said = say(&["reset", &name]);
        assert!(said.contains("pages"), "{said}");
    }
    leave(machine, 2);
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn a_fork_and_its_parent_both_go_on() {
    let place = Place::new("fork", WORKER);
    let names = ["parent", "child"].map(name);
    let [parent, child] = &names;
    let neighbour = Neighbour::default();
    let mut machine = worker(&place, parent, &neighbour);
    tell(&mut machine, "first\n");
    expect(&mut machine, "round 1: first");
    // From its neighbour it hears nothing, and waits: in the middle of its last round.
    neighbour.quiet.store(true, Ordering::SeqCst);
    tell(&mut machine, "last\n");
    let asked = || neighbour.unanswered.load(Ordering::SeqCst) > 0;
    patience::until("a question", asked).unwrap();
    let console = place.path("console");
    say(&["fork", parent, child, "--console", &console]);
    let list = say(&["ps"]);
    assert!(list.contains(parent) && list.contains(child), "{list}");
    neighbour.quiet.store(false, Ordering::SeqCst);
    // Both end that round, and find what they have written, each on a disk of its own.
    expect(&mut machine, "round 2: last");
    let rest = expect(&mut machine, "the end: 0");
    assert!(rest.contains("generations: 0"), "{rest}");
    assert_eq!(machine.wait().unwrap().code(), Some(0));
    patience::until("the other one's end", || !say(&["ps"]).contains(child)).unwrap();
    let text = fs::read_to_string(&console).unwrap();
    for words in ["round 2: last", "generations: 1", "the end: 0"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("round 1"), "{text}");
    // Each has a disk of its own, with a file system that was given back clean (ext2: s_magic,
    // s_state).
    for disk in ["disk.raw", &format!("disk.raw.{child}")] {
        let disk = fs::read(place.path(disk)).unwrap();
        assert_eq!(disk.len(), 64 << 20);
        assert_eq!(disk[1024 + 56..1024 + 60], [0x53, 0xef, 1, 0]);
    }
}
