// SPDX-License-Identifier: GPL-2.0-only

//! Linux with disks and networks: what the guest wrote is in the file, and what it asked for came
//! over the wire.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::Arc;
use std::thread;

use crate::common::{device, program, variable};

/// A directory with what a test needs, and a guest that runs a script.
pub(crate) struct Place(PathBuf);

/// The drivers that the guest loads, and where the host has them.
const DRIVERS: &str = "\
    mkdir -p tree/bin tree/lib && cp -r /lab/net tree/lib/ &&
    cp /lab/virtio_blk.ko /lab/button.ko /lab/evdev.ko tree/lib/ &&
    { cat \"$PACIFICA_TEST_INITRD\"; cd tree; find . | cpio -o -H newc; } >initrd";

/// What every script begins with.
const BEGIN: &str = "#!/bin/sh
set -e
trap 'echo \"the end: $?\"' EXIT
insmod /lib/virtio_blk.ko
while read -r module; do insmod /lib/net/$module; done </lib/net/order
";

impl Place {
    /// A guest whose init runs this script.
    pub(crate) fn new(name: &str, script: &str) -> Self {
        let place = Self::empty(name);
        fs::create_dir_all(place.path("tree/bin")).unwrap();
        fs::write(place.path("tree/bin/script"), format!("{BEGIN}{script}")).unwrap();
        shell(&place.0, &format!("chmod 755 tree/bin/script && {DRIVERS}"));
        place
    }

    /// A directory without a guest.
    pub(crate) fn empty(name: &str) -> Self {
        let place = std::env::temp_dir().join(format!("pacifica-{name}-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        Self(place)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().into()
    }

    /// A disk with these bytes.
    pub(crate) fn disk(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs the guest with more arguments, until it powers off.
    fn run(&self, arguments: &[&str]) -> Output {
        let kernel = variable("PACIFICA_TEST_KERNEL");
        let initrd = self.path("initrd");
        let append = "console=ttyS0 quiet pacifica.run=/bin/script";
        let output = program()
            .args(["run", "--device", &device(), "--kernel", &kernel])
            .args(["--initrd", &initrd, "--append", append])
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains("the end: 0"), "{said}");
        // It says so if the host's kernel cannot confine it.
        assert!(!said.contains("Landlock"), "{said}");
        output
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// Runs a command of the host's shell, in this directory.
fn shell(place: &Path, command: &str) {
    let mut shell = Command::new("sh");
    let output = shell.args(["-ec", command]).current_dir(place).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{command}: {}", text(&output));
}

/// Bytes that differ from place to place.
fn pattern(seed: u32, count: usize) -> Vec<u8> {
    let mut word = seed;
    let mut next = || {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        word.to_be_bytes()[0]
    };
    (0..count).map(|_| next()).collect()
}

const MIB: usize = 1 << 20;

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn what_a_guest_writes_to_a_disk_is_in_the_file() {
    // Copies the second disk to the first, twice; discards a part; puts a file system on the third.
    let script = "\
        [ $(cat /sys/block/vdb/ro) = 1 ]
        if dd if=/dev/zero of=/dev/vdb count=1; then exit 3; fi
        [ $(cat /sys/block/vda/serial) = first.raw ]
        dd if=/dev/vdb of=/dev/vda bs=64k conv=fsync
        dd if=/dev/vdb of=/dev/vda bs=64k seek=64 oflag=direct
        blkdiscard -o 1048576 -l 65536 /dev/vda
        # The three, and the source of random numbers.
        [ $(ls /sys/bus/virtio/devices | wc -l) = 4 ]
        mke2fs /dev/vdc
        mount -t ext4 /dev/vdc /run
        cp /dev/vdb /run/file
        umount /run
        mount -t ext4 -o ro /dev/vdc /run
        cmp /dev/vdb /run/file
        umount /run
    ";
    let place = Place::new("disk", script);
    let (old, new) = (pattern(1, 16 * MIB), pattern(2, 2 * MIB));
    let first = place.disk("first.raw", &old);
    let second = place.disk("second.raw", &new);
    let third = place.disk("third.raw", &[]);
    File::options()
        .write(true)
        .open(&third)
        .and_then(|file| file.set_len(32 << 20))
        .unwrap();
    let disks = [&first, &format!("{second},ro"), &third];
    let arguments = disks.map(|disk| ["--disk", disk]).concat();
    place.run(&arguments);

    let mut expected = old;
    expected[..2 * MIB].copy_from_slice(&new);
    expected[4 * MIB..6 * MIB].copy_from_slice(&new);
    expected[MIB..MIB + 65536].fill(0);
    let found = fs::read(&first).unwrap();
    let differs = (0..found.len()).find(|&at| found[at] != expected[at]);
    assert_eq!((found.len(), differs), (expected.len(), None));
    assert_eq!(fs::read(&second).unwrap(), new);
    // A file system that was given back clean says so itself (ext2: s_state, after s_magic).
    let mut file = File::open(&third).unwrap();
    let mut block = [0; 2048];
    file.read_exact(&mut block).unwrap();
    assert_eq!(block[1024 + 56..1024 + 60], [0x53, 0xef, 1, 0]);
}

#[test]
#[ignore = "needs a hypervisor: selftests/run tool"]
fn a_guest_talks_to_the_host_and_to_a_program() {
    let script = "\
        ip link set eth0 up
        ip addr add 10.7.0.2/24 dev eth0
        ip link set eth1 up
        ip addr add 10.8.0.2/24 dev eth1
        nc 10.7.0.1 7007 </dev/null >/tmp/file
        nc 10.7.0.1 7007 </tmp/file
        arping -I eth1 -c 1 -w 300 10.8.0.1
    ";
    let place = Place::new("net", script);
    let tap = "
        while read -r module; do insmod /lab/vhost/$module 2>/dev/null || :; done </lab/vhost/order
        tunctl -t pacifica7 && ip addr add 10.7.0.1/24 dev pacifica7 && ip link set pacifica7 up";
    shell(Path::new("/"), tap);
    let sent = pattern(3, 3 * MIB);
    let listener = TcpListener::bind("10.7.0.1:7007").unwrap();
    let server = thread::spawn(move || {
        let accept = || -> TcpStream { listener.accept().unwrap().0 };
        accept().write_all(&sent).unwrap();
        let mut back = Vec::new();
        accept().read_to_end(&mut back).unwrap();
        (back.len(), back == sent)
    });
    let socket = place.path("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let neighbour =
        thread::spawn(move || answer_arp(&listener.accept().unwrap().0, &Neighbour::default()));

    let socket = format!("socket={socket},mac=52:54:00:00:00:08");
    let output = place.run(&["--net", "tap=pacifica7", "--net", &socket]);
    assert_eq!(server.join().unwrap(), (3 * MIB, true), "{}", text(&output));
    neighbour.join().unwrap();
    shell(Path::new("/"), "tunctl -d pacifica7");
}

/// A neighbour, which may be quiet.
#[derive(Clone, Default)]
pub(crate) struct Neighbour {
    pub(crate) quiet: Arc<AtomicBool>,
    /// How many questions it has not answered.
    pub(crate) unanswered: Arc<AtomicU32>,
}

/// Takes part as a neighbour that only answers who it is, until the guest has gone.
pub(crate) fn answer_arp(mut stream: &UnixStream, neighbour: &Neighbour) {
    const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 8];
    loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).is_err() {
            return;
        }
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut frame).unwrap();
        // Ethernet type ARP; a request.
        if frame[12..14] != [8, 6] || frame[20..22] != [0, 1] {
            continue;
        }
        assert_eq!(frame[6..12], GUEST);
        if neighbour.quiet.load(Ordering::SeqCst) {
            neighbour.unanswered.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        let (asker, asked) = (frame[22..32].to_vec(), frame[38..42].to_vec());
        frame[..6].copy_from_slice(&GUEST);
        frame[6..12].copy_from_slice(&NEIGHBOUR);
        frame[21] = 2;
        frame[22..28].copy_from_slice(&NEIGHBOUR);
        frame[28..32].copy_from_slice(&asked);
        frame[32..42].copy_from_slice(&asker);
        let whole = [&length[..], &frame].concat();
        // It may have gone meanwhile.
        let _ = stream.write_all(&whole);
    }
}
