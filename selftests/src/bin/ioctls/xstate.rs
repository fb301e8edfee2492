// SPDX-License-Identifier: GPL-2.0-only

//! Extended state: XSAVE images of every kind, and that neither guests nor the host see each
//! other's registers.

use kvm_bindings::*;
use selftests::guest::Mode;
use selftests::kvm::{number, set_cpuid, supported_cpuid, Handle, Xsave};
use selftests::machine::{offers, set_up, LOAD};
use selftests::tap::{equal, skipped};

use crate::bare::{vm, Bare};
use crate::{refused, Test};

pub(crate) const TESTS: &[Test] = &[
    ("KVM_SET_XSAVE refuses hostile headers", hostile_headers),
    (
        "KVM_SET_XSAVE does not need the guest's CPUID",
        without_cpuid,
    ),
    ("KVM_SET_XSAVE without PKRU leaves it alone", pkru_stays),
    ("KVM_GET_XSAVE2 shows all components", all_components),
    ("guests and host keep their extended state", isolation),
    ("KVM_GET_CPUID2 follows CR4 and XCR0", cpuid_follows),
    ("KVM_X86_XCOMP_GUEST_SUPP is what CPUID offers", attribute),
];

/// Words of the header in an image.
const XSTATE_BV: usize = 512 / 4;
const XCOMP_BV: usize = XSTATE_BV + 2;
const HEADER_END: usize = XSTATE_BV + 16;
/// Components of XCR0.
const AVX: u64 = 1 << 2;
const PKRU: u64 = 1 << 9;
/// CPUID leaf 1, ECX.
const XSAVE: u32 = 26;

/// XCR0 as CPUID offers it.
fn components(device: &Handle) -> Result<u64, String> {
    Ok(supported_cpuid(device)?
        .iter()
        .find(|leaf| leaf.function == 0xd && leaf.index == 0)
        .map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax)))
}

/// A vCPU with all that there is, if that is more than SSE.
fn vcpu(path: &str) -> Result<(Handle, Handle, Handle), String> {
    let (device, vm) = vm(path)?;
    if !offers(&device, 1, XSAVE) {
        return skipped("the device does not offer XSAVE").map(|()| unreachable!());
    }
    let vcpu = vm.open_with(number::CREATE_VCPU, 0)?;
    set_cpuid(&vcpu, &supported_cpuid(&device)?)?;
    Ok((device, vm, vcpu))
}

/// An image in which all of `components` are in use.
fn image(vcpu: &Handle, components: u64) -> Result<Xsave, String> {
    let mut image: Xsave = vcpu.get(number::GET_XSAVE)?;
    for word in 40..104 {
        image.0[word] = 0x0101_0101 * word as u32;
    }
    for word in HEADER_END..1024 {
        image.0[word] = word as u32;
    }
    image.0[XSTATE_BV] = components as u32;
    Ok(image)
}

fn hostile_headers(path: &str) -> Result<(), String> {
    let (device, _vm, vcpu) = vcpu(path)?;
    let components = components(&device)?;
    let good = image(&vcpu, components)?;
    equal("good", vcpu.set(number::SET_XSAVE, &good), Ok(0))?;
    let before: Xsave = vcpu.get(number::GET_XSAVE)?;
    for bit in 0..64 {
        let known = components >> bit & 1 != 0;
        let mut other = Xsave(good.0);
        other.0[XSTATE_BV + bit / 32] |= 1 << (bit % 32);
        if !known {
            refused(
                &format!("component {bit}"),
                vcpu.set(number::SET_XSAVE, &other),
                libc::EINVAL,
            )?;
        }
    }
    for word in XCOMP_BV..HEADER_END {
        for bit in [0, 1, 31] {
            let mut bad = Xsave(good.0);
            bad.0[word] = 1 << bit;
            refused(
                &format!("header word {word}"),
                vcpu.set(number::SET_XSAVE, &bad),
                libc::EINVAL,
            )?;
        }
    }
    for bit in 16..32 {
        let mut bad = Xsave(good.0);
        bad.0[6] = 1 << bit;
        let answer = vcpu.set(number::SET_XSAVE, &bad);
        // Bit 17 is AMD's misaligned-SSE mode.
        if bit != 17 {
            refused(&format!("MXCSR bit {bit}"), answer, libc::EINVAL)?;
        }
    }
    vcpu.set(number::SET_XSAVE, &good)?;
    let after: Xsave = vcpu.get(number::GET_XSAVE)?;
    equal("image", &after.0[40..104], &before.0[40..104])?;
    // The header alone, and rubbish everywhere else.
    let mut rubbish = Xsave([0xffff_ffff; 1024]);
    rubbish.0[XSTATE_BV..HEADER_END].fill(0);
    rubbish.0[6] = 0x1f80;
    for components in [0, 1, 2, 3, components] {
        rubbish.0[XSTATE_BV] = components as u32;
        equal("rubbish", vcpu.set(number::SET_XSAVE, &rubbish), Ok(0))?;
        vcpu.get::<Xsave>(number::GET_XSAVE)?;
    }
    Ok(())
}

