// SPDX-License-Identifier: GPL-2.0-only

//! The command line: the one source of the arguments, the completions and the manual page.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::devices::{DiskFile, Network};
use crate::layout::MIB;

/// The module's device node.
pub(crate) const DEFAULT_DEVICE: &str = "/dev/pacifica";

const EXIT_STATUS: &str = "\
Exit status:
  0       the guest powered off, or wrote 0 to the debug-exit port, or the user quit
  1       this program or the host failed
  2       wrong usage
  3       the guest reset itself (with --reboot exit)
  4       the guest crashed: a report with its registers is on standard error
  64-127  the guest wrote another value to the debug-exit port (0xf4): 64 plus its low six bits

On the terminal: Ctrl-A x quits, Ctrl-A h shows help, Ctrl-A a sends Ctrl-A.";

/// Loads and runs guests on the Pacifica hypervisor.
#[derive(Debug, Parser)]
#[command(
    name = "pacifica",
    version,
    propagate_version = true,
    about,
    max_term_width = 100
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a guest
    ///
    /// The guest finds its processors, a serial port (COM1), a clock, power-off and reset through
    /// ACPI, the module's interrupt controllers and timers, and virtio devices on PCI: random
    /// numbers, disks, networks. There is no firmware. The serial port is its console: Linux needs
    /// `console=ttyS0` on its command line, which is the default.
    #[command(after_help = EXIT_STATUS)]
    Run(RunArgs),
    /// Say whether this host can run guests, and what to do if not
    ///
    /// Prints a line for each condition, and the remedy below each that is not met. Succeeds only
    /// if all are met.
    Check(CheckArgs),
    /// Run a program that finds the module's node at /dev/kvm
    ///
    /// The program gets a mount namespace of its own, and a user namespace if that is needed for
    /// it. Nothing changes outside. The exit status is the program's; 127 if there is no such
    /// program, 126 if it cannot be run.
    Exec(ExecArgs),
    /// Make a machine that `pacifica run` starts
    #[command(subcommand)]
    Image(ImageCommand),
    /// List the machines that run
    Ps,
    /// Stop a machine: press its power button, and end it if it does not power off in time
    Stop {
        /// The machine's name
        name: String,
        /// How long it may take, in seconds; 0: it is ended at once
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        patience: u64,
    },
    /// Let a machine's processors rest
    Pause {
        /// The machine's name
        name: String,
    },
    /// Let a machine that rests go on
    Resume {
        /// The machine's name
        name: String,
    },
    /// Make two machines of one that runs: both go on
    Fork(ForkArgs),
    /// Take a snapshot of a machine, in memory: `pacifica reset` brings it back to this instant
    ///
    /// Its memory, processors, devices and disks. It takes the place of an earlier snapshot, and
    /// goes with the machine. /dev/pacifica has snapshots, /dev/kvm has none.
    Snapshot {
        /// The machine's name
        name: String,
    },
    /// Bring a machine back to its snapshot, at the cost of what has changed since
    Reset {
        /// The machine's name
        name: String,
    },
    /// Write a machine that runs to a file, from which `pacifica restore` brings it back
    ///
    /// It rests meanwhile, and goes on. The file has its memory, processors and devices, and not
    /// what is on its disks: they must be as they were when it is brought back. A file that is
    /// there is replaced when the new one is whole, and not before; only one that is empty or was
    /// saved so.
    Save {
        /// The machine's name
        name: String,
        /// The file
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Do not compress memory: it can be mapped then, and is read when the guest touches it
        #[arg(long)]
        mapped: bool,
    },
    /// Bring a machine back that was saved
    #[command(after_help = EXIT_STATUS)]
    Restore(RestoreArgs),
    /// Show what a machine's processors have counted: exits by their reasons, and more
    Stat {
        /// The machine's name
        name: String,
        /// As a JSON object in one line
        #[arg(long)]
        json: bool,
    },
    /// Write completions for a shell to standard output
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual page to standard output, or the pages of all commands to a directory
    Man {
        /// Where pacifica.1, pacifica-run.1 and so on go
        #[arg(value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
        directory: Option<PathBuf>,
    },
}

/// The arguments of `pacifica run`.
#[derive(Debug, Default, Args)]
pub(crate) struct RunArgs {
    /// The machine: a directory that has a machine.toml, or such a file. The options win over it;
    /// disks and networks are added to its own
    #[arg(value_name = "MACHINE", value_hint = ValueHint::AnyPath)]
    pub(crate) machine: Option<PathBuf>,

