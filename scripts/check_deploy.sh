#!/usr/bin/env bash
# Checks the files in deploy/ without starting anything. systemd-analyze checks the unit. The commands of docs/deploy.md
# build the manifests, once with the kustomize of an old kubectl and once with that of a current one. check_manifests.py
# checks the result against the schemas of Kubernetes.
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
    die "this systemd-analyze can't check a unit that is not installed: version 250 or newer is needed"
unit=deploy/systemd/nico-rewrap.service
# The program is not installed on this machine, so the check replaces it. The rest of the unit is unchanged.
sed 's,^ExecStart=/usr/bin/nico-rewrap,ExecStart=/bin/true,' "$unit" >"$work/nico-rewrap.service"
"$analyze" verify --man=no "$work/nico-rewrap.service" >"$work/said" 2>&1 || die "$(cat "$work/said")"
# Ignore messages about other units of this machine.
if grep nico-rewrap "$work/said" >&2; then die "$unit: see above"; fi
# The threshold is in tenths: 1.5 of 10, where 10 is fully exposed. With network access, less than 1.0 is hard to reach.
"$analyze" security --offline=true --threshold=15 --no-pager "$unit" >"$work/said" || die "$(tail -n 1 "$work/said")"
echo "$unit: exposure $(tail -n 1 "$work/said" | grep -o '[0-9][0-9.]*') of 10"

python=$(scripts/tools.sh kubernetes-python)
scripts/doc_commands.sh Kubernetes >"$work/commands"
# A current kubectl, and the oldest one that the manifests support.
for tool in kubectl old-kubectl; do
    kubectl=$(scripts/tools.sh "$tool")
    mkdir -p "$work/$tool"
    ln -s "$PWD/deploy" "$work/$tool/deploy"
    # A newer kubectl warns about deprecated fields, which the old one needs. Show the output only after an error.
    (cd "$work/$tool" && PATH=${kubectl%/*}:$PATH bash -euo pipefail "$work/commands") >"$work/said" 2>&1 ||
        die "$(cat "$work/said")"
    for manifests in standalone sidecar dry-run apply; do
        [ -s "$work/$tool/$manifests.yaml" ] || die "the commands of docs/deploy.md did not write $manifests.yaml"
        said=$("$python" scripts/check_manifests.py <"$work/$tool/$manifests.yaml") || die "$manifests.yaml"
        echo "$manifests.yaml by kubectl $("$kubectl" version --client -o yaml | sed -n 's/^  gitVersion: v//p'): $said"
    done
done

# Both must give the same manifests, except for the hash in a name.
"$python" - "$work" <<'END' || die "kubectl and old-kubectl give different manifests for deploy/kubernetes"
import pathlib, re, sys, yaml
def made_by(tool, name):
    text = pathlib.Path(sys.argv[1], tool, name).read_text()
    documents = yaml.safe_load_all(re.sub("nico-rewrap-config-[0-9a-z]+", "nico-rewrap-config", text))
    return sorted(documents, key=lambda document: (document["kind"], document["metadata"]["name"]))
for name in ["standalone.yaml", "sidecar.yaml", "dry-run.yaml", "apply.yaml"]:
    assert made_by("kubectl", name) == made_by("old-kubectl", name), name
END

# Tests of the check itself: it must find a typo, a privilege and an unknown kind.
refuses() {
    sed "$2" "$work/kubectl/$1.yaml" >"$work/bad.yaml"
    ! cmp -s "$work/kubectl/$1.yaml" "$work/bad.yaml" || die "this command changes nothing in $1.yaml: $2"
    ! "$python" scripts/check_manifests.py <"$work/bad.yaml" >/dev/null 2>&1 || die "$1.yaml is accepted after: $2"
}
refuses standalone 's/readinessProbe/redinessProbe/'
refuses standalone 's/scrapeTimeout/scrapeTimout/'
refuses standalone 's/renewBefore: .*/renewBefore: soon/'
refuses standalone 's/kind: NetworkPolicy/kind: NetworkPolice/'
refuses sidecar 's/readOnlyRootFilesystem: true/readOnlyRootFilesystem: false/'
refuses apply 's/backoffLimit: 0/backoffLimit: none/'