fn without_cpuid(path: &str) -> Result<(), String> {
    let (device, vm, first) = vcpu(path)?;
    let components = components(&device)?;
    let good = image(&first, components)?;
    let vcpu = vm.open_with(number::CREATE_VCPU, 1)?;
    equal("no CPUID", vcpu.set(number::SET_XSAVE, &good), Ok(0))?;
    set_cpuid(&vcpu, &[])?;
    equal("empty CPUID", vcpu.set(number::SET_XSAVE, &good), Ok(0))?;
    let got: Xsave = vcpu.get(number::GET_XSAVE)?;
    equal(
        "shown without CPUID",
        got.0[XSTATE_BV] & !3 & !(PKRU as u32),
        0,
    )
}

fn pkru_stays(path: &str) -> Result<(), String> {
    let (device, _vm, vcpu) = vcpu(path)?;
    let all = components(&device)?;
    if all & PKRU == 0 {
        return skipped("the device does not offer protection keys");
    }
    let leaves = supported_cpuid(&device)?;
    let leaf = leaves.iter().find(|l| l.function == 0xd && l.index == 9);
    let at = leaf.map_or(0, |leaf| leaf.ebx as usize / 4);
    let mut given = image(&vcpu, all)?;
    given.0[at] = 0x5555_5554;
    vcpu.set(number::SET_XSAVE, &given)?;
    given.0[at] = 0x1111_1110;
    given.0[XSTATE_BV] &= !(PKRU as u32);
    vcpu.set(number::SET_XSAVE, &given)?;
    let got: Xsave = vcpu.get(number::GET_XSAVE)?;
    equal("PKRU", got.0[at], 0x5555_5554)
}

fn all_components(path: &str) -> Result<(), String> {
    let (device, vm, vcpu) = vcpu(path)?;
    let size = vm.extension(KVM_CAP_XSAVE2);
    if size < 4096 {
        return Err(format!("KVM_CAP_XSAVE2 is {size}"));
    }
    let components = components(&device)?;
    let good = image(&vcpu, components)?;
    vcpu.set(number::SET_XSAVE, &good)?;
    let mut got = vec![0u64; size as usize / 8];
    vcpu.array(number::GET_XSAVE2, &mut got, size as usize)?;
    let word = |at: usize| (got[at / 2] >> (32 * (at % 2))) as u32;
    equal("XSTATE_BV", u64::from(word(XSTATE_BV)), components)?;
    for leaf in supported_cpuid(&device)? {
        let (function, index) = (leaf.function, leaf.index);
        if function == 0xd && (2..63).contains(&index) && components >> index & 1 != 0 {
            let (offset, size) = (leaf.ebx as usize / 4, leaf.eax as usize / 4);
            // PKRU is one word, and padding.
            let words = if index == 9 { 1 } else { size };
            for at in offset..offset + words {
                equal(&format!("component {index}"), word(at), good.0[at])?;
            }
        }
    }
    Ok(())
}

