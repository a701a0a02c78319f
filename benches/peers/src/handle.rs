//! A child as the run sees it that started it.

use crate::arguments::Arguments;
use crate::child::{Answer, Purpose, Request};
use crate::figure::Figure;
use crate::peer::{Kind, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// A child process.
pub struct Child {
    /// Which peer.
    pub kind: Kind,
    process: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Child {
    /// Starts one; `answered` is the revision of the last put that was answered before it was killed, or 0.
    pub fn start(kind: Kind, dir: &Path, purpose: Purpose, arguments: &Arguments, answered: u64) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("child").arg("--peer").arg(kind.name()).arg("--dir").arg(dir);
        command.arg("--purpose").arg(format!("{purpose:?}").to_lowercase());
        command.arg("--keys").arg(arguments.keys.to_string()).arg("--seconds").arg(arguments.seconds.to_string());
        command.arg("--answered").arg(answered.to_string());
        if arguments.objects() {
            command.arg("--objects");
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(process.stdout.take().ok_or("a child has no output")?);
        Ok(Child { kind, process, answers })
    }

    /// The next thing that it says.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(format!("{} ended", self.kind.name()).into());
        }
        match serde_json::from_str(&line)? {
            Answer::Failed(why) => Err(format!("{}: {why}", self.kind.name()).into()),
            answer => Ok(answer),
        }
    }

    /// Figures, which it has to say next.
    pub fn figures(&mut self) -> Result<Vec<Figure>> {
        match self.answer()? {
            Answer::Figures(figures) => Ok(figures),
            other => Err(format!("{} answers {other:?}", self.kind.name()).into()),
        }
    }

    /// Asks for something.
    pub fn ask(&mut self, request: Request) -> Result<()> {
        let input = self.process.stdin.as_mut().ok_or("a child has no input")?;
        serde_json::to_writer(&mut *input, &request)?;
        input.write_all(b"\n")?;
        Ok(input.flush()?)
    }

    /// Lets it close its store and end.
    pub fn close(mut self) -> Result<()> {
        self.ask(Request::Close)?;
        let status = self.process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{}: {status}", self.kind.name()).into()) }
    }

    /// As a crash: nothing is closed. The revision of the last put that it answered.
    pub fn kill(mut self) -> Result<u64> {
        self.ask(Request::Last)?;
        let answered = match self.answer()? {
            Answer::Revision(revision) => revision,
            other => return Err(format!("{} answers {other:?}", self.kind.name()).into()),
        };
        self.process.kill()?;
        self.process.wait()?;
        Ok(answered)
    }
}
