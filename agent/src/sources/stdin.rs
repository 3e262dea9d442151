//! Lines of standard input, answered by lines of standard output. Nothing is dropped: whoever writes faster than the
//! models answer waits in its pipe.

use std::io::{BufRead, Read};

use tokio::sync::{mpsc, watch};

use super::feed::{Feed, Full, QUEUE, Samples};
use super::sink::Sink;
use super::{Base, MAX_INPUT, form};
use crate::settings::source::Stdin;

/// Lines that may wait to be understood.
const LINES: usize = 4;
/// Name of the one stream of samples, in the ids of its windows.
const STREAM: &str = "stdin";

/// A line, or why it is none.
type Line = Result<Vec<u8>, String>;

/// Answers all lines. At their end it tells `end`, when it is to end the agent.
pub(super) async fn run(base: Base, settings: Stdin, end: &watch::Sender<bool>) -> anyhow::Result<()> {
    base.models_present().await;
    let (sink, written) = Sink::stdout();
    let (mut feed, tasks) = Feed::start(&base, &sink, Full::Wait, QUEUE, settings.window);
    drop(sink);
    let (sender, mut lines) = mpsc::channel(LINES);
    // A thread of its own, which nobody waits for: a read of a pipe cannot be called off.
    std::thread::spawn(move || {
        read(&mut std::io::stdin().lock(), &|line| sender.blocking_send(line).is_ok())
    });
    while let Some(line) = lines.recv().await {
        match line {
            Ok(line) if line.trim_ascii().is_empty() => {}
            Ok(line) => hear(&mut feed, settings.window.is_some(), &line).await,
            Err(error) => feed.input("", "", Err(error)).await,
        }
    }
    feed.finish(STREAM).await;
    feed.close();
    for task in tasks {
        // A task that failed has said so.
        let _ = task.await;
    }
    // The writer of the answers is gone when it could not write them: there is nothing to wait for then.
    let _ = written.await;
    tracing::info!("standard input has ended");
    if settings.exit_at_end {
        end.send_replace(true);
    }
    Ok(())
}

async fn hear(feed: &mut Feed, windowed: bool, line: &[u8]) {
    if windowed {
        match form::samples(line) {
            Ok(samples) => feed.samples(STREAM, &Samples::Each(samples)).await,
            Err(error) => feed.input("", "", Err(error)).await,
        }
    } else {
        match form::whole(line) {
            Ok(whole) => feed.input(&whole.id, "", Ok(whole.data)).await,
            Err(error) => feed.input("", "", Err(error)).await,
        }
    }
}

/// Reads lines of at most [`MAX_INPUT`] bytes until the end, or until nobody takes them.
fn read(input: &mut impl BufRead, take: &dyn Fn(Line) -> bool) {
    loop {
        let mut line = Vec::new();
        match input.by_ref().take(MAX_INPUT as u64).read_until(b'\n', &mut line) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "standard input cannot be read");
                return;
            }
        }
        let whole = line.len() < MAX_INPUT || line.ends_with(b"\n") || skip_line(input);
        let line = if whole { Ok(line) } else { Err(format!("a line has more than {MAX_INPUT} bytes")) };
        if !take(line) {
            return;
        }
    }
}

/// Skips the rest of a line; whether there was none.
fn skip_line(input: &mut impl BufRead) -> bool {
    let mut none = true;
    loop {
        let (length, ended) = match input.fill_buf() {
            Ok([]) | Err(_) => return none,
            Ok(bytes) => match bytes.iter().position(|byte| *byte == b'\n') {
                Some(at) => (at + 1, true),
                None => (bytes.len(), false),
            },
        };
        input.consume(length);
        none &= ended && length == 1;
        if ended {
            return none;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn lines_are_bounded_and_the_next_one_is_read() {
        let long = "x".repeat(MAX_INPUT + 1);
        let fits = "y".repeat(MAX_INPUT);
        let text = format!("one\n{long}\n{fits}\ntwo\n\nlast");
        let lines = RefCell::new(Vec::new());
        let take = |line: Line| {
            lines.borrow_mut().push(line.map(|line| line.trim_ascii().len()));
            true
        };
        read(&mut std::io::BufReader::with_capacity(7, text.as_bytes()), &take);
        let lines = lines.into_inner();
        assert!(lines[1].is_err());
        let lengths: Vec<usize> = lines.into_iter().flatten().collect();
        assert_eq!(lengths, [3, MAX_INPUT, 3, 0, 4]);
    }
}
