// SPDX-License-Identifier: GPL-2.0-only

//! CPUID: what each side offers, what it makes of any table that a VMM sets, and what a guest reads
//! then.

use std::time::Duration;

use kvm_bindings::*;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Handle};

use crate::cases::Mode;
use crate::guest::{errno, fnv, general, regs, words, Config, Machine, CODE};
use crate::probe::{Probe, Subject, NO_END};
use crate::random::Random;

const ENTRY: usize = size_of::<kvm_cpuid_entry2>();
/// More than anybody has.
const MOST: usize = 256;
const CR4_OSXSAVE: u64 = 1 << 18;

/// Leaves that are asked for.
const LEAVES: &[u32] = &[
    0,
    1,
    2,
    4,
    5,
    6,
    7,
    0xa,
    0xb,
    0xd,
    0xf,
    0x10,
    0x12,
    0x14,
    0x1f,
    0x20,
    0x4000_0000,
    0x4000_0001,
    0x4000_0002,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_000a,
    0x8000_0019,
    0x8000_001a,
    0x8000_001d,
    0x8000_001e,
    0x8000_001f,
    0x8000_0020,
    0x8000_0021,
    0x8000_0022,
    0x8000_0026,
    0xc000_0000,
    0xffff_ffff,
];

/// Both get tables that are made of KVM's.
pub(crate) struct Cpuids {
    device: Handle,
    base: Vec<kvm_cpuid_entry2>,
}

impl Cpuids {
    pub(crate) fn open(device: Handle) -> Box<dyn Subject> {
        let kvm = Handle::open("/dev/kvm");
        let base = kvm.map(|kvm| supported_cpuid(&kvm).unwrap_or_default());
        Box::new(Self {
            device,
            base: base.unwrap_or_default(),
        })
    }
}

impl Subject for Cpuids {
    fn ask(&mut self, random: &mut Random, limit: Duration) -> Result<Probe, String> {
        let mut probe = Probe::default();
        match random.below(8) {
            0 => self.lists(number::GET_EMULATED_CPUID, "emulated", random, &mut probe),
            1 => self.set(random, &mut probe, limit)?,
            _ => self.lists(number::GET_SUPPORTED_CPUID, "supported", random, &mut probe),
        }
        Ok(probe)
    }
}

impl Cpuids {
    /// One leaf of a list of the device's, or the list with little room.
    fn lists(
        &self,
        number: selftests::kvm::Number,
        name: &'static str,
        random: &mut Random,
        probe: &mut Probe,
    ) {
        probe.word(name);
        let room = match random.one_in(8) {
            true => random.pick(&[0, 1]),
            false => MOST,
        };
        probe.word(format!("room={room}"));
        let mut table = vec![0; 1 + MOST * ENTRY / 8];
        table[0] = room as u64;
        let length = table.len() * 8;
        let done = self.device.array(number, &mut table, length);
        probe.put("get", errno(done));
        if done.is_err() {
            return;
        }
        let function = random.pick(LEAVES);
        let index = random.pick(&[0, 0, 0, 1, 2, 3, 9]);
        probe.word(format!("leaf={function:x} index={index}"));
        let found = entries(&table)
            .into_iter()
            .find(|entry| (entry.function, entry.index) == (function, index));
        let Some(e) = found else {
            return probe.put("there", false);
        };
        probe.put("there", true);
        probe.put("eax", format!("{:x}", e.eax));
        probe.put("ebx", format!("{:x}", e.ebx));
        probe.put("ecx", format!("{:x}", e.ecx));
        probe.put("edx", format!("{:x}", e.edx));
        probe.put("flags", e.flags);
    }

