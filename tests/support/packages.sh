# Sourced by the scripts beside it.

can_install() { [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && command -v apt-get >/dev/null; }

# install PACKAGE...: those that are missing, from Debian, without starting any service.
install() {
  local missing=() package
  for package in "$@"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
      missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  echo "installing ${missing[*]}" >&2
  # Packages start their services unless this policy forbids it (see invoke-rc.d(8)).
  local policy=/usr/sbin/policy-rc.d made=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    made=1
  fi
  local status=0
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >&2 || status=$?
  [ -z "$made" ] || rm -f "$policy"
  return "$status"
}

# unpack_plugin NAME PACKAGE FOLDER: put docker's plugin NAME there, from the package of a later suite;
# nothing is installed.
unpack_plugin() {
  local work mirror options
  work=$(mktemp -d)
  trap "rm -rf '$work'" EXIT
  chmod 755 "$work"
  mkdir -p "$work"/{lists/partial,cache/archives/partial} "$3"
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/list"
  options=(-o Dir::Etc::sourcelist="$work/list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" -qq update >&2
  (cd "$work" && apt-get "${options[@]}" -qq download "$2/sid" >&2 && dpkg-deb -x "$2"_*.deb unpacked)
  command install -m755 "$work/unpacked/usr/libexec/docker/cli-plugins/$1" "$3/.fresh"
  mv "$3/.fresh" "$3/$1"
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}
