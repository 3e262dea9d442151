//! The frame of a page, escaping, and the two plots.

use std::fmt::Write as _;

use axum::response::Html;
use farlight_fleet::drift::Feature;

/// Most points of a line of a plot: more than a screen shows.
const MAX_POINTS: usize = 400;
/// Most channels that are plotted.
const MAX_CHANNELS: usize = 12;
const COLOURS: [&str; 6] = ["#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2"];

const STYLE: &str = "
:root{color-scheme:light dark;--line:#8883;--soft:#8882;--good:#059669;--bad:#dc2626;--warn:#d97706}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem}
nav{display:flex;gap:1.2rem;align-items:center;border-bottom:1px solid var(--line);padding-bottom:.6rem}
nav b{margin-right:.6rem}nav form{margin-left:auto}a{color:inherit}nav a{text-decoration:none}nav a.here{font-weight:600;text-decoration:underline}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;font-size:.85em;opacity:.75}code{font-size:.92em}.card{border:1px solid var(--line);border-radius:.6rem;padding:1rem;margin:1rem 0}
.tag{border-radius:1rem;padding:.05rem .6rem;background:var(--soft);white-space:nowrap}.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}.dim{opacity:.65}
button,input{font:inherit;padding:.25rem .7rem;border-radius:.4rem;border:1px solid var(--line);background:var(--soft);color:inherit;cursor:pointer}
.bar{background:var(--soft);border-radius:.4rem;height:.7rem;overflow:hidden}.bar i{display:block;height:100%;background:var(--good)}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(20rem,1fr));gap:1rem}.grid .card{margin:0}svg{width:100%;height:auto}form.row{display:inline-flex;gap:.3rem;flex-wrap:wrap;margin:0}
";

/// Text that is safe in HTML, also inside quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A whole page; `here` is the path of the entry of the navigation that it belongs to.
pub(super) fn page(title: &str, here: &str, body: &str) -> Html<String> {
    let mut nav = String::new();
    if !here.is_empty() {
        let entries = [
            ("/console", "Fleet"),
            ("/console/rollouts", "Rollouts"),
            ("/console/drift", "Drift"),
            ("/console/cases", "Cases"),
        ];
        for (path, name) in entries {
            let class = if path == here { " class=here" } else { "" };
            let _ = write!(nav, "<a href={path}{class}>{name}</a>");
        }
        nav.push_str("<form method=post action=/console/logout><button>Sign out</button></form>");
    }
    let title = escape(title);
    Html(format!(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>{title} · Farlight</title><style>{STYLE}</style><nav><b>Farlight</b>{nav}</nav><h1>{title}</h1>{body}"
    ))
}

/// The colour of a state.
pub(super) fn tag(state: &str) -> String {
    let class = match state {
        "confirmed" | "completed" | "stable" | "online" | "pass" => "good",
        "failed" | "rolled_back" | "aborted" | "drift" | "timed_out" | "fail" => "bad",
        "paused" | "reverted" | "unreached" | "rolling_back" | "probation" => "warn",
        _ => "",
    };
    format!("<span class=\"tag {class}\">{}</span>", escape(&state.replace('_', " ")))
}

/// A stamp in words that need no clock of the browser: how long ago.
pub(super) fn ago(at: u64, now: u64) -> String {
    if at == 0 {
        return "never".to_owned();
    }
    let seconds = now.saturating_sub(at) / 1000;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// Reference and observed shares of a feature's bins, side by side.
pub(super) fn bins(feature: &Feature) -> String {
    let count = feature.reference.len().max(1) as f64;
    let highest = feature.reference.iter().chain(&feature.observed).copied().fold(0.05, f64::max);
    let mut svg = String::from("<svg viewBox=\"0 0 300 80\" role=img>");
    let width = 300.0 / count;
    for (index, (reference, observed)) in feature.reference.iter().zip(&feature.observed).enumerate() {
        for (share, shift, colour) in
            [(reference, 0.08, "#8886"), (observed, 0.5, if feature.drifted { "#dc2626" } else { "#2563eb" })]
        {
            let height = share / highest * 76.0;
            let (x, w) = ((index as f64 + shift) * width, width * 0.4);
            let _ = write!(
                svg,
                "<rect x={x:.1} y={:.1} width={w:.1} height={height:.1} fill=\"{colour}\"/>",
                80.0 - height
            );
        }
    }
    svg + "</svg>"
}

/// The channels of a tensor as lines; the first dimension is the channel where there are two or more.
pub(super) fn lines(shape: &[usize], input: &[f32]) -> String {
    let channels = if shape.len() > 1 { shape[0].max(1) } else { 1 };
    let length = (input.len() / channels).max(1);
    let finite = || input.iter().copied().filter(|value| value.is_finite());
    let (low, high) = (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max));
    if low > high {
        return "<p class=dim>no finite values</p>".to_owned();
    }
    let span = (f64::from(high) - f64::from(low)).max(1e-9);
    let step = length.div_ceil(MAX_POINTS);
    let mut svg = String::from("<svg viewBox=\"0 0 300 90\" role=img>");
    for (channel, values) in input.chunks(length).take(MAX_CHANNELS).enumerate() {
        let mut points = String::new();
        for (index, value) in values.iter().enumerate().step_by(step).filter(|(_, value)| value.is_finite()) {
            let x = index as f64 / (length.max(2) - 1) as f64 * 300.0;
            let y = 87.0 - (f64::from(*value) - f64::from(low)) / span * 84.0;
            let _ = write!(points, "{x:.1},{y:.1} ");
        }
        let colour = COLOURS[channel % COLOURS.len()];
        let _ =
            write!(svg, "<polyline points=\"{points}\" fill=none stroke=\"{colour}\" stroke-width=1.2 />");
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_devices_say_cannot_become_markup() {
        assert_eq!(escape("<a href=\"x\">'&"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;");
        assert!(!tag("<script>").contains("<script>"));
    }

    #[test]
    fn plots_take_any_tensor() {
        for (shape, input) in [
            (vec![], vec![]),
            (vec![0, 3], vec![]),
            (vec![2, 2], vec![1.0, f32::NAN, 2.0, 3.0]),
            (vec![1], vec![f32::INFINITY]),
        ] {
            assert!(!lines(&shape, &input).contains("NaN"));
        }
    }
}