// The guest: RDI is a pattern, ESI its XCR0, R8D its PKRU, R9D is 1 if it has protection keys. It
// touches no data, so PKRU may forbid everything. It says 0 as long as its registers are its own.
// run_dressed(fd, registers, pkru, has_pku): KVM_RUN with all YMM registers and PKRU set; they and
// XCR0 are written back.
core::arch::global_asm!(
    "isolated_guest:",
    "mov rax, cr4",
    "bts rax, 18",
    "test r9d, r9d",
    "jz 2f",
    "bts rax, 22",
    "2: mov cr4, rax",
    "xor ecx, ecx",
    "xor edx, edx",
    "mov eax, esi",
    "xsetbv",
    "test r9d, r9d",
    "jz 2f",
    "mov eax, r8d",
    "wrpkru",
    "2: test esi, 4",
    "jz 3f",
    "movq xmm0, rdi",
    "vpbroadcastq ymm0, xmm0",
    ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12",
    "vmovdqa ymm\\n, ymm0",
    ".endr",
    "3: mov ebp, 20",
    "4: xor eax, eax",
    "cpuid",
    "xor ebx, ebx",
    "test esi, 4",
    "jz 5f",
    "movq xmm15, rdi",
    "vpbroadcastq ymm15, xmm15",
    "vpxor ymm14, ymm14, ymm14",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12",
    "vpxor ymm13, ymm15, ymm\\n",
    "vpor ymm14, ymm14, ymm13",
    ".endr",
    "vptest ymm14, ymm14",
    "setnz bl",
    "5: xor ecx, ecx",
    "xgetbv",
    "cmp eax, esi",
    "je 6f",
    "or ebx, 2",
    "6: test r9d, r9d",
    "jz 7f",
    "rdpkru",
    "cmp eax, r8d",
    "je 7f",
    "or ebx, 4",
    "7: test ebx, ebx",
    "jnz 8f",
    "dec ebp",
    "jnz 4b",
    "8: mov eax, ebx",
    "out 0x10, al",
    "jmp 3b",
    "isolated_guest_end:",
    "run_dressed:",
    "push rbx",
    "push r12",
    "push r13",
    "mov r12, rsi",
    "mov r13, rcx",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu ymm\\n, [r12 + 32 * \\n]",
    ".endr",
    "mov ebx, edx",
    "test r13d, r13d",
    "jz 2f",
    "mov eax, edx",
    "xor ecx, ecx",
    "xor edx, edx",
    "wrpkru",
    "2: mov eax, 16",
    "mov esi, 0xae80",
    "xor edx, edx",
    "syscall",
    "mov [r12 + 512], rax",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "vmovdqu [r12 + 32 * \\n], ymm\\n",
    ".endr",
    "xor ecx, ecx",
    "xgetbv",
    "mov [r12 + 520], eax",
    "test r13d, r13d",
    "jz 2f",
    "rdpkru",
    "mov [r12 + 528], eax",
    "mov eax, 0x55555554",
    "xor edx, edx",
    "wrpkru",
    "2: vzeroupper",
    "pop r13",
    "pop r12",
    "pop rbx",
    "ret",
);

extern "C" {
    static isolated_guest: u8;
    static isolated_guest_end: u8;
    fn run_dressed(fd: i32, registers: *mut u64, pkru: u32, has_pku: u32);
}

/// One guest with a pattern of its own.
struct Isolated {
    bare: Bare,
    pattern: u64,
}

impl Isolated {
    fn new(path: &str, pattern: u64, xcr0: u64, pkru: u32, has_pku: bool) -> Result<Self, String> {
        let (start, end) = (&raw const isolated_guest, &raw const isolated_guest_end);
        // SAFETY: The code between the two labels.
        let code = unsafe { std::slice::from_raw_parts(start, end as usize - start as usize) };
        let bare = Bare::new(path, &[])?;
        bare.ram.write(LOAD, code);
        set_up(&bare.vcpu.handle, &bare.ram, Mode::Long64)?;
        let mut regs: kvm_regs = bare.vcpu.handle.get(number::GET_REGS)?;
        regs.rdi = pattern;
        regs.rsi = xcr0;
        regs.r8 = pkru.into();
        regs.r9 = has_pku.into();
        bare.vcpu.handle.set(number::SET_REGS, &regs)?;
        Ok(Self { bare, pattern })
    }

    /// Runs it under a host that has a pattern and rights of its own.
    fn turn(&self, round: u64, has_pku: bool, xcr0: u64) -> Result<(), String> {
        const WORDS: usize = 64;
        let host = !self.pattern ^ round;
        let pkru = 0x1111_1110 ^ (round as u32 & 0xff) << 8;
        let mut registers = [host; WORDS + 4];
        // SAFETY: The function changes these words, and the vCPU's memory and shared page.
        unsafe {
            run_dressed(
                self.bare.vcpu.handle.fd(),
                registers.as_mut_ptr(),
                pkru,
                has_pku.into(),
            )
        };
        equal("KVM_RUN", registers[WORDS] as i64, 0)?;
        equal(
            "the host's YMM",
            registers[..WORDS].to_vec(),
            vec![host; WORDS],
        )?;
        equal("the host's XCR0", registers[WORDS + 1] as u32, xcr0 as u32)?;
        if has_pku {
            equal("the host's PKRU", registers[WORDS + 2] as u32, pkru)?;
        }
        let shared = self.bare.vcpu.shared();
        equal("exit", shared.exit_reason, KVM_EXIT_IO)?;
        // SAFETY: The exit reason says which part of the union is meant.
        let io = unsafe { shared.__bindgen_anon_1.io };
        let byte = self.bare.vcpu.page().read(io.data_offset as usize, 1)[0];
        equal("the guest's YMM, XCR0, PKRU are strange", byte, 0)
    }
}

