#!/bin/sh
# First process of the emulated machine: runs every program of /programs on the serial console, then waits to be ended.
export PATH=/bin HOME=/tmp RUST_BACKTRACE=1
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
exec </dev/null >/dev/ttyS0 2>&1
. /settings.sh

for program in /programs/*; do
    name=${program##*/}
    echo "emulate: start ${name#*.} $program_arguments"
    cd "$working_directory" || cd /
    # shellcheck disable=SC2086  # the arguments are words
    "$program" $program_arguments
    echo "emulate: exit $? ${name#*.} after $(cut -d' ' -f1 /proc/uptime) emulated seconds"
done
echo "emulate: done"
# The host ends the emulator when it reads the line above.
sleep 1000000
