//! Between a source and its models: windows are cut, questions wait in a bounded queue a model, and a task a model
//! asks them one after the other.

use std::collections::HashMap;
use std::sync::Arc;

use farlight_device::stream::{EventTime, Fate, Plan, Window, Windower};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::form::{Sample, event_time, milliseconds};
use super::queue::{Question, Queue};
use super::sink::Sink;
use super::{Base, Refusal, ask, ask_patiently, shape};
use crate::settings::source::Windowing;

/// Questions that may wait for each model: an answer that comes later than that many inputs is of little use.
pub(super) const QUEUE: usize = 64;
/// Most streams (topics) of one source that are cut at once; the one that was silent longest makes room.
const MAX_STREAMS: usize = 64;

/// Most characters of a topic in the ids of its windows: ids are kept with cases.
const MAX_NAME: usize = 200;

/// What becomes of a question when the queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The oldest one is dropped: the source is live, and the newest counts most.
    DropOldest,
    /// The source waits: nothing is lost.
    Wait,
}

/// Samples as they came.
#[derive(Debug)]
pub(super) enum Samples {
    /// Each by itself.
    Each(Vec<Sample>),
    /// One after the other, as wide as the model has channels.
    Flat(Vec<f32>),
}

/// The way from one source to its models.
pub(super) struct Feed {
    base: Base,
    full: Full,
    windowing: Option<Windowing>,
    lanes: Vec<Lane>,
}

struct Lane {
    model: String,
    queue: Arc<Queue>,
    streams: HashMap<String, Stream>,
}

struct Stream {
    windower: Windower,
    /// When the next sample without a time is taken to be.
    next: EventTime,
    /// Number of its last message, to find the one that was silent longest.
    used: u64,
}

impl Feed {
    /// Starts a task for each model, whose answers go to `sink`. `length` questions may wait for each.
    pub(super) fn start(
        base: &Base,
        sink: &Sink,
        full: Full,
        length: usize,
        windowing: Option<Windowing>,
    ) -> (Self, Vec<JoinHandle<()>>) {
        let (mut lanes, mut tasks) = (Vec::new(), Vec::new());
        for model in &base.models {
            let queue = Arc::new(Queue::new(length));
            let (model, sink) = (model.clone(), sink.clone());
            tasks.push(base.spawn(answer(base.clone(), model.clone(), Arc::clone(&queue), sink, full)));
            lanes.push(Lane { model, queue, streams: HashMap::new() });
        }
        (Self { base: base.clone(), full, windowing, lanes }, tasks)
    }

    /// Asks every model about an input, or lets it say why there is none.
    pub(super) async fn input(&self, id: &str, topic: &str, input: Result<Vec<f32>, String>) {
        self.base.tally.received(1);
        let input = input.map(Arc::new);
        for lane in &self.lanes {
            let (id, topic) = (id.to_owned(), topic.to_owned());
            let question = Question { id, topic, input: input.clone(), window: None };
            put(&self.base, self.full, lane, question).await;
        }
    }

