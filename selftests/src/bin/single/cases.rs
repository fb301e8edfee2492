// SPDX-License-Identifier: GPL-2.0-only

//! The instructions: one line per kind, written once for each mode and operand size that it has.

/// How the CPU runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Real,
    Virtual8086,
    Protected,
    Long,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::Real, Self::Virtual8086, Self::Protected, Self::Long];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Real => "real",
            Self::Virtual8086 => "v86",
            Self::Protected => "32",
            Self::Long => "64",
        }
    }

    /// 16-bit code.
    pub(crate) fn is_16_bit(self) -> bool {
        matches!(self, Self::Real | Self::Virtual8086)
    }

    /// ModRM.mod and ModRM.rm of `[rDI]`.
    fn modrm(self) -> u8 {
        if self.is_16_bit() {
            5
        } else {
            7
        }
    }
}

/// What is done with memory that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// rDI and rSI point to it.
    Operand,
    /// rSP does.
    Stack,
}

/// One instruction in one mode.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) mode: Mode,
    pub(crate) bytes: Vec<u8>,
    pub(crate) place: Place,
    /// The flags that the manual defines.
    pub(crate) flags: u64,
}

const CF: u64 = 1;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;
const OF: u64 = 0x800;
const ALL: u64 = !0;

/// Which sizes a kind of instruction has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sizes {
    /// As it stands.
    One,
    /// With `66`, and with REX.W in 64-bit mode, too.
    Each,
}
use Sizes::{Each, One};

struct List {
    mode: Mode,
    cases: Vec<Case>,
}

impl List {
    fn add(&mut self, place: Place, sizes: Sizes, flags: u64, bytes: &[u8]) {
        let mut push = |bytes: Vec<u8>| {
            let mode = self.mode;
            self.cases.push(Case {
                mode,
                bytes,
                place,
                flags,
            });
        };
        push(bytes.to_vec());
        if sizes == Each {
            push([&[0x66], bytes].concat());
            if self.mode == Mode::Long && place == Place::Operand {
                push([&[0x48], bytes].concat());
            }
        }
    }

    /// `opcode` with `[rDI]` and this number in ModRM.reg, then `rest`.
    fn memory(&mut self, sizes: Sizes, flags: u64, opcode: &[u8], reg: u8, rest: &[u8]) {
        let modrm = [self.mode.modrm() | reg << 3];
        let bytes = [opcode, &modrm, rest].concat();
        self.add(Place::Operand, sizes, flags, &bytes);
    }

    fn stack(&mut self, sizes: Sizes, bytes: &[u8]) {
        self.add(Place::Stack, sizes, ALL, bytes);
    }

