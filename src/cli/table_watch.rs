//! What a server does about its table while it serves.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;

use crate::model::LiveTable;

/// How often the file is looked at. Every step does that too, but an idle server has none.
const INTERVAL: Duration = Duration::from_secs(30);

/// On SIGHUP, as daemons do, reads the table again.
pub(super) async fn reload_on_hangup(live: Arc<LiveTable>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let live = Arc::clone(&live);
        match tokio::task::spawn_blocking(move || live.reload(None).map(drop)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("the table stays as it is: {error}"),
            Err(error) => tracing::error!("the table stays as it is: {error}"),
        }
    }
}

/// Says so in the log, once for each table, when its file was changed or another has taken its place.
pub(super) async fn watch(live: Arc<LiveTable>) {
    let mut told = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let table = live.get();
        if told.as_ref().is_some_and(|last| Arc::ptr_eq(last, &table)) {
            continue;
        }
        if let Err(error) = table.check() {
            tracing::error!("{error}");
        } else if table.is_replaced() {
            let path = table.path().display();
            tracing::warn!("there is another table at {path}; it is not in use before a reload (SIGHUP)");
        } else {
            continue;
        }
        told = Some(table);
    }
}
