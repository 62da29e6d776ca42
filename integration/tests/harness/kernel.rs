//! A kernel that this machine does not have: that of a distribution, booted in a machine made of software,
//! with the very harness that asks for it as its only program (`scripts/setup` gets both).
//!
//! ```text
//!  qemu (TCG) ─ kernel ─ initramfs: busybox, modules, programs, the harness ─ GUEST=1 /harness ─► serial console
//! ```

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::harness::Must as _;

/// What the guest says last.
const VERDICT: &str = "the harness ended with ";
/// Where modules are in the guest.
pub(crate) const MODULES_DIR: &str = "/modules";
/// Where busybox, linked statically, may be.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];

/// What a harness wants there.
pub(crate) struct Guest {
    /// In its environment, which tells it where it is.
    pub(crate) variable: &'static str,
    /// Modules, which come with those that they need. One that ends in `*` stands for all that begin so.
    pub(crate) modules: &'static [&'static str],
    /// Programs of this machine, and what they load: each under its path, with the libraries that it needs.
    pub(crate) files: Vec<PathBuf>,
    /// Programs that busybox stands for.
    pub(crate) applets: &'static [&'static str],
    pub(crate) limit: Duration,
}

impl Guest {
    /// Runs the harness there until it ends, which must pass; what the guest wrote to its console.
    #[track_caller]
    pub(crate) fn run(&self) -> String {
        if !cfg!(target_arch = "x86_64") {
            eprintln!("the guest is one of x86_64: nothing is shown here");
            return String::new();
        }
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/guest/root");
        assert!(tools.exists(), "{} is missing: run scripts/setup", tools.display());
        let work = tempfile::tempdir().must("a directory");
        let image = work.path().join("initramfs");
        fs::write(&image, self.initramfs(&tools, work.path()).must("make the initramfs")).must("write the initramfs");
        let console = boot(&tools, &kernel(&tools).must("a kernel"), &image, self.limit);
        let verdict = console.lines().find_map(|line| line.split_once(VERDICT)).map(|(_, code)| code.trim());
        let passed = console.contains("test result: ok") && !console.contains(" 0 passed");
        assert!(verdict == Some("0") && passed, "{console}");
        console
    }

    fn initramfs(&self, tools: &Path, work: &Path) -> io::Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in ["bin", "dev", "proc", "sys", "tmp", "run", "modules"] {
            archive.folder(folder);
        }
        archive.console();
        let busybox = BUSYBOX.into_iter().find(|path| Path::new(path).exists());
        let busybox = busybox.ok_or_else(|| io::Error::other("busybox is not installed: run scripts/setup"))?;
        archive.file("bin/busybox", &fs::read(busybox)?);
        for applet in self.applets {
            archive.link(&format!("bin/{applet}"), "busybox");
        }

        // Without its symbols it is a third.
        let (exe, stripped) = (std::env::current_exe()?, work.join("harness"));
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(&exe).status()?;
        if !status.success() {
            return Err(io::Error::other("strip failed"));
        }
        archive.file("harness", &fs::read(&stripped)?);
        archive.libraries(&exe)?;
        for file in &self.files {
            let path = file.to_string_lossy();
            archive.file(path.trim_start_matches('/'), &fs::read(file)?);
            archive.libraries(file)?;
        }

        let mut load = String::new();
        for (name, bytes) in modules(tools, self.modules)? {
            archive.file(&format!("modules/{name}.ko"), &bytes);
            load += &format!("/bin/busybox insmod {MODULES_DIR}/{name}.ko || echo 'cannot load {name}'\n");
        }
        let init = format!(
            "#!/bin/busybox sh\n\
             /bin/busybox mount -t devtmpfs dev /dev\n\
             /bin/busybox mount -t proc proc /proc\n\
             /bin/busybox mount -t sysfs sys /sys\n\
             /bin/busybox mount -t tmpfs tmp /tmp\n\
             {load}\
             /bin/busybox ifconfig lo up\n\
             export PATH=/bin {}=1 RUST_BACKTRACE=1\n\
             /harness --color never 2>&1\n\
             echo \"{VERDICT}$?\"\n\
             /bin/busybox poweroff -f\n",
            self.variable
        );
        archive.file("init", init.as_bytes());
        Ok(archive.end())
    }
}

fn kernel(tools: &Path) -> io::Result<PathBuf> {
    let found = fs::read_dir(tools.join("boot"))?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_kernel =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    found.filter(is_kernel).max().ok_or_else(|| io::Error::other("no kernel was unpacked"))
}

