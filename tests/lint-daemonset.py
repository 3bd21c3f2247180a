"""Checks the Kubernetes manifest: it parses, and its container has the rights that gwlbtun needs and
no others, and probes that a load balancer would agree with."""

import pathlib
import sys

import yaml

path = pathlib.Path(sys.argv[1])
(manifest,) = yaml.safe_load_all(path.read_text())
pod = manifest["spec"]["template"]["spec"]
(container,) = pod["containers"]
security = container["securityContext"]
ports = {port["name"]: (port["containerPort"], port["protocol"]) for port in container["ports"]}
volumes = {volume["name"]: volume for volume in pod["volumes"]}
mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
labels = manifest["spec"]["template"]["metadata"]["labels"]
health, metrics = (
    container["args"][container["args"].index(flag) + 1] for flag in ("-p", "--metrics-listen")
)
probes = container["readinessProbe"]["httpGet"], container["livenessProbe"]["httpGet"]
(address,) = container["env"]
tun = volumes[mounts["/dev/net/tun"]]["hostPath"]
facts = {
    "is a DaemonSet": manifest["kind"] == "DaemonSet" and manifest["apiVersion"] == "apps/v1",
    "selects its own pods": manifest["spec"]["selector"]["matchLabels"].items() <= labels.items(),
    "is on the node's network, and in no other namespace of it": pod["hostNetwork"] is True
    and not {"hostPID", "hostIPC"} & set(pod),
    "drops all capabilities": security["capabilities"]["drop"] == ["ALL"],
    "adds two": security["capabilities"]["add"] == ["NET_ADMIN", "BPF"],
    "gains no other right": security["privileged"] is False
    and security["allowPrivilegeEscalation"] is False,
    "cannot write to its image": security["readOnlyRootFilesystem"] is True and "/run" in mounts,
    "uses the profile": security["seccompProfile"]
    == {"type": "Localhost", "localhostProfile": "gwlbtun.json"},
    "has no token": pod["automountServiceAccountToken"] is False,
    "takes GENEVE": ports["geneve"] == (6081, "UDP"),
    "answers where it is asked": ports["health"] == (int(health), "TCP"),
    "is measured at the node's address": metrics == f"$({address['name']}):{ports['metrics'][0]}"
    and address["valueFrom"]["fieldRef"]["fieldPath"] == "status.hostIP",
    "is ready when healthy, alive when it answers": probes
    == ({"path": "/", "port": "health"}, {"path": "/livez", "port": "metrics"}),
    "has the device": tun == {"path": "/dev/net/tun", "type": "CharDevice"},
    "waits for hooks as the unit does": pod["terminationGracePeriodSeconds"] == 120,
}
for fact, holds in facts.items():
    if not holds:
        print(f"lint-daemonset.py: {path}: not so: it {fact}", file=sys.stderr)
if not all(facts.values()):
    sys.exit(1)
print(f"DaemonSet: {len(facts)} facts hold")
