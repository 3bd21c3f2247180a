"""Prints the licences of every crate that is linked into gwlbtun, with their texts: what their
authors ask of who passes a program on. Needs the crates' sources, which a build has fetched."""

import json
import pathlib
import subprocess


def cargo(*words):
    return subprocess.run(["cargo", *words], check=True, capture_output=True, text=True).stdout


tree = cargo("tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}")
linked = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
metadata = json.loads(cargo("metadata", "--locked", "--format-version", "1"))

for crate in sorted(metadata["packages"], key=lambda crate: (crate["name"], crate["version"])):
    if (crate["name"], f"v{crate['version']}") not in linked or crate["name"] == "gwlbtun":
        continue
    folder = pathlib.Path(crate["manifest_path"]).parent
    names = ("LICEN", "COPYING", "NOTICE", "COPYRIGHT")
    texts = sorted(file for file in folder.iterdir() if file.name.upper().startswith(names))
    print(f"{'=' * 78}\n{crate['name']} {crate['version']}: {crate['license']}")
    print(f"by {', '.join(crate['authors']) or 'its authors'}\n")
    for file in texts:
        if file.is_file():
            print(f"--- {file.name}\n{file.read_text(errors='replace').strip()}\n")
