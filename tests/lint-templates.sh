#!/usr/bin/env bash
# tests/lint-templates.sh
#
# Checks the CloudFormation templates with cfn-lint, which has AWS's own schema of every resource,
# the Terraform module with lint-terraform.py, which has a parser of its language, the DaemonSet
# with lint-daemonset.py, and the user data of both kinds with shellcheck. cfn-lint and the parser
# come from PyPI into an environment below target/, at one version each, so that a newer rule is a
# change of ours and no surprise.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.58.0 hcl2=8.1.4
venv=target/cfn-lint-$version-$hcl2

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)

# cfn-lint wants Python 3.10, which is not every distribution's python3.
find_python() {
    local candidate
    for candidate in python3 python3.{14,13,12,11,10}; do
        if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 10))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

if [ "$("$venv/bin/cfn-lint" --version 2>&1)" != "cfn-lint $version" ]; then
    # No command has this name, so it counts as missing.
    find_python >/dev/null ||
        "${as_root[@]}" tests/install-tools.sh python3-venv:python3-venv:python3.11
    python=$(find_python) || {
        echo "tests/lint-templates.sh: no Python 3.10 with venv here; install one" >&2
        exit 2
    }
    echo "installing: cfn-lint $version, python-hcl2 $hcl2"
    "$python" -m venv --clear "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check "cfn-lint==$version" \
        "python-hcl2==$hcl2"
fi
command -v shellcheck >/dev/null || "${as_root[@]}" tests/install-tools.sh \
    shellcheck:shellcheck:ShellCheck

templates=(example-scripts/*.template)
"$venv/bin/cfn-lint" "${templates[@]}"

"$venv/bin/python" tests/lint-terraform.py example-scripts/terraform
"$venv/bin/python" tests/lint-daemonset.py tuning/container/daemonset.yaml

# What Fn::Sub puts in is a word without blanks.
"$venv/bin/python" - "$venv" "${templates[@]}" <<'PY'
import pathlib, re, sys
from cfnlint.decode.cfn_yaml import load

folder = pathlib.Path(sys.argv[1]) / "user-data"
folder.mkdir(exist_ok=True)
for path in map(pathlib.Path, sys.argv[2:]):
    for name, resource in load(str(path))["Resources"].items():
        data = resource.get("Properties", {}).get("LaunchTemplateData", {}).get("UserData")
        if data:
            text = re.sub(r"\$\{[^}]+\}", "word", data["Fn::Base64"]["Fn::Sub"])
            (folder / f"{path.stem}-{name}.sh").write_text(text)
# Terraform's is a file of its own, with lines that are directives.
template = pathlib.Path("example-scripts/terraform/user-data.sh.tftpl").read_text()
text = re.sub(r"\$\{[^}]+\}", "word", re.sub(r"(?m)^%\{.*\n", "", template))
(folder / "terraform.sh").write_text(text)
PY
scripts=("$venv"/user-data/*.sh)
if [ ${#scripts[@]} != $((${#templates[@]} + 1)) ]; then
    echo "tests/lint-templates.sh: ${#templates[@]} templates, but ${#scripts[@]} user data" >&2
    exit 1
fi
# What cargo's env file says is not ours.
shellcheck --exclude=SC1091 "${scripts[@]}"
echo "cfn-lint and shellcheck: ${#templates[@]} templates and a module, nothing to complain of"
