// SPDX-License-Identifier: GPL-2.0-only

//! Tests of the whole program, from the outside. Those that need a hypervisor are ignored by `cargo
//! test`; selftests/tool runs them all in the emulated host, where `PACIFICA_TEST_DEVICE` names the
//! node, `PACIFICA_TEST_PROGRAM` another program than the one just built, and
//! `PACIFICA_TEST_KERNEL` and `PACIFICA_TEST_INITRD` a Linux that says `ready` and powers off.

mod commands;
mod common;
mod control;
mod devices;
mod guests;
mod life;
mod terminal;