    /// The same as MACHINE
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "machine")]
    pub(crate) config: Option<PathBuf>,

    /// The name by which ps, stop, pause, resume and stat find the machine; without it they do not
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Write the machine as such a file to standard output, and do not start it
    #[arg(long)]
    pub(crate) print_config: bool,

    /// The kernel: a bzImage, or an ELF image (started by PVH if it has the note, else in 64-bit
    /// mode)
    #[arg(
        short,
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        required_unless_present_any = ["machine", "config"]
    )]
    pub(crate) kernel: Option<PathBuf>,

    /// The initial RAM disk
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) initrd: Option<PathBuf>,

    /// The kernel command line; without this, console=ttyS0
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,

    /// The guest's memory; without K, M or G in mebibytes; without this, 512M
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<MemorySize>,

    /// How many processors the guest has; without this, 1
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=254))]
    pub(crate) cpus: Option<u32>,

    /// A disk: a raw image or a disk of this machine; `,ro` behind it: the guest may only read it.
    /// May be repeated; the guest finds them as /dev/vda, /dev/vdb and so on
    #[arg(short, long = "disk", value_name = "FILE[,ro]", value_hint = ValueHint::FilePath)]
    pub(crate) disks: Vec<DiskFile>,

    /// A network: passt (needs that program, but no rights), tap=NAME (a TAP device), or
    /// socket=PATH (a program that speaks like passt listens there); `,mac=ADDRESS` behind it. May
    /// be repeated
    #[arg(short, long = "net", value_name = "WHAT")]
    pub(crate) networks: Vec<Network>,

    /// Where the first serial port goes: stdio, none, or a file, to whose end its output is added;
    /// without this, stdio
    #[arg(long, value_name = "WHERE")]
    pub(crate) console: Option<ConsoleArg>,

    /// What to do when the guest resets itself; without this, exit
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) reboot: Option<Reboot>,

    /// The interrupt controllers: the module's, or none at all, for small test guests; without
    /// this, kernel
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(crate) irqchip: Option<Irqchip>,

    /// Say on standard error, when the guest has ended, how long it ran and why it left the
    /// processor
    #[arg(long)]
    pub(crate) summary: bool,

    /// The hypervisor's device node; without this, /dev/pacifica
    #[arg(long, value_name = "NODE", value_hint = ValueHint::FilePath)]
    pub(crate) device: Option<PathBuf>,
}

/// The arguments of `pacifica fork`.
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// The machine's name
    pub(crate) name: String,

    /// The name of the other one
    pub(crate) new: String,

    /// A network of the other one, in the place of the machine's own, in their order; may be
    /// repeated. Without this, passt is started anew, and a socket connected to anew; a TAP device
    /// has one machine
    #[arg(short, long = "net", value_name = "WHAT")]
    pub(crate) networks: Vec<Network>,

    /// A file for the output of the other one's first serial port, and for what the program says;
    /// without this, it goes nowhere
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) console: Option<PathBuf>,
}

/// The arguments of `pacifica restore`.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The file that `pacifica save` has written
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) file: PathBuf,

    /// The name by which ps, stop, pause, resume, save and stat find the machine
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Check the memory of a file that was saved with --mapped before the guest goes on; other
    /// files are always checked
    #[arg(long)]
    pub(crate) check: bool,

    /// Give the machine all that the file names: disks, networks, the console's file, the device
    /// node, the kernel to start again with. Who has written the file has your rights then
    #[arg(long)]
    pub(crate) trust: bool,

    /// A disk in the place of the machine's own, in their order; may be repeated. One that the
    /// guest could only read stays so. Without --trust, all must be named
    #[arg(short, long = "disk", value_name = "FILE[,ro]", value_hint = ValueHint::FilePath)]
    pub(crate) disks: Vec<DiskFile>,

    /// A network in the place of the machine's own, in their order; may be repeated. The hardware
    /// addresses stay. Without --trust, all must be named
    #[arg(short, long = "net", value_name = "WHAT")]
    pub(crate) networks: Vec<Network>,

    /// Where the first serial port goes; without this, stdio; with --trust, where it went
    #[arg(long, value_name = "WHERE")]
    pub(crate) console: Option<ConsoleArg>,

    /// Say on standard error, when the guest has ended, how long it ran and why it left the
    /// processor
    #[arg(long)]
    pub(crate) summary: bool,

    /// The hypervisor's device node; without this, /dev/pacifica; with --trust, the one that the
    /// machine had
    #[arg(long, value_name = "NODE", value_hint = ValueHint::FilePath)]
    pub(crate) device: Option<PathBuf>,
}

/// Which machine is made.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// A Debian of its own, with a disk that has its packages
    ///
    /// Makes a directory with a disk, a kernel, an initial RAM disk, and a machine.toml for
    /// `pacifica run DIRECTORY`. It needs Debian's packages mmdebstrap and e2fsprogs (from Debian
    /// 13, or else root), and no root where user namespaces are allowed. Root has no password, and
    /// only a login with a key is possible by way of the network.
    Debian(DebianArgs),
}

/// The arguments of `pacifica image debian`.
#[derive(Debug, Args)]
pub(crate) struct DebianArgs {
    /// The directory that is made
    #[arg(value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub(crate) destination: PathBuf,

    /// The size of the disk; it takes the space that is used
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    pub(crate) size: MemorySize,

    /// A public key with which root may log in by ssh; it adds the server, and a network by passt
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ssh_key: Option<PathBuf>,

