// SPDX-License-Identifier: GPL-2.0-only

//! `pacifica image debian`: makes a machine with a Debian of its own from Debian's packages. The
//! work is that of mmdebstrap, which needs no root where there are user namespaces, and of mke2fs.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::DebianArgs;
use crate::error::{Error, Result};
use crate::machine::FILE_NAME;

/// The packages besides those that Debian cannot be without. The kernel is for virtual machines.
const PACKAGES: &str = "linux-image-cloud-amd64,systemd-sysv,systemd-resolved,udev,dbus,kmod,\
    e2fsprogs,iproute2,iputils-ping,less,ca-certificates,apt-utils";
/// What is added for logins by way of the network.
const SSH: &str = "openssh-server";

// The files of a machine.
const DISK: &str = "disk.raw";
const KERNEL: &str = "vmlinuz";
const INITRD: &str = "initrd.img";
/// The file system on the way, which goes.
const TREE: &str = "tree.tar";

/// What is done in the new system before it is packed; `$1` is its root.
const SET_UP: &str = r#"set -e
    echo pacifica >"$1/etc/hostname"
    printf '/dev/vda / ext4 defaults,discard 0 1\n' >"$1/etc/fstab"
    mkdir -p "$1/etc/systemd/network"
    printf '[Match]\nType=ether\n[Network]\nDHCP=yes\n' >"$1/etc/systemd/network/80-dhcp.network"
    chroot "$1" systemctl enable systemd-networkd systemd-resolved
    chroot "$1" passwd --delete root
    rm -f "$1/etc/machine-id" && touch "$1/etc/machine-id""#;

/// The machine's description, beside its files.
const MACHINE: &str = "\
kernel = 'vmlinuz'
initrd = 'initrd.img'
append = 'console=ttyS0 root=/dev/vda rw'
memory = '1G'
disk = ['disk.raw']
";

/// Makes the machine.
pub(crate) fn debian(args: &DebianArgs) -> Result<ExitCode> {
    let place = &args.destination;
    // What Ctrl-C ends are the programs; this one then takes away what they have left.
    for signal in [libc::SIGINT, libc::SIGHUP] {
        vmm_sys_util::signal::register_signal_handler(signal, on_signal)
            .map_err(|error| Error::system("sigaction", error))?;
    }
    fs::create_dir(place).map_err(|error| failed(&format!("making {}", place.display()), error))?;
    let made = fill(args, place);
    if made.is_err() {
        // This program made it, so all that is in it is its own.
        let _ = fs::remove_dir_all(place);
    }
    made?;
    println!("Start it with: pacifica run {}", place.display());
    println!("Log in as root; there is no password. Add --net passt for a network.");
    Ok(ExitCode::SUCCESS)
}

/// Does nothing: programs that are started do not inherit it, and end.
extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Fills the machine's directory.
fn fill(args: &DebianArgs, place: &Path) -> Result<()> {
    let tree = place.join(TREE);
    step(
        "fetching and unpacking Debian's packages",
        &mut mmdebstrap(args, &tree)?,
    )?;
    let release = newest_kernel(&tree)?;
    for (what, inside) in [
        (KERNEL, format!("./boot/vmlinuz-{release}")),
        (INITRD, format!("./boot/initrd.img-{release}")),
    ] {
        let path = place.join(what);
        let file = File::create(&path).map_err(|error| failed("writing the kernel", error))?;
        let mut tar = Command::new("tar");
        tar.arg("-xOf").arg(&tree).arg(inside).stdout(file);
        step("taking the kernel", &mut tar)?;
    }
    let disk = place.join(DISK);
    let file = File::create(&disk).map_err(|error| failed("writing the disk", error))?;
    file.set_len(args.size.0)
        .map_err(|error| failed("writing the disk", error))?;
    make_file_system(&tree, &disk)?;
    fs::remove_file(&tree).map_err(|error| failed("removing the tree", error))?;
    let mut text = MACHINE.to_owned();
    if args.ssh_key.is_some() {
        text += "net = ['passt']\n";
    }
    fs::write(place.join(FILE_NAME), text).map_err(|error| failed("writing machine.toml", error))
}

/// The release of the newest kernel in the tree: a package of the user's may have brought another.
fn newest_kernel(tree: &Path) -> Result<String> {
    let mut tar = Command::new("tar");
    let list = tar.arg("-tf").arg(tree).output();
    let list = list.map_err(|error| failed("tar", error))?;
    newest(&String::from_utf8_lossy(&list.stdout)).ok_or_else(|| {
        let none = std::io::Error::from(std::io::ErrorKind::NotFound);
        failed("finding a kernel in the tree", none)
    })
}

