// SPDX-License-Identifier: GPL-2.0-only

//! `rust/uapi/pacifica.h`, as bindgen translates it; `docs/abi.md` says what each ioctl does.
#![allow(missing_docs, non_camel_case_types, unreachable_pub)]

include!(concat!(env!("OUT_DIR"), "/uapi.rs"));