    /// The release of Debian
    #[arg(long, value_name = "NAME", default_value = "trixie")]
    pub(crate) suite: String,

    /// Where packages come from: an address, or a line of apt's sources; without this, where
    /// mmdebstrap finds them
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mirror: Option<String>,

    /// Another package; may be repeated
    #[arg(long = "package", value_name = "NAME")]
    pub(crate) packages: Vec<String>,
}

/// The arguments of `pacifica check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// The hypervisor's device node
    #[arg(long, value_name = "NODE", value_hint = ValueHint::FilePath, default_value = DEFAULT_DEVICE)]
    pub(crate) device: PathBuf,
}

/// The arguments of `pacifica exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The node that the program shall find at /dev/kvm
    #[arg(long, value_name = "NODE", value_hint = ValueHint::FilePath, default_value = DEFAULT_DEVICE)]
    pub(crate) device: PathBuf,

    /// The program and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "PROGRAM",
        value_hint = ValueHint::CommandWithArguments
    )]
    pub(crate) program: Vec<OsString>,
}

/// What to do when the guest resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reboot {
    /// End the program with status 3
    Exit,
    /// Start the guest again
    Restart,
}

/// Which interrupt controllers the guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Irqchip {
    /// The module's PIC, I/O APIC, local APICs and PIT
    Kernel,
    /// None
    None,
}

/// Where the first serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConsoleArg {
    /// Standard input and output.
    Stdio,
    /// Nowhere.
    None,
    /// Output goes to a file; there is no input.
    File(PathBuf),
}

impl FromStr for ConsoleArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "" => return Err("an empty name".into()),
            "stdio" => Self::Stdio,
            "none" => Self::None,
            path => Self::File(path.into()),
        })
    }
}

/// A size of memory, in bytes: whole mebibytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemorySize(pub(crate) u64);

/// The most memory that a guest may have: below what every AMD-V processor can address.
pub(crate) const MEMORY_LIMIT: u64 = 512 << 30;
/// The least memory that holds the boot structures and a small guest.
const MEMORY_LEAST: u64 = 2 * MIB;

impl fmt::Display for ConsoleArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::None => f.write_str("none"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.0 / MIB)
    }
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "K" | "KB" | "KIB" => 10,
            "" | "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            unit => return Err(format!("unknown unit {unit:?}: use K, M or G")),
        };
        let number: u64 = digits.parse().map_err(|_| "not a number".to_string())?;
        let bytes = number
            .checked_mul(1 << shift)
            .filter(|&bytes| bytes <= MEMORY_LIMIT);
        match bytes.ok_or("more than 512 GiB")? {
            bytes if bytes < MEMORY_LEAST => Err("less than 2 MiB".into()),
            bytes if bytes % MIB != 0 => Err("not a multiple of 1 MiB".into()),
            bytes => Ok(Self(bytes)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(args: &[&str]) -> Result<RunArgs, clap::Error> {
        let all = ["pacifica", "run"].iter().chain(args);
        Cli::try_parse_from(all).map(|cli| match cli.command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn memory_sizes() {
        assert_eq!("1G".parse(), Ok(MemorySize(1 << 30)));
        assert_eq!("64".parse(), Ok(MemorySize(64 << 20)));
        assert_eq!("2048k".parse(), Ok(MemorySize(2 << 20)));
        assert_eq!("512GiB".parse(), Ok(MemorySize(512 << 30)));
        for wrong in [
            "",
            "M",
            "1T",
            "0",
            "1M",
            "2049K",
            "-1",
            "513G",
            "99999999999999999999G",
            "1 G",
            "é",
        ] {
            assert!(wrong.parse::<MemorySize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn consoles() {
        assert_eq!("none".parse(), Ok(ConsoleArg::None));
        assert_eq!("log".parse(), Ok(ConsoleArg::File("log".into())));
        assert!("".parse::<ConsoleArg>().is_err());
    }

    #[test]
    fn usage_errors_have_status_2() {
        for wrong in [
            &[][..],
            &["--kernel", "k", "--cpus", "0"],
            &["--kernel", "k", "--cpus", "255"],
            &["--kernel", "k", "--memory", "x"],
            &["--kernel", "k", "--reboot", "never"],
            &["--kernel", "k", "machine", "stray"],
            &["machine", "--config", "file"],
            &["--kernel", "k", "--disk", ""],
            &["--kernel", "k", "--net", "tap="],
            &["--kernel", "k", "--net", "cable"],
        ] {
            assert_eq!(run(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn exec_takes_a_program_with_options() {
        for dashes in [&["--"][..], &[]] {
            let words = [&["pacifica", "exec"], dashes, &["qemu", "-m", "1G"]].concat();
            match Cli::try_parse_from(words).unwrap().command {
                Command::Exec(args) => assert_eq!(args.program, ["qemu", "-m", "1G"]),
                other => panic!("{other:?}"),
            }
        }
        assert!(Cli::try_parse_from(["pacifica", "exec", "--"]).is_err());
    }
}
