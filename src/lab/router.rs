//! Routers of the lab: child processes, each in the network namespace of its host.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rustix::process::{Pid, Signal, kill_process};

use super::{Container, Host, Lab};
use crate::netlink::NetNs;

/// How long a router may take until it answers: far more than it does, for machines made of software.
const START: Duration = Duration::from_secs(60);

/// How to start a router.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// The `weft` binary, or what behaves like it with `env` set.
    pub exe: PathBuf,
    /// Environment besides that of this process.
    pub env: Vec<(OsString, OsString)>,
    /// Arguments of `weft up` besides name, data directory and socket.
    pub args: Vec<OsString>,
}

impl RouterConfig {
    /// Adds arguments of `weft up`.
    #[must_use]
    pub fn with<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }
}

/// A router, running or ended. It is ended when it is dropped.
#[derive(Debug)]
pub struct Router {
    config: RouterConfig,
    host: NetNs,
    name: String,
    dir: PathBuf,
    child: Option<Child>,
    starts: u32,
}

impl Router {
    /// Starts a router on a host and waits until its API answers.
    ///
    /// # Errors
    /// If it cannot be started, ends at once, or does not answer within a minute; the message
    /// holds the end of its log.
    pub fn start(lab: &Lab, host: &Host, config: RouterConfig) -> io::Result<Self> {
        let mut router = Self::prepare(lab, host, config)?;
        router.restart()?;
        Ok(router)
    }

