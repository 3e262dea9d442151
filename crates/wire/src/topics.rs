//! The MQTT topic tree. `fl/1/d/‹device›/…` is a device's own; a broker's ACL gives each device
//! exactly its subtree. `fl/1/f/‹fleet›/…` is the northbound JSON for people and tools.

use crate::ids::{DeviceId, FleetId};
use crate::stream::Stream;

/// Topic a device publishes batches of one stream on: `up/tel`, `up/case` or `up/rep`.
pub fn up(device: &DeviceId, stream: Stream) -> String {
    format!("fl/1/d/{device}/up/{}", stream.topic())
}

/// Filter that the cloud subscribes to for one stream of every device.
pub fn up_filter(stream: Stream) -> String {
    format!("fl/1/d/+/up/{}", stream.topic())
}

/// Topic of the retained desired state of a device.
pub fn want(device: &DeviceId) -> String {
    format!("fl/1/d/{device}/down/want")
}

/// Topic of commands to a device.
pub fn cmd(device: &DeviceId) -> String {
    format!("fl/1/d/{device}/down/cmd")
}

/// Topic of the cloud's acknowledgements to a device.
pub fn ack(device: &DeviceId) -> String {
    format!("fl/1/d/{device}/down/ack")
}

/// Filter a device subscribes to: everything sent down to it.
pub fn down_filter(device: &DeviceId) -> String {
    format!("fl/1/d/{device}/down/+")
}

/// Topic of the retained presence byte of a device: `1` online, `0` offline (also its last will).
pub fn presence(device: &DeviceId) -> String {
    format!("fl/1/d/{device}/presence")
}

/// Filter for the presence of every device.
pub fn presence_filter() -> &'static str {
    "fl/1/d/+/presence"
}

/// Retained JSON state of a device for fleet managers.
pub fn fleet_device_state(fleet: &FleetId, device: &DeviceId) -> String {
    format!("fl/1/f/{fleet}/devices/{device}/state")
}

/// JSON events of a fleet for fleet managers.
pub fn fleet_events(fleet: &FleetId) -> String {
    format!("fl/1/f/{fleet}/events")
}

/// What a topic published by a device carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpTopic {
    /// A batch of records of this stream.
    Stream(Stream),
    /// The presence byte.
    Presence,
}

/// Reads a topic published by a device; `None` when it is none of ours.
pub fn parse_up(topic: &str) -> Option<(DeviceId, UpTopic)> {
    let mut parts = topic.strip_prefix("fl/1/d/")?.split('/');
    let device = DeviceId::new(parts.next()?).ok()?;
    let kind = match (parts.next()?, parts.next()) {
        ("up", Some(name)) => UpTopic::Stream(Stream::from_topic(name)?),
        ("presence", None) => UpTopic::Presence,
        _ => return None,
    };
    parts.next().is_none().then_some((device, kind))
}

/// What a topic sent down to a device carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownTopic {
    /// The desired state.
    Want,
    /// A command.
    Cmd,
    /// An acknowledgement.
    Ack,
}

/// Reads a topic sent down to `device`; `None` when it is none of ours.
pub fn parse_down(device: &DeviceId, topic: &str) -> Option<DownTopic> {
    let rest = topic.strip_prefix("fl/1/d/")?.strip_prefix(device.as_str())?;
    match rest.strip_prefix("/down/")? {
        "want" => Some(DownTopic::Want),
        "cmd" => Some(DownTopic::Cmd),
        "ack" => Some(DownTopic::Ack),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_round_trip() {
        let device = DeviceId::new("gw-1").unwrap();
        for stream in Stream::ALL {
            assert_eq!(parse_up(&up(&device, stream)), Some((device.clone(), UpTopic::Stream(stream))));
        }
        assert_eq!(parse_up(&presence(&device)), Some((device.clone(), UpTopic::Presence)));
        assert_eq!(parse_down(&device, &want(&device)), Some(DownTopic::Want));
        assert_eq!(parse_down(&device, &cmd(&device)), Some(DownTopic::Cmd));
        assert_eq!(parse_down(&device, &ack(&device)), Some(DownTopic::Ack));
    }

    #[test]
    fn foreign_topics_are_refused() {
        let device = DeviceId::new("gw-1").unwrap();
        for topic in [
            "",
            "fl/1/d/",
            "fl/1/d/gw-1/up/nope",
            "fl/1/d/gw-1/up/tel/x",
            "fl/2/d/gw-1/up/tel",
            "fl/1/d/A/up/tel",
        ] {
            assert_eq!(parse_up(topic), None, "{topic}");
        }
        for topic in ["fl/1/d/gw-10/down/want", "fl/1/d/gw-1/down/x", "fl/1/d/gw-1/up/tel"] {
            assert_eq!(parse_down(&device, topic), None, "{topic}");
        }
    }
}
