// SPDX-License-Identifier: GPL-2.0-only

//! What CPUID tells each processor about itself and its neighbours (APM vol. 3, appendix E).

use kvm_bindings::{kvm_cpuid_entry2, CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX};

use crate::error::{Error, Result};

const FEATURES: u32 = 0x0000_0001;
const EXTENDED_TOPOLOGY: u32 = 0x0000_000b;
const EXTENDED_TOPOLOGY_V2: u32 = 0x0000_001f;
const AMD_FEATURES: u32 = 0x8000_0001;
const SIZES: u32 = 0x8000_0008;
const CACHE_TOPOLOGY: u32 = 0x8000_001d;
const PROCESSOR_TOPOLOGY: u32 = 0x8000_001e;
const AMD_EXTENDED_TOPOLOGY: u32 = 0x8000_0026;

// Leaf 1.
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
// Leaf 8000_0001h.
const ECX_CMP_LEGACY: u32 = 1 << 1;

// Level types of the extended topology leaf.
const LEVEL_THREADS: u32 = 1;
const LEVEL_CORES: u32 = 2;

/// The machine's shape: one socket of `cpus` cores with one thread each. The APIC numbers are
/// 0 to `cpus - 1`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// How many processors there are.
    pub(crate) cpus: u32,
    /// Whether the local APICs have the TSC-deadline timer.
    pub(crate) tsc_deadline: bool,
}

/// Makes processor `id`'s CPUID table from what the module supports.
pub(crate) fn table(supported: &CpuId, id: u32, shape: Shape) -> Result<CpuId> {
    let entries = entries(supported.as_slice(), id, shape);
    CpuId::from_entries(&entries).map_err(|_| Error::Kvm {
        request: "KVM_SET_CPUID2",
        error: std::io::Error::other("the module supports too many CPUID leaves"),
    })
}

/// The entries of processor `id`.
fn entries(supported: &[kvm_cpuid_entry2], id: u32, shape: Shape) -> Vec<kvm_cpuid_entry2> {
    let has_topology = supported
        .iter()
        .any(|entry| entry.function == EXTENDED_TOPOLOGY);
    let described_otherwise = [
        EXTENDED_TOPOLOGY,
        EXTENDED_TOPOLOGY_V2,
        AMD_EXTENDED_TOPOLOGY,
    ];
    let mut entries: Vec<_> = supported
        .iter()
        .filter(|entry| !described_otherwise.contains(&entry.function))
        .copied()
        .collect();
    for entry in &mut entries {
        adjust(entry, id, shape);
    }
    if has_topology {
        entries.extend(topology(id, shape));
    }
    entries
}

/// Writes number and neighbours into one leaf.
fn adjust(entry: &mut kvm_cpuid_entry2, id: u32, shape: Shape) {
    let cpus = shape.cpus;
    let multi = cpus > 1;
    match entry.function {
        FEATURES => {
            entry.ebx = entry.ebx & 0xffff | cpus.min(0xff) << 16 | id << 24;
            entry.ecx |= ECX_HYPERVISOR;
            set(&mut entry.ecx, ECX_TSC_DEADLINE, shape.tsc_deadline);
            set(&mut entry.edx, EDX_HTT, multi);
        }
        AMD_FEATURES => set(&mut entry.ecx, ECX_CMP_LEGACY, multi),
        SIZES => entry.ecx = entry.ecx & !0xf0ff | id_bits(cpus) << 12 | (cpus - 1),
        CACHE_TOPOLOGY => {
            // Bits 7:5 are the level; the third is shared by all cores. Bits 25:14 say with how
            // many.
            let level = entry.eax >> 5 & 0b111;
            let sharing = if level >= 3 { cpus - 1 } else { 0 };
            entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
        }
        PROCESSOR_TOPOLOGY => {
            entry.eax = id;
            entry.ebx = id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Sets or clears bits.
fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

/// How many bits of the APIC number tell the cores apart.
fn id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

/// The extended topology leaf: one thread in each core, all cores in the socket.
fn topology(id: u32, shape: Shape) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: EXTENDED_TOPOLOGY,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_THREADS),
        level(1, id_bits(shape.cpus), shape.cpus, LEVEL_CORES),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> Vec<kvm_cpuid_entry2> {
        let leaf = |function| kvm_cpuid_entry2 {
            function,
            ebx: 0x0712_3456,
            ecx: 0xffff,
            ..Default::default()
        };
        [
            0,
            1,
            0xb,
            0x1f,
            0x8000_0001,
            0x8000_0008,
            0x8000_001e,
            0x8000_0026,
        ]
        .map(leaf)
        .to_vec()
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn each_processor_has_its_number() {
        for id in 0..3 {
            let entries = entries(
                &supported(),
                id,
                Shape {
                    cpus: 3,
                    tsc_deadline: true,
                },
            );
            let features = find(&entries, 1, 0);
            assert_eq!(features.ebx, id << 24 | 3 << 16 | 0x3456);
            assert_eq!(
                features.ecx & (ECX_TSC_DEADLINE | ECX_HYPERVISOR),
                ECX_TSC_DEADLINE | ECX_HYPERVISOR
            );
            assert_eq!(features.edx, EDX_HTT);
            assert_eq!(find(&entries, 0x8000_001e, 0).eax, id);
            assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 0x2f02);
            for index in 0..3 {
                assert_eq!(find(&entries, 0xb, index).edx, id);
            }
            assert_eq!(find(&entries, 0xb, 1).eax, 2);
            assert_eq!(find(&entries, 0xb, 1).ebx, 3);
        }
    }

    #[test]
    fn one_processor_has_no_neighbours() {
        let entries = entries(
            &supported(),
            0,
            Shape {
                cpus: 1,
                tsc_deadline: false,
            },
        );
        assert_eq!(find(&entries, 1, 0).edx & EDX_HTT, 0);
        assert_eq!(find(&entries, 1, 0).ecx & ECX_TSC_DEADLINE, 0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & ECX_CMP_LEGACY, 0);
        assert_eq!(find(&entries, 0xb, 1).eax, 0);
        assert!(!entries
            .iter()
            .any(|entry| [0x1f, 0x8000_0026].contains(&entry.function)));
    }
}
