//! What async-nats can do with an empty bucket.

use async_nats::jetstream::kv::{Entry, Operation, Watch};
use async_nats::jetstream::{self, kv};
use futures_util::StreamExt as _;

use crate::{Failure, Given, Outcome, within};

/// The next update of a watcher: key, operation, value and revision.
async fn next(watcher: &mut Watch) -> Result<(String, Operation, String, u64), Failure> {
    let Entry { key, operation, value, revision, .. } =
        within("an update", watcher.next()).await?.ok_or("the watcher ended")??;
    Ok((key, operation, String::from_utf8(value.to_vec())?, revision))
}

fn update(key: &str, operation: Operation, value: &str, revision: u64) -> (String, Operation, String, u64) {
    (key.to_owned(), operation, value.to_owned(), revision)
}

async fn keys(store: &kv::Store) -> Result<Vec<String>, Failure> {
    let keys = within("the keys", store.keys()).await??.collect::<Vec<_>>();
    Ok(within("the end of the keys", keys).await?.into_iter().collect::<Result<_, _>>()?)
}

pub async fn kv(given: &Given) -> Outcome {
    let jetstream = jetstream::new(given.connect().await?);
    let bucket = given.text("bucket");
    let store = jetstream.get_key_value(bucket.as_str()).await?;
    let first = store.put("a.b", "one".into()).await?;
    let entry = store.entry("a.b").await?.ok_or("no entry")?;
    assert_eq!((entry.value.as_ref(), entry.revision), (b"one".as_slice(), first));
    let second = store.update("a.b", "two".into(), first).await?;
    assert!(second > first);
    let error = store.update("a.b", "lost".into(), first).await.expect_err("an update");
    assert_eq!(error.kind(), kv::UpdateErrorKind::WrongLastRevision);
    let error = store.create("a.b", "lost".into()).await.expect_err("a key");
    assert_eq!(error.kind(), kv::CreateErrorKind::AlreadyExists);
    let third = store.create("c", "1".into()).await?;
    assert_eq!(keys(&store).await?, ["a.b", "c"]);

    let mut all = store.watch_with_history(">").await?;
    assert_eq!(next(&mut all).await?, update("a.b", Operation::Put, "two", second));
    assert_eq!(next(&mut all).await?, update("c", Operation::Put, "1", third));
    let live = store.put("d", "live".into()).await?;
    assert_eq!(next(&mut all).await?, update("d", Operation::Put, "live", live));
    store.delete("c").await?;
    let (key, operation, value, deleted) = next(&mut all).await?;
    assert_eq!((key.as_str(), operation, value.as_str()), ("c", Operation::Delete, ""));
    assert!(deleted > live);
    store.purge("d").await?;
    let (key, operation, ..) = next(&mut all).await?;
    assert_eq!((key.as_str(), operation), ("d", Operation::Purge));
    drop(all);

    let mut updates = store.watch("*").await?;
    let fourth = store.create("c", "again".into()).await?;
    store.put("x.y", "of another filter".into()).await?;
    let fifth = store.put("e", "value".into()).await?;
    assert_eq!(next(&mut updates).await?, update("c", Operation::Put, "again", fourth));
    assert_eq!(next(&mut updates).await?, update("e", Operation::Put, "value", fifth));
    drop(updates);
    store.delete_expect_revision("c", Some(third)).await.expect_err("a deletion");
    store.delete_expect_revision("c", Some(fourth)).await?;

    assert!(store.get("c").await?.is_none());
    let history = store.history("a.b").await?.collect::<Vec<_>>().await;
    assert_eq!(history.len(), 1);
    let entry = store.entry_for_revision("a.b", second).await?.ok_or("no entry")?;
    assert_eq!(entry.value.as_ref(), b"two");
    let status = jetstream.get_key_value(bucket.as_str()).await?.status().await?;
    assert_eq!((status.bucket(), status.values(), status.history()), (bucket.as_str(), 3, 1));
    jetstream.get_key_value("no-such-bucket").await.map(drop).expect_err("a bucket");
    jetstream.delete_key_value(bucket).await.map(drop).expect_err("a deletion");
    for key in ["a.b", "e", "x.y"] {
        store.delete(key).await?;
    }
    assert!(keys(&store).await?.is_empty());
    Ok(())
}