fn isolation(path: &str) -> Result<(), String> {
    let (device, _vm, _vcpu) = vcpu(path)?;
    let all = components(&device)?;
    if all & AVX == 0 {
        return skipped("the device does not offer AVX");
    }
    let has_pku = all & PKRU != 0;
    // SAFETY: XSAVE and thus XGETBV are there.
    let xcr0 = unsafe { std::arch::x86_64::_xgetbv(0) };
    let work = |seed: u64| -> Result<(), String> {
        let guests = [
            Isolated::new(path, seed, all, 0xffff_ffff, has_pku)?,
            Isolated::new(path, seed * 3, 7, 0, has_pku)?,
            Isolated::new(path, seed * 5, 1, 0x8888_8888, has_pku)?,
            Isolated::new(path, seed * 7, all, 0, false)?,
        ];
        for round in 0..60 {
            for guest in &guests {
                guest.turn(round, has_pku, xcr0)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| work(0x0123_4567_89ab_cdef));
        work(0x1f2e_3d4c_5b6a_7988)?;
        other.join().map_err(|_| "the other thread panicked")?
    })
}

/// The answer of one leaf in the list of `KVM_GET_CPUID2`.
fn leaf(vcpu: &Handle, function: u32, index: u32) -> Result<kvm_cpuid_entry2, String> {
    const ENTRY: usize = size_of::<kvm_cpuid_entry2>();
    let mut words = vec![0u64; 1 + 256 * ENTRY / 8];
    words[0] = 256;
    let room = words.len() * 8;
    vcpu.array(number::GET_CPUID2, &mut words, room)?;
    let count = words[0] as usize & 0xffff;
    // SAFETY: The kernel wrote `count` entries after the 8-byte header.
    let entries: &[kvm_cpuid_entry2] =
        unsafe { std::slice::from_raw_parts(words[1..].as_ptr().cast(), count.min(256)) };
    entries
        .iter()
        .find(|entry| entry.function == function && entry.index == index)
        .copied()
        .ok_or_else(|| format!("no leaf {function:#x}"))
}

fn cpuid_follows(path: &str) -> Result<(), String> {
    const OSXSAVE: u32 = 27;
    let (device, _vm, vcpu) = vcpu(path)?;
    let all = components(&device)?;
    let mut sregs: kvm_sregs = vcpu.get(number::GET_SREGS)?;
    equal("off", leaf(&vcpu, 1, 0)?.ecx >> OSXSAVE & 1, 0)?;
    equal("x87", leaf(&vcpu, 0xd, 0)?.ebx, 576)?;
    sregs.cr4 |= 1 << 18;
    vcpu.set(number::SET_SREGS, &sregs)?;
    equal("on", leaf(&vcpu, 1, 0)?.ecx >> OSXSAVE & 1, 1)?;
    let mut xcrs: kvm_xcrs = vcpu.get(number::GET_XCRS)?;
    xcrs.xcrs[0].value = all;
    vcpu.set(number::SET_XCRS, &xcrs)?;
    let size = leaf(&vcpu, 0xd, 0)?;
    equal("size", size.ebx, size.ecx)
}

fn attribute(path: &str) -> Result<(), String> {
    let (device, _vm) = vm(path)?;
    if device.extension(KVM_CAP_SYS_ATTRIBUTES) == 0 {
        return skipped("the device has no attributes");
    }
    let mut value = 0u64;
    let mut attribute = kvm_device_attr {
        attr: KVM_X86_XCOMP_GUEST_SUPP.into(),
        addr: &raw mut value as u64,
        ..Default::default()
    };
    equal(
        "has",
        device.set(number::HAS_DEVICE_ATTR, &attribute),
        Ok(0),
    )?;
    device.set(number::GET_DEVICE_ATTR, &attribute)?;
    equal("value", value, components(&device)?)?;
    attribute.addr = 8;
    refused(
        "address",
        device.set(number::GET_DEVICE_ATTR, &attribute),
        libc::EFAULT,
    )?;
    attribute.attr = 77;
    refused(
        "attribute",
        device.set(number::HAS_DEVICE_ATTR, &attribute),
        libc::ENXIO,
    )
}
