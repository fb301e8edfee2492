// SPDX-License-Identifier: GPL-2.0-only

//! What is plugged into a machine, as the user says it.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use super::bus::Shared;
use super::virtio::block::{Block, DiskFile};
use super::virtio::entropy::Entropy;
use super::virtio::link::{Link, Stream, Tap};
use super::virtio::net::{Mac, Net};
use super::virtio::Device;
use crate::error::{Error, Result};

/// The devices that the user asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    /// The disks, in the guest's order.
    pub(crate) disks: Vec<DiskFile>,
    /// The networks, in the guest's order.
    pub(crate) networks: Vec<Network>,
}

impl Devices {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.networks.is_empty()
    }

    /// Opens all of them, and the source of random numbers, which every machine has.
    pub(crate) fn open(&self) -> Result<Vec<Shared<dyn Device>>> {
        let mut devices: Vec<Shared<dyn Device>> = Vec::new();
        for disk in &self.disks {
            devices.push(Arc::new(Mutex::new(Block::open(disk)?)));
        }
        for network in &self.networks {
            let net = Net::new(network.mac, network.plug.open()?);
            devices.push(Arc::new(Mutex::new(net)));
        }
        devices.push(Arc::new(Mutex::new(Entropy::open()?)));
        Ok(devices)
    }
}

impl Devices {
    /// All of them, of files that are open: disks, networks, the source of random numbers.
    pub(crate) fn given(
        &self,
        disks: Vec<File>,
        networks: Vec<OwnedFd>,
        random: OwnedFd,
    ) -> Result<Vec<Shared<dyn Device>>> {
        let mut devices: Vec<Shared<dyn Device>> = Vec::new();
        for (disk, file) in self.disks.iter().zip(disks) {
            devices.push(Arc::new(Mutex::new(Block::given(file, disk)?)));
        }
        for (network, file) in self.networks.iter().zip(networks) {
            let net = Net::new(network.mac, network.plug.given(file)?);
            devices.push(Arc::new(Mutex::new(net)));
        }
        devices.push(Arc::new(Mutex::new(Entropy::given(random.into()))));
        Ok(devices)
    }
}

/// A network device: what it is plugged into, and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    /// What is at the other end of the cable.
    pub(crate) plug: Plug,
    /// The hardware address.
    pub(crate) mac: Mac,
}

/// What a network device is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plug {
    /// The program passt, started for this machine.
    Passt,
    /// A TAP device of this name.
    Tap(String),
    /// A program that listens there and speaks like passt.
    Socket(PathBuf),
}

impl Plug {
    /// Opens it for another process.
    pub(crate) fn open_to_give(&self) -> Result<OwnedFd> {
        let link = self.open()?.give();
        link.ok_or_else(|| Error::system("connect", ErrorKind::NotConnected))
    }

    fn given(&self, file: OwnedFd) -> Result<Box<dyn Link>> {
        Ok(match self {
            Self::Tap(_) => Box::new(Tap::given(file.into())),
            Self::Passt | Self::Socket(_) => {
                let stream = Stream::new(file.into());
                Box::new(stream.map_err(|error| Error::system("fcntl", error))?)
            }
        })
    }

    fn open(&self) -> Result<Box<dyn Link>> {
        Ok(match self {
            Self::Passt => Box::new(Stream::passt()?),
            Self::Tap(name) => Box::new(Tap::open(name)?),
            Self::Socket(path) => Box::new(Stream::connect(path)?),
        })
    }
}

impl FromStr for Network {
    type Err = String;

    /// `passt`, `tap=NAME` or `socket=PATH`, and `,mac=ADDRESS`; without an address, it is random.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (plug, mac) = match text.rsplit_once(",mac=") {
            Some((plug, mac)) => (plug, parse_mac(mac)?),
            None => (text, random_mac().map_err(|error| error.to_string())?),
        };
        let plug = match plug.split_once('=') {
            None if plug == "passt" => Plug::Passt,
            Some(("tap", name)) if !name.is_empty() => Plug::Tap(name.into()),
            Some(("socket", path)) if !path.is_empty() => Plug::Socket(path.into()),
            _ => return Err("neither passt nor tap=NAME nor socket=PATH".into()),
        };
        Ok(Self { plug, mac })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plug {
            Plug::Passt => f.write_str("passt")?,
            Plug::Tap(name) => write!(f, "tap={name}")?,
            Plug::Socket(path) => write!(f, "socket={}", path.display())?,
        }
        let [a, b, c, d, e, g] = self.mac;
        write!(f, ",mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// In the first byte of an address: it is not one that the IEEE has assigned; it is a group's.
const LOCAL: u8 = 0b10;
const GROUP: u8 = 0b01;

/// The address that the text names: six bytes with colons between them.
fn parse_mac(text: &str) -> std::result::Result<Mac, String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| {
            let digits = byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
            u8::from_str_radix(byte, 16).ok().filter(|_| digits)
        })
        .collect();
    let mac = bytes.and_then(|bytes| Mac::try_from(bytes).ok());
    mac.filter(|mac| mac[0] & GROUP == 0)
        .ok_or_else(|| format!("{text} is no hardware address, such as 52:54:00:12:34:56"))
}

/// An address of a host's own.
pub(crate) fn random_mac() -> std::io::Result<Mac> {
    let mut mac = Mac::default();
    std::fs::File::open("/dev/urandom")?.read_exact(&mut mac)?;
    mac[0] = mac[0] & !GROUP | LOCAL;
    Ok(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_files_that_may_be_read_only() {
        let disk = |path: &str, read_only| DiskFile {
            path: path.into(),
            read_only,
        };
        assert_eq!("a.raw".parse(), Ok(disk("a.raw", false)));
        assert_eq!("a,b,ro".parse(), Ok(disk("a,b", true)));
        assert!("".parse::<DiskFile>().is_err());
        assert!(",ro".parse::<DiskFile>().is_err());
    }

    #[test]
    fn networks() {
        let network: Network = "tap=tap0,mac=52:54:00:ab:cd:ef".parse().unwrap();
        assert_eq!(network.plug, Plug::Tap("tap0".into()));
        assert_eq!(network.to_string(), "tap=tap0,mac=52:54:00:ab:cd:ef");
        let network: Network = "passt".parse().unwrap();
        assert_eq!(network.plug, Plug::Passt);
        assert_eq!(network.mac[0] & (LOCAL | GROUP), LOCAL);
        assert_ne!(network.mac, "passt".parse::<Network>().unwrap().mac);
        let network: Network = "socket=/run/a=b,c".parse().unwrap();
        assert_eq!(network.plug, Plug::Socket("/run/a=b,c".into()));
        for wrong in [
            "",
            "tap",
            "tap=",
            "passt=",
            "socket=",
            "passt,mac=",
            "passt,mac=52:54:00:12:34",
            "passt,mac=52:54:00:12:34:5",
            "passt,mac=52:54:00:12:34:+5",
            "passt,mac=53:54:00:12:34:56",
            "passt,mac=52:54:00:12:34:56:78",
        ] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
