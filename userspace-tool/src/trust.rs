// SPDX-License-Identifier: GPL-2.0-only

//! What a machine that was saved may have of this host: a file says what it wants, and the user
//! allows it, by naming each thing or by trusting the file. Without that, the file has no say about
//! the host: its console, its device and its confinement are those of a machine without options.

use crate::cli::{ConsoleArg, Reboot, RestoreArgs, DEFAULT_DEVICE};
use crate::devices::Network;
use crate::error::{Error, Result};
use crate::machine::Machine;

/// Gives the machine of a file what the user allows it. An error if it wants more.
pub(crate) fn allow(machine: &mut Machine, args: &RestoreArgs) -> Result<()> {
    let wrong = |reason: &str| Error::Saved {
        path: args.file.clone(),
        reason: reason.into(),
    };
    let (disks, networks) = (&mut machine.devices.disks, &mut machine.devices.networks);
    if args.disks.len() > disks.len() {
        return Err(wrong("its machine has fewer disks"));
    }
    if args.networks.len() > networks.len() {
        return Err(wrong("its machine has fewer networks"));
    }
    if !args.trust {
        let disks = disks.iter().skip(args.disks.len());
        let networks = networks.iter().skip(args.networks.len());
        let wants: Vec<_> = (disks.map(|disk| format!("the disk {disk}")))
            .chain(networks.map(|network| format!("the network {network}")))
            .collect();
        if !wants.is_empty() {
            return Err(Error::Consent {
                path: args.file.clone(),
                wants: wants.join(", "),
            });
        }
        machine.console = ConsoleArg::Stdio;
        machine.device = DEFAULT_DEVICE.into();
        // A guest that starts again needs its kernel's file, and a program that is not confined.
        machine.reboot = Reboot::Exit;
    }
    for (own, new) in disks.iter_mut().zip(&args.disks) {
        own.path = new.path.clone();
        own.read_only |= new.read_only;
    }
    for (own, Network { plug, .. }) in networks.iter_mut().zip(&args.networks) {
        own.plug = plug.clone();
    }
    if let Some(console) = &args.console {
        machine.console = console.clone();
    }
    if let Some(device) = &args.device {
        machine.device = device.clone();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use std::path::PathBuf;

    const MACHINE: &str =
        "kernel = '/k'\ndisk = ['/etc/a', '/b,ro']\nnet = ['tap=t,mac=52:54:00:00:00:01']\n\
        console = '/home/log'\nreboot = 'restart'\ndevice = '/dev/sda'";

    /// The machine of a file that this is in, with these options.
    fn allowed(text: &str, options: &[&str]) -> Result<Machine> {
        let words = [&["pacifica", "restore", "file"], options].concat();
        let Command::Restore(args) = Cli::try_parse_from(words).unwrap().command else {
            panic!("{options:?}");
        };
        let mut machine = Machine::from_toml(text).unwrap();
        allow(&mut machine, &args).map(|()| machine)
    }

    #[test]
    fn a_file_says_nothing_about_the_host() {
        let text = "kernel = '/k'\nconsole = '/home/log'\nreboot = 'restart'\ndevice = '/dev/sda'";
        let machine = allowed(text, &[]).unwrap();
        assert_eq!(machine.console, ConsoleArg::Stdio);
        assert_eq!(machine.device, PathBuf::from(DEFAULT_DEVICE));
        assert_eq!(machine.reboot, Reboot::Exit);
        let machine = allowed(text, &["--console", "none", "--device", "/dev/kvm"]).unwrap();
        assert_eq!(machine.console, ConsoleArg::None);
        assert_eq!(machine.device, PathBuf::from("/dev/kvm"));
        assert_eq!(machine.reboot, Reboot::Exit);
    }

    #[test]
    fn what_is_not_named_is_refused_and_listed() {
        for (options, wants) in [
            (&[][..], &["/etc/a,", "/b,ro,", "tap=t"][..]),
            (&["--disk", "c"][..], &["/b,ro,", "tap=t"][..]),
            (&["--disk", "c", "--disk", "d"][..], &["tap=t"][..]),
            (&["--disk", "c", "--net", "passt"][..], &["/b,ro"][..]),
        ] {
            let error = allowed(MACHINE, options).unwrap_err();
            assert!(matches!(error, Error::Consent { .. }), "{error}");
            let (said, hint) = (error.to_string(), error.hint().unwrap());
            for word in ["/etc/a,", "/b,ro", "tap=t"] {
                let listed = wants.iter().any(|want| want.starts_with(word));
                assert_eq!(said.contains(word), listed, "{options:?}: {said}");
            }
            for option in ["--disk", "--net", "--trust"] {
                assert!(hint.contains(option), "{hint}");
            }
        }
    }

    #[test]
    fn what_is_named_takes_the_places_in_their_order() {
        let options = ["--disk", "c,ro", "--disk", "d", "--net", "passt"];
        let machine = allowed(MACHINE, &options).unwrap();
        let disks = machine.devices.disks.iter().map(ToString::to_string);
        // One that the guest only reads is not opened for writing.
        assert_eq!(disks.collect::<Vec<_>>(), ["c,ro", "d,ro"]);
        assert_eq!(
            machine.devices.networks[0].plug,
            crate::devices::Plug::Passt
        );
        assert_eq!(machine.reboot, Reboot::Exit);
        for more in [["--disk", "e"], ["--net", "passt"]] {
            assert!(allowed(MACHINE, &[&options[..], &more].concat()).is_err());
        }
    }

    #[test]
    fn a_file_that_is_trusted_has_its_way() {
        let whole = Machine::from_toml(MACHINE).unwrap();
        assert_eq!(allowed(MACHINE, &["--trust"]).unwrap(), whole);
        let machine = allowed(MACHINE, &["--trust", "--disk", "c", "--console", "none"]).unwrap();
        let disks = machine.devices.disks.iter().map(ToString::to_string);
        assert_eq!(disks.collect::<Vec<_>>(), ["c", "/b,ro"]);
        assert_eq!(machine.console, ConsoleArg::None);
        assert_eq!(machine.reboot, Reboot::Restart);
    }
}