    /// Adds samples to a stream and asks about the windows that they complete. Samples that come while a model is
    /// absent are not kept for it: its shape is not known.
    pub(super) async fn samples(&mut self, topic: &str, samples: &Samples) {
        let windowing = self.windowing.unwrap_or_default();
        let (mut received, mut late) = (0, 0);
        for lane in &mut self.lanes {
            let Some(shape) = shape(&self.base.table, &lane.model) else {
                lane.streams.clear();
                if let Samples::Each(each) = samples {
                    received = received.max(each.len());
                }
                continue;
            };
            let result = match plan(&shape, &windowing) {
                Ok(plan) => {
                    let count = match samples {
                        Samples::Each(each) => each.len(),
                        Samples::Flat(flat) => flat.len() / plan.channels,
                    };
                    received = received.max(count);
                    let stream = lane.stream(topic, plan);
                    add(&self.base, self.full, lane, stream, topic, samples, &windowing).await
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(dropped) => late = late.max(dropped),
                Err(error) => {
                    let id = String::new();
                    let question = Question { id, topic: topic.to_owned(), input: Err(error), window: None };
                    put(&self.base, self.full, lane, question).await;
                }
            }
        }
        self.base.tally.received(received);
        self.base.tally.late(late);
    }

    /// Ends a stream: what waits for late samples is cut now, and the stream is forgotten.
    pub(super) async fn finish(&mut self, topic: &str) {
        for lane in &mut self.lanes {
            if let Some(mut stream) = lane.streams.remove(topic) {
                for window in stream.windower.finish() {
                    put(&self.base, self.full, lane, question(topic, window)).await;
                }
            }
        }
    }

    /// Nothing more will come: the tasks end when they have answered what waits.
    pub(super) fn close(&self) {
        self.lanes.iter().for_each(|lane| lane.queue.close());
    }
}

impl Lane {
    /// Takes a stream out of the table, made anew when it is cut otherwise than before.
    fn stream(&mut self, topic: &str, plan: Plan) -> Option<Stream> {
        if let Some(stream) = self.streams.remove(topic)
            && stream.windower.plan() == plan
        {
            return Some(stream);
        }
        Windower::new(plan).ok().map(|windower| Stream { windower, next: EventTime(0), used: 0 })
    }

    fn put_back(&mut self, topic: &str, mut stream: Stream) {
        stream.used = self.streams.values().map(|stream| stream.used).max().unwrap_or(0) + 1;
        if self.streams.len() >= MAX_STREAMS {
            let oldest = self.streams.iter().min_by_key(|(_, stream)| stream.used);
            if let Some(oldest) = oldest.map(|(topic, _)| topic.clone()) {
                self.streams.remove(&oldest);
            }
        }
        self.streams.insert(topic.to_owned(), stream);
    }
}

/// How the input of a model is cut: `[…, channels, length]`.
fn plan(shape: &[usize], windowing: &Windowing) -> Result<Plan, String> {
    let total: usize = shape.iter().product();
    let length = windowing.length.or(shape.last().copied()).unwrap_or(0);
    if length == 0 || total == 0 || !total.is_multiple_of(length) {
        return Err(format!("windows of {length} samples do not fill the model's input {shape:?}"));
    }
    let plan = Plan {
        channels: total / length,
        length,
        stride: windowing.stride.unwrap_or(length),
        lateness: windowing.lateness_ms.saturating_mul(1_000),
        max_gap: windowing.max_gap_ms.map(|gap| gap.saturating_mul(1_000)),
    };
    match Windower::new(plan) {
        Ok(_) => Ok(plan),
        Err(error) => Err(error.to_string()),
    }
}

/// Adds samples to the stream of a lane; how many were late. The first that is wrong ends the message.
async fn add(
    base: &Base,
    full: Full,
    lane: &mut Lane,
    stream: Option<Stream>,
    topic: &str,
    samples: &Samples,
    windowing: &Windowing,
) -> Result<usize, String> {
    let mut stream = stream.ok_or("the window cannot be cut")?;
    let period = windowing.rate_hz.map(|rate| 1e6 / rate);
    let mut late = 0;
    let mut wrong = None;
    for (t, values) in rows(samples, stream.windower.plan().channels) {
        let (at, values) = match (t.map(event_time), period, values) {
            (Some(Ok(at)), _, Ok(values)) => (at, values),
            (None, Some(period), Ok(values)) => {
                let at = stream.next;
                stream.next = EventTime(at.0.saturating_add((period.round() as i64).max(1)));
                (at, values)
            }
            (Some(Err(error)), _, _) | (_, _, Err(error)) => {
                wrong = Some(error);
                break;
            }
            (None, None, _) => {
                wrong = Some("a sample has no t, and window.rate_hz is not set".to_owned());
                break;
            }
        };
        match stream.windower.push(at, values) {
            Ok((fate, windows)) => {
                late += usize::from(fate == Fate::Late);
                for window in windows {
                    put(base, full, lane, question(topic, window)).await;
                }
            }
            Err(error) => {
                wrong = Some(error.to_string());
                break;
            }
        }
    }
    lane.put_back(topic, stream);
    wrong.map_or(Ok(late), Err)
}

type Row<'a> = (Option<f64>, Result<&'a [f32], String>);

