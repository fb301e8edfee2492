// SPDX-License-Identifier: GPL-2.0-only

/*
 * A parser with five bugs, each of another kind. Its input is the letters "PK", a version, and
 * records: a type, the length of the rest, the rest. Each function answers how many were good.
 *
 * | bug | what is wrong | what comes of it |
 * |---|---|---|
 * | parse_name | the length is checked against the wrong size | page fault behind the buffer |
 * | parse_scale | only one of two divisors is checked | divide error |
 * | parse_link | the object may be none | page fault at address 0 |
 * | parse_repeat | a step of 0 | hangs |
 * | parse_group | groups in groups in groups | the stack ends: triple fault |
 */
#include "guest.h"

struct object {
	u8 kind, value;
};

static struct object objects[4];
static struct object *defined[4];
static u32 sum;

static int parse_records(const u8 *at, const u8 *end);

static int parse_name(const u8 *body, u32 size)
{
	char *name = (char *)NAME;

	if (size > 2 * NAME_SIZE)
		return 0;
	for (u32 i = 0; i < size; i++) {
		if (body[i] == 0)
			return 0;
		name[i] = body[i];
	}
	return 1;
}

static int parse_scale(const u8 *body, u32 size)
{
	if (size != 3 || body[0] == 0)
		return 0;
	sum += 1000 / body[0];
	if (body[1] >= 'a')
		sum += 1000 / (body[1] - body[2]);
	return 1;
}

static int parse_object(const u8 *body, u32 size)
{
	if (size != 3 || body[0] > 3)
		return 0;
	objects[body[0]] = (struct object){ body[1], body[2] };
	defined[body[0]] = &objects[body[0]];
	return 1;
}

static int parse_link(const u8 *body, u32 size)
{
	if (size != 2 || body[0] > 3 || body[1] > 3)
		return 0;
	if (!defined[body[0]])
		return 0;
	/* The other end. */
	sum += *(volatile u8 *)&defined[body[1]]->value;
	return 1;
}

static int parse_repeat(const u8 *body, u32 size)
{
	if (size != 2)
		return 0;
	for (u32 i = 0; i < body[0]; i += body[1])
		sum += i;
	return 1;
}

static int parse_group(const u8 *body, u32 size)
{
	struct object outer[4], *outer_defined[4];
	int good;

	/* Its objects end with it. */
	for (u32 i = 0; i < 4; i++) {
		outer[i] = objects[i];
		outer_defined[i] = defined[i];
	}
	good = parse_records(body, body + size);
	for (u32 i = 0; i < 4; i++) {
		objects[i] = outer[i];
		defined[i] = outer_defined[i];
	}
	return good;
}

static int parse_record(u8 type, const u8 *body, u32 size)
{
	switch (type) {
	case 'N':
		return parse_name(body, size);
	case 'S':
		return parse_scale(body, size);
	case 'O':
		return parse_object(body, size);
	case 'L':
		return parse_link(body, size);
	case 'R':
		return parse_repeat(body, size);
	case 'G':
		return parse_group(body, size);
	default:
		return 0;
	}
}

/* What is not known, or wrong, is skipped; a record ends with what it is in. */
static int parse_records(const u8 *at, const u8 *end)
{
	int good = 0;

	while (end - at >= 2) {
		u32 most = end - at - 2, size = at[1] < most ? at[1] : most;

		good += parse_record(at[0], at + 2, size);
		at += 2 + size;
	}
	return good;
}

int parse(const u8 *input, u32 size)
{
	if (size > INPUT_MOST || size < 3)
		return 0;
	if (input[0] != 'P' || input[1] != 'K')
		return 0;
	if (input[2] != 1)
		return 0;
	return parse_records(input + 3, input + size);
}
