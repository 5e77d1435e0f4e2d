#!/usr/bin/env bash
# Fetches the library that report.html draws with from npm and checks it: run it here to change the version.
# Why this one: docs/decisions/0019.
set -euo pipefail
cd "$(dirname "$0")"
version=7.9.0
package=7e36605710a2ba54846797c8c6d888911341b215ae53257dc32a49a0b824355e
script=f2094bbf6141b359722c4fe454eb6c4b0f0e42cc10cc7af921fc158fceb86539
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm pack --silent --pack-destination "$folder" "d3@$version" > /dev/null
echo "$package  $folder/d3-$version.tgz" | sha256sum --check --quiet
tar -xzf "$folder/d3-$version.tgz" -C "$folder"
cp "$folder/package/dist/d3.min.js" d3.min.js
cp "$folder/package/LICENSE" d3.LICENSE
echo "$script  d3.min.js" | sha256sum --check --quiet
