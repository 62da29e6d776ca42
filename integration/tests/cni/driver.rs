//! Runs plugins as the specification says a runtime does: a chain of them, each with its part of the
//! configuration on standard input and the rest in its environment.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use weft::lab::Host;

use crate::{PLUGINS, busybox::PATH, world::Must as _};

/// An error object that a plugin answered.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: u64,
    pub(crate) text: String,
}

/// A network of a host, as a runtime has it.
#[derive(Debug)]
pub(crate) struct Driver<'a> {
    host: &'a Host,
    /// Where our own plugin is.
    bin: PathBuf,
    /// The network's name.
    name: String,
    version: String,
    plugins: Vec<Value>,
    capabilities: Value,
    args: String,
}

/// A container, as a runtime names it.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) id: String,
    /// Empty once it is gone.
    pub(crate) netns: String,
}

impl<'a> Driver<'a> {
    /// A network of one plugin, ours, with these keys.
    pub(crate) fn new(host: &'a Host, bin: &Path, version: &str, keys: &Value) -> Self {
        let mut ours = json!({"type": weft::cni::NAME});
        if let (Some(ours), Some(keys)) = (ours.as_object_mut(), keys.as_object()) {
            ours.extend(keys.clone());
        }
        let (bin, name, version) = (bin.to_owned(), "weft".to_owned(), version.to_owned());
        Self { host, bin, name, version, plugins: vec![ours], capabilities: json!({}), args: String::new() }
    }

    /// Another plugin after those there are.
    pub(crate) fn then(mut self, plugin: Value) -> Self {
        self.plugins.push(plugin);
        self
    }

    /// What the runtime says to plugins that declare the capability.
    pub(crate) fn capable(mut self, capabilities: Value) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// What the runtime says in `CNI_ARGS`.
    pub(crate) fn args(mut self, args: &str) -> Self {
        args.clone_into(&mut self.args);
        self
    }

    pub(crate) fn add(&self, pod: &Pod) -> Result<Value, Refusal> {
        self.add_with(pod, None)
    }

    /// ADD with a result of before, as a runtime sends it again.
    pub(crate) fn add_with(&self, pod: &Pod, previous: Option<&Value>) -> Result<Value, Refusal> {
        let mut previous = previous.cloned();
        for plugin in &self.plugins {
            previous = Some(self.run("ADD", plugin, Some(pod), previous.as_ref(), None)?);
        }
        Ok(previous.unwrap_or_default())
    }

    pub(crate) fn check(&self, pod: &Pod, previous: Option<&Value>) -> Result<(), Refusal> {
        let each = |plugin| self.run("CHECK", plugin, Some(pod), previous, None).map(drop);
        self.plugins.iter().try_for_each(each)
    }

    pub(crate) fn del(&self, pod: &Pod, previous: Option<&Value>) -> Result<(), Refusal> {
        let each = |plugin| self.run("DEL", plugin, Some(pod), previous, None).map(drop);
        self.plugins.iter().rev().try_for_each(each)
    }

    pub(crate) fn status(&self) -> Result<(), Refusal> {
        self.run("STATUS", &self.plugins[0], None, None, None).map(drop)
    }

    /// GC with what is to stay.
    pub(crate) fn gc(&self, valid: &[&Pod]) -> Result<(), Refusal> {
        let valid: Vec<Value> = valid.iter().map(|pod| json!({"containerID": pod.id, "ifname": "eth0"})).collect();
        let valid = json!({"cni.dev/valid-attachments": valid});
        self.run("GC", &self.plugins[0], None, None, Some(&valid)).map(drop)
    }

    /// ADD by our plugin, which is killed meanwhile, as a runtime does when it has waited for long enough.
    pub(crate) fn add_killed_after(&self, pod: &Pod, delay: Duration) {
        let plugin = &self.plugins[0];
        let mut child = self.start("ADD", plugin, Some(pod), self.conf(plugin, None, None).to_string().as_bytes());
        thread::sleep(delay);
        child.kill().must("kill the plugin");
        child.wait().must("wait for the plugin");
    }

    /// What our plugin reads for ADD.
    pub(crate) fn input(&self) -> Vec<u8> {
        self.conf(&self.plugins[0], None, None).to_string().into_bytes()
    }

    /// A command with whatever bytes as the configuration.
    pub(crate) fn with_input(&self, command: &str, pod: &Pod, input: &[u8]) -> Result<Value, Refusal> {
        let child = self.start(command, &self.plugins[0], Some(pod), input);
        answer(child, &format!("{} {command}", weft::cni::NAME))
    }

    fn run(
        &self,
        command: &str,
        plugin: &Value,
        pod: Option<&Pod>,
        previous: Option<&Value>,
        more: Option<&Value>,
    ) -> Result<Value, Refusal> {
        let conf = self.conf(plugin, previous, more);
        let child = self.start(command, plugin, pod, conf.to_string().as_bytes());
        answer(child, &format!("{} {command}", plugin["type"]))
    }

    /// A plugin's part of the configuration.
    fn conf(&self, plugin: &Value, previous: Option<&Value>, more: Option<&Value>) -> Value {
        let mut conf = plugin.clone();
        conf["cniVersion"] = json!(self.version);
        conf["name"] = json!(self.name);
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        let declared = conf["capabilities"].as_object().cloned().unwrap_or_default();
        for (key, value) in self.capabilities.as_object().into_iter().flatten() {
            if declared.get(key) == Some(&json!(true)) {
                conf["runtimeConfig"][key] = value.clone();
            }
        }
        if let (Some(conf), Some(more)) = (conf.as_object_mut(), more.and_then(Value::as_object)) {
            conf.extend(more.clone());
        }
        conf
    }

    fn start(&self, command: &str, plugin: &Value, pod: Option<&Pod>, input: &[u8]) -> Child {
        let name = plugin["type"].as_str().must("a type");
        let program = [self.bin.as_path(), Path::new(PLUGINS)].map(|folder| folder.join(name));
        let program = program.into_iter().find(|path| path.exists()).must(name);
        let mut process = Command::new(program);
        process
            .env_clear()
            .env("PATH", PATH)
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", format!("{}:{PLUGINS}", self.bin.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(pod) = pod {
            process.env("CNI_CONTAINERID", &pod.id).env("CNI_NETNS", &pod.netns).env("CNI_IFNAME", "eth0");
            process.env("CNI_ARGS", &self.args);
        }
        // A child is born in the namespace of the thread that starts it.
        let mut child = self.host.namespace().run(|| process.spawn()).must("enter the host").must("run the plugin");
        let mut stdin = child.stdin.take().must("its input");
        // One that refuses at once does not read.
        let _ = stdin.write_all(input);
        child
    }
}

/// What a plugin says in the end.
fn answer(child: Child, what: &str) -> Result<Value, Refusal> {
    let output = child.wait_with_output().must("wait for the plugin");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if output.status.success() {
        return Ok(answer);
    }
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    let text = answer["msg"].as_str().map_or_else(said, str::to_owned);
    let details = answer["details"].as_str().unwrap_or_default();
    Err(Refusal { code: answer["code"].as_u64().unwrap_or(999), text: format!("{what}: {text} {details}") })
}
