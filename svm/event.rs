// SPDX-License-Identifier: GPL-2.0-only

//! Events on their way into the guest: exceptions, NMIs, interrupts (APM vol. 2, 15.20).
//!
//! An event is *pending* until its delivery begins, and *injected* from then until the guest is in
//! its handler. An exit may cut a delivery short; EXITINTINFO then tells which, and the event is
//! injected again at the next entry. [`crate::inject`] moves events in and out of the VMCB.

use x86::regs::{vector, Exception};

/// An event as EVENTINJ and EXITINTINFO encode it (APM vol. 2, 15.20, figure 15-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An external interrupt.
    Interrupt(u8),
    /// An NMI.
    Nmi,
    /// An exception, with its error code.
    Exception(u8, Option<u32>),
    /// INT n.
    Software(u8),
}

impl Event {
    const TYPE_SHIFT: u32 = 8;
    const TYPE_MASK: u64 = 7;
    const INTERRUPT: u64 = 0;
    const NMI: u64 = 2;
    const EXCEPTION: u64 = 3;
    const SOFTWARE: u64 = 4;
    /// There is an error code.
    const EV: u64 = 1 << 11;
    /// There is an event.
    pub const VALID: u64 = 1 << 31;
    const CODE_SHIFT: u32 = 32;
    /// Exceptions have the vectors below.
    const EXCEPTIONS: u8 = 32;

    /// The encoding.
    #[inline]
    pub fn encode(self) -> u64 {
        let (kind, vector, code) = match self {
            Event::Interrupt(vector) => (Self::INTERRUPT, vector, None),
            Event::Nmi => (Self::NMI, vector::NMI, None),
            Event::Exception(vector, code) => (Self::EXCEPTION, vector, code),
            Event::Software(vector) => (Self::SOFTWARE, vector, None),
        };
        let code = match code {
            Some(code) => Self::EV | u64::from(code) << Self::CODE_SHIFT,
            None => 0,
        };
        Self::VALID | kind << Self::TYPE_SHIFT | u64::from(vector) | code
    }

    /// The event, if there is one. Reserved types are none.
    ///
    /// QEMU reports an interrupt that came by V_IRQ as an exception with the interrupt's vector;
    /// there are no such exceptions, so it is taken for what it is.
    #[inline]
    pub fn decode(info: u64) -> Option<Self> {
        if info & Self::VALID == 0 {
            return None;
        }
        let vector = info as u8;
        let code = (info & Self::EV != 0).then_some((info >> Self::CODE_SHIFT) as u32);
        match info >> Self::TYPE_SHIFT & Self::TYPE_MASK {
            Self::INTERRUPT => Some(Event::Interrupt(vector)),
            Self::NMI => Some(Event::Nmi),
            Self::EXCEPTION if vector >= Self::EXCEPTIONS => Some(Event::Interrupt(vector)),
            Self::EXCEPTION => Some(Event::Exception(vector, code)),
            Self::SOFTWARE => Some(Event::Software(vector)),
            _ => None,
        }
    }
}

/// An exception on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedException {
    /// Vector, error code, payload. The payload is due while [`Self::injected`] is false.
    pub exception: Exception,
    /// Its delivery has begun: the payload is in CR2 or DR6 already.
    pub injected: bool,
}

/// An interrupt whose delivery has begun: the interrupt controller has let go of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedInterrupt {
    /// The vector.
    pub vector: u8,
    /// From INT n, which RIP still points to. It is not injected but executed again.
    pub soft: bool,
}

/// What the last [`crate::inject::prepare`] put into EVENTINJ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Given {
    #[default]
    Nothing,
    Exception,
    Nmi,
    Interrupt,
    /// The event of an instruction behind which RIP is already: here.
    Soft(u64),
}

/// An INT3 or INT n whose event is on its way, while RIP is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    /// Where it is.
    pub(crate) rip: u64,
    /// Where the next one is.
    pub(crate) next: u64,
}

