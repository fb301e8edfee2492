// SPDX-License-Identifier: GPL-2.0-only

//! Files and states at random: each is refused, or is one that this program could have written.
//! Nothing panics.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use serde::de::DeserializeOwned;
use serde::Serialize;
use serde_json::Value;
use vm_memory::{Bytes, GuestAddress};

use super::file::{self, Form};
use crate::devices::bus::{MemoryDevice, PortDevice, Shared};
use crate::devices::pci::msix::tests::Noted;
use crate::devices::pci::{Function, PciPorts};
use crate::devices::power::PowerManagement;
use crate::devices::serial::Serial;
use crate::devices::virtio::entropy::Entropy;
use crate::devices::virtio::pci::VirtioPci;
use crate::devices::virtio::random::Random;
use crate::memory::{allocate, GuestMemory};
use crate::outcome::Stop;

/// How many files, and how many states of each device.
const ROUNDS: u64 = 100_000;
const SIZE: u64 = 2 << 20;

/// Changes some bytes, or cuts.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() as u64) as usize;
        match random.below(4) {
            0 => bytes[at] = 0xff,
            1 => bytes[at] ^= 1 << random.below(8),
            _ => bytes[at] = random.next() as u8,
        }
    }
    if random.below(8) == 0 {
        bytes.truncate(random.below(bytes.len() as u64) as usize);
    }
}

