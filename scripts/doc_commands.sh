#!/usr/bin/env bash
# Prints the commands of a section of a page in docs/, for the tests that run them:
#
#   scripts/doc_commands.sh PAGE HEADING      # scripts/doc_commands.sh install/debian systemd
#
# A command is a line of a console block that begins with a prompt ($, or # for root), with its continuation lines. A
# section without commands is an error: a test that runs nothing must not pass.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

awk -v heading="$2" '
    !block && /^##+ / { inside = $0 == "## " heading || $0 == "### " heading }
    !inside { next }
    /^```/ { block = !block && $0 == "```console"; next }
    block && (continued || sub(/^[$#] /, "")) { print; continued = /\\$/; found = 1 }
    END { if (!found) { print "no commands under the heading: " heading > "/dev/stderr"; exit 1 } }
' "docs/$1.md"
