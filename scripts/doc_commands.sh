#!/usr/bin/env bash
# Prints the commands of a section of docs/deploy.md, for the tests that run them:
#
#   scripts/doc_commands.sh HEADING
#
# Those are the lines of its console blocks that begin with a prompt ($, or # for root), and the lines that they are
# continued on. A section without any is an error: a test that runs nothing must not pass.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

awk -v heading="## $1" '
    /^## / { inside = $0 == heading }
    !inside { next }
    /^```/ { block = !block && $0 == "```console"; next }
    block && (continued || sub(/^[$#] /, "")) { print; continued = /\\$/; found = 1 }
    END { if (!found) { print "no commands under: " heading > "/dev/stderr"; exit 1 } }
' docs/deploy.md
