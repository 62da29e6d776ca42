//! A Docker engine of the test's own: its network is a host of the lab, all else is its own too.
//!
//! ```text
//!   test ─ stdin ─► bash (own mount namespace, own /run)        ends all below when stdin ends, and the
//!                     │                                         engine when told to
//!                     └── dockerd (network of host N, own cgroup parent, data, socket)
//!                           └── containerd ── shim ── container
//! ```
//!
//! The shell is what makes it leave nothing behind, even if the test is killed.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use weft::lab::{Host, wait_until};

use crate::busybox::{PATH, find, make_root};

/// Programs that the tests need and `scripts/setup` installs.
const PROGRAMS: [&str; 8] = ["dockerd", "containerd", "runc", "iptables", "docker", "docker-compose", "busybox", "tar"];
/// Name of the image that [`Engine::start`] makes.
pub(crate) const IMAGE: &str = "box";
/// Longest time for a command or for an engine to come or go.
const LIMIT: Duration = Duration::from_secs(30);

/// From when the test ends (or is killed) to when nothing of the engine is left.
const KEEPER: &str = r#"
set -u
# What is hidden below would be in the list of mounts still, which the engine reads.
cut -d ' ' -f 5 /proc/self/mountinfo | grep '^/run/' | tac | xargs -r -n 1 umount -l
mount -t tmpfs tmpfs /run
mkdir -p /run/docker/plugins "$DIR/plugins"
mount --bind "$DIR/plugins" /run/docker/plugins
start() {
dockerd --host "unix://$DIR/docker.sock" --data-root "$DIR/data" --exec-root "$DIR/exec" \
  --pidfile "$DIR/docker.pid" --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent "/$GROUP" \
  --storage-driver vfs </dev/null >>"$DIR/log" 2>&1 &
engine=$!
}
start
while read -r word; do
  case $word in
    kill) kill -KILL $engine; wait $engine ;;
    stop) kill -TERM $engine; wait $engine; echo "stopped" >>"$DIR/log" ;;
    start) start ;;
  esac
done
docker ps -aq | xargs -r docker rm -f >/dev/null 2>&1
kill -TERM $engine 2>/dev/null
for _ in $(seq 100); do kill -0 $engine 2>/dev/null || break; sleep 0.1; done
kill -KILL $engine 2>/dev/null
wait $engine
find /sys/fs/cgroup -depth -type d -path "*/$GROUP*" -exec rmdir {} + 2>/dev/null
exit 0
"#;

/// The first program that is not there.
pub(crate) fn missing_program() -> Option<&'static str> {
    PROGRAMS.into_iter().find(|name| find(name).is_none())
}

/// Parent of the control groups of an engine's containers.
pub(crate) fn group(host: &str) -> String {
    format!("weft-test-{}-{host}", std::process::id())
}

/// A running engine; it ends when it is dropped.
pub(crate) struct Engine {
    dir: PathBuf,
    /// Parent of the control groups of its containers.
    group: String,
    keeper: Child,
    /// Its end is what tells the keeper to clean up.
    stdin: Option<ChildStdin>,
}

impl Engine {
    /// Starts an engine on a host, with its files in `dir`, and gives it an image with busybox.
    pub(crate) fn start(host: &Host, dir: PathBuf) -> io::Result<Self> {
        let (keeper, stdin) = Self::keeper(host, &dir)?;
        let engine = Self { dir, group: group(host.name()), keeper, stdin };
        engine.wait()?;
        engine.import_image()?;
        Ok(engine)
    }

