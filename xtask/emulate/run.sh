#!/usr/bin/env bash
# Runs programs on an emulated processor with AVX-512 (F, BW, DQ, VL, VNNI), for machines that lack it.
#
#   xtask/emulate/run.sh --probe                        shows that the emulated processor has the instructions
#   xtask/emulate/run.sh BINARY... [-- ARGUMENT...]     runs each statically linked binary with the arguments
#
# The exit status is the largest of the programs'. How to make such binaries, and what it costs: docs/emulation.md.
#   BOCHS=PATH              an emulator of your own instead of Debian's (a build without debugger is several times faster)
#   EMULATE_SECONDS=N       give up after N seconds (default 3600)
#   EMULATE_MEGABYTES=N     memory of the emulated machine (default 1536)
#   EMULATE_FILES="PATH..." files and directories to carry along, found there under the same absolute path
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$here/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/forestream-emulate
kernel=$cache/kernel-$(sha256sum "$here/kernel.config" | cut -c1-16)
bochs=${BOCHS:-bochs-bin}
mkdir -p "$cache"
work=$(mktemp -d "$cache/run.XXXXXX")
emulator=
trap '[[ -z $emulator ]] || kill "$emulator" 2>/dev/null || true; rm -rf "$work"' EXIT

fail() {
    printf 'emulate: %s\n' "$*" >&2
    exit 1
}

install_packages() {
    local packages=(bochs bochs-term bochsbios vgabios isolinux syslinux-common genisoimage cpio busybox-static)
    [[ -f $kernel ]] || packages+=(gcc libc6-dev make flex bison bc libelf-dev lz4 xz-utils)
    local missing=() package
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep 'ok installed' >/dev/null || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    local as_root=()
    [[ $(id -u) == 0 ]] || as_root=(sudo -n)
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 || fail "install these first: ${missing[*]}"
}

# A kernel of a few drivers boots in a tenth of the instructions that a distribution's kernel takes.
build_kernel() {
    [[ ! -f $kernel ]] || return 0
    local package build=$work/kernel
    package=$(apt-cache depends linux-source | awk '/Depends: linux-source-/ { print $2; exit }')
    [[ -n $package ]] || fail "no linux-source package; run apt-get update"
    mkdir -p "$build"
    (cd "$build" && apt-get download -qq "$package" && dpkg-deb -x "$package"_*.deb . && tar xf usr/src/"$package".tar.xz)
    cd "$build/$package"
    make -s tinyconfig >/dev/null
    ./scripts/kconfig/merge_config.sh -m .config "$here/kernel.config" >/dev/null
    make -s olddefconfig
    make -s -j"$(nproc)" bzImage
    cp arch/x86/boot/bzImage "$kernel.new"
    mv "$kernel.new" "$kernel"
    cd "$repository"
    rm -rf "$build"
}

build_probe() {
    rustc --edition 2024 -O -C target-feature=+crt-static -C strip=symbols --target x86_64-unknown-linux-gnu \
        -o "$work/probe" "$here/probe.rs"
}

# The root directory of the guest, in $work/root: busybox, the programs in order, the test data at its usual place.
lay_out_root() {
    local root=$work/root index=0 path
    mkdir -p "$root"/{bin,dev,proc,tmp,programs}
    # Tests find the data from the directory of their package.
    (cd "$repository" && find crates -maxdepth 1 -type d -exec mkdir -p "$root$repository/{}" \;)
    cp "$(command -v busybox)" "$root/bin/busybox"
    ln -s busybox "$root/bin/sh"
    install -m 755 "$here/init.sh" "$root/init"
    printf 'program_arguments=%q\nworking_directory=%q\n' "$arguments" "$repository" >"$root/settings.sh"
    for path in "${binaries[@]}"; do
        [[ -x $path ]] || fail "$path: no such program"
        if ldd "$path" 2>/dev/null | grep '=>' >/dev/null; then
            fail "$path: dynamically linked; build it with RUSTFLAGS='-C target-feature=+crt-static' (docs/emulation.md)"
        fi
        strip -o "$root/programs/$((100 + index)).$(basename "$path")" "$path"
        index=$((index + 1))
    done
    # shellcheck disable=SC2086  # a list of words
    for path in "$repository/testdata" ${EMULATE_FILES:-}; do
        [[ -e $path ]] || continue
        path=$(realpath "$path")
        mkdir -p "$root$(dirname "$path")"
        cp -rL "$path" "$root$path"
    done
}

