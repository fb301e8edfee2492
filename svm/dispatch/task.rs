// SPDX-License-Identifier: GPL-2.0-only

//! Hardware task switches (APM vol. 2, 12.2, 15.14.1).

use super::{Action, Platform};
use crate::cpu::Guest;
use crate::exit::TaskSwitch;
use x86::cpu::Stop;

pub(super) fn task_switch<P: Platform>(
    guest: &mut Guest<'_, P>,
    switch: TaskSwitch,
) -> Result<Action, Stop> {
    let _ = (guest, switch);
    Err(Stop::Unhandled)
}
