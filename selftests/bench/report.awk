# SPDX-License-Identifier: GPL-2.0-only
#
# The figures of one emulated host as CSV. Input: rows, then for each DEVICE a file named DEVICE with
# the lines `name value times` of `measure`, and a file DEVICE.count with the plugin's lines for those
# that happened between marks (may be empty). Variables: host, rip (1: the CPU saves next RIP).

function file(    name) { name = FILENAME; sub(/.*\//, "", name); return name }
file() == "rows" {
    if ($0 ~ /^#/ || !NF) next
    order[++rows] = $1
    budget[$1] = rip ? $3 : $2
    own[$1] = $4
    unit[$1] = $5
    what = $0
    sub(/^([^ ]+ +)(([^ ]+) +)(([^ ]+) +)(([^ ]+) +)(([^ ]+) +)/, "", what)
    text[$1] = what
    next
}
file() ~ /\.count$/ {
    device = file(); sub(/\.count$/, "", device)
    name = marked[device, ++read[device]]
    times = often[device, name]
    if (name == "boot") value[device, name] = $1
    split("vmrun vmload vmsave wrmsr xsetbv", kinds)
    for (i = 1; i <= 5; i++)
        special[device, name, i] = sprintf("%.1f", $(i + 1) / times - (i == 4 ? own[name] : 0))
    next
}
{
    value[file(), $1] = $2
    if ($3 > 0) { marked[file(), ++marks[file()]] = $1; often[file(), $1] = $3 }
}
function specials(device, name,    i, line) {
    for (i = 1; i <= 5; i++) line = line "," special[device, name, i]
    return line
}
END {
    for (i = 1; i <= rows; i++) {
        name = order[i]
        ours = value["pacifica", name]; kvm = value["kvm", name]
        if (ours == "" && kvm == "") continue
        printf "%s,%s,\"%s\",%s,%s,%s,%s,%s%s%s\n", host, name, text[name], unit[name],
            budget[name] == "-" ? "" : budget[name], ours, kvm, kvm ? sprintf("%.3f", ours / kvm) : "",
            specials("pacifica", name), specials("kvm", name)
    }
}