/// Runs the machine until it ends by itself; what it wrote to its console.
fn boot(tools: &Path, kernel: &Path, image: &Path, limit: Duration) -> String {
    let library = |at: &str| tools.join(at).join("x86_64-linux-gnu");
    let (own, base) = (library("usr/lib"), library("lib"));
    let mut command = Command::new(tools.join("usr/bin/qemu-system-x86_64"));
    command.env("LD_LIBRARY_PATH", format!("{}:{}", own.display(), base.display()));
    command.env("QEMU_MODULE_DIR", own.join("qemu"));
    for folder in ["usr/share/qemu", "usr/share/seabios"] {
        command.arg("-L").arg(tools.join(folder));
    }
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536", "-nodefaults"]);
    command.args(["-no-reboot", "-display", "none", "-serial", "stdio", "-append", "console=ttyS0 panic=-1 quiet"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut child = child.must("start qemu");
    let mut output = child.stdout.take().must("its output");
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read until then is shown in any case.
        let _ = output.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let end = Instant::now() + limit;
    let ended = loop {
        match child.try_wait().must("wait for qemu") {
            Some(status) => break Some(status),
            None if Instant::now() > end => break None,
            None => thread::sleep(Duration::from_millis(50)),
        }
    };
    if ended.is_none() {
        child.kill().must("end qemu");
        child.wait().must("wait for qemu");
    }
    let console = reader.join().expect("the reader does not panic");
    assert!(ended.is_some_and(|status| status.success()), "the guest ended with {ended:?}:\n{console}");
    console
}

/// The modules that are needed, each behind those that it needs.
fn modules(tools: &Path, wanted: &[&str]) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    find_modules(&tools.join("lib/modules"), &mut all)?;
    if all.is_empty() {
        find_modules(&tools.join("usr/lib/modules"), &mut all)?;
    }
    // What the kernel has built in is no file; what is missing is noticed when it is used.
    let (mut seen, mut ordered) = (BTreeSet::new(), Vec::new());
    for &wanted in wanted {
        let is_wanted = |name: &str| match wanted.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == wanted,
        };
        for (name, _) in all.iter().filter(|(name, _)| is_wanted(name)) {
            add_module(name, &all, &mut seen, &mut ordered)?;
        }
    }
    Ok(ordered)
}

fn add_module(
    name: &str,
    all: &[(String, PathBuf)],
    seen: &mut BTreeSet<String>,
    ordered: &mut Vec<(String, Vec<u8>)>,
) -> io::Result<()> {
    let Some((_, path)) = all.iter().find(|(known, _)| known == name) else { return Ok(()) };
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let bytes = fs::read(path)?;
    for needed in needs(&bytes) {
        add_module(&needed, all, seen, ordered)?;
    }
    ordered.push((name.to_owned(), bytes));
    Ok(())
}

/// What a module says that it needs: `depends=a,b`, with a zero at its end.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = memchr::memmem::find(module, KEY) else { return Vec::new() };
    let text = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(text).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn find_modules(folder: &Path, all: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, all)?;
        } else if path.extension().is_some_and(|ending| ending == "ko")
            && let Some(name) = path.file_stem()
        {
            all.push((name.to_string_lossy().replace('-', "_"), path));
        }
    }
    Ok(())
}

/// An archive of the kernel's kind: cpio, "newc".
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
    count: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) {
        self.count += 1;
        let (length, name_length) = (data.len() as u32, name.len() as u32 + 1);
        let fields = [self.count, mode, 0, 0, 1, 0, length, 0, 0, device.0, device.1, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // Writing to a vector does not fail.
            let _ = write!(self.bytes, "{field:08X}");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.fill();
        self.bytes.extend_from_slice(data);
        self.fill();
    }

    /// To a multiple of four.
    fn fill(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    fn folder(&mut self, name: &str) {
        if self.names.insert(name.to_owned()) {
            self.entry(name, 0o040_755, &[], (0, 0));
        }
    }

    /// Once: several programs need one library.
    fn file(&mut self, name: &str, data: &[u8]) {
        if self.names.insert(name.to_owned()) {
            for (at, _) in name.match_indices('/') {
                self.folder(&name[..at]);
            }
            self.entry(name, 0o100_755, data, (0, 0));
        }
    }

    fn link(&mut self, name: &str, target: &str) {
        self.entry(name, 0o120_777, target.as_bytes(), (0, 0));
    }

    /// Those that a program of this machine is linked with.
    fn libraries(&mut self, program: &Path) -> io::Result<()> {
        let libraries = Command::new("ldd").arg(program).output()?;
        for line in String::from_utf8_lossy(&libraries.stdout).lines() {
            if let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.file(path.trim_start_matches('/'), &fs::read(path)?);
            }
        }
        Ok(())
    }

    /// What the first program writes to.
    fn console(&mut self) {
        self.entry("dev/console", 0o020_600, &[], (5, 1));
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }
}
