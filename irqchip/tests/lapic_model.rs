// SPDX-License-Identifier: GPL-2.0-only

//! The local APIC's priorities against an oracle that looks at every vector each time.

use irqchip::bits::Vectors;
use irqchip::lapic::{Effect, Eoi};
use irqchip::{Lapic, Now};
use proptest::prelude::*;

const T0: Now = Now { ns: 0, tsc: 0 };

struct Oracle {
    requested: [bool; 256],
    in_service: [bool; 256],
    level: [bool; 256],
    tpr: u8,
}

impl Oracle {
    fn highest(set: &[bool; 256]) -> Option<u8> {
        (0..=255).rev().find(|vector| set[usize::from(*vector)])
    }

    fn ppr(&self) -> u8 {
        let serving = Self::highest(&self.in_service).unwrap_or(0) >> 4;
        if self.tpr >> 4 >= serving {
            self.tpr
        } else {
            serving << 4
        }
    }

    fn pending(&self) -> Option<u8> {
        Self::highest(&self.requested).filter(|vector| vector >> 4 > self.ppr() >> 4)
    }

    fn accept(&mut self, vector: u8, level: bool) {
        if vector >= 16 {
            self.requested[usize::from(vector)] = true;
            self.level[usize::from(vector)] = level;
        }
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested[usize::from(vector)] = false;
        self.in_service[usize::from(vector)] = true;
        Some(vector)
    }

    fn end(&mut self) -> Option<Eoi> {
        let vector = Self::highest(&self.in_service)?;
        self.in_service[usize::from(vector)] = false;
        Some(Eoi {
            vector,
            level: self.level[usize::from(vector)],
        })
    }
}

#[derive(Clone, Debug)]
enum Op {
    Accept(u8, bool),
    Merge(Vec<(u8, bool)>),
    Tpr(u8),
    Cr8(u8),
    Acknowledge,
    End,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => any::<(u8, bool)>().prop_map(|(vector, level)| Op::Accept(vector, level)),
        1 => prop::collection::vec(any::<(u8, bool)>(), 0..5).prop_map(Op::Merge),
        1 => any::<u8>().prop_map(Op::Tpr),
        1 => (0u8..16).prop_map(Op::Cr8),
        4 => Just(Op::Acknowledge),
        3 => Just(Op::End),
    ]
}

fn register(lapic: &mut Lapic, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    lapic.mmio_read(offset, &mut bytes, T0);
    u32::from_le_bytes(bytes)
}

fn shown(lapic: &mut Lapic, first: u32) -> [bool; 256] {
    let words: Vec<_> = (0..8).map(|i| register(lapic, first + 16 * i)).collect();
    std::array::from_fn(|vector| words[vector / 32] >> (vector % 32) & 1 != 0)
}

proptest! {
    #[test]
    fn priorities(ops in prop::collection::vec(op(), 1..120)) {
        let mut lapic = Lapic::new(0, true);
        let _ = lapic.mmio_write(0xf0, &0x1ffu32.to_le_bytes(), T0);
        let mut oracle = Oracle {
            requested: [false; 256],
            in_service: [false; 256],
            level: [false; 256],
            tpr: 0,
        };
        for op in ops {
            match op {
                Op::Accept(vector, level) => {
                    prop_assert_eq!(lapic.accept(vector, level), vector >= 16);
                    oracle.accept(vector, level);
                }
                Op::Merge(many) => {
                    let (mut requests, mut levels) = (Vectors::EMPTY, Vectors::EMPTY);
                    for (vector, level) in many {
                        requests.insert(vector);
                        levels.set(vector, level);
                        oracle.accept(vector, level);
                    }
                    lapic.merge(&requests, &levels);
                }
                Op::Tpr(tpr) => {
                    let _ = lapic.mmio_write(0x80, &[tpr, 0, 0, 0], T0);
                    oracle.tpr = tpr;
                }
                Op::Cr8(cr8) => {
                    lapic.set_cr8(cr8.into());
                    oracle.tpr = cr8 << 4;
                }
                Op::Acknowledge => {
                    prop_assert_eq!(lapic.acknowledge(), oracle.acknowledge());
                }
                Op::End => {
                    let effect = lapic.mmio_write(0xb0, &[0; 4], T0);
                    prop_assert_eq!(effect, oracle.end().map_or(Effect::None, Effect::Eoi));
                }
            }
            prop_assert_eq!(lapic.pending_vector(), oracle.pending());
            prop_assert_eq!(lapic.ppr(), oracle.ppr());
            prop_assert_eq!(register(&mut lapic, 0xa0), u32::from(oracle.ppr()));
            prop_assert_eq!(shown(&mut lapic, 0x100), oracle.in_service);
            prop_assert_eq!(shown(&mut lapic, 0x180), oracle.level);
            prop_assert_eq!(shown(&mut lapic, 0x200), oracle.requested);
        }
    }
}
