"""Checks the Terraform module of the topologies: it parses, every reference has a declaration and
every declaration a reference, and what the load balancer asks of a target is there, as in the
CloudFormation templates. What AWS's provider would say of the arguments is not known here."""

import pathlib
import re
import sys

import hcl2

folder = pathlib.Path(sys.argv[1])
complaints = []


def expect(condition, text):
    if not condition:
        complaints.append(text)


def plain(value):
    """Strings without the quotes that newer parsers leave, blocks without their comments."""
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.strip('"') if isinstance(value, str) else value


text, declared, locals_, resources = "", set(), {}, {}
for path in sorted(folder.glob("*.tf")):
    text += path.read_text()
    with path.open() as file:
        parsed = plain(hcl2.load(file))
    for variable in parsed.get("variable", []):
        declared |= {f"var.{name}" for name in variable}
    for block in parsed.get("locals", []):
        locals_ |= block
        declared |= {f"local.{name}" for name in block}
    for kind, prefix in (("resource", ""), ("data", "data.")):
        for block in parsed.get(kind, []):
            for type_, named in block.items():
                for name, body in named.items():
                    address = f"{prefix}{type_}.{name}"
                    expect(address not in declared, f"{address} is declared twice")
                    declared.add(address)
                    resources[address] = body

# ---- References ----

code = re.sub(r"(?m)^\s*#.*$", "", text)
used = set(re.findall(r"\b(?:var|local)\.\w+", code))
used |= set(re.findall(r"\bdata\.aws_\w+\.\w+", code))
used |= set(re.findall(r"(?<![\w.\"])aws_\w+\.\w+", code))
used = {name for name in used if not name.startswith("aws_") or f"data.{name}" not in declared}
for name in sorted(used - declared):
    complaints.append(f"{name} is not declared")
for name in sorted(declared - used):
    if name.startswith(("var.", "local.", "data.")):
        complaints.append(f"{name} is not used")

template = (folder / "user-data.sh.tftpl").read_text()
wanted = set(re.findall(r"(?<!\$)\$\{(\w+)\}", template))
wanted |= set(re.findall(r"%\{ if (\w+)", template))
block = re.search(r"templatefile\([^{]*\{path\.module\}[^{]*\{(.*?)\n  \}\)", text, re.S).group(1)
given = set(re.findall(r"(?m)^    (\w+)\s*=", block))
expect(wanted == given, f"user-data.sh.tftpl and what it is given differ: {wanted ^ given}")

# ---- What the load balancer asks of a target ----


def has(address, **wanted):
    body = resources.get(address, {})
    for name, value in wanted.items():
        found = str(body.get(name))
        expect(found.lower() == str(value).lower(), f"{address}: {name} is {found}, not {value}")


def rules(direction):
    blocks = resources["aws_security_group.targets"][direction]
    return {(rule["protocol"], rule["from_port"], rule["to_port"]) for rule in blocks}


expect(("udp", 6081, 6081) in rules("ingress"), "targets do not take GENEVE")
expect(("tcp", 8080, 8080) in rules("ingress"), "targets do not take health checks")
expect(("udp", 6081, 6081) in rules("egress"), "targets may not answer")
has("aws_lb.gwlb", load_balancer_type="gateway", enable_cross_zone_load_balancing=True)
group = "aws_lb_target_group.targets"
has(group, protocol="GENEVE", port=6081, target_type="instance")
has(group, deregistration_delay="${local.two_arm ? 350 : 60}")
check = resources[group]["health_check"][0]
asked = (check["protocol"], check["port"], check["path"])
expect(asked == ("HTTP", 8080, "/"), f"{group}: {check}")
expect("matcher" not in check, f"{group}: GENEVE takes only the default matcher")
failover = resources[group]["target_failover"][0]
expect(failover["on_deregistration"] == failover["on_unhealthy"], f"{group}: AWS wants both alike")
expect(str(resources[group]["stickiness"][0]["enabled"]).lower() == "false", f"{group}: sticky")
listener = resources["aws_lb_listener.all"]
expect(not {"port", "protocol"} & set(listener), "a gateway's listener has no port and no protocol")
expect("var.tcp_idle_seconds" in listener["tcp_idle_timeout_seconds"], "the listener's idle time")
has("aws_instance.target", source_dest_check="${!local.two_arm}")
for name in ("aws_instance.target", "aws_instance.client", "aws_launch_template.targets"):
    tokens = resources[name]["metadata_options"][0]["http_tokens"]
    expect(tokens == "required", f"{name}: IMDSv1 is open")
for name, body in resources.items():
    if name.startswith("aws_vpc_endpoint."):
        has(name, vpc_endpoint_type="GatewayLoadBalancer", ip_address_type="dualstack")

for complaint in complaints:
    print(f"lint-terraform.py: {complaint}", file=sys.stderr)
if complaints:
    sys.exit(1)
print(f"Terraform: {len(resources)} resources and data sources, {len(used)} names, all declared")