    /// The immediate of an operand of this mode's size; a `66` before it makes it another one, of
    /// which the rest is then the next instruction.
    fn immediate(&self) -> &'static [u8] {
        if self.mode.is_16_bit() {
            &[0x12, 0x81]
        } else {
            &[0x12, 0x34, 0x56, 0x81]
        }
    }

    fn integers(&mut self) {
        let immediate = self.immediate();
        for operation in 0..8u8 {
            let flags = if matches!(operation, 1 | 4 | 6) {
                ALL & !AF
            } else {
                ALL
            };
            for form in 0..4 {
                let sizes = if form & 1 == 0 { One } else { Each };
                self.memory(sizes, flags, &[operation << 3 | form], 1, &[]);
            }
            self.memory(One, flags, &[0x80], operation, &[0x95]);
            self.memory(One, flags, &[0x81], operation, immediate);
            self.memory(Each, flags, &[0x83], operation, &[0x95]);
            let defined = if operation < 4 {
                ALL & !OF
            } else {
                ALL & !OF & !AF
            };
            self.memory(One, defined, &[0xc0], operation, &[3]);
            self.memory(Each, defined, &[0xc1], operation, &[5]);
            self.memory(
                One,
                if operation < 4 { ALL } else { ALL & !AF },
                &[0xd0],
                operation,
                &[],
            );
            self.memory(
                Each,
                if operation < 4 { ALL } else { ALL & !AF },
                &[0xd1],
                operation,
                &[],
            );
            self.memory(One, defined, &[0xd2], operation, &[]);
            self.memory(Each, defined, &[0xd3], operation, &[]);
        }
        self.memory(One, ALL & !AF, &[0xf6], 0, &[0x95]);
        self.memory(One, ALL & !AF, &[0xf7], 0, immediate);
        for operation in 2..6 {
            let flags = if operation < 4 { ALL } else { CF | OF };
            self.memory(One, flags, &[0xf6], operation, &[]);
            self.memory(Each, flags, &[0xf7], operation, &[]);
        }
        self.memory(One, 0, &[0xf6], 6, &[]);
        self.memory(Each, 0, &[0xf7], 6, &[]);
        for operation in 0..2 {
            self.memory(One, ALL, &[0xfe], operation, &[]);
            self.memory(Each, ALL, &[0xff], operation, &[]);
        }
        for opcode in [0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b] {
            let flags = if opcode < 0x86 { ALL & !AF } else { ALL };
            self.memory(
                if opcode & 1 == 0 { One } else { Each },
                flags,
                &[opcode],
                1,
                &[],
            );
        }
        self.memory(One, ALL, &[0xc6], 0, &[0x95]);
        self.memory(One, ALL, &[0xc7], 0, immediate);
        self.memory(One, CF | OF, &[0x69], 1, immediate);
        self.memory(Each, CF | OF, &[0x6b], 1, &[0x95]);
        self.memory(Each, CF | OF, &[0x0f, 0xaf], 1, &[]);
        if self.mode == Mode::Long {
            self.memory(Each, ALL, &[0x63], 1, &[]);
        }
    }

    fn two_byte(&mut self) {
        for condition in 0..16 {
            self.memory(One, ALL, &[0x0f, 0x90 | condition], 0, &[]);
            self.memory(Each, ALL, &[0x0f, 0x40 | condition], 1, &[]);
        }
        for opcode in [0xa3, 0xab, 0xb3, 0xbb] {
            self.memory(Each, CF, &[0x0f, opcode], 3, &[]);
        }
        for operation in 4..8 {
            self.memory(Each, CF, &[0x0f, 0xba], operation, &[0x0d]);
        }
        for opcode in [0xa4, 0xac] {
            self.memory(Each, ALL & !AF & !OF, &[0x0f, opcode], 1, &[3]);
            self.memory(Each, ALL & !AF & !OF, &[0x0f, opcode | 1], 1, &[]);
        }
        for opcode in [0xb6, 0xb7, 0xbe, 0xbf] {
            self.memory(Each, ALL, &[0x0f, opcode], 1, &[]);
        }
        for opcode in [0xbc, 0xbd] {
            self.memory(Each, ZF, &[0x0f, opcode], 1, &[]);
        }
        for opcode in [0xb0, 0xb1, 0xc0, 0xc1] {
            self.memory(
                if opcode & 1 == 0 { One } else { Each },
                ALL,
                &[0x0f, opcode],
                1,
                &[],
            );
        }
        self.memory(One, ALL, &[0x0f, 0xc7], 1, &[]);
        self.memory(One, ALL, &[0x0f, 0xc3], 1, &[]);
        self.memory(Each, ALL, &[0x0f, 0x38, 0xf0], 1, &[]);
        self.memory(Each, ALL, &[0x0f, 0x38, 0xf1], 1, &[]);
        for opcode in [[0xf3, 0x0f, 0xb8], [0xf3, 0x0f, 0xbc], [0xf3, 0x0f, 0xbd]] {
            self.memory(One, ZF, &opcode, 1, &[]);
        }
        // BMI: andn, blsr, bextr, shlx, rorx, pdep.
        if !self.mode.is_16_bit() {
            self.memory(One, ZF | SF, &[0xc4, 0xe2, 0x70, 0xf2], 1, &[]);
            self.memory(One, ZF | SF, &[0xc4, 0xe2, 0x70, 0xf3], 1, &[]);
            self.memory(One, ZF, &[0xc4, 0xe2, 0x70, 0xf7], 1, &[]);
            self.memory(One, ALL, &[0xc4, 0xe2, 0x71, 0xf7], 1, &[]);
            self.memory(One, ALL, &[0xc4, 0xe3, 0x7b, 0xf0], 1, &[5]);
            self.memory(One, ALL, &[0xc4, 0xe2, 0x73, 0xf5], 1, &[]);
        }
    }

    fn strings(&mut self) {
        for opcode in [
            0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0x6c, 0x6d, 0x6e, 0x6f,
        ] {
            let sizes = if opcode & 1 == 0 || opcode < 0x80 {
                One
            } else {
                Each
            };
            self.add(Place::Operand, sizes, ALL, &[opcode]);
            self.add(Place::Operand, One, ALL, &[0xf3, opcode]);
            if matches!(opcode, 0xa6 | 0xa7 | 0xae | 0xaf) {
                self.add(Place::Operand, One, ALL, &[0xf2, opcode]);
            }
        }
        self.add(Place::Operand, One, ALL, &[0xd7]);
    }

    fn segments(&mut self) {
        for register in 0..6 {
            self.memory(Each, ALL, &[0x8c], register, &[]);
        }
        self.memory(One, ALL, &[0x8e], 4, &[]);
        for opcode in [0xb2, 0xb4, 0xb5] {
            self.memory(One, ALL, &[0x0f, opcode], 1, &[]);
        }
        if self.mode != Mode::Long {
            self.memory(One, ALL, &[0xc4], 1, &[]);
        }
        for operation in [0, 1] {
            self.memory(One, ALL, &[0x0f, 0x00], operation, &[]);
        }
        self.memory(One, ALL, &[0x0f, 0x01], 4, &[]);
        // LAR and LSL, VERR and VERW; BOUND and ARPL.
        for opcode in [0x02, 0x03] {
            self.memory(Each, ALL, &[0x0f, opcode], 1, &[]);
        }
        for operation in [4, 5] {
            self.memory(One, ALL, &[0x0f, 0x00], operation, &[]);
        }
        if self.mode != Mode::Long {
            self.memory(Each, ALL, &[0x62], 1, &[]);
            self.memory(One, ALL, &[0x63], 1, &[]);
        }
    }

    fn vectors(&mut self) {
        const SSE: [&[u8]; 17] = [
            &[0x0f, 0x10],
            &[0x66, 0x0f, 0x10],
            &[0x0f, 0x11],
            &[0x66, 0x0f, 0x11],
            &[0x0f, 0x28],
            &[0x66, 0x0f, 0x28],
            &[0x0f, 0x29],
            &[0x66, 0x0f, 0x29],
            &[0x0f, 0x2b],
            &[0x66, 0x0f, 0x2b],
            &[0x66, 0x0f, 0x6f],
            &[0xf3, 0x0f, 0x6f],
            &[0x66, 0x0f, 0x7f],
            &[0xf3, 0x0f, 0x7f],
            &[0x66, 0x0f, 0xe7],
            &[0x0f, 0x6f],
            &[0x0f, 0x7f],
        ];
        for opcode in SSE {
            self.memory(One, ALL, opcode, 1, &[]);
        }
        if self.mode == Mode::Long {
            for prefix in [0xfc, 0xfd, 0xf8, 0xf9] {
                for opcode in [0x10, 0x11, 0x28, 0x29, 0x2b] {
                    self.memory(One, ALL, &[0xc5, prefix, opcode], 1, &[]);
                }
            }
            for prefix in [0xfd, 0xfe, 0xf9, 0xfa] {
                for opcode in [0x6f, 0x7f] {
                    self.memory(One, ALL, &[0xc5, prefix, opcode], 1, &[]);
                }
            }
            self.memory(One, ALL, &[0xc5, 0xfd, 0xe7], 1, &[]);
            self.memory(One, ALL, &[0xc4, 0xe2, 0x7d, 0x2a], 1, &[]);
        }
        self.memory(One, ALL, &[0xd9], 7, &[]);
        self.memory(One, ALL, &[0xdd], 7, &[]);
        self.memory(One, ALL, &[0x0f, 0xae], 7, &[]);
        self.memory(One, ALL, &[0x0f, 0x0d], 1, &[]);
        self.memory(One, ALL, &[0x0f, 0x18], 1, &[]);
    }

    /// What KVM lacks. The last rows: registers that only one of the two has loaded are not reset.
    fn lanes(&mut self) {
        // PEXTRB to EXTRACTPS, PINSRB to PINSRD, PINSRW.
        for opcode in [0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22] {
            self.memory(One, ALL, &[0x66, 0x0f, 0x3a, opcode], 1, &[1]);
        }
        self.memory(One, ALL, &[0x66, 0x0f, 0xc4], 1, &[3]);
        // LDMXCSR, STMXCSR.
        for operation in [2, 3] {
            self.memory(One, ALL, &[0x0f, 0xae], operation, &[]);
        }
        if self.mode != Mode::Long {
            return;
        }
        // FXSAVE, FXRSTOR. In other modes KVM repeats them for ever.
        for operation in [0, 1] {
            self.memory(One, ALL, &[0x0f, 0xae], operation, &[]);
        }
        // VEXTRACTF128, VINSERTF128, and those of AVX2.
        for opcode in [0x18, 0x19, 0x38, 0x39] {
            let source = if opcode & 1 == 0 { 0x6d } else { 0x7d };
            self.memory(One, ALL, &[0xc4, 0xe3, source, opcode], 1, &[1]);
        }
    }

    fn stacks(&mut self) {
        let immediate = self.immediate();
        for register in [0, 3, 4] {
            self.stack(Each, &[0x50 | register]);
            self.stack(Each, &[0x58 | register]);
        }
        self.stack(One, &[&[0x68], immediate].concat());
        self.stack(Each, &[0x6a, 0x95]);
        self.stack(Each, &[0x9c]);
        self.stack(Each, &[0x9d]);
        self.stack(Each, &[0x0f, 0xa0]);
        self.stack(One, &[0xc8, 8, 0, 0]);
        self.stack(One, &[0xc9]);
        let near: &[u8] = if self.mode.is_16_bit() {
            &[0xe8, 0, 0]
        } else {
            &[0xe8, 0, 0, 0, 0]
        };
        self.stack(One, near);
        // The operand is the pushed value's register.
        self.stack(Each, &[0xff, 0xf1]);
        self.stack(Each, &[0x8f, 0xc1]);
        if self.mode != Mode::Long {
            for segment in [0x06, 0x0e, 0x16, 0x1e] {
                self.stack(Each, &[segment]);
            }
        }
    }
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in Mode::ALL {
        let mut list = List {
            mode,
            cases: Vec::new(),
        };
        list.integers();
        list.two_byte();
        list.strings();
        list.segments();
        list.vectors();
        list.stacks();
        list.lanes();
        cases.append(&mut list.cases);
    }
    cases
}
