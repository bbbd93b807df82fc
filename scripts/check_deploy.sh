#!/usr/bin/env bash
# Checks what is in deploy/ without starting anything: the unit with systemd-analyze, the manifests with the kustomize of
# an old kubectl and of today's, by the commands of docs/install/kubernetes.md, and against Kubernetes' schemas.
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
    die "this systemd-analyze is too old to look at a unit that is not installed: 250 or newer is needed"
unit=deploy/systemd/nico-rewrap.service
# The program is not installed here; everything else is looked at as it is.
sed 's,^ExecStart=/usr/bin/nico-rewrap,ExecStart=/bin/true,' "$unit" >"$work/nico-rewrap.service"
"$analyze" verify --man=no "$work/nico-rewrap.service" >"$work/said" 2>&1 || die "$(cat "$work/said")"
# Complaints about other units of the machine are not ours.
if grep nico-rewrap "$work/said" >&2; then die "$unit: see above"; fi
# In tenths: 1.5 on a scale where 10 is everything exposed, and 1.0 is hard to do with a network.
"$analyze" security --offline=true --threshold=15 --no-pager "$unit" >"$work/said" || die "$(tail -n 1 "$work/said")"
echo "$unit: $(tail -n 1 "$work/said" | grep -o '[0-9][0-9.]*') of 10 exposed"

python=$(scripts/tools.sh kubernetes-python)
scripts/doc_commands.sh install/kubernetes "Make the manifests" >"$work/commands"
# Today's kubectl, and the oldest one that the manifests are for.
for tool in kubectl old-kubectl; do
    kubectl=$(scripts/tools.sh "$tool")
    mkdir -p "$work/$tool"
    ln -s "$PWD/deploy" "$work/$tool/deploy"
    # Newer ones call the words deprecated that older ones have, too: shown only if something is wrong.
    (cd "$work/$tool" && PATH=${kubectl%/*}:$PATH bash -euo pipefail "$work/commands") >"$work/said" 2>&1 ||
        die "$(cat "$work/said")"
    for manifests in standalone sidecar dry-run apply; do
        [ -s "$work/$tool/$manifests.yaml" ] || die "docs/install/kubernetes.md makes no $manifests.yaml"
        said=$("$python" scripts/check_manifests.py <"$work/$tool/$manifests.yaml") || die "$manifests.yaml"
        echo "$manifests.yaml by kubectl $("$kubectl" version --client -o yaml | sed -n 's/^  gitVersion: v//p'): $said"
    done
done

# But for the hash in a name, both make the same.
"$python" - "$work" <<'END' || die "kubectl and old-kubectl do not make the same of deploy/kubernetes"
import pathlib, re, sys, yaml
def made_by(tool, name):
    text = pathlib.Path(sys.argv[1], tool, name).read_text()
    documents = yaml.safe_load_all(re.sub("nico-rewrap-config-[0-9a-z]+", "nico-rewrap-config", text))
    return sorted(documents, key=lambda document: (document["kind"], document["metadata"]["name"]))
for name in ["standalone.yaml", "sidecar.yaml", "dry-run.yaml", "apply.yaml"]:
    assert made_by("kubectl", name) == made_by("old-kubectl", name), name
END

# The check itself: it has to see a typo, a privilege and an unknown kind.
refuses() {
    sed "$2" "$work/kubectl/$1.yaml" >"$work/bad.yaml"
    ! cmp -s "$work/kubectl/$1.yaml" "$work/bad.yaml" || die "nothing to spoil in $1.yaml: $2"
    ! "$python" scripts/check_manifests.py <"$work/bad.yaml" >/dev/null 2>&1 || die "$1.yaml passes after: $2"
}
refuses standalone 's/readinessProbe/redinessProbe/'
refuses standalone 's/scrapeTimeout/scrapeTimout/'
refuses standalone 's/renewBefore: .*/renewBefore: soon/'
refuses standalone 's/kind: NetworkPolicy/kind: NetworkPolice/'
refuses sidecar 's/readOnlyRootFilesystem: true/readOnlyRootFilesystem: false/'
refuses apply 's/backoffLimit: 0/backoffLimit: none/'