    /// A router that is not started yet.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub fn prepare(lab: &Lab, host: &Host, config: RouterConfig) -> io::Result<Self> {
        Self::prepare_in(lab.dir(), host.name(), host.namespace(), config)
    }

    /// As [`Router::start`], in a namespace that is no host of a [`Lab`]. Its files go into a
    /// directory of its name in `dir`.
    ///
    /// # Errors
    /// As [`Router::start`].
    pub fn start_in(dir: &Path, name: &str, host: &NetNs, config: RouterConfig) -> io::Result<Self> {
        let mut router = Self::prepare_in(dir, name, host, config)?;
        router.restart()?;
        Ok(router)
    }

    fn prepare_in(dir: &Path, name: &str, host: &NetNs, config: RouterConfig) -> io::Result<Self> {
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let host = host.try_clone().map_err(io::Error::other)?;
        Ok(Self { config, host, name: name.to_owned(), dir, child: None, starts: 0 })
    }

    /// Starts it (again), with the same data directory, and waits until its API answers.
    ///
    /// # Errors
    /// As [`Router::start`].
    pub fn restart(&mut self) -> io::Result<()> {
        self.launch()?;
        let end = Instant::now() + START;
        loop {
            if let Some(status) = self.exited()? {
                return Err(io::Error::other(format!(
                    "router of {} ended with {status}:\n{}",
                    self.name,
                    self.log_tail(4000)
                )));
            }
            if self.socket().exists() && self.cli(["status", "-o", "json"]).is_ok_and(|out| !out.stdout.is_empty()) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(io::Error::other(format!(
                    "the API of {} does not answer:\n{}",
                    self.name,
                    self.log_tail(4000)
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills it as a machine does that loses its power: of its files those are left that are on a disk.
    ///
    /// # Errors
    /// If it was not running.
    pub fn lose_power(&mut self) -> io::Result<()> {
        self.kill()?;
        fs::remove_file(self.socket())
    }

    /// From its next start on it runs on this host, such as its own after [`Lab::reboot`].
    ///
    /// # Errors
    /// If there are no file descriptors left.
    pub fn move_to(&mut self, host: &Host) -> io::Result<()> {
        self.host = host.namespace().try_clone().map_err(io::Error::other)?;
        Ok(())
    }

    /// Starts the process and does not wait for it.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn launch(&mut self) -> io::Result<()> {
        self.end();
        self.starts += 1;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.weft();
        command
            .arg("up")
            .args(["--name", &self.name])
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .arg("--socket")
            .arg(self.socket())
            .args(&self.config.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // A child is born in the namespace of the thread that starts it.
        let child = self.host.run(|| command.spawn()).map_err(io::Error::other)??;
        self.child = Some(child);
        Ok(())
    }

    /// The program, with nothing in its environment that configures another router.
    fn weft(&self) -> Command {
        let mut command = Command::new(&self.config.exe);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("WEFT_") {
                command.env_remove(key);
            }
        }
        command.envs(self.config.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Name of the router: that of its host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its API socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("weft.sock")
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// All that it has written to its output and error streams, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self, bytes: usize) -> String {
        let log = self.log();
        let mut start = log.len().saturating_sub(bytes);
        while !log.is_char_boundary(start) {
            start += 1;
        }
        log[start..].to_owned()
    }

    /// Changes the arguments for the next start.
    pub fn set_args(&mut self, args: Vec<OsString>) {
        self.config.args = args;
    }

    /// How it ended, if it has ended.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        match &mut self.child {
            None => Ok(None),
            Some(child) => child.try_wait(),
        }
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// If it does not within the limit.
    pub fn wait_for_exit(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > end {
                let why = format!("router of {} is still running", self.name);
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a `weft` command against this router, in the host's namespace.
    ///
    /// # Errors
    /// If the command cannot be run; that it fails is in the output.
    pub fn cli<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> io::Result<Output> {
        let mut command = self.weft();
        command.env("WEFT_SOCKET", self.socket()).args(args).stdin(Stdio::null());
        self.host.run(|| command.output()).map_err(io::Error::other)?
    }

    /// As [`Router::cli`], where failure is an error and the answer is text.
    ///
    /// # Errors
    /// If the command fails; with what it said.
    pub fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> io::Result<String> {
        let args: Vec<OsString> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let output = self.cli(&args)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let mut line = format!("weft on {}:", self.name);
        for arg in &args {
            let _ = write!(line, " {}", arg.display());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(format!("{line}: {}: {}", output.status, said.trim())))
    }

    /// `weft status -o json`, whatever the verdict.
    ///
    /// # Errors
    /// If the router does not answer or the answer is not JSON.
    pub fn status(&self) -> io::Result<serde_json::Value> {
        let output = self.cli(["status", "-o", "json"])?;
        serde_json::from_slice(&output.stdout).map_err(|error| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            io::Error::other(format!("status of {}: {error}: {}", self.name, said.trim()))
        })
    }

    /// Attaches a container; the addresses that it has then.
    ///
    /// # Errors
    /// If the command fails or prints anything but addresses.
    pub fn attach(&self, container: &Container) -> io::Result<Vec<IpNet>> {
        let target = container.target();
        let answer = self.command([OsStr::new("attach"), target.as_os_str()])?;
        answer
            .lines()
            .map(|line| {
                line.trim()
                    .parse()
                    .map_err(|error| io::Error::other(format!("attach on {}: {line:?}: {error}", self.name)))
            })
            .collect()
    }

    /// The arguments of `weft up` that it is started with.
    #[must_use]
    pub fn args(&self) -> &[OsString] {
        &self.config.args
    }

    /// Process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills it without a word (SIGKILL).
    ///
    /// # Errors
    /// If it is not running.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Err(io::Error::other(format!("router of {} is not running", self.name)));
        };
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM), and kills it if it does not within three seconds. Says whether
    /// it ended by itself.
    pub fn end(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return true };
        if let Ok(raw) = i32::try_from(child.id())
            && let Some(pid) = Pid::from_raw(raw)
            // Not waited for yet, so the id is still its own.
            && matches!(child.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            match child.try_wait() {
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                Ok(Some(_)) | Err(_) => return true,
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        false
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes a secret to a file that only its owner can read.
///
/// # Errors
/// If the file cannot be written.
pub fn write_secret(path: &Path, secret: &str) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    writeln!(file, "{secret}")
}
