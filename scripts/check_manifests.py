#!/usr/bin/env python3
"""Checks the manifests on stdin, a stream of YAML documents.

Each document is checked against the schema of Kubernetes, from the package kubernetes-validate. Unknown fields are
errors. Custom resources are checked against deploy/kubernetes/crds.schema.json, which was written by hand from the
published definitions. Pods are checked against the level "restricted" of the Pod Security Standards.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

# The oldest and the newest version that the manifests support.
KUBERNETES = ["1.25", kubernetes_validate.latest_version()]
CUSTOM = json.loads((pathlib.Path(__file__).parent.parent / "deploy/kubernetes/crds.schema.json").read_text())


def schema_problems(document, kind):
    if kind in CUSTOM:
        validator = jsonschema.Draft202012Validator(CUSTOM[kind])
        yield from (f"{error.json_path}: {error.message}" for error in validator.iter_errors(document))
        return
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError:
            yield f"Kubernetes {version} has no schema for it, and neither has deploy/kubernetes/crds.schema.json"


def restricted_problems(document):
    pod = document["spec"].get("template", {}).get("spec") if isinstance(document.get("spec"), dict) else None
    if not pod:
        return
    of_pod = pod.get("securityContext", {})
    for container in pod["containers"]:
        # nico-api's chart decides about nico-api's container.
        if container["name"] == "nico-api":
            continue
        own = container.get("securityContext", {})
        merged = {**of_pod, **own}
        wanted = {
            "runAsNonRoot": merged.get("runAsNonRoot") is True,
            "runAsUser": merged.get("runAsUser", 0) != 0,
            "seccompProfile": merged.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
            "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
            "resources": "memory" in container.get("resources", {}).get("limits", {}),
        }
        yield from (f"container {container['name']}: {what} is not restricted" for what, ok in wanted.items() if not ok)


def main():
    documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
    if not documents:
        sys.exit("no manifests")
    problems = []
    for document in documents:
        kind = f"{document['apiVersion']} {document['kind']}"
        found = [*schema_problems(document, kind), *restricted_problems(document)]
        problems += [f"{kind} {document['metadata']['name']}: {problem}" for problem in found]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(documents)} documents are valid")


main()
