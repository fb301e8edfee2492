// SPDX-License-Identifier: GPL-2.0-only

//! A machine as it is described: by a file (TOML) and by options, which add to it or win over it.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::boot::Boot;
use crate::cli::{ConsoleArg, Irqchip, MemorySize, Reboot, RunArgs, DEFAULT_DEVICE};
use crate::devices::{Devices, DiskFile, Network, Plug};
use crate::error::{Error, Result};
use crate::layout::MIB;
use crate::vm::Config;

/// The name of the file in a machine's directory.
pub(crate) const FILE_NAME: &str = "machine.toml";

/// The file. Its keys are the names of the options, and its values their words. Paths are relative
/// to the file's directory.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd: Option<PathBuf>,
    append: Option<String>,
    memory: Option<String>,
    cpus: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    disk: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    net: Vec<String>,
    console: Option<String>,
    reboot: Option<String>,
    irqchip: Option<String>,
    device: Option<PathBuf>,
}

/// A machine, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Machine {
    /// The kernel.
    pub(crate) kernel: PathBuf,
    /// The initial RAM disk.
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel command line.
    pub(crate) append: String,
    /// The guest's memory.
    pub(crate) memory: MemorySize,
    /// How many processors it has.
    pub(crate) cpus: u32,
    /// What is plugged in.
    pub(crate) devices: Devices,
    /// Where the first serial port goes.
    pub(crate) console: ConsoleArg,
    /// What a reset does.
    pub(crate) reboot: Reboot,
    /// The interrupt controllers.
    pub(crate) irqchip: Irqchip,
    /// The hypervisor's node.
    pub(crate) device: PathBuf,
}

/// What a machine has of memory if nothing is said.
const DEFAULT_MEMORY: MemorySize = MemorySize(512 * MIB);
/// What its command line is then.
const DEFAULT_APPEND: &str = "console=ttyS0";

impl Machine {
    /// The machine of the arguments, and of the file that they name.
    pub(crate) fn new(args: &RunArgs) -> Result<Self> {
        let named = args.machine.as_ref().or(args.config.as_ref());
        let file = named.map(|path| read(path)).transpose()?;
        let (file, place) = file.unwrap_or_default();
        merge(args, file, &place).map_err(|reason| Error::Machine {
            path: named.cloned().unwrap_or_default(),
            reason,
        })
    }

    /// The machine of such a file's text, with absolute paths.
    pub(crate) fn from_toml(text: &str) -> std::result::Result<Self, String> {
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        merge(&RunArgs::default(), file, Path::new("/"))
    }

    /// What makes its virtual machine.
    pub(crate) fn config(&self) -> Config {
        Config {
            boot: Boot {
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                append: self.append.clone(),
                memory_size: self.memory.0,
            },
            cpus: self.cpus,
            irqchip: self.irqchip == Irqchip::Kernel,
            devices: self.devices.clone(),
        }
    }

    /// The file that describes this machine from anywhere.
    pub(crate) fn to_toml(&self) -> Result<String> {
        let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
        let disk = |disk: &DiskFile| {
            let path = absolute(&disk.path);
            DiskFile { path, ..*disk }.to_string()
        };
        let network = |network: &Network| {
            let plug = match &network.plug {
                Plug::Socket(path) => Plug::Socket(absolute(path)),
                other => other.clone(),
            };
            Network { plug, ..*network }.to_string()
        };
        let console = match &self.console {
            ConsoleArg::File(path) => ConsoleArg::File(absolute(path)),
            other => other.clone(),
        };
        let file = File {
            kernel: Some(absolute(&self.kernel)),
            initrd: self.initrd.as_ref().map(absolute),
            append: Some(self.append.clone()),
            memory: Some(self.memory.to_string()),
            cpus: Some(self.cpus),
            disk: self.devices.disks.iter().map(disk).collect(),
            net: self.devices.networks.iter().map(network).collect(),
            console: Some(console.to_string()),
            reboot: Some(word(self.reboot)),
            irqchip: Some(word(self.irqchip)),
            device: Some(absolute(&self.device)),
        };
        toml::to_string(&file).map_err(|error| Error::Machine {
            path: PathBuf::from("-"),
            reason: error.to_string(),
        })
    }
}

/// The file that is named, or the one in the directory that is named; and where it is.
fn read(path: &Path) -> Result<(File, PathBuf)> {
    let path = match path.is_dir() {
        true => path.join(FILE_NAME),
        false => path.to_owned(),
    };
    let text = fs::read_to_string(&path).map_err(|error| Error::File {
        what: "config",
        path: path.clone(),
        error,
    })?;
    let file = toml::from_str(&text).map_err(|error| Error::Machine {
        path: path.clone(),
        reason: error.to_string().trim_end().into(),
    })?;
    let place = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok((file, place))
}