#[test]
fn any_file_is_read_or_refused() {
    let random = &mut Random::new(11);
    let memory = allocate(SIZE).unwrap();
    memory.write_obj(7u64, GuestAddress(0x1234)).unwrap();
    let number = nix::sys::memfd::memfd_create(c"random", nix::sys::memfd::MFdFlags::empty());
    let place = File::from(number.unwrap());
    let state = serde_json::json!({"a": [1, 2, 3], "b": "text"});
    let length = file::write(&place, Form::Compressed, (&memory, SIZE), &state).unwrap();
    let mut good = vec![0; length as usize];
    place.read_exact_at(&mut good, 0).unwrap();
    let contents: file::Contents<Value> = file::read(&place).unwrap();
    let text = serde_json::to_vec(&contents).unwrap();
    let (mut read, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let bytes = match random.below(3) {
            // The text is another, and all around it is right.
            0 => {
                let mut text = text.clone();
                damage(random, &mut text);
                file::around(&good, &text)
            }
            // The frame of the text is another, with the right checksum.
            1 => {
                let mut frame = file::frame(&good).to_vec();
                damage(random, &mut frame);
                file::around_frame(&good, &frame)
            }
            _ => {
                let mut bytes = good.clone();
                damage(random, &mut bytes);
                bytes
            }
        };
        place.set_len(0).unwrap();
        place.write_all_at(&bytes, 0).unwrap();
        match file::read::<Value>(&place) {
            Ok(contents) => {
                read += 1;
                // A chunk takes long.
                if round % 10 == 0 && contents.memory <= 4 * SIZE {
                    let _ = contents.load(place.try_clone().unwrap(), true);
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(read > 100 && refused > 100, "{read} {refused}");
}

/// Changes a number, a truth or the length of a list somewhere.
fn change(random: &mut Random, value: &mut Value) {
    match value {
        Value::Number(number) => {
            let new = match random.below(6) {
                0 => 0,
                1 => u64::MAX,
                2 => random.next() & 0xffff,
                3 => random.next() & 0xff,
                4 => 1 << random.below(64),
                _ => random.next(),
            };
            *number = new.into();
        }
        Value::Bool(truth) => *truth = !*truth,
        Value::Null => *value = serde_json::json!([{"taken": 1, "answered": 2, "broken": false}]),
        Value::Array(list) if !list.is_empty() => {
            let at = random.below(list.len() as u64) as usize;
            match random.below(12) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                _ => change(random, &mut list[at]),
            }
        }
        Value::Object(map) if !map.is_empty() => {
            let at = random.below(map.len() as u64) as usize;
            if let Some(value) = map.values_mut().nth(at) {
                change(random, value);
            }
        }
        _ => {}
    }
}

/// Puts states at random into a device.
fn states<S: Serialize + DeserializeOwned>(
    seed: u64,
    state: impl Fn() -> S,
    mut restore: impl FnMut(&S, u64) -> bool,
) {
    let random = &mut Random::new(seed);
    let good = serde_json::to_value(state()).unwrap();
    let (mut taken, mut now) = (0, good.clone());
    for round in 0..ROUNDS {
        if random.below(10) == 0 {
            now = good.clone();
        }
        change(random, &mut now);
        if let Ok(state) = serde_json::from_value::<S>(now.clone()) {
            taken += u64::from(restore(&state, round));
        }
    }
    assert!(taken > 1000, "{taken}");
}

fn function(memory: &GuestMemory) -> VirtioPci {
    let device = Arc::new(Mutex::new(Entropy::open().unwrap()));
    let routes = Arc::new(Noted::default());
    VirtioPci::new(device, 0xc000_0000, memory.clone(), routes).unwrap()
}

#[test]
fn virtio_takes_any_state() {
    let memory = allocate(SIZE).unwrap();
    let mut function = function(&memory);
    // A driver that is ready: its queue lies at 0x1000.
    function.write_config(4, &[6, 0]);
    let registers: [(u64, u64, usize); 10] = [
        (0x14, 3, 1),
        (0x08, 1, 4),
        (0x0c, 1, 4),
        (0x14, 0xb, 1),
        (0x18, 16, 2),
        (0x20, 0x1000, 8),
        (0x28, 0x2000, 8),
        (0x30, 0x3000, 8),
        (0x1c, 1, 2),
        (0x14, 0xf, 1),
    ];
    for (offset, value, size) in registers {
        MemoryDevice::write(&mut function, offset, &value.to_le_bytes()[..size]);
    }
    function.rest();
    let state = function.state();
    assert!(serde_json::to_string(&state).unwrap().contains("taken"));
    let other = std::cell::RefCell::new(self::function(&memory));
    other.borrow_mut().restore(&state).unwrap();
    assert_eq!(other.borrow().state(), state);
    states(
        12,
        || state.clone(),
        |state, round| {
            let mut other = other.borrow_mut();
            let taken = other.restore(state).is_ok();
            // A thread takes long.
            if round % 100 == 0 {
                other.go_on();
            }
            let mut data = [0; 8];
            MemoryDevice::read(&mut *other, 0x18, &mut data);
            other.read_config(0x40, &mut data[..4]);
            taken
        },
    );
}

#[test]
fn ports_take_any_state() {
    let stop = Arc::new(Stop::new().unwrap());
    let serial = Serial::new(Box::new(std::io::sink())).unwrap();
    let serial = Shared::new(Mutex::new(serial));
    let lock = crate::devices::bus::lock::<Serial>;
    lock(&serial).input(&[1; 100]);
    states(
        13,
        || lock(&serial).state(),
        |state, _| {
            let mut serial = lock(&serial);
            let taken = serial.restore(state).is_ok();
            PortDevice::read(&mut *serial, 0, &mut [0; 4]);
            PortDevice::write(&mut *serial, 1, &[0xf]);
            taken
        },
    );
    let power = PowerManagement::new(stop.clone(), Box::new(|_| {}));
    let power = std::cell::RefCell::new(power);
    states(
        14,
        || power.borrow().state(),
        |state, _| {
            power.borrow_mut().restore(state);
            power.borrow_mut().read(0, &mut [0; 4]);
            true
        },
    );
    let ports = std::cell::RefCell::new(PciPorts::new(stop.clone()));
    states(
        15,
        || ports.borrow().state(),
        |state, _| {
            ports.borrow_mut().restore(state);
            ports.borrow_mut().read(4, &mut [0; 4]);
            true
        },
    );
    assert_eq!(stop.outcome(), None);
}