/// The release of the newest kernel in a list of files.
fn newest(list: &str) -> Option<String> {
    let releases = list
        .lines()
        .filter_map(|line| line.strip_prefix("./boot/vmlinuz-"));
    // As versions are compared: number by number.
    let key = |release: &&str| -> Vec<u64> {
        let parts = release.split(|c: char| !c.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    releases.max_by_key(key).map(str::to_owned)
}

/// The command that makes the system's tree, as an archive.
fn mmdebstrap(args: &DebianArgs, tree: &Path) -> Result<Command> {
    let mut command = Command::new("mmdebstrap");
    let mut packages = PACKAGES.to_owned();
    for more in args
        .ssh_key
        .iter()
        .map(|_| SSH)
        .chain(args.packages.iter().map(String::as_str))
    {
        packages = packages + "," + more;
    }
    command.args(["--variant=minbase", "--format=tar", "--include", &packages]);
    command.arg(format!("--customize-hook={SET_UP}"));
    if let Some(key) = &args.ssh_key {
        let key = fs::canonicalize(key).map_err(|error| Error::File {
            what: "ssh-key",
            path: key.clone(),
            error,
        })?;
        command.arg("--customize-hook=mkdir -m 700 -p \"$1/root/.ssh\"");
        let upload = format!("upload {} /root/.ssh/authorized_keys", quoted(&key));
        command.arg(format!("--customize-hook={upload}"));
    }
    command.arg(&args.suite).arg(tree);
    // A mirror of the user's, or that of this machine's own apt.
    command.args(&args.mirror);
    Ok(command)
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Puts the tree on the disk. From an archive, no rights are needed, but a recent mke2fs; else root
/// unpacks it first.
fn make_file_system(tree: &Path, disk: &Path) -> Result<()> {
    const WHAT: &str = "making the file system";
    let mke2fs = |from: &Path| {
        let mut command = Command::new("mke2fs");
        command
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(from)
            .arg(disk);
        command
    };
    if takes_archives() || !nix::unistd::geteuid().is_root() {
        return step(WHAT, &mut mke2fs(tree));
    }
    let folder = Folder(tree.with_extension("unpacked"));
    fs::create_dir(&folder.0).map_err(|error| failed(WHAT, error))?;
    let mut tar = Command::new("tar");
    let tar = tar
        .arg("-xpf")
        .arg(tree)
        .arg("--numeric-owner")
        .arg("-C")
        .arg(&folder.0);
    step("unpacking the tree", tar)?;
    step(WHAT, &mut mke2fs(&folder.0))
}

/// A directory that goes in the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether mke2fs takes an archive in place of a directory: from version 1.47.1 on.
fn takes_archives() -> bool {
    let output = Command::new("mke2fs").arg("-V").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    version(&text.unwrap_or_default()) >= Some([1, 47, 1])
}

/// The version in `mke2fs 1.47.2 (1-Jan-2025)`.
fn version(text: &str) -> Option<[u32; 3]> {
    let word = text.split_whitespace().nth(1)?;
    let mut numbers = word.split('.').map(|number| number.parse().unwrap_or(0));
    Some([
        numbers.next()?,
        numbers.next()?,
        numbers.next().unwrap_or(0),
    ])
}

/// Runs a command, with a line that says what is done and what the command says of it. If it fails,
/// the last it said is shown.
fn step(what: &str, command: &mut Command) -> Result<()> {
    const LAST: usize = 12;
    let name = command.get_program().to_string_lossy().into_owned();
    let bar = ProgressBar::new_spinner().with_prefix(what.to_owned());
    let style = ProgressStyle::with_template("{spinner} {prefix}, {elapsed}: {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(200));
    if bar.is_hidden() {
        eprintln!("pacifica: {what}");
    }
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failed(&name, error))?;
    let mut said: Vec<String> = Vec::new();
    let pipe = child.stderr.take();
    // Not all that it says need be text.
    let lines = pipe
        .into_iter()
        .flat_map(|pipe| BufReader::new(pipe).split(b'\n'));
    for line in lines.map_while(std::result::Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        bar.set_message(line.trim_start_matches("I: ").to_owned());
        said.push(line);
        if said.len() > LAST {
            said.remove(0);
        }
    }
    let status = child.wait().map_err(|error| failed(&name, error))?;
    bar.finish_and_clear();
    match status.success() {
        true => Ok(()),
        false => Err(Error::Image {
            what: what.into(),
            reason: format!("{name} ended with {status}:\n{}", said.join("\n")),
        }),
    }
}

/// Something of the host failed.
fn failed(what: &str, error: std::io::Error) -> Error {
    Error::Image {
        what: what.into(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_mke2fs() {
        assert_eq!(version("mke2fs 1.47.2 (1-Jan-2025)\n"), Some([1, 47, 2]));
        assert_eq!(version("mke2fs 1.47 (x)"), Some([1, 47, 0]));
        assert!(version("mke2fs 1.48.0-rc1").unwrap() > [1, 47, 1]);
        assert_eq!(version(""), None);
        assert!(version("") < Some([0, 0, 0]));
    }

    #[test]
    fn of_two_kernels_the_newest() {
        let list = "./boot/\n./boot/vmlinuz-6.12.9-cloud-amd64\n./boot/config-7.0\n\
            ./boot/vmlinuz-6.12.38+deb13-cloud-amd64\n";
        assert_eq!(newest(list).unwrap(), "6.12.38+deb13-cloud-amd64");
        assert_eq!(newest("./boot/\n"), None);
    }

    #[test]
    fn paths_are_words() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn the_last_words_of_a_command_are_told() {
        let mut command = Command::new("sh");
        let error = step("trying", command.args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("trying") && text.contains("exit status: 3:\nno"),
            "{text}"
        );
        assert!(step("trying", &mut Command::new("/there/is/none")).is_err());
    }
}
