#!/usr/bin/env bash
# Checks what is in deploy/ without starting anything: the unit with systemd-analyze, the manifests with kubectl's
# kustomize, by the commands of docs/deploy.md, and against Kubernetes' schemas.
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

kubectl=$(scripts/tools.sh kubectl)
python=$(scripts/tools.sh kubernetes-python)
ln -s "$PWD/deploy" "$work/deploy"
scripts/doc_commands.sh Kubernetes >"$work/commands"
# Newer ones call the words deprecated that older ones have, too: shown only if something is wrong.
(cd "$work" && PATH=${kubectl%/*}:$PATH bash -euo pipefail commands) >"$work/said" 2>&1 || die "$(cat "$work/said")"
for manifests in standalone sidecar dry-run apply; do
    [ -s "$work/$manifests.yaml" ] || die "docs/deploy.md makes no $manifests.yaml"
    said=$("$python" scripts/check_manifests.py <"$work/$manifests.yaml") || die "$manifests.yaml"
    echo "$manifests.yaml: $said"
done

# Vault Agent itself is not here: that its configuration is HCL, and names the files that there are.
"$python" - <<'END' || die "deploy/vault/agent.hcl, deploy/vault/policy.hcl"
import pathlib, hcl2
load = lambda name: hcl2.loads(pathlib.Path("deploy/vault", name).read_text())
[template] = load("agent.hcl")["template"]
text = lambda key: template[key].strip('"')
assert pathlib.Path("deploy/vault", pathlib.Path(text("source")).name).exists(), text("source")
unit = pathlib.Path("deploy/systemd/nico-rewrap.service").read_text()
assert f"LoadCredential=secrets:{text('destination')}\n" in unit, text("destination")
assert len(load("policy.hcl")["path"]) == 2
END
echo "deploy/vault: nothing wrong"

# The check itself: it has to see a typo, a privilege and an unknown kind.
refuses() {
    sed "$2" "$work/$1.yaml" >"$work/bad.yaml"
    ! cmp -s "$work/$1.yaml" "$work/bad.yaml" || die "nothing to spoil in $1.yaml: $2"
    ! "$python" scripts/check_manifests.py <"$work/bad.yaml" >/dev/null 2>&1 || die "$1.yaml passes after: $2"
}
refuses standalone 's/readinessProbe/redinessProbe/'
refuses standalone 's/scrapeTimeout/scrapeTimout/'
refuses standalone 's/renewBefore: .*/renewBefore: soon/'
refuses standalone 's/kind: NetworkPolicy/kind: NetworkPolice/'
refuses sidecar 's/readOnlyRootFilesystem: true/readOnlyRootFilesystem: false/'
refuses apply 's/backoffLimit: 0/backoffLimit: none/'
