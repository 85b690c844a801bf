#!/usr/bin/env bash
# Build the Dockerfile and run the image on a Debian machine that has neither Docker's daemon nor an image registry.
#   deploy/without_docker.sh build FOLDER [option of buildah build]...   24 GB in FOLDER, as root
#   deploy/without_docker.sh run FOLDER [option of buildah run]... -- COMMAND...
#   deploy/without_docker.sh remove FOLDER
# buildah and mmdebstrap are unpacked into FOLDER; only the library libgpgme11 is installed. A minimal Debian with its own Python
# stands in for the base image `python:3.11-slim`. Containers are chroots: they have this machine's network and devices.
set -euo pipefail

IMAGE=localhost/har
BASE=localhost/python:3.11-slim
PACKAGES=(buildah mmdebstrap golang-github-containers-common golang-github-containers-image)
REPOSITORY=$(cd "$(dirname "$0")/.." && pwd)

usage() {
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

unpack_tools() {
  # buildah starts itself anew without LD_LIBRARY_PATH, so that a library in FOLDER would not be found.
  ldconfig -p | grep -q libgpgme.so.11 || apt-get install --yes --quiet --no-install-recommends libgpgme11
  [ -x "$TOOLS/usr/bin/buildah" ] && return
  mkdir -p "$FOLDER/packages"
  (cd "$FOLDER/packages" && apt-get download -o APT::Sandbox::User=root "${PACKAGES[@]}")
  for package in "$FOLDER"/packages/*.deb; do dpkg-deb -x "$package" "$TOOLS"; done
}

configure() {
  export CONTAINERS_REGISTRIES_CONF="$TOOLS/etc/containers/registries.conf"
  export CONTAINERS_STORAGE_CONF="$FOLDER/storage.conf"
  export TMPDIR="$FOLDER/tmp"
  export BUILDAH_ISOLATION=chroot
  mkdir -p "$TMPDIR"
  printf '[storage]\ndriver = "%s"\nrunroot = "%s/run"\ngraphroot = "%s/store"\n' \
    "${STORAGE_DRIVER:-overlay}" "$FOLDER" "$FOLDER" > "$CONTAINERS_STORAGE_CONF"
}

buildah() {
  "$TOOLS/usr/bin/buildah" "$@"
}

make_base() {
  buildah inspect --type image "$BASE" > /dev/null 2>&1 && return
  perl "$TOOLS/usr/bin/mmdebstrap" --quiet --variant=minbase --include=ca-certificates,python3,python3-venv,python3-dev \
    bookworm "$FOLDER/base.tar"
  printf 'FROM scratch\nADD base.tar /\n' > "$FOLDER/Base"
  buildah build --quiet --signature-policy "$TOOLS/etc/containers/policy.json" --file "$FOLDER/Base" --tag "$BASE" "$FOLDER"
  rm "$FOLDER/base.tar"
}

build() {
  unpack_tools
  make_base
  local certificates=()
  if [ -n "${SSL_CERT_FILE:-}" ]; then
    certificates=(--secret "id=ca,src=$SSL_CERT_FILE" --build-arg SSL_CERT_FILE=/run/secrets/ca)
  fi
  buildah build --signature-policy "$TOOLS/etc/containers/policy.json" --pull-never --network host \
    "${certificates[@]}" --tag "$IMAGE" "$@" "$REPOSITORY"
  buildah images
}

run() {
  local container code=0 options=()
  while [ "${1:-}" != -- ]; do
    [ $# -gt 0 ] || usage
    options+=("$1")
    shift
  done
  container=$(buildah from --pull-never --signature-policy "$TOOLS/etc/containers/policy.json" "$IMAGE")
  buildah run --network host "${options[@]}" "$container" "$@" || code=$?
  buildah rm "$container" > /dev/null
  return "$code"
}

remove() {
  buildah rm --all > /dev/null
  buildah rmi --all > /dev/null
  rm -rf "$FOLDER"
}

[ $# -ge 2 ] || usage
VERB=$1
FOLDER=$(realpath -m "$2")
TOOLS="$FOLDER/tools"
shift 2
configure
case "$VERB" in
  build | run | remove) "$VERB" "$@" ;;
  *) usage ;;
esac