    fn keeper(host: &Host, dir: &Path) -> io::Result<(Child, Option<ChildStdin>)> {
        fs::create_dir_all(dir)?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "bash", "-c", KEEPER])
            .env("PATH", PATH)
            .env("DIR", dir)
            .env("GROUP", group(host.name()))
            .env("DOCKER_HOST", format!("unix://{}", dir.join("docker.sock").display()))
            .stdin(Stdio::piped());
        // A child is born in the network namespace of the thread that starts it.
        let mut keeper = host.namespace().run(|| command.spawn()).map_err(io::Error::other)??;
        let stdin = keeper.stdin.take();
        Ok((keeper, stdin))
    }

    /// Waits until it answers: its containers that are to be started again are started then.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let answers = wait_until(LIMIT, || self.docker(&["version"]).is_ok());
        if answers { Ok(()) } else { Err(io::Error::other(format!("the engine does not answer:\n{}", self.log()))) }
    }

    /// Ends it and its containers as a machine does that loses its power: nobody sees another's end. What is left
    /// is what is on a disk.
    pub(crate) fn lose_power(&mut self) -> io::Result<()> {
        let mut victims: BTreeSet<i32> = BTreeSet::new();
        // None of them is left to start another, and none to see that one is dead, before the first is killed.
        while let Some(next) = self.processes()?.into_iter().find(|pid| !victims.contains(pid)) {
            signal(next, Signal::STOP);
            victims.insert(next);
        }
        victims.iter().for_each(|pid| signal(*pid, Signal::KILL));
        self.keeper.wait()?;
        let own = i32::try_from(self.keeper.id()).unwrap_or(0);
        victims.remove(&own);
        // They become our children, one after the other.
        let gone = wait_until(LIMIT, || {
            victims.retain(|pid| {
                let _ = waitpid(Pid::from_raw(*pid), WaitOptions::NOHANG);
                Path::new(&format!("/proc/{pid}")).exists()
            });
            victims.is_empty()
        });
        if !gone {
            return Err(io::Error::other(format!("processes of the engine are left: {victims:?}")));
        }
        drop(self.stdin.take());
        // All of these are in /run or /sys, of which a machine that starts again has nothing.
        for file in ["docker.sock", "docker.pid"] {
            fs::remove_file(self.dir.join(file))?;
        }
        for directory in ["exec", "plugins"] {
            fs::remove_dir_all(self.dir.join(directory))?;
        }
        // As a unit of the router's makes it anew.
        fs::create_dir(self.dir.join("plugins"))?;
        let ours = format!("*/{}*", self.group);
        let find = ["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &ours, "-exec", "rmdir", "{}", "+"];
        Command::new("find").args(find).env("PATH", PATH).stderr(Stdio::null()).status().map(drop)
    }

    /// Starts it again, on what its host is now, and does not wait for it.
    pub(crate) fn boot(&mut self, host: &Host) -> io::Result<()> {
        fs::rename(self.dir.join("log"), self.dir.join("log.before"))?;
        (self.keeper, self.stdin) = Self::keeper(host, &self.dir)?;
        Ok(())
    }

    /// Its own processes and those of its containers: they are in its mounts, or in its control groups.
    fn processes(&self) -> io::Result<Vec<i32>> {
        let mounts = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
        let ours = mounts(&self.keeper.id().to_string())?;
        let is_ours = |pid: &str| {
            let group = || fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            mounts(pid).is_ok_and(|theirs| theirs == ours) || group().contains(&format!("/{}/", self.group))
        };
        let entries = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(entries.filter(|pid| is_ours(pid)).filter_map(|pid| pid.parse().ok()).collect())
    }

    /// Ends the engine as a crash would, and starts it again.
    pub(crate) fn crash(&mut self) -> io::Result<()> {
        let file = self.dir.join("docker.pid");
        let pid = || fs::read_to_string(&file).unwrap_or_default();
        let before = pid();
        self.tell("kill")?;
        // Its containerd dies with it. We are the one to bury it: an engine waits for one that is there, dead or not.
        let containerd = fs::read_to_string(self.dir.join("exec/containerd/containerd.pid"))?;
        let containerd = containerd.trim().parse().ok().and_then(Pid::from_raw);
        if !wait_until(LIMIT, || matches!(waitpid(containerd, WaitOptions::NOHANG), Ok(Some(_)))) {
            return Err(io::Error::other("the engine's containerd outlives it"));
        }
        self.tell("start")?;
        let back = wait_until(LIMIT, || !pid().is_empty() && pid() != before && self.docker(&["version"]).is_ok());
        if back { Ok(()) } else { Err(io::Error::other("the engine does not come back")) }
    }

    /// Ends the engine as its service does, with its containers, and starts it again.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        let before = self.log_has("stopped");
        self.tell("stop")?;
        if !wait_until(LIMIT, || self.log_has("stopped") > before) {
            return Err(io::Error::other("the engine does not end"));
        }
        self.tell("start")?;
        self.wait()
    }

    /// How many of its lines are this.
    fn log_has(&self, line: &str) -> usize {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        text.lines().filter(|found| *found == line).count()
    }

    fn tell(&mut self, word: &str) -> io::Result<()> {
        let stdin = self.stdin.as_mut().ok_or_else(|| io::Error::other("the engine has ended"))?;
        writeln!(stdin, "{word}")
    }

    /// Begins a command in the engine's own mounts and in the network of its host.
    pub(crate) fn enter(&self) -> Command {
        let of = |kind: &str, file: &str| format!("--{kind}=/proc/{}/ns/{file}", self.keeper.id());
        let mut command = Command::new("nsenter");
        command.args([of("mount", "mnt"), of("net", "net")]).env("PATH", PATH);
        command
    }

    /// Where it looks for the drivers of the router.
    pub(crate) fn plugin(&self) -> PathBuf {
        self.dir.join("plugins/weft.sock")
    }

    /// What `DOCKER_HOST` must be to reach it.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.dir.join("docker.sock").display())
    }

    /// Runs a `docker` command: what it prints, or an error with what it complains of.
    pub(crate) fn docker(&self, args: &[&str]) -> io::Result<String> {
        let output = self.command().args(args).stdin(Stdio::null()).output()?;
        text_of(&output, &args.join(" "))
    }

    /// As [`Self::docker`], for what waits for a router that is away.
    pub(crate) fn patient(&self, args: &[&str]) -> io::Result<String> {
        let mut command = Command::new("docker");
        command.env("PATH", PATH).env("DOCKER_HOST", self.host());
        text_of(&command.args(args).stdin(Stdio::null()).output()?, &args.join(" "))
    }

    /// Starts a container that runs until it is removed, serving `/data` over HTTP.
    pub(crate) fn run(&self, name: &str, more: &[&str]) -> io::Result<()> {
        let mut args = vec!["run", "-d", "--name", name];
        args.extend(more);
        args.extend([IMAGE, "httpd", "-f", "-p", "80", "-h", "/srv"]);
        self.docker(&args).map(drop)
    }

    /// The end of what a container wrote.
    pub(crate) fn logs(&self, name: &str) -> String {
        let output = self.command().args(["logs", "--tail", "30", name]).stdin(Stdio::null()).output();
        match output {
            Ok(output) => String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Runs a command in a container.
    pub(crate) fn exec(&self, name: &str, command: &[&str]) -> io::Result<String> {
        self.docker(&[&["exec", name], command].concat())
    }

    fn command(&self) -> Command {
        let mut command = Command::new("timeout");
        command.args([&LIMIT.as_secs().to_string(), "docker"]).env("PATH", PATH).env("DOCKER_HOST", self.host());
        command
    }

    /// A root of busybox and one file to fetch, imported without any registry.
    fn import_image(&self) -> io::Result<()> {
        let root = self.dir.join("root");
        let applets = ["sh", "httpd", "wget", "ping", "ip", "sha256sum", "cat", "sleep"];
        make_root(&root, &applets, "data", super::data().as_ref())?;
        self.import(&root, IMAGE, &[])
    }

    /// Makes an image of a directory, with instructions as in a Dockerfile.
    pub(crate) fn import(&self, root: &Path, name: &str, instructions: &[&str]) -> io::Result<()> {
        let mut tar = Command::new("tar").arg("-C").arg(root).args(["-c", "."]).stdout(Stdio::piped()).spawn()?;
        let archive = tar.stdout.take().ok_or_else(|| io::Error::other("tar has no output"))?;
        let changes = instructions.iter().flat_map(|line| ["-c", *line]);
        let output = self.command().arg("import").args(changes).args(["-", name]).stdin(archive).output()?;
        tar.wait()?;
        text_of(&output, "import").map(drop)
    }

    /// The directory of its files.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The end of what the engine wrote.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Ends the engine and its containers; false if that took too long.
    pub(crate) fn end(&mut self) -> bool {
        drop(self.stdin.take());
        let ended = wait_until(LIMIT, || !matches!(self.keeper.try_wait(), Ok(None)));
        if !ended {
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
        ended
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

fn text_of(output: &Output, what: &str) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("docker {what}: {}: {}", output.status, said.trim())))
}
