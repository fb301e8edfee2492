// SPDX-License-Identifier: GPL-2.0-only

//! What the supported kernels (`packaging/kernels`) spell differently, in a form that all of them
//! take.
//!
//! | what | Linux 7.2 | Linux 7.3 |
//! |---|---|---|
//! | the module's own structure | `THIS_MODULE` | `this_module::<M>()` |
//! | enumerations of C | constants of an integer type | types of their own |
//! | the value of a module parameter | by reference | by value |
//! | `EHWPOISON`, `EOPNOTSUPP` | only as numbers of C | errors of Rust, too |

use core::borrow::Borrow;
use kernel::bindings;
use kernel::ffi::c_int;
use kernel::prelude::*;
use kernel::types::Opaque;

#[expect(improper_ctypes, reason = "kernel structures with empty lock classes")]
extern "C" {
    static __this_module: Opaque<bindings::module>;
}

/// The module's own structure: the owner of its files.
pub(crate) const fn this_module() -> *mut bindings::module {
    Opaque::cast_into(&raw const __this_module)
}

/// What a timer's function returns if the timer shall not start again.
pub(crate) const fn timer_ends() -> bindings::hrtimer_restart {
    // SAFETY: HRTIMER_NORESTART is 0, and the type an integer or an enumeration with that value.
    unsafe { core::mem::zeroed() }
}

/// `EHWPOISON`: the hardware has lost this memory.
pub(crate) fn is_poison(error: Error) -> bool {
    error.to_errno() == -(bindings::EHWPOISON as c_int)
}

/// `EHWPOISON`, see [`is_poison`].
pub(crate) fn poison() -> Error {
    Error::from_errno(-(bindings::EHWPOISON as c_int))
}

/// `EOPNOTSUPP`: this VM has something that does not go with what is asked for.
pub(crate) fn unsupported() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as c_int))
}

/// The value of a module parameter.
pub(crate) fn number(parameter: impl Borrow<u16>) -> u16 {
    *parameter.borrow()
}

/// Whether a module parameter differs from 0.
pub(crate) fn is_set(parameter: impl Borrow<u8>) -> bool {
    *parameter.borrow() != 0
}
