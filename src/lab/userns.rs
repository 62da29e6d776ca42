//! Rootless: a user namespace in which this process is root over networks of its own.

use std::{fs, io, path::Path};

use super::sys;

/// Says whether the lab can be used as it is: by root, with the right to make namespaces.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes this process root in new user, network and mount namespaces, so that it can make hosts
/// and containers without any right on the machine. Must be called before any thread exists;
/// child processes inherit it.
///
/// # Errors
/// If other threads exist, or the system forbids user namespaces; the message says what to do.
pub fn enter_user_namespace() -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a user namespace can only be entered before the process has threads"));
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    sys::unshare_user().map_err(|error| {
        let advice = "run as root, or allow user namespaces (sysctl user.max_user_namespaces, \
                      kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)";
        io::Error::new(error.kind(), format!("cannot make a user namespace: {error}; {advice}"))
    })?;
    // Without CAP_SETGID outside, a group map is only accepted once setgroups is given up.
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    check_tun()
}

fn write(path: &str, text: &str) -> io::Result<()> {
    fs::write(path, text).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))
}

/// The one device node that a mesh needs, with its permissions as the system has them.
fn check_tun() -> io::Result<()> {
    let path = Path::new("/dev/net/tun");
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(
            error.kind(),
            format!(
                "{}: {error}; without root it must be readable and writable by everyone, as most \
                 systems have it: chmod 666 {}",
                path.display(),
                path.display()
            ),
        )),
    }
}
