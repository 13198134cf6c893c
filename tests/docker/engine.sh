#!/bin/sh
# A Docker engine for the tests where there is none: Debian 12, root, no systemd needed.
#
#   engine.sh start   install what is missing, start dockerd unless an engine answers already
#   engine.sh stop    stop the one that `start` started
#
# `start` exits with 3 and says why where it can't be done.
set -eu

state=${TMPDIR:-/tmp}/repo-builder-docker-engine
cannot() { echo "no Docker engine: $*" >&2; exit 3; }
answers() { docker version >/dev/null 2>&1; }

install_packages() {
  command -v apt-get >/dev/null || cannot "this is no Debian"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    docker.io iptables debootstrap docker-registry >/dev/null 2>&1 || cannot "docker.io can't be installed"
}

# Debian 12 has Compose 1 only; version 2 is one static program, taken out of Debian 13's package.
install_compose() {
  work=$(mktemp -d) && mkdir -p "$work/lists/partial" && chmod -R a+rx "$work" || return 1
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" > "$work/sources.list"
  set -- -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=/dev/null \
    -o Dir::State::lists="$work/lists"
  apt-get "$@" update \
    && (cd "$work" && apt-get "$@" download docker-compose 2>/dev/null) \
    && dpkg-deb -x "$work"/docker-compose_*.deb "$work/root" \
    && install -D "$work/root/usr/libexec/docker/cli-plugins/docker-compose" \
      /usr/local/lib/docker/cli-plugins/docker-compose
  done=$?
  rm -rf "$work"
  return $done
}

start() {
  if ! answers; then
    [ "$(id -u)" = 0 ] || cannot "none answers, and only root can start one"
    command -v dockerd >/dev/null || install_packages
    mkdir -p "$state"
    setsid dockerd --data-root /var/lib/repo-builder-docker > "$state/log" 2>&1 < /dev/null &
    echo $! > "$state/pid"
    tries=0
    until answers; do
      tries=$((tries + 1))
      [ $tries -lt 60 ] && kill -0 "$(cat "$state/pid")" 2>/dev/null || {
        tail -3 "$state/log" >&2
        stop
        cannot "dockerd does not start"
      }
      sleep 0.5
    done
  fi
  [ "$(id -u)" != 0 ] || command -v debootstrap >/dev/null || install_packages
  docker compose version >/dev/null 2>&1 || install_compose || cannot "Compose 2 can't be installed"
}

stop() {
  [ -s "$state/pid" ] || return 0
  kill "$(cat "$state/pid")" 2>/dev/null || true
  while kill -0 "$(cat "$state/pid")" 2>/dev/null; do sleep 0.2; done
  rm -rf "$state"
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) sed -n '2,8p' "$0"; exit 2 ;;
esac