/// The arguments win; disks and networks of the arguments come behind those of the file.
fn merge(args: &RunArgs, file: File, place: &Path) -> std::result::Result<Machine, String> {
    let at = |path: PathBuf| place.join(path);
    let kernel = args.kernel.clone().or(file.kernel.map(at));
    let mut disks = parse_all::<DiskFile>("disk", &file.disk)?;
    for disk in &mut disks {
        disk.path = place.join(&disk.path);
    }
    disks.extend(args.disks.iter().cloned());
    let mut networks = parse_all::<Network>("net", &file.net)?;
    for network in &mut networks {
        if let Plug::Socket(path) = &mut network.plug {
            *path = place.join(&*path);
        }
    }
    networks.extend(args.networks.iter().cloned());
    let console = match parse("console", file.console)? {
        Some(ConsoleArg::File(path)) => Some(ConsoleArg::File(at(path))),
        other => other,
    };
    let cpus = args.cpus.or(file.cpus).unwrap_or(1);
    if !(1..=254).contains(&cpus) {
        return Err(format!("cpus: {cpus} is not in 1..=254"));
    }
    Ok(Machine {
        kernel: kernel.ok_or("it names no kernel")?,
        initrd: args.initrd.clone().or(file.initrd.map(at)),
        append: (args.append.clone().or(file.append)).unwrap_or_else(|| DEFAULT_APPEND.into()),
        memory: (args.memory.or(parse("memory", file.memory)?)).unwrap_or(DEFAULT_MEMORY),
        cpus,
        devices: Devices { disks, networks },
        console: (args.console.clone().or(console)).unwrap_or(ConsoleArg::Stdio),
        reboot: (args.reboot.or(choice("reboot", file.reboot)?)).unwrap_or(Reboot::Exit),
        irqchip: (args.irqchip.or(choice("irqchip", file.irqchip)?)).unwrap_or(Irqchip::Kernel),
        device: (args.device.clone().or(file.device.map(at)))
            .unwrap_or_else(|| DEFAULT_DEVICE.into()),
    })
}

/// A value, as the option of that name takes it.
fn parse<T: std::str::FromStr<Err = String>>(
    name: &str,
    text: Option<String>,
) -> std::result::Result<Option<T>, String> {
    let value = text.map(|text| text.parse()).transpose();
    value.map_err(|reason| format!("{name}: {reason}"))
}

/// Values of an option that may be repeated.
fn parse_all<T: std::str::FromStr<Err = String>>(
    name: &str,
    texts: &[String],
) -> std::result::Result<Vec<T>, String> {
    let values: std::result::Result<_, _> = texts.iter().map(|text| text.parse()).collect();
    values.map_err(|reason| format!("{name}: {reason}"))
}

/// One of an option's words.
fn choice<T: ValueEnum>(
    name: &str,
    text: Option<String>,
) -> std::result::Result<Option<T>, String> {
    let value = text.map(|text| T::from_str(&text, false)).transpose();
    value.map_err(|reason| format!("{name}: {reason}"))
}

/// The word of an option that stands for the value.
fn word<T: ValueEnum>(value: T) -> String {
    let word = value.to_possible_value();
    word.map_or_else(String::new, |word| word.get_name().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn args(words: &[&str]) -> RunArgs {
        let words = ["pacifica", "run"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    /// The machine of a file with this text in `/m`, and of some options.
    fn machine(text: &str, words: &[&str]) -> std::result::Result<Machine, String> {
        let file = toml::from_str(text).map_err(|error| error.to_string())?;
        let words = [&["/m"], words].concat();
        merge(&args(&words), file, Path::new("/m"))
    }

    #[test]
    fn options_alone_have_defaults() {
        let machine = Machine::new(&args(&["--kernel", "k"])).unwrap();
        assert_eq!(machine.memory, DEFAULT_MEMORY);
        assert_eq!((machine.cpus, &*machine.append), (1, DEFAULT_APPEND));
        assert_eq!(machine.console, ConsoleArg::Stdio);
        assert_eq!(machine.device, PathBuf::from("/dev/pacifica"));
        assert!(machine.devices.is_empty());
    }

    #[test]
    fn options_win_over_the_file_and_add_to_its_lists() {
        let text =
            "kernel = 'k'\nmemory = '1G'\ncpus = 2\ndisk = ['a,ro', '/b']\nreboot = 'restart'
            net = ['socket=s']\ndevice = 'd'";
        let machine = machine(text, &["--memory", "2G", "--disk", "c"]).unwrap();
        assert_eq!(machine.kernel, PathBuf::from("/m/k"));
        assert_eq!((machine.memory, machine.cpus), (MemorySize(2 << 30), 2));
        assert_eq!(machine.reboot, Reboot::Restart);
        let disks: Vec<_> = machine
            .devices
            .disks
            .iter()
            .map(DiskFile::to_string)
            .collect();
        assert_eq!(disks, ["/m/a,ro", "/b", "c"]);
        let plug = &machine.devices.networks[0].plug;
        assert_eq!(plug, &Plug::Socket("/m/s".into()));
        assert_eq!(machine.device, PathBuf::from("/m/d"));
    }

    #[test]
    fn what_is_printed_is_the_same_machine() {
        let mut words = vec![
            "--kernel", "/k", "--initrd", "/i", "--cpus", "3", "--memory", "3M",
        ];
        words.extend([
            "--disk", "/a,ro", "--disk", "/b", "--net", "tap=t", "--net", "passt",
        ]);
        words.extend([
            "--console",
            "/log",
            "--reboot",
            "restart",
            "--append",
            "a \"b\"\n",
        ]);
        words.extend([
            "--net",
            "socket=/s,mac=52:54:00:00:00:01",
            "--device",
            "/dev/kvm",
        ]);
        let first = Machine::new(&args(&words)).unwrap();
        let text = first.to_toml().unwrap();
        let second = machine(&text, &[]).unwrap();
        assert_eq!(first, second, "{text}");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("memory = '1G'", "no kernel"),
            ("kernel = 'k'\nmemory = 'much'", "memory: "),
            ("kernel = 'k'\ncpus = 0", "cpus: 0"),
            ("kernel = 'k'\ndisk = ['']", "disk: "),
            ("kernel = 'k'\nnet = ['x']", "net: "),
            ("kernel = 'k'\nreboot = 'never'", "reboot: "),
            ("kernel = 'k'\nkernle = 'k'", "kernle"),
            ("kernel", "expected"),
        ] {
            let reason = machine(text, &[]).unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
        let error = Machine::new(&args(&["/there/is/none"])).unwrap_err();
        assert!(error.to_string().contains("/there/is/none"), "{error}");
    }
}
