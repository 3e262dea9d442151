//! A cheap client of the Open Inference Protocol: requests are made once and written as they are, and of a response
//! only status and length are read. On the machine that it measures each microsecond of its own counts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cpu_time::ThreadTime;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Room for a response; those of the benchmarks are far smaller.
const RESPONSE: usize = 64 * 1024;

/// Where a server listens.
#[derive(Debug, Clone)]
pub(crate) enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

/// How tensors are sent both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Numbers as text.
    Json,
    /// The protocol's binary extension.
    Binary,
}

impl Form {
    /// For names of results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Binary => "binary",
        }
    }
}

/// The bytes of a whole request for one item of `model`.
pub(crate) fn request(model: &str, form: Form, shape: &[usize], input: &[f32]) -> Vec<u8> {
    let shape: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
    let mut tensor = json!({ "name": "x", "shape": shape, "datatype": "FP32" });
    let (mut headers, mut tail) = (String::new(), Vec::new());
    let mut document = json!({ "id": "1" });
    match form {
        Form::Json => tensor["data"] = json!(input),
        Form::Binary => {
            tail.extend(input.iter().flat_map(|value| value.to_le_bytes()));
            tensor["parameters"] = json!({ "binary_data_size": tail.len() });
            document["parameters"] = json!({ "binary_data_output": true });
        }
    }
    document["inputs"] = json!([tensor]);
    let text = document.to_string();
    match form {
        Form::Json => headers.push_str("Content-Type: application/json\r\n"),
        Form::Binary => headers.push_str(&format!("Inference-Header-Content-Length: {}\r\n", text.len())),
    }
    let length = text.len() + tail.len();
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), text.as_bytes(), &tail].concat()
}

/// Status and whole length of a response, once its head is there.
pub(crate) fn head(bytes: &[u8]) -> anyhow::Result<Option<(u16, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text =
        std::str::from_utf8(bytes.get(..end).unwrap_or_default()).context("read the head of a response")?;
    let status = text.get(9..12).and_then(|status| status.parse().ok());
    let length = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    match (status, length) {
        (Some(status), Some(length)) => Ok(Some((status, end + 4 + length))),
        _ => bail!("the server answers {text:?}"),
    }
}

/// What bytes go over both ways.
pub(crate) trait Stream: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send> Stream for T {}

/// A connection that is kept.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    /// Bytes of a response so far.
    have: usize,
    /// Its status and whole length, once its head is there.
    known: Option<(u16, usize)>,
}

impl Connection {
    /// Connects.
    pub(crate) fn open(endpoint: &Endpoint) -> std::io::Result<Self> {
        let stream: Box<dyn Stream> = match endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        Ok(Self::over(stream))
    }

    /// Over a stream that is connected.
    pub(crate) fn over(stream: Box<dyn Stream>) -> Self {
        Self { stream, buffer: vec![0; RESPONSE], have: 0, known: None }
    }

    /// Sends a request and waits for the whole response; its status.
    pub(crate) fn ask(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.stream.write_all(request)?;
        loop {
            if let Some(status) = self.receive()? {
                return Ok(status);
            }
        }
    }

    /// Reads once; the status when the response is whole.
    fn receive(&mut self) -> anyhow::Result<Option<u16>> {
        let room = self.buffer.get_mut(self.have..).filter(|room| !room.is_empty());
        let read = self.stream.read(room.context("the response is too long")?)?;
        ensure!(read > 0, "the server closed the connection");
        self.have += read;
        if self.known.is_none() {
            self.known = head(self.buffer.get(..self.have).unwrap_or_default())?;
        }
        let Some((status, _)) = self.known.filter(|(_, length)| self.have >= *length) else {
            return Ok(None);
        };
        (self.have, self.known) = (0, None);
        Ok(Some(status))
    }
}

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Latencies in µs, sorted once [`Taken::sort`] was called.
    pub(crate) micros: Vec<f64>,
    /// How long it lasted.
    pub(crate) elapsed: Duration,
    /// Processor time of the clients.
    pub(crate) processor: Duration,
}

