# SPDX-License-Identifier: GPL-2.0-only
#
# Two Markdown tables of one host from the CSV. Variable: host.

function number(n,    out) {
    if (n !~ /^[0-9]+$/) return n
    while (length(n) > 3) { out = "," substr(n, length(n) - 2) out; n = substr(n, 1, length(n) - 3) }
    return n out
}
NR == 1 { next }
{
    # The text is the only field with commas, and the only one in quotation marks.
    split($0, part, "\"")
    split(part[1], head, ",")
    n = split(substr(part[3], 2), field, ",")
    if (head[1] != host) next
    if (!rows++) {
        print "| what | budget | pacifica | kvm_amd | ratio |"
        print "|---|---|---|---|---|"
        special = "| what | VMRUN | VMLOAD | VMSAVE | WRMSR | XSETBV |\n|---|---|---|---|---|---|\n"
    }
    what = part[2] (field[1] == "instructions" ? "" : ", " field[1])
    print "| " what " | " number(field[2]) " | " number(field[3]) " | " number(field[4]) " | " field[5] " |"
    if (field[6] == "" || head[2] == "boot" || head[2] == "machine") next
    special = special "| " part[2]
    for (i = 6; i <= 10; i++) special = special " | " field[i] " / " field[i + 5]
    special = special " |\n"
    specials = 1
}
END { if (specials) printf "\nOf these instructions, for each event on pacifica / on kvm_amd (the guest's own WRMSR apart):\n\n%s", special }
