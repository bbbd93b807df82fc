#!/usr/bin/env bash
# Checks the files in deploy/ without starting anything. systemd-analyze checks the unit. The commands of
# docs/install/kubernetes.md make the manifests with an old and a new kubectl. The schemas of Kubernetes check the manifests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
die() {
    printf '%s\n' "check-deploy: $*" >&2
    exit 1
}

analyze=$(scripts/tools.sh systemd-analyze)
"$analyze" security --help | grep -q -- --offline ||
    die "systemd-analyze 250 or newer is needed to check a unit that is not installed"
unit=deploy/systemd/nico-rewrap.service
# The program is not installed here. Everything else in the unit is checked unchanged.
sed 's,^ExecStart=/usr/bin/nico-rewrap,ExecStart=/bin/true,' "$unit" >"$work/nico-rewrap.service"
"$analyze" verify --man=no "$work/nico-rewrap.service" >"$work/said" 2>&1 || die "$(cat "$work/said")"
# Ignores problems of other units of the machine.
if grep nico-rewrap "$work/said" >&2; then die "$unit: see above"; fi
# The threshold is in tenths: 1.5 on a scale from 0 (no exposure) to 10 (full exposure).
"$analyze" security --offline=true --threshold=15 --no-pager "$unit" >"$work/said" || die "$(tail -n 1 "$work/said")"
echo "$unit: exposure $(tail -n 1 "$work/said" | grep -o '[0-9][0-9.]*') of 10"

python=$(scripts/tools.sh kubernetes-python)
scripts/doc_commands.sh install/kubernetes "Make the manifests" >"$work/commands"
# A current kubectl, and the oldest kubectl that the manifests support.
for tool in kubectl old-kubectl; do
    kubectl=$(scripts/tools.sh "$tool")
    mkdir -p "$work/$tool"
    ln -s "$PWD/deploy" "$work/$tool/deploy"
    # A new kubectl warns about deprecated fields that an old kubectl needs. Print the output only after an error.
    (cd "$work/$tool" && PATH=${kubectl%/*}:$PATH bash -euo pipefail "$work/commands") >"$work/said" 2>&1 ||
        die "$(cat "$work/said")"
    for manifests in migrate-state standalone sidecar dry-run apply; do
        [ -s "$work/$tool/$manifests.yaml" ] || die "docs/install/kubernetes.md makes no $manifests.yaml"
        said=$("$python" scripts/check_manifests.py <"$work/$tool/$manifests.yaml") || die "$manifests.yaml"
        echo "$manifests.yaml by kubectl $("$kubectl" version --client -o yaml | sed -n 's/^  gitVersion: v//p'): $said"
    done
done

# Except for the hash in a name, both versions must produce the same manifests.
"$python" - "$work" <<'END' || die "kubectl and old-kubectl produce different manifests from deploy/kubernetes"
import pathlib, re, sys, yaml
def made_by(tool, name):
    text = pathlib.Path(sys.argv[1], tool, name).read_text()
    documents = yaml.safe_load_all(re.sub("nico-rewrap-config-[0-9a-z]+", "nico-rewrap-config", text))
    return sorted(documents, key=lambda document: (document["kind"], document["metadata"]["name"]))
for name in ["migrate-state.yaml", "standalone.yaml", "sidecar.yaml", "dry-run.yaml", "apply.yaml"]:
    assert made_by("kubectl", name) == made_by("old-kubectl", name), name
END

# Tests check_manifests.py itself: it must detect a typo, a missing restriction and an unknown kind.
refuses() {
    sed "$2" "$work/kubectl/$1.yaml" >"$work/bad.yaml"
    ! cmp -s "$work/kubectl/$1.yaml" "$work/bad.yaml" || die "$1.yaml is unchanged after: $2"
    ! "$python" scripts/check_manifests.py <"$work/bad.yaml" >/dev/null 2>&1 || die "$1.yaml passes after: $2"
}
refuses standalone 's/readinessProbe/redinessProbe/'
refuses standalone 's/scrapeTimeout/scrapeTimout/'
refuses standalone 's/annotations:/anotations:/'
refuses standalone 's/renewBefore: .*/renewBefore: soon/'
refuses standalone 's/kind: NetworkPolicy/kind: NetworkPolice/'
refuses sidecar 's/readOnlyRootFilesystem: true/readOnlyRootFilesystem: false/'
refuses apply 's/backoffLimit: 0/backoffLimit: none/'
