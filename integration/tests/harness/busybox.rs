//! What the containers of real engines run on: a directory with busybox, made without any registry.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Where the programs are looked for: `sudo` and bare machines have short ones of their own.
pub(crate) const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin:/usr/local/sbin";

/// Where a program is, if it is installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.exists())
}

/// Makes the root of a container, with busybox under the names of `applets` and one file in `/srv`.
pub(crate) fn make_root(root: &Path, applets: &[&str], file: &str, data: &[u8]) -> io::Result<()> {
    for folder in ["bin", "srv", "proc", "sys", "dev", "etc", "tmp", "run"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let busybox = find("busybox").ok_or_else(|| io::Error::other("busybox is not installed"))?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in applets {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(root.join("srv").join(file), data)
}