/// A single step of ours, to learn when NMIs can be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The instruction to be stepped over.
    pub(crate) rip: u64,
    /// It is an IRET, which loads RFLAGS.
    pub(crate) iret: bool,
    /// The guest's own TF and RF.
    pub(crate) flags: u64,
    /// The guest's DR6.
    pub(crate) dr6: u64,
    /// BTF of the guest's DebugCtl.
    pub(crate) btf: u64,
}

/// All events of one vCPU that the VMCB does not hold, as plain values. The public part means what
/// `struct kvm_vcpu_events` means, with which it converts field by field. The interrupt shadow is
/// in the VMCB ([`crate::vmcb::Vmcb::interrupt_shadow`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// `exception.*`: pending or injected.
    pub exception: Option<QueuedException>,
    /// `interrupt.injected`, `.nr`, `.soft`.
    pub interrupt: Option<QueuedInterrupt>,
    /// `nmi.pending`: how many wait, at most [`Self::MAX_NMIS`].
    pub nmi_pending: u8,
    /// `nmi.injected`: the delivery of one has begun.
    pub nmi_injected: bool,
    /// `nmi.masked`: from the delivery of an NMI to the end of the next IRET. Set it with
    /// [`Self::set_nmi_masked`].
    pub nmi_masked: bool,
    /// `triple_fault.pending`.
    pub triple_fault: bool,
    /// The guest has cleared GIF: NMIs and interrupts wait (APM vol. 2, 15.17).
    pub gif_clear: bool,
    /// The INT3 or INT n that `exception` or `interrupt` comes from, if RIP is behind it.
    pub(crate) instruction: Option<Instruction>,
    /// The delivery of `interrupt` has begun and was cut short: an exception that comes now takes
    /// its place.
    pub(crate) interrupt_cut_short: bool,
    /// The same of the NMI.
    pub(crate) nmi_cut_short: bool,
    /// `exception` is the VMM's own: it came of nothing that is being delivered.
    pub(crate) of_vmm: bool,
    /// Another one of the VMM's, behind `exception`.
    pub(crate) held: Option<Exception>,
    /// What is in EVENTINJ.
    pub(crate) given: Given,
    /// The CPU has one of `nmi_pending`, and delivers it as soon as it may.
    pub(crate) virtual_nmi: bool,
    /// The IRET that ends the masking of NMIs is about to be executed here.
    pub(crate) iret_at: Option<u64>,
    /// We single-step the guest.
    pub(crate) step: Option<Step>,
    /// The #DB exit is from our single step.
    pub(crate) own_debug: bool,
    /// The handler of this exit has asked for a call where it may sleep.
    pub(crate) may_sleep: bool,
}

/// How exceptions combine (APM vol. 2, table 8-5).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    fn of(vector: u8) -> Self {
        match vector {
            vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP => {
                Class::Contributory
            }
            vector::PF => Class::PageFault,
            vector::DF => Class::DoubleFault,
            _ => Class::Benign,
        }
    }
}

/// What a second exception makes of a first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The second is delivered. The first, if it was a fault, comes again by itself.
    Second,
    /// #DF is delivered.
    DoubleFault,
    /// The CPU shuts down.
    Shutdown,
}

/// What becomes of exception `first` when `second` happens in its delivery (APM vol. 2, 8.2.9).
///
/// | first \ second | benign | contributory | #PF    |
/// |----------------|--------|--------------|--------|
/// | benign         | second | second       | second |
/// | contributory   | second | #DF          | second |
/// | #PF            | second | #DF          | #DF    |
/// | #DF            | second | shutdown     | shutdown |
pub fn merge(first: u8, second: u8) -> Merged {
    match (Class::of(first), Class::of(second)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => Merged::Shutdown,
        (Class::Contributory | Class::PageFault, Class::Contributory)
        | (Class::PageFault, Class::PageFault) => Merged::DoubleFault,
        _ => Merged::Second,
    }
}

impl Events {
    /// One NMI may wait for its turn while another one is being handled.
    pub const MAX_NMIS: u8 = 2;