# The command line: the processor counts 50 million cycles a second, not what its name promises; `fsrm` without `erms`,
# which the emulator switches off, makes the kernel copy short texts wrongly; without `arat` the first timer is started;
# nobody types, so randomness must come from the processor; the sizes of compact register areas, with keys of pages among them, are wrong in Bochs 2.7, and AVX would be given up.
make_disc() {
    mkdir -p "$work/disc"
    (cd "$work/root" && find . | cpio -o -H newc --quiet --owner=0:0) >"$work/disc/initrd"
    cp "$kernel" "$work/disc/kernel"
    cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/disc/"
    cat >"$work/disc/isolinux.cfg" <<'END'
default linux
label linux
    kernel kernel
    append initrd=initrd console=ttyS0,115200 quiet loglevel=1 rdinit=/init tsc_early_khz=50000 clearcpuid=fsrm,arat,pku,xsavec,xsaves random.trust_cpu=on
END
    genisoimage -quiet -o "$work/disc.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table \
        "$work/disc"
}

# Debian's emulator has a debugger, which waits for `continue`, and shows its screen on a terminal, which `script` plays.
start_emulator() {
    local display=nogui command
    command=("$bochs" -q -f "$work/bochsrc")
    if "$bochs" --help 2>&1 | grep -- '-rc ' >/dev/null; then
        echo continue >"$work/rc"
        command+=(-rc "$work/rc")
        display=term
    fi
    cat >"$work/bochsrc" <<END
config_interface: textconfig
display_library: $display
cpu: model=tigerlake, count=1, ips=50000000, reset_on_triple_fault=0
memory: guest=$megabytes, host=$megabytes
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=$work/disc.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
clock: sync=none
log: $work/log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
END
    : >"$work/serial"
    TERM=xterm timeout "$seconds" script -qfec "exec ${command[*]@Q}" /dev/null </dev/null >"$work/screen" 2>&1 &
    emulator=$!
}

# Prints the console as it comes, without the carriage returns of a serial line, and ends the emulator.
show_until_done() {
    tail -n +1 -f --pid="$emulator" "$work/serial" | sed -u 's/\r$//' &
    local viewer=$!
    until grep -q '^emulate: done' "$work/serial" || ! kill -0 "$emulator" 2>/dev/null; do
        sleep 0.5
    done
    kill "$emulator" 2>/dev/null || true
    wait "$emulator" 2>/dev/null || true
    emulator=
    wait "$viewer"
}

exit_status() {
    tr -d '\r' <"$work/serial" | awk '
        /^emulate: exit / { if ($3 > worst) worst = $3 }
        /^emulate: done$/ { done = 1 }
        END { print done ? worst + 0 : 124 }'
}

binaries=() arguments='' probe=''
while (($#)); do
    case $1 in
    --probe) probe=1 ;;
    --) arguments=${*:2} && break ;;
    -*) fail "unknown option $1; see the head of ${BASH_SOURCE[0]}" ;;
    *) binaries+=("$(realpath "$1")") ;;
    esac
    shift
done
seconds=${EMULATE_SECONDS:-3600} megabytes=${EMULATE_MEGABYTES:-1536}
[[ -n $probe || ${#binaries[@]} -gt 0 ]] || fail "no program given; see the head of ${BASH_SOURCE[0]}"

install_packages
build_kernel
if [[ -n $probe ]]; then
    build_probe
    binaries+=("$work/probe")
fi
lay_out_root
make_disc
start_emulator
show_until_done
status=$(exit_status)
if [[ $status == 124 ]]; then
    tail -n 20 "$work/log" >&2 2>/dev/null || true
    fail "the machine did not finish within $seconds seconds"
fi
exit "$status"
