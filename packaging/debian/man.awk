# Makes the man page job-worker(1) of two things that the program and the package have anyway: the output of `job-worker --help`,
# and the comments of /etc/default/job-worker. Usage: awk -v version=... -v date=... -f man.awk HELP DEFAULT
function text(line) {
    gsub(/\\/, "\\e", line)
    gsub(/-/, "\\-", line)
    return line ~ /^[.']/ ? "\\\&" line : line
}
function paragraph(what) { print ".TP\n.B " text(what) }

BEGIN {
    print ".TH JOB\\-WORKER 1 " date " \"job\\-worker " version "\" \"User Commands\""
}
# --- the help: a sentence, then commands in columns, then the variables, which the other file tells better
FNR == NR && NR == 1 {
    summary = $0
    print ".SH NAME\njob\\-worker \\- one\\-shot job execution engine\n.SH SYNOPSIS"
    next
}
FNR == NR && /^Usage:/ { usage = 1; next }
FNR == NR && /^$/ { usage = 0; next }
FNR == NR && usage && /^  job-worker/ {
    line = substr($0, 3)
    at = match(line, /   *[a-z-]/)
    command = at ? substr(line, 1, at - 1) : line
    commands[++count] = command
    told[count] = at ? substr(line, at + RLENGTH - 1) : ""
    next
}
FNR == NR && usage { sub(/^ */, ""); told[count] = told[count] " " $0; next }
FNR == NR { next }
# --- the defaults
FNR == 1 {
    for (i = 1; i <= count; i++) print (i > 1 ? ".br\n" : "") ".B " text(commands[i])
    print ".SH DESCRIPTION\n" text(summary)
    print "A controller prepares a directory and publishes a request that names it. The worker takes one request, and runs the job's steps in that directory. All"
    print "their output goes to job.log. Then the worker publishes the result and exits."
    print ".SH COMMANDS"
    for (i = 1; i <= count; i++) { paragraph(commands[i]); print text(told[i]) }
    print ".SH ENVIRONMENT\nAll are optional. The services read them from /etc/default/job\\-worker, which shows the defaults."
    header = 1
}
/^$/ { header = 0; comment = ""; next }
header { next }
/^#   / { comment = comment "\n.br\n" text(substr($0, 5)); next }
/^# / { comment = comment "\n" text(substr($0, 3)); next }
# Several variables share the comment above them, which stands behind the last one here.
/^#[A-Z_]+=/ {
    paragraph(substr($0, 2))
    while ((getline following) > 0 && following ~ /^#[A-Z_]+=/) print ".TQ\n.B " text(substr(following, 2))
    print substr(comment, 2)
    comment = ""
}
END {
    print ".SH EXIT STATUS"
    print ".TP\n.B 0\nThe job has its result, whatever that is, or the worker was stopped."
    print ".TP\n.B 64\nThe command line is wrong."
    print ".TP\n.B 70\nA defect of the program."
    print ".TP\n.B 75\nAnother client has taken over WORKER_ID."
    print ".TP\n.B 77\nThe broker denies what the worker needs."
    print ".TP\n.B 78\nThe configuration cannot be used."
    print ".PP\n.B job\\-worker run\nends with the exit code of the job."
    print ".SH FILES"
    print ".TP\n.I /etc/default/job\\-worker\nThe settings of the services."
    print ".TP\n.I /srv/jobs\nThe directories of jobs. The group job\\-worker may write there."
    print ".TP\n.I /var/lib/job\\-worker\nThe home of steps."
    print ".SH SEE ALSO\n.I /usr/share/doc/job\\-worker/reference.md\n.br\n.BR mosquitto_pub (1),\n.BR systemctl (1)"
}
