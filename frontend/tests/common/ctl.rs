//! A stock `etcdctl`.

use super::{succeed, text};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// `etcdctl` of a server.
pub(crate) struct Ctl {
    endpoint: String,
}

impl Ctl {
    pub(crate) fn new(endpoint: impl Into<String>) -> Ctl {
        Ctl { endpoint: endpoint.into() }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]).args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        succeed(&mut self.command(arguments))
    }

    /// What it says when it is refused.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?} was not refused");
        text(&output.stderr)
    }

    /// With something to read.
    pub(crate) fn feed(&self, arguments: &[&str], input: &str) -> String {
        let mut child = self.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        text(&output.stdout)
    }

    /// One that goes on until it is interrupted.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let command = &mut self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Running { stdin: child.stdin.take().unwrap(), child, lines }
    }
}

/// A command that runs, killed when dropped.
pub(crate) struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Running {
    /// The next lines, which have to come in time.
    pub(crate) fn lines(&self, count: usize) -> Vec<String> {
        let line = |_| self.lines.recv_timeout(Duration::from_secs(30)).expect("it prints in time");
        (0..count).map(line).collect()
    }

    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// True if there is nothing to read yet.
    pub(crate) fn is_quiet(&self) -> bool {
        self.lines.try_recv().is_err()
    }

    /// SIGINT, and waits for its end.
    pub(crate) fn interrupt(mut self) {
        succeed(Command::new("kill").arg("-INT").arg(self.child.id().to_string()));
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The revision in the header of a JSON answer.
pub(crate) fn header_revision(json: &str) -> i64 {
    json.split("\"revision\":").nth(1).unwrap().split(',').next().unwrap().parse().unwrap()
}
