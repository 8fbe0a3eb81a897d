#!/bin/sh
# The commands of README.md under a heading, as a script: tests run them as they stand there.
#
#   tests/readme.sh HEADING
awk -v heading="### $1" '
    $0 == heading { here = 1 }
    here && shown && /^```/ { exit }
    here && shown { sub(/^\$ /, ""); print }
    here && /^```console/ { shown = 1 }
' "$(dirname "$0")/../README.md"