impl Taken {
    /// The value that so many thousandths of the latencies do not exceed, µs.
    pub(crate) fn permille(&self, permille: usize) -> f64 {
        self.micros
            .get(self.micros.len() * permille / 1000)
            .or(self.micros.last())
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// Adds those of another load that ran after this one.
    pub(crate) fn then(&mut self, other: Self) {
        self.micros.extend(other.micros);
        self.elapsed += other.elapsed;
        self.processor += other.processor;
    }

    /// Puts the latencies in order.
    pub(crate) fn sort(mut self) -> Self {
        self.micros.sort_by(f64::total_cmp);
        self
    }
}

/// Runs something again and again on `threads` threads for a time, each with what `begin` gives it.
pub(crate) fn closed<T, F>(
    threads: usize,
    time: Duration,
    begin: impl Fn() -> anyhow::Result<T> + Sync,
    run: F,
) -> anyhow::Result<Taken>
where
    F: Fn(&mut T) -> anyhow::Result<()> + Sync,
{
    let one = || -> anyhow::Result<Taken> {
        let mut own = begin()?;
        // The first makes caches warm and is not counted.
        run(&mut own)?;
        let (processor, started) = (ThreadTime::now(), Instant::now());
        let (mut micros, mut last) = (Vec::with_capacity(1 << 16), started);
        while last - started < time {
            run(&mut own)?;
            let now = Instant::now();
            micros.push((now - last).as_secs_f64() * 1e6);
            last = now;
        }
        Ok(Taken { micros, elapsed: last - started, processor: processor.elapsed() })
    };
    let all: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let mut taken = Taken::default();
    for one in all {
        let one = one.map_err(|_| anyhow::anyhow!("a client panicked"))??;
        taken.micros.extend(one.micros);
        taken.processor += one.processor;
        taken.elapsed = taken.elapsed.max(one.elapsed);
    }
    Ok(taken.sort())
}

/// A client that asks as soon as it is answered.
pub(crate) fn client(endpoint: &Endpoint, request: &[u8], time: Duration) -> anyhow::Result<Taken> {
    closed(1, time, || open(endpoint), |connection| answered(connection.ask(request)?))
}

/// Clients that ask as soon as they are answered, each on a connection of its own. One thread asks for all of them, as generators
/// of load do: threads of their own would take more from the machine that is measured.
pub(crate) fn clients(
    endpoint: &Endpoint,
    request: &[u8],
    count: usize,
    time: Duration,
) -> anyhow::Result<Taken> {
    let mut connections = (0..count).map(|_| open(endpoint)).collect::<anyhow::Result<Vec<_>>>()?;
    let (processor, started) = (ThreadTime::now(), Instant::now());
    let mut asked = vec![started; count];
    for connection in &mut connections {
        connection.stream.write_all(request)?;
    }
    let mut micros = Vec::with_capacity(1 << 16);
    let patience = PollTimeout::try_from(PATIENCE)?;
    let mut now = started;
    while now - started < time {
        let fds = connections.iter().map(|of| PollFd::new(of.stream.as_fd(), PollFlags::POLLIN));
        let mut fds: Vec<PollFd> = fds.collect();
        ensure!(poll(&mut fds, patience)? > 0, "nobody was answered for {PATIENCE:?}");
        // One that is closed is ready as well: reading finds out.
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any() != Some(false)).collect();
        for ((connection, asked), _) in
            connections.iter_mut().zip(&mut asked).zip(ready).filter(|(_, ready)| *ready)
        {
            let Some(status) = connection.receive()? else { continue };
            answered(status)?;
            now = Instant::now();
            micros.push((now - *asked).as_secs_f64() * 1e6);
            *asked = now;
            connection.stream.write_all(request)?;
        }
    }
    Ok(Taken { micros, elapsed: now - started, processor: processor.elapsed() }.sort())
}

fn open(endpoint: &Endpoint) -> anyhow::Result<Connection> {
    Connection::open(endpoint).with_context(|| format!("connect to {endpoint:?}"))
}

fn answered(status: u16) -> anyhow::Result<()> {
    ensure!(status == 200, "answered with status {status}");
    Ok(())
}
