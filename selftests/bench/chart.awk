# SPDX-License-Identifier: GPL-2.0-only
#
# Draws the figures of one host from the CSV: what each thing costs here as a part of what it costs on
# kvm_amd. Variables: host, title.

function escape(text) { gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); return text }
NR == 1 { next }
{
    split($0, part, "\"")
    split(part[1], head, ",")
    split(substr(part[3], 2), field, ",")
    if (head[1] != host || !field[4]) next
    text[++rows] = part[2]
    ratio[rows] = field[3] / field[4]
    goal[rows] = field[2] == "" ? 0 : field[2] / field[4]
    figures[rows] = field[3] " of " field[4]
}
END {
    left = 430; full = 400; step = 24; top = 64
    height = top + rows * step + 20
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 1000 %d\" font-family=\"sans-serif\" font-size=\"13\">\n", height
    print "<!-- SPDX-License-Identifier: GPL-2.0-only. Drawn by make bench. -->"
    printf "<rect width=\"1000\" height=\"%d\" fill=\"#ffffff\"/>\n", height
    printf "<text x=\"12\" y=\"24\" font-size=\"16\" fill=\"#222222\">%s</text>\n", escape(title)
    printf "<text x=\"12\" y=\"46\" fill=\"#555555\">Dark: Pacifica. Light: kvm_amd, 100 %%. Red line: the budget.</text>\n"
    for (i = 1; i <= rows; i++) {
        y = top + (i - 1) * step
        wide = ratio[i] > 1.35 ? 1.35 : ratio[i]
        shown = length(text[i]) > 62 ? substr(text[i], 1, 60) "…" : text[i]
        printf "<text x=\"%d\" y=\"%d\" text-anchor=\"end\" fill=\"#222222\">%s</text>\n", left - 8, y + 14, escape(shown)
        printf "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"18\" fill=\"#d5dde5\"/>\n", left, y, full
        printf "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"12\" fill=\"#205080\"/>\n", left, y + 3, wide * full
        if (goal[i] > 0 && goal[i] < 1.35)
            printf "<path d=\"M%.1f %dv18\" stroke=\"#d02020\" stroke-width=\"2\"/>\n", left + goal[i] * full, y
        printf "<text x=\"%.1f\" y=\"%d\" fill=\"#222222\">%.1f %%<title>%s</title></text>\n", left + (wide > 1 ? wide : 1) * full + 8, y + 14, ratio[i] * 100, figures[i]
    }
    print "</svg>"
}
