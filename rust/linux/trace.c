// SPDX-License-Identifier: GPL-2.0-only
/* The tracepoints of trace.h, as functions that Rust can call. */
#include <linux/types.h>

#define CREATE_TRACE_POINTS
#include "trace.h"
#include "helpers.h"

bool pacifica_tracing(void)
{
	return trace_pacifica_exit_enabled() || trace_pacifica_inject_enabled();
}

void pacifica_trace_exit(u32 vcpu, u64 exit_code, u64 exit_info1, u64 exit_info2, u64 rip)
{
	trace_pacifica_exit(vcpu, exit_code, exit_info1, exit_info2, rip);
}

void pacifica_trace_inject(u32 vcpu, u64 event_inj)
{
	trace_pacifica_inject(vcpu, event_inj);
}
