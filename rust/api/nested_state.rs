// SPDX-License-Identifier: GPL-2.0-only

//! `KVM_GET_NESTED_STATE` and `KVM_SET_NESTED_STATE`, with KVM's layout and rules.

use crate::uapi::{self, NestedState, UserArg};
use crate::vcpu::LockedVcpu;
use core::mem::{offset_of, size_of};
use kernel::prelude::*;
use svm::nested::{StateFlags, STATE_PAGE};
use svm::requests::Requests;

/// `KVM_CAP_NESTED_STATE`: the most that there can be.
pub(crate) const SIZE: usize = size_of::<NestedState>() + STATE_PAGE;

/// KVM_GET_NESTED_STATE: the caller says in it how much room there is.
///
/// # Errors
///
/// `E2BIG` if that is too little, and how much it takes.
pub(crate) fn get(vcpu: &LockedVcpu, arg: UserArg) -> Result {
    let at_size = arg.offset(offset_of!(NestedState, size));
    let room: u32 = at_size.read()?;
    let mut state = NestedState {
        flags: StateFlags::GIF_SET.bits(),
        format: uapi::KVM_STATE_NESTED_FORMAT_SVM as u16,
        size: size_of::<NestedState>() as u32,
        header: [0; 15],
    };
    let inside = vcpu.nested.as_deref().filter(|nested| nested.is_inside());
    if let Some(nested) = vcpu.nested.as_deref() {
        let (flags, address, pat) = nested.header(&vcpu.vmcb, &vcpu.state);
        state.flags = flags.bits();
        [state.header[0], state.header[1]] = [address, pat];
    }
    if inside.is_some() {
        state.size = SIZE as u32;
    }
    if room < state.size {
        at_size.write(&state.size)?;
        return Err(E2BIG);
    }
    arg.write(&state)?;
    if let Some(nested) = inside {
        let mut page = KVec::from_elem(0_u8, STATE_PAGE, GFP_KERNEL)?;
        nested.write_page(&vcpu.vmcb, &mut page);
        arg.after::<NestedState>().write_bytes(&page)?;
    }
    Ok(())
}

/// KVM_SET_NESTED_STATE.
///
/// # Errors
///
/// `EINVAL` for a state that there cannot be: of another format, of a guest without SVM, or one
/// that VMRUN would refuse.
pub(crate) fn set(vcpu: &mut LockedVcpu, arg: UserArg) -> Result {
    let state: NestedState = arg.read()?;
    let flags = StateFlags::from_bits_retain(state.flags);
    let inside = flags.contains(StateFlags::GUEST_MODE);
    let needed = match inside {
        true => SIZE,
        false => size_of::<NestedState>(),
    };
    if state.format != uapi::KVM_STATE_NESTED_FORMAT_SVM as u16 || (state.size as usize) < needed {
        return Err(EINVAL);
    }
    let Some(nested) = vcpu.nested.as_deref_mut() else {
        return match flags == StateFlags::GIF_SET {
            true => Ok(()),
            false => Err(EINVAL),
        };
    };
    let mut page = KVec::new();
    if inside {
        page.resize(STATE_PAGE, 0_u8, GFP_KERNEL)?;
        arg.after::<NestedState>().read_bytes(&mut page)?;
    }
    let [address, pat, ..] = state.header;
    let restored = nested.restore(
        &mut vcpu.vmcb,
        &mut vcpu.state,
        flags,
        (address, pat),
        &page,
    );
    if !restored {
        return Err(EINVAL);
    }
    vcpu.platform.requests |= Requests::TLB_FLUSH;
    Ok(())
}
