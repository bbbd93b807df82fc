#!/usr/bin/env bash
# Prints the commands in a section of docs/deploy.md. Tests run them:
#
#   scripts/doc_commands.sh HEADING
#
# Commands are the lines in console blocks that begin with a prompt ($, or # for root), with their continuation lines. A
# section without commands is an error, because a test that runs nothing must not pass.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

awk -v heading="## $1" '
    /^## / { inside = $0 == heading }
    !inside { next }
    /^```/ { block = !block && $0 == "```console"; next }
    block && (continued || sub(/^[$#] /, "")) { print; continued = /\\$/; found = 1 }
    END { if (!found) { print "no commands under: " heading > "/dev/stderr"; exit 1 } }
' docs/deploy.md
