//! Devices as the service knows them: presence, inventory, what runs, the last update, the last window.

pub mod api;
pub mod commands;

use crate::store::{During, Store, StoreError};

/// Nobody is connected when the embedded broker starts.
///
/// # Errors
/// [`StoreError`] when it cannot be written.
pub async fn all_offline(store: &Store) -> Result<(), StoreError> {
    let mut write = store.write().await?;
    sqlx::query("UPDATE devices SET online = 0 WHERE online <> 0")
        .execute(write.connection())
        .await
        .during("mark all devices offline")?;
    write.commit().await
}