    /// A table with entries that lack, are changed, come twice or mean nothing; what a guest reads
    /// of it.
    fn set(&self, random: &mut Random, probe: &mut Probe, limit: Duration) -> Result<(), String> {
        probe.word("set");
        let mut table = self.base.clone();
        for _ in 0..random.below(4) {
            let at = random.below(table.len() as u64) as usize;
            let gone = table.remove(at);
            probe.word(format!("without={:x}.{}", gone.function, gone.index));
        }
        for _ in 0..random.below(4) {
            let at = random.below(table.len() as u64) as usize;
            let entry = &mut table[at];
            let bit = random.bit(32) as u32;
            let [a, b, c, d] = [
                &mut entry.eax,
                &mut entry.ebx,
                &mut entry.ecx,
                &mut entry.edx,
            ];
            let which = random.below(4) as usize;
            *[a, b, c, d][which] ^= bit;
            probe.word(format!(
                "changed={:x}.{}:{which}^{bit:x}",
                entry.function, entry.index
            ));
        }
        if random.one_in(3) {
            let at = random.below(table.len() as u64) as usize;
            table.push(table[at]);
            probe.word(format!("twice={:x}", table[at].function));
        }
        if random.one_in(3) {
            let function = random.pick(&[0x3000_0000, 0x8fff_ffff, 0x4000_0100]);
            table.push(kvm_cpuid_entry2 {
                function,
                eax: 0x1234,
                ..Default::default()
            });
            probe.word(format!("more={function:x}"));
        }
        let device = &self.device;
        let vm = device.open_with(number::CREATE_VM, 0)?;
        let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
        let done = set_cpuid(&vcpu, &table);
        probe.put("set", errno(done));
        if done.is_err() {
            return Ok(());
        }
        let mut back = vec![0; 1 + MOST * ENTRY / 8];
        back[0] = MOST as u64;
        let length = back.len() * 8;
        probe.put(
            "get",
            errno(vcpu.array(number::GET_CPUID2, &mut back, length)),
        );
        let mut text = String::new();
        for e in entries(&back) {
            text +=
                &words(&[e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx].map(u64::from));
            text.push(';');
        }
        probe.put(
            "got",
            format!("{}:{:x}", entries(&back).len(), fnv(text.as_bytes())),
        );
        drop((vcpu, vm));
        self.read(&table, random, probe, limit)
    }

    /// The guest's CPUID of some leaves, with CR4.OSXSAVE and XCR0 as they come.
    fn read(
        &self,
        table: &[kvm_cpuid_entry2],
        random: &mut Random,
        probe: &mut Probe,
        limit: Duration,
    ) -> Result<(), String> {
        // The registers in which a guest begins may be none for this CPUID.
        let mode = Mode::Long;
        let ready = Machine::with_cpuid(&self.device, Config::default(), table);
        let ready = ready.and_then(|machine| {
            machine.fill(mode);
            machine.reset(mode, false).map(|()| machine)
        });
        let Ok(machine) = ready else {
            probe.put("ready", false);
            return Ok(());
        };
        let vcpu = &machine.vcpu.handle;
        let mut sregs = machine.sregs(mode, false)?;
        if random.one_in(2) {
            sregs.cr4 ^= CR4_OSXSAVE;
            probe.word("cr4");
        }
        probe.put("sregs", errno(vcpu.set(number::SET_SREGS, &sregs)));
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = random.pick(&[1, 3, 7, 7]);
        probe.word(format!("xcr0={:x}", xcrs.xcrs[0].value));
        probe.put("xcrs", errno(vcpu.set(number::SET_XCRS, &xcrs)));
        machine.ram.write(CODE as usize, &[0x0f, 0xa2, 0xf4]);
        let mut text = Vec::new();
        for _ in 0..12 {
            let mut r = regs(mode);
            r.rax = random.pick(LEAVES).into();
            r.rcx = random.pick(&[0, 0, 1, 2, 9, 11, 63]);
            let question = words(&[r.rax, r.rcx]);
            vcpu.set(number::SET_REGS, &r)?;
            let mut one = Probe::default();
            machine.run(&mut one, limit)?;
            if one.no_end() {
                // Late: it is asked again.
                probe.put("exit", NO_END);
            }
            let after: kvm_regs = vcpu.get(number::GET_REGS)?;
            text.push(format!("{question}={}", words(&general(&after)[..4])));
        }
        probe.put("read", text.join(";"));
        Ok(())
    }
}

fn entries(table: &[u64]) -> Vec<kvm_cpuid_entry2> {
    let count = (table[0] & 0xffff_ffff) as usize;
    let at = table[1..].as_ptr().cast::<kvm_cpuid_entry2>();
    // SAFETY: The kernel wrote `count` entries after the header.
    unsafe { std::slice::from_raw_parts(at, count.min(MOST)) }.to_vec()
}
