//! Trains the shared zstd dictionary on synthetic windows. Version 1 is frozen: this shows how it was made
//! and makes the next one. `cargo run -p farlight-wire --example train_dictionary -- FILE`

#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "a tool beside the core, not part of it")]

use std::path::PathBuf;

use farlight_wire::telemetry::{ModelWindowV1, VitalsV1, WindowV1};
use farlight_wire::{Batch, Counts, Millis, Seq, Sketch};

/// Size of the dictionary in bytes.
const SIZE: usize = 8 * 1024;
/// Windows it is trained on.
const SAMPLES: u64 = 4_000;

/// splitmix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// Counts of `n` values over `bins`, unevenly.
fn counts(random: &mut Random, bins: usize, n: u64) -> Counts {
    let mut counts = Counts::zeros(bins);
    let centre = random.below(bins as u64);
    for _ in 0..n {
        let near = (centre + random.below(5) + random.below(4)) % bins as u64;
        let bin = if random.below(4) == 0 { random.below(bins as u64) } else { near };
        counts.add(bin as usize);
    }
    counts
}

fn sketch(random: &mut Random, n: u64, low: u64) -> Sketch {
    let mut sketch = Sketch::default();
    for _ in 0..n {
        sketch.add((low + random.below(low) + random.below(low / 4 + 1)) as f64);
    }
    sketch
}

fn window(random: &mut Random, number: u64) -> WindowV1 {
    const MODELS: [&str; 6] =
        ["watch-gestures", "digits", "vibration", "anomaly-detector", "face-counter", "voice-activity"];
    let models = (0..1 + random.below(3))
        .map(|_| {
            let n = [0, 20, 60, 300, 1_500][random.below(5) as usize];
            let classes = 2 + random.below(10) as usize;
            let name = MODELS[random.below(6) as usize];
            let version = format!("{}.{}.{}", 1 + random.below(3), random.below(9), random.below(4));
            ModelWindowV1 {
                release: format!("{name}/{version}").parse().expect("names above are valid"),
                ok: n,
                failed: random.below(20) / 19,
                rejected: random.below(20) / 19,
                contract_violations: random.below(20) / 19,
                non_finite: 0,
                abstained: random.below(n / 20 + 1),
                cpu_us: n * (80 + random.below(40)),
                latency_us: sketch(random, n, 120),
                infer_us: sketch(random, n, 60),
                classes: counts(random, classes, n),
                scores: counts(random, 10, n),
                drift: (0..12).map(|_| counts(random, 11, n)).collect(),
            }
        })
        .collect();
    WindowV1 {
        start: Millis(1_790_000_000_000 + number * 60_000 + random.below(1_000)),
        length: Millis(60_000 + random.below(3)),
        models,
        vitals: VitalsV1 {
            cpu_permille: random.below(80) as u32,
            rss_kib: 18_000 + random.below(6_000),
            free_memory_kib: 400_000 + random.below(600_000),
            free_disk_kib: 2_000_000 + random.below(6_000_000),
            uptime_s: number * 60,
            evicted: 0,
            dropped: 0,
        },
    }
}

fn main() -> std::io::Result<()> {
    let path = std::env::args_os().nth(1).map(PathBuf::from);
    let path = path.ok_or_else(|| std::io::Error::other("name the file to write"))?;
    let mut random = Random(1);
    let samples: Vec<Vec<u8>> = (0..SAMPLES)
        .map(|number| {
            let records = vec![(Seq(number + 1), window(&mut random, number))];
            let batch = Batch { epoch: random.next() >> 1, acked: Seq(number), prev: Seq(number), records };
            postcard::to_allocvec(&batch).expect("the wire's types serialise")
        })
        .collect();
    std::fs::write(path, zstd::dict::from_samples(&samples, SIZE)?)
}
