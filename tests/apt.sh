# Sourced where a test needs packages of Debian: `apt_install PACKAGE ...` tries to install them where this is root's machine.
# One at a time: tests run beside each other, and apt-get does not wait for another.
apt_install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then return; fi
    {
        flock 9 || true
        apt-get update && apt-get install -y --no-install-recommends "$@"
    } 9> "${TMPDIR:-/tmp}/ptq-eval-apt.lock" > /dev/null 2>&1 || true
}
