//! Who may connect and to which topics. A connection is who the front says it is: the front noted the
//! certificate's name under the local address it connects from, before it sent a byte. The client id
//! must be that name, and topics outside `fl/1/d/‹name›/` are refused.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use farlight_wire::{DeviceId, topics};
use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::types::ReasonCode;
use tokio_util::sync::CancellationToken;

use crate::enrol::{Secret, digest, matches_digest};

/// User name of the service's own connection. `$` cannot occur in a device id.
pub const SERVICE_USER: &str = "$service";

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The connections of devices, by the local address the front uses for each.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<SocketAddr, (DeviceId, CancellationToken)>>);

impl Sessions {
    fn map(&self) -> MutexGuard<'_, HashMap<SocketAddr, (DeviceId, CancellationToken)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whose connection comes from this address; the token ends it.
    pub(super) fn open(&self, address: SocketAddr, device: DeviceId) -> CancellationToken {
        let end = CancellationToken::new();
        self.map().insert(address, (device, end.clone()));
        end
    }

    pub(super) fn close(&self, address: SocketAddr) {
        self.map().remove(&address);
    }

    fn device(&self, address: SocketAddr) -> Option<DeviceId> {
        self.map().get(&address).map(|(device, _)| device.clone())
    }

    /// Ends all connections of a device.
    pub fn end(&self, device: &DeviceId) {
        self.map().values().filter(|(owner, _)| owner == device).for_each(|(_, end)| end.cancel());
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.map().len()
    }
}

/// The broker's access rules.
#[derive(Debug)]
pub struct Access {
    /// The open connections.
    pub sessions: Sessions,
    service_secret_sha256: String,
}

impl Access {
    /// Rules under which the service itself connects with this secret.
    pub fn new(service_secret: &Secret) -> Self {
        Self { sessions: Sessions::default(), service_secret_sha256: digest(service_secret.reveal()) }
    }

    fn judge(&self, connect: &ConnectPacket, address: SocketAddr) -> Result<String, &'static str> {
        match self.sessions.device(address) {
            Some(device) if connect.client_id != device.as_str() => {
                Err("the client id is not the name in the certificate")
            }
            Some(device) => match &connect.will {
                Some(will) if !may_publish(device.as_str(), &will.topic) => {
                    Err("the last will is outside the device's topics")
                }
                _ => Ok(device.to_string()),
            },
            None => {
                let secret = connect.password.as_deref().and_then(|p| std::str::from_utf8(p).ok());
                let known = secret.is_some_and(|s| matches_digest(s, &self.service_secret_sha256));
                if known && connect.username.as_deref() == Some(SERVICE_USER) {
                    Ok(SERVICE_USER.to_owned())
                } else {
                    Err("the connection does not come through the TLS front")
                }
            }
        }
    }
}

/// Whether a device may publish on a topic: its streams and its presence, nothing else.
fn may_publish(user: &str, topic: &str) -> bool {
    topics::parse_up(topic).is_some_and(|(device, _)| device.as_str() == user)
}

/// Whether a device may subscribe to a filter: what is sent down to it. The name in it is taken
/// literally, so a wildcard there cannot match.
fn may_subscribe(user: &str, filter: &str) -> bool {
    let Ok(device) = DeviceId::new(user) else { return false };
    [topics::down_filter(&device), topics::want(&device), topics::cmd(&device), topics::ack(&device)]
        .iter()
        .any(|own| own == filter)
}

impl AuthProvider for Access {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        client_addr: SocketAddr,
    ) -> Answer<'a, mqtt5::error::Result<AuthResult>> {
        let result = match self.judge(connect, client_addr) {
            Ok(user) => AuthResult::success_with_user(user),
            Err(why) => {
                tracing::warn!(client_id = %connect.client_id.escape_debug(), why, "connection refused");
                AuthResult::fail_with_reason(ReasonCode::NotAuthorized, why)
            }
        };
        Box::pin(async { Ok(result) })
    }

    fn authorize_publish<'a>(
        &'a self,
        _client_id: &str,
        user_id: Option<&'a str>,
        topic: &'a str,
    ) -> Answer<'a, bool> {
        let allowed = user_id.is_some_and(|user| user == SERVICE_USER || may_publish(user, topic));
        Box::pin(async move { allowed })
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client_id: &str,
        user_id: Option<&'a str>,
        topic_filter: &'a str,
    ) -> Answer<'a, bool> {
        let allowed = user_id.is_some_and(|user| user == SERVICE_USER || may_subscribe(user, topic_filter));
        Box::pin(async move { allowed })
    }
}

#[cfg(test)]
mod tests {
    use farlight_wire::Stream;

    use super::*;

    #[test]
    fn a_device_has_its_own_topics_only() {
        let own = DeviceId::new("gw-1").unwrap();
        assert!(may_publish("gw-1", &topics::presence(&own)));
        assert!(Stream::ALL.into_iter().all(|stream| may_publish("gw-1", &topics::up(&own, stream))));
        for topic in
            ["fl/1/d/gw-2/up/tel", "fl/1/d/gw-1/down/want", "fl/1/d/gw-1/up/x", "fl/1/f/main/events", "x"]
        {
            assert!(!may_publish("gw-1", topic), "{topic}");
        }
        assert!(may_subscribe("gw-1", "fl/1/d/gw-1/down/+"));
        for filter in
            ["#", "fl/1/d/+/down/+", "fl/1/d/gw-2/down/+", "fl/1/d/gw-1/#", "$share/a/fl/1/d/gw-1/down/+"]
        {
            assert!(!may_subscribe("gw-1", filter), "{filter}");
        }
        assert!(!may_subscribe("+", "fl/1/d/+/down/+"));
    }
}
