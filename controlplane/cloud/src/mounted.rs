//! A directory as a store, as long as it is the one that was opened.
//!
//! When what is mounted there goes away (a network file system, a disk), an empty directory is left: what was written to it
//! would be nowhere, and what is missing in it is not lost. So a file in the directory says that it is a bucket. Without it every
//! request fails, as one does that a store does not answer, and works again when it is back.

use async_trait::async_trait;
use futures_util::TryFutureExt as _;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::Path;
use std::sync::Arc;

/// The file. No object is called so: theirs are below `chunks/` and `history/`.
const MARK: &str = ".fastcache-bucket";
/// What is in it, for people.
const WORDS: &str =
    "This directory is a bucket of fastcache. Without this file nothing in it is used.\n";

/// The store of a directory.
#[derive(Debug)]
pub(crate) struct Mounted {
    store: LocalFileSystem,
    /// `None`: it has none, and cannot be given one.
    mark: Option<Arc<Path>>,
}

impl Mounted {
    /// Marks the directory, where it is not. One that cannot be written to (a copy to read) is taken for what it is.
    pub(crate) fn new(store: LocalFileSystem, root: &Path) -> Mounted {
        let mark = root.join(MARK);
        let made = File::create_new(&mark).and_then(|mut file| {
            file.write_all(WORDS.as_bytes())?;
            file.sync_all()
        });
        let is_marked = made.or_else(|error| match error.kind() {
            ErrorKind::AlreadyExists => Ok(()),
            _ => Err(error),
        });
        if let Err(error) = &is_marked {
            tracing::info!(target: "cloud", mark = %mark.display(), %error, "a directory that cannot be marked as a bucket: whether it stays mounted is not looked at");
        }
        Mounted {
            store,
            mark: is_marked.is_ok().then(|| mark.into()),
        }
    }

    /// An error when the directory is another one than it was.
    fn check(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        let mark = self.mark.clone();
        async move {
            let Some(mark) = mark else { return Ok(()) };
            tokio::fs::symlink_metadata(&mark)
                .await
                .map(drop)
                .map_err(|error| {
                    let text = format!(
                        "{} cannot be found ({error}): mount again what was mounted there",
                        mark.display()
                    );
                    Error::Generic {
                        store: "directory",
                        source: text.into(),
                    }
                })
        }
    }

    /// What a stream has, which ends well when the directory was the same before and after.
    fn guarded<T: Send + 'static>(
        &self,
        inner: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let (before, after) = (self.check(), self.check());
        let end = stream::once(after).filter_map(async |checked| checked.err().map(Err));
        let begin = async move { before.await.map(|()| inner) };
        begin.try_flatten_stream().chain(end).boxed()
    }
}

impl fmt::Display for Mounted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Mounted {
    async fn put_opts(&self, to: &Key, bytes: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.check().await?;
        let put = self.store.put_opts(to, bytes, how).await;
        self.check().await?;
        put
    }

    async fn put_multipart_opts(
        &self,
        to: &Key,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.check().await?;
        self.store.put_multipart_opts(to, how).await
    }

    async fn get_opts(&self, from: &Key, how: GetOptions) -> Result<GetResult> {
        let got = self.store.get_opts(from, how).await;
        if got.is_err() {
            self.check().await?;
        }
        got
    }

    fn delete_stream(
        &self,
        keys: BoxStream<'static, Result<Key>>,
    ) -> BoxStream<'static, Result<Key>> {
        self.guarded(self.store.delete_stream(keys))
    }

    fn list(&self, below: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.guarded(self.store.list(below))
    }

    async fn list_with_delimiter(&self, below: Option<&Key>) -> Result<ListResult> {
        let listed = self.store.list_with_delimiter(below).await;
        self.check().await?;
        listed
    }

    async fn copy_opts(&self, from: &Key, to: &Key, how: CopyOptions) -> Result<()> {
        self.check().await?;
        let copied = self.store.copy_opts(from, to, how).await;
        self.check().await?;
        copied
    }
}

#[cfg(test)]
mod tests {
    //! Goal: where a directory is not the one that was opened, nothing is written, and nothing counts as missing.
    //! Method: another one is put in its place, and taken away.

    use crate::{Cloud, CloudConfig, CloudError, Created};
    use bytes::Bytes;
    use std::fs;

    #[tokio::test]
    async fn a_directory_that_is_not_mounted_is_a_store_that_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("bucket"), dir.path().join("aside"));
        let config = CloudConfig::Dir { path: path.clone() };
        let cloud = Cloud::open(&config).unwrap().unwrap();
        let bytes = Bytes::from_static(b"bytes");
        let make = async |key| cloud.create(key, bytes.clone()).await;
        assert_eq!(make("history/a").await.unwrap(), Created::New);

        fs::rename(&path, &aside).unwrap();
        for is_there in [false, true] {
            if is_there {
                fs::create_dir(&path).unwrap();
            }
            let failed = [
                make("history/b").await.map(drop),
                cloud.read("history/a", 10).await.map(drop),
                cloud.keys("history", 10).await.map(drop),
                cloud.delete("history/a").await,
                cloud.head("history/a").await.map(drop),
            ];
            for (n, failed) in failed.into_iter().enumerate() {
                let error = failed.expect_err("it is another directory");
                assert!(error.is_passing(), "{n}: {error:?}");
                assert!(error.to_string().contains("mount again"), "{n}: {error}");
            }
        }
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);

        fs::remove_dir(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert_eq!(cloud.read("history/a", 10).await.unwrap(), bytes);
        let lost = cloud.read("history/b", 10).await;
        assert!(matches!(lost, Err(CloudError::NotFound(_))), "{lost:?}");
        assert_eq!(make("history/b").await.unwrap(), Created::New);
        // Another handle finds it marked.
        let again = Cloud::open(&config).unwrap().unwrap();
        assert_eq!(again.keys("history", 10).await.unwrap().len(), 2);
    }
}
