#!/bin/sh
# A base image for the Dockerfile from what this machine has, for where no registry can be reached:
#
#   tests/containers/base.sh | docker import - graspd-base
#
# Writes an archive with a shell, a few tools, git, tini and certificates, each with the libraries
# it asks for. For tests and for a try: nobody sends it security updates.
set -eu

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# Puts a file where it is here, whatever it is a link to.
take() {
    mkdir -p "$root$(dirname "$1")"
    cp -L "$1" "$root$1"
}

# The file that a command is, into the place where everybody looks for it.
command_() {
    path=$(command -v "$1") || { echo "base.sh: $1 is not here" >&2; exit 1; }
    cp -L "$path" "$root/usr/bin/${2:-$1}"
    libraries "$path"
}

libraries() {
    # Lines like `libz.so.1 => /lib/libz.so.1 (0x…)`, and the loader alone: `/lib64/ld.so (0x…)`.
    { ldd "$1" 2>/dev/null || true; } | sed -n 's/^[^/]*\(\/[^ ]*\) (0x.*/\1/p' | while read -r library; do
        [ -e "$root$library" ] || take "$library"
    done
}

mkdir -p "$root/usr/bin" "$root/usr/local/bin" "$root/etc" "$root/proc" "$root/sys" "$root/dev" "$root/var/lib"
chmod 0755 "$root"
mkdir -m 1777 "$root/tmp"
ln -s usr/bin "$root/bin"

for name in cat chmod chown head id ls mkdir mv od rm sleep tr; do
    command_ "$name"
done
command_ dash sh
command_ tini
command_ git
# What git looks for beside itself: whatever it runs is built into the one file, under other names.
core=$(git --exec-path)
mkdir -p "$root$core"
for name in git git-index-pack git-pack-objects git-receive-pack git-rev-list git-unpack-objects git-upload-pack; do
    ln -s /usr/bin/git "$root$core/$name"
done
# What a program built here may ask for, besides the libraries of the above.
for name in libgcc_s.so.1 libm.so.6 libz.so.1; do
    library=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p | sed -n "s/^[[:space:]]*$name .*x86-64.* => //p; s/^[[:space:]]*$name .*AArch64.* => //p" | head -n 1)
    [ -z "$library" ] || [ -e "$root$library" ] || take "$library"
done

take /etc/ssl/certs/ca-certificates.crt
[ ! -e /etc/nsswitch.conf ] || take /etc/nsswitch.conf
echo 'root:x:0:0::/:/usr/sbin/nologin' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"

tar -C "$root" --numeric-owner --owner=0 --group=0 -c .
