//! Settings of the service: the command line, checked as a whole into a struct in which nothing is
//! optional that means "default".

use std::net::SocketAddr;
use std::path::PathBuf;

use farlight_wire::Millis;

/// Arguments of `farlight-cloud serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// Folder of everything the service keeps; created at first start
    #[arg(long, env = "FARLIGHT_DATA", value_name = "DIR")]
    pub data: PathBuf,
    /// Address of the HTTPS listener (API, console, release repository); port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Address of the MQTT listener for devices (TLS 1.3); port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8883", value_name = "ADDR")]
    pub mqtt: SocketAddr,
    /// Host name or address that devices and operators use; the first is put into URLs. Repeatable
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// Database: `sqlite:` or `postgres:` URL; by default the file DIR/cloud.db
    #[arg(long, env = "FARLIGHT_DATABASE", value_name = "URL")]
    pub database: Option<String>,
    /// Days that windows, unlabelled cases and reports are kept
    #[arg(long, default_value_t = 90, value_name = "DAYS")]
    pub retention_days: u32,
    /// Newest windows of each device that a drift verdict pools
    #[arg(long, default_value_t = 30, value_name = "WINDOWS")]
    pub drift_windows: u32,
}

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of everything the service keeps.
    pub data: PathBuf,
    /// Address of the HTTPS listener.
    pub listen: SocketAddr,
    /// Address of the MQTT listener.
    pub mqtt: SocketAddr,
    /// Names in the server certificate; the first is put into URLs.
    pub hosts: Vec<String>,
    /// Database URL.
    pub database: String,
    /// How long windows, unlabelled cases and reports are kept.
    pub retention: Millis,
    /// Newest windows of each device that a drift verdict pools.
    pub drift_windows: u32,
}

/// Every error of the settings, each with the argument it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("settings are not valid: {}", .0.join("; "))]
pub struct SettingsError(pub Vec<String>);

impl Settings {
    /// Checks the arguments.
    ///
    /// # Errors
    /// [`SettingsError`] with all errors at once.
    pub fn from_args(args: ServeArgs) -> Result<Self, SettingsError> {
        let mut errors = Vec::new();
        let database = args.database.clone().unwrap_or_else(|| sqlite_url(&args.data));
        if !["sqlite:", "postgres:", "postgresql:"].iter().any(|scheme| database.starts_with(scheme)) {
            errors.push("--database: use a sqlite: or postgres: URL".to_owned());
        }
        for host in &args.host {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
            if host.is_empty() || host.len() > 253 || !host.chars().all(good) {
                errors.push(format!("--host: {host:?} is no host name or address"));
            }
        }
        if !(1..=3650).contains(&args.retention_days) {
            errors.push("--retention-days: use 1 to 3650".to_owned());
        }
        if !(1..=10_000).contains(&args.drift_windows) {
            errors.push("--drift-windows: use 1 to 10000".to_owned());
        }
        if !errors.is_empty() {
            return Err(SettingsError(errors));
        }
        let mut hosts = args.host;
        for local in ["127.0.0.1", "localhost"] {
            if !hosts.iter().any(|host| host == local) {
                hosts.push(local.to_owned());
            }
        }
        Ok(Self {
            data: args.data,
            listen: args.listen,
            mqtt: args.mqtt,
            hosts,
            database,
            retention: Millis::from_secs(u64::from(args.retention_days) * 86_400),
            drift_windows: args.drift_windows,
        })
    }
}

fn sqlite_url(data: &std::path::Path) -> String {
    let mut url = "sqlite://".to_owned();
    for byte in data.join("cloud.db").to_string_lossy().bytes() {
        match byte {
            b'%' | b'?' | b'#' | b' ' => url.push_str(&format!("%{byte:02X}")),
            byte if byte.is_ascii_graphic() => url.push(char::from(byte)),
            byte => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url + "?mode=rwc"
}
