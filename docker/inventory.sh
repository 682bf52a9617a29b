#!/bin/sh
# Writes the bill of materials and the licences of the packages in a virtual environment; run in image builds. It fails
# on a licence that is not in the list: then check whether it is permissive, and add it.
#   inventory.sh TOOLS PYTHON FOLDER [PACKAGE…]
# TOOLS is the folder of the programs, PYTHON that of the environment. With packages, only their licences are checked.
set -eu
tools=$1 python=$2 folder=$3
shift 3

permissive='0BSD;3-Clause BSD License;Apache Software License;Apache-2.0;Apache-2.0 AND BSD-2-Clause;'
permissive=$permissive'Apache-2.0 OR BSD-2-Clause;BSD License;BSD-2-Clause;BSD-2-Clause AND Unlicense AND MIT;'
permissive=$permissive'BSD-3-Clause;BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0;BSD;ISC;MIT;MIT License;MIT-0;'
permissive=$permissive'MIT-CMU;PSF-2.0;Python Software Foundation License'
# Not permissive, but to be shipped unchanged beside the service: certifi (MPL-2.0), psycopg2 (LGPL-3.0, with an exception
# for other programs), and NVIDIA's libraries (their licence allows it as a part of an application).
shipped="certifi psycopg2-binary $("$python" -c '
from importlib.metadata import distributions
print(*(found.name for found in distributions() if found.name.startswith("nvidia-")))')"

licences() { "$tools/pip-licenses" --python "$python" --from mixed "$@"; }
# shellcheck disable=SC2086
licences ${1:+--packages "$@"} --ignore-packages $shipped --allow-only "$permissive" >/dev/null
mkdir -p "$folder"
# shellcheck disable=SC2086
licences ${1:+--packages "$@"} --format plain-vertical --with-license-file --no-license-path --with-notice-file >"$folder/third-party-notices.txt"
"$tools/cyclonedx-py" environment --output-reproducible --output-file "$folder/sbom.cdx.json" "$python"
