/* SPDX-License-Identifier: GPL-2.0-only */
/* Tracepoints: /sys/kernel/tracing/events/pacifica. */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pacifica

#if !defined(PACIFICA_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define PACIFICA_TRACE_H

#include <linux/tracepoint.h>

/* A #VMEXIT, with the names of the VMCB's fields (APM vol. 2, appendix B). */
TRACE_EVENT(pacifica_exit,
	TP_PROTO(u32 vcpu, u64 exit_code, u64 exit_info1, u64 exit_info2, u64 rip),
	TP_ARGS(vcpu, exit_code, exit_info1, exit_info2, rip),
	TP_STRUCT__entry(
		__field(u32, vcpu)
		__field(u64, exit_code)
		__field(u64, exit_info1)
		__field(u64, exit_info2)
		__field(u64, rip)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
		__entry->exit_code = exit_code;
		__entry->exit_info1 = exit_info1;
		__entry->exit_info2 = exit_info2;
		__entry->rip = rip;
	),
	TP_printk("vcpu %u EXITCODE %llx EXITINFO1 %llx EXITINFO2 %llx RIP %llx", __entry->vcpu,
		  __entry->exit_code, __entry->exit_info1, __entry->exit_info2, __entry->rip)
);

/* An event that the next VMRUN injects: EVENTINJ. */
TRACE_EVENT(pacifica_inject,
	TP_PROTO(u32 vcpu, u64 event_inj),
	TP_ARGS(vcpu, event_inj),
	TP_STRUCT__entry(
		__field(u32, vcpu)
		__field(u64, event_inj)
	),
	TP_fast_assign(
		__entry->vcpu = vcpu;
		__entry->event_inj = event_inj;
	),
	TP_printk("vcpu %u EVENTINJ %llx", __entry->vcpu, __entry->event_inj)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
