#!/usr/bin/env python3
"""manifests.py check PROGRAMS [REPOSITORY]: checks k8s/ against Kubernetes' own schemas, the programs and itself.
manifests.py show FOLDER: what the containers of a kustomization run, as JSON.

PROGRAMS is the folder with fastcache-ctl and fastcache-data. Says every fault it finds, and ends with 1 when there is one.
Needs PyYAML and kubernetes-validate (tests/setup/install.sh), and no cluster.
"""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

# The oldest Kubernetes that the manifests are for, beside the newest that the schemas know.
OLDEST = "1.30"
# Where a list is merged by a key of its elements; other lists are replaced.
MERGE_KEYS = {"containers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath"}
# Seconds that unmounting and closing the store may take after the uploads (DOWN_GRACE in controlplane/ctl/src/up.rs has
# more, for a device that hangs).
STOP_GRACE = 60
# What a node may do after its start; what each is for is in client-daemonset.yaml.
CAPABILITIES = {"+sys_admin", "+ipc_lock", "+linux_immutable"}
# As fastcache-data wants a cluster token.
TOKEN_MIN = 16

faults = []


def fault(text):
    faults.append(text)


def check(is_so, text):
    if not is_so:
        fault(text)


class Loader(yaml.SafeLoader):
    """YAML in which a key comes once."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in {k for k in keys if keys.count(k) > 1}:
            raise yaml.YAMLError(f"{key!r} comes twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def read(path):
    return [doc for doc in yaml.load_all(path.read_text(), Loader) if doc]


def identity(doc):
    return (doc["kind"], doc["metadata"]["name"])


# ---- kustomize, as much of it as is used here ----------------------------------------------------------------------


def merged(old, new, key=None):
    """A strategic merge patch of what is applied to the manifests."""
    if isinstance(old, dict) and isinstance(new, dict):
        out = dict(old)
        for name, value in new.items():
            if value is None:
                out.pop(name, None)
            else:
                out[name] = merged(old[name], value, name) if name in old else value
        return out
    if isinstance(old, list) and isinstance(new, list) and key in MERGE_KEYS:
        by = MERGE_KEYS[key]
        out = [copy.deepcopy(e) for e in old]
        for element in new:
            at = next((i for i, e in enumerate(out) if e[by] == element[by]), None)
            if at is None:
                out.append(element)
            else:
                out[at] = merged(out[at], element)
        return out
    return new


def rendered(folder):
    """The documents that `kubectl kustomize FOLDER` gives."""
    (rules,) = read(folder / "kustomization.yaml")
    known = {"apiVersion", "kind", "resources", "images", "patches"}
    check(set(rules) <= known, f"{folder.name}: this check does not know {sorted(set(rules) - known)}")
    docs = []
    for name in rules["resources"]:
        path = folder / name
        docs += rendered(path.resolve()) if path.is_dir() else read(path)
    for patch in rules.get("patches", []):
        for change in read(folder / patch["path"]):
            at = [i for i, doc in enumerate(docs) if identity(doc) == identity(change)]
            if len(at) == 1:
                docs[at[0]] = merged(docs[at[0]], change)
            else:
                fault(f"{folder.name}/{patch['path']}: there is no {identity(change)} to patch")
    for image in rules.get("images", []):
        found = False
        for pod in map(pod_of, docs):
            for container in pod["containers"] if pod else []:
                if container["image"].partition(":")[0] == image["name"]:
                    container["image"] = f"{image['name']}:{image['newTag']}"
                    found = True
        check(found, f"{folder.name}: no container has the image {image['name']}")
    return docs


# ---- what is in the manifests --------------------------------------------------------------------------------------


def pod_of(doc):
    if doc["kind"] == "Pod":
        return doc["spec"]
    return doc.get("spec", {}).get("template", {}).get("spec") if isinstance(doc.get("spec"), dict) else None


def check_schema(where, doc):
    for version in (OLDEST, kubernetes_validate.latest_version()):
        try:
            kubernetes_validate.validate(doc, version, strict=True)
        except Exception as error:  # of many kinds, each with what is wrong
            fault(f"{where}: {identity(doc)}, Kubernetes {version}: {error}")


def all_named(docs, kind):
    return {doc["metadata"]["name"]: doc for doc in docs if doc["kind"] == kind}


def environment(docs, container, where):
    """Variables of a container, as far as the manifests say them."""
    found = {}
    for source in container.get("envFrom", []):
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in source:
                doc = all_named(docs, kind).get(source[field]["name"])
                check(doc, f"{where}: there is no {kind} {source[field]['name']}")
                found |= (doc or {}).get("data", {}) | (doc or {}).get("stringData", {})
    for entry in container.get("env", []):
        found[entry["name"]] = entry.get("value")
    return found


def check_references(where, docs, doc):
    pod = pod_of(doc)
    name = f"{where}: {doc['metadata']['name']}"
    for volume in pod.get("volumes", []):
        if "secret" in volume:
            secret = volume["secret"]["secretName"]
            check(secret in all_named(docs, "Secret"), f"{name}: there is no Secret {secret}")
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            check(claim in all_named(docs, "PersistentVolumeClaim"), f"{name}: there is no claim {claim}")
    account = pod.get("serviceAccountName")
    check(account in all_named(docs, "ServiceAccount"), f"{name}: there is no ServiceAccount {account}")
    volumes = {v["name"] for v in pod.get("volumes", [])}
    mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
    check(volumes == mounted, f"{name}: volumes and mounts differ in {sorted(volumes ^ mounted)}")
    selector, labels = doc["spec"]["selector"]["matchLabels"], doc["spec"]["template"]["metadata"]["labels"]
    check(selector.items() <= labels.items(), f"{name}: does not select its own pods")


def check_probes(name, container, live):
    """Ready by /api/health; started, and not to be restarted, by `live`."""
    ports = {p["name"] for p in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(probe, {}).get("httpGet", {})
        wanted = "/api/health" if probe == "readinessProbe" else live
        check(asked.get("path") == wanted, f"{name}: {probe} does not ask {wanted}")
        check(asked.get("port") in ports, f"{name}: {probe} asks port {asked.get('port')!r}, which is not there")


# ---- the programs --------------------------------------------------------------------------------------------------


def check_command(programs, name, container, variables):
    """Flags and variables are ones that the program knows."""
    words = container["command"]
    at = next((i for i, w in enumerate(words) if w.startswith("fastcache-")), None)
    if at is None or len(words) < at + 2:
        fault(f"{name}: runs {words}")
        return
    program, subcommand, flags = words[at], words[at + 1], words[at + 2 :]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCACHE_", "AWS_", "AZURE_"))}
    asked = subprocess.run([programs / program, subcommand, "--help"], capture_output=True, text=True, env=clean)
    if asked.returncode != 0:
        fault(f"{name}: {program} {subcommand} --help: {asked.stderr}")
        return
    known_flags = set(re.findall(r"^\s+(?:-\w, )?(--[a-z0-9-]+)", asked.stdout, re.M))
    known_variables = set(re.findall(r"\[env:\s+(FASTCACHE_[A-Z0-9_]+)=", asked.stdout))
    check(known_flags and known_variables, f"{name}: the help of {program} {subcommand} is not understood")
    for flag in flags:
        check(flag.partition("=")[0] in known_flags, f"{name}: {program} {subcommand} does not know {flag}")
    for variable in variables:
        if variable.startswith("FASTCACHE_"):
            check(variable in known_variables, f"{name}: {program} {subcommand} does not know {variable}")
        elif variable not in asked.stdout and variable != "POD_IP":
            fault(f"{name}: the help of {program} {subcommand} does not name {variable}")


def check_settings(programs, name, variables):
    """The node understands its values, and has them from the environment."""
    given = {k: v for k, v in variables.items() if v is not None} | {"PATH": os.environ["PATH"]}
    asked = subprocess.run([programs / "fastcache-ctl", "config", "--json"], capture_output=True, text=True, env=given)
    if asked.returncode != 0:
        fault(f"{name}: its settings are refused: {asked.stderr}")
        return
    settings = json.loads(asked.stdout)
    for key in ("coordinator", "port", "bind", "chunk-size", "cloud-provider", "fsync", "stop-timeout"):
        wanted = variables.get("FASTCACHE_" + key.upper().replace("-", "_"))
        check(settings.get(key) == wanted, f"{name}: {key} is {settings.get(key)!r}, not {wanted!r}")


# ---- the two workloads ---------------------------------------------------------------------------------------------


def check_coordinator(programs, where, docs):
    doc = all_named(docs, "Deployment")["fastcache-coordinator"]
    name = f"{where}: coordinator"
    (container,) = pod_of(doc)["containers"]
    check_command(programs, name, container, environment(docs, container, name))
    check_probes(name, container, "/api/health")
    check(doc["spec"]["replicas"] == 1 and doc["spec"]["strategy"] == {"type": "Recreate"}, f"{name}: one at a time")
    flags = dict(word.split("=", 1) for word in container["command"] if word.startswith("--") and "=" in word)
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    listen, state = flags.get("--listen", ""), flags.get("--state-dir")
    check(listen.endswith(f":{ports['api']}"), f"{name}: listens on {listen!r}, not on {ports['api']}")
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    check(state in mounts, f"{name}: {state} is not a volume")
    service = all_named(docs, "Service")["fastcache-coordinator"]["spec"]
    labels = doc["spec"]["template"]["metadata"]["labels"]
    check(service["selector"].items() <= labels.items(), f"{name}: the service does not select it")
    (port,) = service["ports"]
    check(service["type"] == "ClusterIP" and port["targetPort"] in ports, f"{name}: the service has no such port")
    return f"fastcache-coordinator.{doc['metadata']['namespace']}.svc:{port['port']}"


def check_node(programs, where, docs, coordinator):
    doc = all_named(docs, "DaemonSet")["fastcache-node"]
    name = f"{where}: node"
    pod = pod_of(doc)
    (container,) = pod["containers"]
    variables = environment(docs, container, name)
    check_command(programs, name, container, variables)
    check_settings(programs, name, variables)
    check_probes(name, container, "/api/health/live")
    check(doc["spec"]["updateStrategy"] == {"type": "OnDelete"}, f"{name}: is updated by itself")
    entry = next((e for e in container.get("env", []) if e["name"] == "POD_IP"), {})
    check(entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") == "status.podIP", f"{name}: POD_IP")
    check(variables.get("FASTCACHE_COORDINATOR") == coordinator, f"{name}: the coordinator is at {coordinator}")
    ports = {p["name"]: str(p["containerPort"]) for p in container["ports"]}
    check(variables["FASTCACHE_PORT"] == ports["api"], f"{name}: port of REST")
    check(variables["FASTCACHE_LISTEN"].endswith(":" + ports["peer"]), f"{name}: port for other nodes")
    mounts = {m["mountPath"]: m for m in container["volumeMounts"]}
    for variable in ("FASTCACHE_DIR", "FASTCACHE_NVME"):
        check(variables[variable] in mounts, f"{name}: {variables[variable]} is not a volume")
    # A mount is seen outside when it is below what propagates; what propagates is itself a mount already.
    above = str(Path(variables["FASTCACHE_MOUNT"]).parent)
    check(mounts.get(above, {}).get("mountPropagation") == "Bidirectional", f"{name}: the mount stays in the container")
    token = Path(variables["FASTCACHE_CLUSTER_TOKEN_FILE"])
    volume = next(v for v in pod["volumes"] if v["name"] == mounts[str(token.parent)]["name"])
    secret = all_named(docs, "Secret")[volume["secret"]["secretName"]]
    check(token.name in secret["stringData"], f"{name}: the secret has no {token.name}")
    device = next(v for v in pod["volumes"] if v["name"] == mounts["/dev/fuse"]["name"])
    check(device["hostPath"] == {"path": "/dev/fuse", "type": "CharDevice"}, f"{name}: /dev/fuse")
    stop = int(variables["FASTCACHE_STOP_TIMEOUT"]) + STOP_GRACE
    check(pod["terminationGracePeriodSeconds"] >= stop, f"{name}: is killed before it has stopped ({stop} s)")
    bounds = [w.split("=", 1)[1] for w in container["command"] if w.startswith("--bounding-set=")]
    kept = set(bounds[0].split(",")) if bounds else set()
    check(kept == CAPABILITIES | {"-all"}, f"{name}: keeps the capabilities {sorted(kept)}")
    return secret["stringData"].get(token.name, "")


def show(folder):
    docs = rendered(folder)
    shown = {}
    for doc in docs:
        pod = pod_of(doc)
        for container in pod["containers"] if pod else []:
            variables = environment(docs, container, folder.name)
            shown[container["name"]] = {
                "image": container["image"],
                "command": container["command"],
                "environment": {k: v for k, v in variables.items() if v is not None},
                "mounts": [m["mountPath"] for m in container["volumeMounts"]],
                "user": pod.get("securityContext", {}).get("runAsUser", 0),
            }
    print(json.dumps(shown))


def check_all(programs, repository):
    k8s = repository / "k8s"
    tokens = {}
    for folder in (k8s / "base", k8s / "overlays/dev"):
        where = str(folder.relative_to(repository))
        docs = rendered(folder)
        check(len({identity(d) for d in docs}) == len(docs), f"{where}: something is there twice")
        for doc in docs:
            check_schema(where, doc)
            namespace = None if doc["kind"] == "Namespace" else "fuse-system"
            check(doc["metadata"].get("namespace") == namespace, f"{where}: {identity(doc)} is in another namespace")
            if pod_of(doc):
                check_references(where, docs, doc)
        tokens[folder.name] = check_node(programs, where, docs, check_coordinator(programs, where, docs))
    check(len(tokens["base"]) < TOKEN_MIN, "base: the placeholder of the token would be accepted")
    check(len(tokens["dev"]) >= TOKEN_MIN, "dev: the token is refused")
    (rules,) = read(k8s / "base/kustomization.yaml")
    beside = {p.name for p in k8s.glob("*.yaml") if p.resolve() == (k8s / "base" / p.name).resolve()}
    check(beside == set(rules["resources"]), "k8s/*.yaml are not the files of k8s/base")
    # `kubectl apply -f k8s/`: in the order of names, and what is in a namespace comes after it.
    there = set()
    for path in sorted(k8s.glob("*.yaml")):
        for doc in read(path):
            namespace = doc["metadata"].get("namespace")
            check(namespace is None or namespace in there, f"k8s/{path.name}: applied before its namespace")
            if doc["kind"] == "Namespace":
                there.add(doc["metadata"]["name"])
    blocks = re.findall(r"^```yaml\n(.*?)^```", (repository / "docs/operations.md").read_text(), re.M | re.S)
    examples = [doc for text in blocks for doc in yaml.load_all(text, Loader) if "apiVersion" in doc]
    for doc in examples:
        if doc["kind"] != "Kustomization":
            check_schema("docs/operations.md", doc)
    for text in faults:
        print(text, file=sys.stderr)
    print(f"{len(tokens)} sets of manifests, {len(examples)} examples, {len(faults)} faults")
    sys.exit(1 if faults else 0)


match sys.argv[1:]:
    case ["check", programs, *repository]:
        check_all(Path(programs).resolve(), Path(*repository or [Path(__file__).parent.parent]))
    case ["show", folder]:
        show(Path(folder))
    case _:
        sys.exit(__doc__)
