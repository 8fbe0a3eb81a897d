"""Emulated machines (qemu, Debian's cloud kernel): `srv` exports /export by NFSv4.2 and runs Mosquitto; h1, h2, … are hosts that mount it on /srv/jobs.

Without KVM a machine boots in 20 to 40 s. The LAN exists in `srv` alone: a bridge over sockets on loopback, one for each host. Such a socket
does not connect again, so a machine whose power goes is reset, and its qemu stays. Needs root, mmdebstrap, qemu-system-x86 and e2fsprogs.
"""
import filecmp, os, shutil, socket, subprocess, tempfile, time

PACKAGES = "linux-image-cloud-amd64,nfs-kernel-server,nfs-common,mosquitto,iproute2,socat,kmod,procps,strace"


def build(directory):
    """Makes kernel, initrd and root file system there, in about 90 s, unless they are there."""
    init, made = os.path.dirname(os.path.abspath(__file__)) + "/init", directory + "/init"
    if os.path.exists(made) and filecmp.cmp(init, made, shallow=False):
        return
    os.makedirs(directory, exist_ok=True)
    root = tempfile.mkdtemp(dir=directory)
    subprocess.check_call(["mmdebstrap", "-q", "--variant=minbase", "--include=" + PACKAGES, "--dpkgopt=path-exclude=/usr/share/doc/*",
                           "--dpkgopt=path-exclude=/usr/share/locale/*", f"--customize-hook=copy-in {init} /", "bookworm", root])
    for kind in ("vmlinuz", "initrd.img"):
        name = next(name for name in os.listdir(root + "/boot") if name.startswith(kind + "-"))
        shutil.copy(f"{root}/boot/{name}", f"{directory}/{kind}")
    subprocess.check_call(["mke2fs", "-q", "-t", "ext4", "-d", root, directory + "/new.ext4", "700M"])
    os.rename(directory + "/new.ext4", directory + "/root.ext4")
    shutil.copy(init, made)
    shutil.rmtree(root)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(what, seconds, condition):
    """The time that it took; what is not there yet (OSError) is asked again. A machine that others use has longer."""
    start = time.time()
    while True:
        try:
            if condition():
                return time.time() - start
        except OSError:
            pass
        assert time.time() - start < seconds * max(1, os.getloadavg()[0] / os.cpu_count()), f"waited {seconds} s or longer in vain for {what() if callable(what) else what}"
        time.sleep(0.2)


class Lab:
    def __init__(self, directory, program, hosts=2, lease=15):
        self.images, self.program, self.lease = directory, program, lease
        self.names = ["srv"] + [f"h{n}" for n in range(1, hosts + 1)]
        self.port = {name: free_port() for name in self.names}
        self.lan = {name: free_port() for name in self.names[1:]}
        self.broker = free_port()
        self.scratch, self.qemu = tempfile.mkdtemp(dir=directory), {}
        with open(self.scratch + "/export", "wb") as export:
            export.truncate(1 << 30)

    def __enter__(self):
        try:
            for name in self.names:
                self.start(name)
                wait_for("its sockets", 20, lambda: os.path.exists(f"{self.scratch}/{name}.monitor"))
            for name in self.names:
                self.up(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for qemu in self.qemu.values():
            qemu.kill()
            qemu.wait()
        shutil.rmtree(self.scratch)

    def start(self, name):
        number, srv = self.names.index(name), name == "srv"
        drive = lambda file, rest: ["-drive", f"file={file},if=virtio,format=raw,{rest}"]
        card = lambda id, net, mac: ["-netdev", net, "-device", f"virtio-net-pci,netdev={id},romfile=,mac=52:54:00:{mac}"]
        forward = f",hostfwd=tcp:127.0.0.1:{self.broker}-:1883" if srv else ""
        command = ["nice", "-n", os.environ.get("NICE", "10"), "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,tb-size=128", "-cpu", "max", "-m", "640" if srv else "384", "-nographic",
                   "-kernel", self.images + "/vmlinuz", "-initrd", self.images + "/initrd.img", "-monitor", f"unix:{self.scratch}/{name}.monitor,server,nowait",
                   "-serial", f"file:{self.scratch}/{name}.console", "-append", "root=/dev/vda rw init=/init console=ttyS0 quiet panic=1 no_timer_check "
                   f"vm.name={name} vm.lease={self.lease} vm.program={os.path.getsize(self.program)}"]
        command += drive(self.images + "/root.ext4", "snapshot=on") + drive(self.program, "readonly=on")
        command += card("control", f"user,id=control,restrict=on,hostfwd=tcp:127.0.0.1:{self.port[name]}-:7000{forward}", f"00:00:0{number}")
        if srv:
            command += drive(self.scratch + "/export", "cache=writeback")
            for n, host in enumerate(self.names[1:], 1):
                command += card(f"lan{n}", f"socket,id=lan{n},listen=127.0.0.1:{self.lan[host]}", f"01:00:0{n}")
        else:
            command += card("lan", f"socket,id=lan,connect=127.0.0.1:{self.lan[name]}", f"02:00:0{number}")
        with open(self.scratch + f"/{name}.qemu", "w") as log:
            self.qemu[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def up(self, name):
        """Waits until the machine answers; a host mounts the drive then. With one host, `srv` is another."""
        wait_for(f"{name} to boot", 300, lambda: "up" in self.sh(name, "echo up", 5))
        if name != "srv" or len(self.names) == 2:
            mount = "grep nfs4 /proc/mounts || mount -t nfs4 -o vers=4.2 10.9.0.1:/ /srv/jobs; grep nfs4 /proc/mounts"
            wait_for(f"{name} to mount the drive", 90, lambda: "vers=4.2" in self.sh(name, mount, 60))

    def sh(self, name, command, seconds=60):
        """What a command prints there."""
        with socket.create_connection(("127.0.0.1", self.port[name]), seconds) as control:
            control.settimeout(seconds)
            control.sendall(f"exec 2>&1\n{command}\nexit\n".encode())
            return b"".join(iter(lambda: control.recv(65536), b"")).decode(errors="replace")

    def monitor(self, name, command):
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(f"{self.scratch}/{name}.monitor")
            monitor.sendall(f"{command}\n".encode())
            time.sleep(0.3)  # else it drops what it has not read

    def reset(self, name):
        """The power goes, and comes back; `up` waits for the machine."""
        self.monitor(name, "system_reset")

    def cable(self, name, state):
        self.monitor(name, f"set_link lan {state}")