    /// Queues an exception. What is on its way already decides: the two may merge to #DF, or shut
    /// the guest down.
    pub fn raise(&mut self, exception: Exception) {
        self.hold();
        let merged = match self.exception {
            Some(first) => merge(first.exception.vector, exception.vector),
            None => Merged::Second,
        };
        let exception = match merged {
            Merged::Second => exception,
            Merged::DoubleFault => Exception::with_code(vector::DF, 0),
            Merged::Shutdown => {
                self.exception = None;
                self.triple_fault = true;
                return;
            }
        };
        self.exception = Some(QueuedException {
            exception,
            injected: false,
        });
    }

    /// Queues an exception of the VMM's. A delivery that has begun goes first, as with a CPU, which
    /// recognizes events between instructions and deliveries only (APM vol. 2, 8.5): otherwise an
    /// interrupt would go on in the exception's handler, with IF clear, or an NMI in that of #MC.
    pub fn raise_for_vmm(&mut self, exception: Exception) {
        if self.exception.is_some_and(|queued| queued.injected) {
            self.held = Some(exception);
            return;
        }
        self.raise(exception);
        self.of_vmm = true;
    }

    /// The VMM's exception makes place for one of the guest's.
    fn hold(&mut self) {
        if core::mem::take(&mut self.of_vmm) {
            let exception = self.exception.take().map(|queued| queued.exception);
            self.held = exception.or(self.held);
        }
    }

    /// Queues the VMM's exception that was held, when nothing is before it.
    #[inline]
    pub(crate) fn release(&mut self) {
        if self.held.is_some() && self.exception.is_none() {
            if let Some(exception) = self.held.take() {
                self.raise_for_vmm(exception);
            }
        }
    }

    /// The exception that `KVM_GET_VCPU_EVENTS` shows, which has place for one. One of the VMM's
    /// that waits goes before a fault, which comes again by itself.
    pub fn shown(&self) -> Option<QueuedException> {
        let comes_again = |queued: QueuedException| {
            let vector = queued.exception.vector;
            !matches!(
                vector,
                vector::DB | vector::BP | vector::OF | vector::DF | vector::MC
            )
        };
        match self.held {
            Some(exception) if self.exception.is_none_or(comes_again) => Some(QueuedException {
                exception,
                injected: false,
            }),
            _ => self.exception,
        }
    }

    /// Whether `exception` waits for the end of a delivery. An INT n that is executed again comes
    /// by itself.
    #[inline]
    pub(crate) fn exception_waits(&self) -> bool {
        let begun = |interrupt: QueuedInterrupt| !interrupt.soft || self.instruction.is_some();
        self.of_vmm
            && self.exception.is_some()
            && (self.nmi_injected || self.interrupt.is_some_and(begun))
    }

    /// Whether an exception of the VMM's comes next, when what is given now has been delivered.
    #[inline]
    pub(crate) fn vmm_waits(&self) -> bool {
        self.held.is_some() || self.exception_waits()
    }

    /// Drops a pending exception: the VMM has given the registers other values than those that it
    /// was raised with. One whose delivery has begun stays.
    pub fn forget_pending(&mut self) {
        self.exception = self.exception.filter(|queued| queued.injected);
        self.held = None;
    }

    /// Whether RIP is behind the INT3 or INT n that an event comes from.
    pub fn behind_instruction(&self) -> bool {
        self.instruction.is_some()
    }

    /// RIP is elsewhere now: the VMM has set it.
    pub fn rip_set(&mut self) {
        self.instruction = None;
    }

    /// Whether an NMI waits that goes before all interrupts (APM vol. 2, table 8-8).
    pub fn nmi_is_next(&self) -> bool {
        self.nmi_pending != 0 && !self.nmi_masked && !self.gif_clear
    }

    /// Queues an NMI. While one is being handled, one more is kept, as the CPU does.
    pub fn raise_nmi(&mut self) {
        let limit = if self.nmi_masked || self.nmi_injected {
            1
        } else {
            Self::MAX_NMIS
        };
        self.nmi_pending = self.nmi_pending.saturating_add(1).min(limit);
    }