/// Each sample with its time, if it has one.
fn rows(samples: &Samples, channels: usize) -> Box<dyn Iterator<Item = Row<'_>> + Send + '_> {
    match samples {
        Samples::Each(each) => Box::new(each.iter().map(|sample| (sample.t, Ok(sample.values.as_slice())))),
        Samples::Flat(flat) => Box::new(flat.chunks(channels.max(1)).map(move |row| {
            let whole = row.len() == channels;
            let error = || format!("{} values are no whole number of samples of {channels}", flat.len());
            (None, if whole { Ok(row) } else { Err(error()) })
        })),
    }
}

/// A window's question. Its id names its stream and its first sample.
fn question(topic: &str, window: Window) -> Question {
    let (start, end) = (milliseconds(window.start), milliseconds(window.end));
    let name: String = topic.chars().take(MAX_NAME).collect();
    Question {
        id: format!("{name}@{start}"),
        topic: topic.to_owned(),
        input: Ok(Arc::new(window.values)),
        window: Some((start, end)),
    }
}

async fn put(base: &Base, full: Full, lane: &Lane, question: Question) {
    match full {
        Full::Wait => lane.queue.push_patiently(question).await,
        Full::DropOldest => {
            let dropped = lane.queue.push(question);
            base.tally.dropped(dropped, "inputs were dropped: a model is slower than its source");
        }
    }
}

/// Asks one model what waits for it, until the queue is closed.
async fn answer(base: Base, model: String, queue: Arc<Queue>, sink: Sink, full: Full) {
    while let Some(question) = queue.pop().await {
        let id = &question.id;
        let answer = match question.input {
            Err(error) => Err(error),
            Ok(input) if full == Full::Wait => ask_patiently(&base, &model, id, &input).await,
            Ok(input) => {
                let answer = ask(&base, &model, id, Arc::unwrap_or_clone(input)).await;
                answer.map_err(|refusal| match refusal {
                    Refusal::Later(error) | Refusal::Input(error) => error,
                })
            }
        };
        let answered = answer.is_ok();
        let mut answer = document(id, &model, answer);
        if let Some((start, end)) = question.window {
            answer["window"] = json!({ "start_ms": start, "end_ms": end });
        }
        let sent = sink.send(&model, &question.topic, answer.to_string()).await;
        match (sent, answered) {
            (false, _) => base.tally.dropped(1, "answers were dropped: the broker is away or slow"),
            (true, true) => base.tally.answered(),
            (true, false) => base.tally.failed(),
        }
    }
}

/// An answer as it leaves, with the model that was asked.
pub(super) fn document(id: &str, model: &str, answer: Result<Value, String>) -> Value {
    match answer {
        Ok(mut answer) => {
            answer["model"] = model.into();
            answer
        }
        Err(error) => json!({ "id": id, "model": model, "error": error }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_fill_the_input_of_the_model() {
        let windowing = |length| Windowing { length, stride: Some(5), ..Windowing::default() };
        let found = plan(&[6, 100], &windowing(None)).unwrap();
        assert_eq!((found.channels, found.length, found.stride), (6, 100, 5));
        assert_eq!(plan(&[16_000], &Windowing::default()).unwrap().channels, 1);
        assert_eq!(plan(&[600], &windowing(Some(100))).unwrap().channels, 6);
        for (shape, length) in [(&[6, 100][..], Some(7)), (&[], None), (&[0], None), (&[1 << 40], None)] {
            assert!(plan(shape, &windowing(length)).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn flat_samples_are_whole() {
        let flat = Samples::Flat(vec![0.0; 7]);
        let rows: Vec<Row<'_>> = rows(&flat, 3).collect();
        assert!(rows[1].1.is_ok() && rows[2].1.is_err());
    }
}
