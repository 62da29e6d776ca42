//! Frames byte by byte, out of and into a container's interface.

use std::{
    io,
    net::Shutdown,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::{Container, sys};

/// A packet socket on one interface. It sees all that arrives there, with its VLAN tags.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl RawSocket {
    /// Opens one on an interface of a container.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn open(container: &Container, interface: &str) -> io::Result<Self> {
        let link = container
            .link(interface)
            .map_err(io::Error::other)?
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        let socket = container.run(|| sys::packet_socket(link.index))?;
        Ok(Self { socket, buffer: vec![0; 1 << 17] })
    }

    /// Sends a frame as it stands, without padding.
    ///
    /// # Errors
    /// If the kernel refuses it: shorter than its header, or longer than the MTU allows.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = rustix::io::write(&self.socket, frame)?;
        if sent == frame.len() { Ok(()) } else { Err(io::Error::other("cut frame")) }
    }

    /// The next frame that arrives until `end`; `None` when the time is over.
    ///
    /// # Errors
    /// If the interface went down or away.
    pub fn receive(&mut self, end: Instant) -> io::Result<Option<Vec<u8>>> {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left.max(MIN_WAIT)))?;
            match sys::receive_frame(&self.socket, &mut self.buffer) {
                Ok((length, tag)) => return Ok(Some(untouched(&self.buffer[..length], tag))),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The frames until `end` that satisfy a condition, at most `limit` of them.
    ///
    /// # Errors
    /// As [`RawSocket::receive`].
    pub fn collect(
        &mut self,
        end: Instant,
        limit: usize,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        while frames.len() < limit
            && let Some(frame) = self.receive(end)?
        {
            if wanted(&frame) {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    /// Throws away what has arrived so far.
    ///
    /// # Errors
    /// As [`RawSocket::receive`].
    pub fn drain(&mut self) -> io::Result<()> {
        while self.receive(Instant::now() + MIN_WAIT)?.is_some() {}
        Ok(())
    }
}

const MIN_WAIT: Duration = Duration::from_millis(1);

/// The frame as it was on the wire: the kernel hands the outer VLAN tag over separately.
fn untouched(frame: &[u8], tag: Option<[u8; 4]>) -> Vec<u8> {
    let Some(tag) = tag else { return frame.to_vec() };
    let (macs, rest) = frame.split_at(frame.len().min(12));
    [macs, &tag, rest].concat()
}

/// Ends both directions of a TCP stream, for threads that wait on it elsewhere.
pub(super) fn hang_up(stream: &std::net::TcpStream) {
    // It may be closed already; then there is nothing to end.
    let _ = stream.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_put_back_between_addresses_and_type() {
        let frame: Vec<u8> = (0..16).collect();
        let tagged = untouched(&frame, Some([0x81, 0, 0, 7]));
        assert_eq!(&tagged[..12], &frame[..12]);
        assert_eq!(&tagged[12..16], &[0x81, 0, 0, 7]);
        assert_eq!(&tagged[16..], &frame[12..]);
        assert_eq!(untouched(&frame, None), frame);
    }
}