    /// Masks or unmasks NMIs, for `KVM_SET_VCPU_EVENTS`.
    pub fn set_nmi_masked(&mut self, masked: bool) {
        self.nmi_masked = masked;
        self.iret_at = None;
    }

    /// The IRET that ends the masking of NMIs has been executed.
    pub(crate) fn iret_executed(&mut self) {
        self.iret_at = None;
        self.nmi_masked = self.nmi_injected;
    }

    /// Whether an event has begun to be delivered, or an exception is pending: nothing else can
    /// be begun now.
    #[inline]
    pub fn busy(&self) -> bool {
        self.exception.is_some() || self.nmi_injected || self.interrupt.is_some()
    }

    /// The VMM has set the events: what is injected by its word was being delivered when it was
    /// read, and an exception came of that. Only a machine check comes of no delivery: the VMM has
    /// raised it.
    pub fn deliveries_began(&mut self) {
        let exception = self.exception.map(|queued| queued.exception.vector);
        self.of_vmm = exception == Some(vector::MC);
        self.held = None;
        self.interrupt_cut_short = self.interrupt.is_some();
        self.nmi_cut_short = self.nmi_injected;
    }

    /// Takes note that the delivery of what is in EVENTINJ has ended, and of EXITINTINFO: the
    /// event whose delivery the exit cut short.
    ///
    /// If it was an exception that came of the delivery of another event, that event is gone: its
    /// end was the exception, whose error code may tell so by EXT (APM vol. 2, 8.4.2).
    #[inline]
    pub(crate) fn delivered(&mut self, exit_int_info: u64, rip: u64) {
        match self.given {
            Given::Nothing => {}
            Given::Exception => {
                (self.exception, self.of_vmm) = (None, false);
                self.supersede();
            }
            Given::Nmi => {
                (self.nmi_injected, self.nmi_cut_short) = (false, false);
                self.supersede();
            }
            Given::Interrupt => (self.interrupt, self.interrupt_cut_short) = (None, false),
            // It is given again: to execute its instruction again would be another event. If RIP
            // has moved, it was delivered, and the event that was cut short is a later one.
            Given::Soft(at) if exit_int_info & Event::VALID != 0 && rip == at => return,
            Given::Soft(_) => {
                if self.exception.is_some() && !self.exception_waits() {
                    (self.exception, self.of_vmm) = (None, false);
                    self.supersede();
                } else {
                    (self.interrupt, self.interrupt_cut_short) = (None, false);
                }
                self.instruction = None;
            }
        }
        self.given = Given::Nothing;
        if exit_int_info & Event::VALID != 0 {
            self.requeue(exit_int_info);
        }
    }

    /// Another event has been delivered since the delivery of these began.
    #[inline]
    fn supersede(&mut self) {
        if core::mem::take(&mut self.interrupt_cut_short) {
            self.interrupt = None;
        }
        if core::mem::take(&mut self.nmi_cut_short) {
            self.nmi_injected = false;
        }
    }

    /// Queues the event whose delivery was cut short.
    ///
    /// RIP is still at the INT n, INT3 or INTO that made a software event. It is executed again;
    /// so nothing depends on whether the CPU takes the return address from nRIP.
    fn requeue(&mut self, exit_int_info: u64) {
        match Event::decode(exit_int_info) {
            Some(Event::Interrupt(vector)) => {
                self.interrupt = Some(QueuedInterrupt {
                    vector,
                    soft: false,
                });
                self.interrupt_cut_short = true;
            }
            Some(Event::Nmi) => {
                self.nmi_injected = true;
                self.nmi_cut_short = true;
                self.nmi_masked = true;
            }
            Some(Event::Exception(vector::BP | vector::OF, _) | Event::Software(_)) | None => {}
            Some(Event::Exception(vector, error_code)) => {
                self.hold();
                self.exception = Some(QueuedException {
                    exception: Exception {
                        vector,
                        error_code,
                        payload: None,
                    },
                    injected: true,
                });
            }
        }
    }
}
