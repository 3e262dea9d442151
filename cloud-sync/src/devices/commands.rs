//! `POST /api/v1/devices/{id}/commands`: asks a connected device something. Commands install nothing; that
//! takes a signed assignment.

use axum::extract::State;
use axum::{Extension, Json};
use farlight_wire::desired::Action;
use farlight_wire::{Command, DeviceId, encode, topics};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use utoipa::ToSchema;

use super::api::unknown;
use crate::api::{ApiError, Body, Operator, Path};
use crate::app::Shared;
use crate::store::{During, audit};

/// Longest pause in seconds, as devices bound it.
const MAX_PAUSE: u64 = 31 * 86_400;

/// A command.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum CommandRequest {
    /// Look for release metadata and the desired state now.
    Refresh,
    /// Close the current window and send what is waiting now.
    Flush,
    /// Activate nothing for a while; rolling back never waits.
    PauseUpdates {
        /// How long.
        seconds: u64,
    },
    /// End a pause.
    ResumeUpdates,
    /// Collect what helps to see what is wrong, and send it.
    Diagnostics,
}

/// A command that was sent.
#[derive(Debug, Serialize, ToSchema)]
pub struct CommandSent {
    /// The device.
    pub device: String,
    /// Id of the command: its result and its diagnostics carry it.
    pub id: String,
}

/// Sends a command; its result comes as a report of the device, with the same id.
#[utoipa::path(post, path = "/api/v1/devices/{id}/commands", tag = "devices", params(("id" = String, Path)),
    request_body = CommandRequest,
    responses((status = 200, body = CommandSent), (status = 400), (status = 401), (status = 404), (status = 409)))]
pub async fn send(
    State(app): State<Shared>,
    Extension(operator): Extension<Operator>,
    Path(id): Path<String>,
    Body(request): Body<CommandRequest>,
) -> Result<Json<CommandSent>, ApiError> {
    let device: DeviceId = id.parse().map_err(|_| unknown(&id))?;
    let action = match request {
        CommandRequest::Refresh => Action::Refresh,
        CommandRequest::Flush => Action::Flush,
        CommandRequest::PauseUpdates { seconds } if !(1..=MAX_PAUSE).contains(&seconds) => {
            return Err(ApiError::bad_request("command.seconds", format!("seconds: use 1 to {MAX_PAUSE}")));
        }
        CommandRequest::PauseUpdates { seconds } => Action::PauseUpdates { seconds },
        CommandRequest::ResumeUpdates => Action::ResumeUpdates,
        CommandRequest::Diagnostics => Action::Diagnostics,
    };
    let row = sqlx::query("SELECT online FROM devices WHERE id = $1 AND revoked = 0")
        .bind(device.as_str())
        .fetch_optional(app.store.reader())
        .await
        .during("look for a device")?
        .ok_or_else(|| unknown(&id))?;
    if row.get::<i64, _>(0) == 0 {
        return Err(ApiError::conflict("device.offline", format!("{id} is not connected"))
            .hint("commands are not kept for later; try again when it is back"));
    }
    let command = Command { id: format!("c-{:012x}", rand::random::<u64>() & 0xffff_ffff_ffff), action };
    let payload = encode(&command).map_err(ApiError::internal)?;
    app.link.try_publish(topics::cmd(&device), payload).map_err(ApiError::internal)?;
    let mut write = app.store.write().await?;
    audit(&mut write, &operator.0, "device.command", &id, &format!("{action:?}")).await?;
    write.commit().await?;
    Ok(Json(CommandSent { device: id, id: command.id }))
}
