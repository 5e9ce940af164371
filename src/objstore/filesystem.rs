//! FILESYSTEM: a directory, with an object's name as the path below it.
//!
//! Thanos writes an object in its place. Here it is written beside it and renamed once it is on the
//! medium, so what is there is whole, also after a power cut: the block that it was made from may be
//! gone by then.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::disk::Disk;
use crate::objstore::{Bucket, BucketError, Content};

/// Of a look, and for what an upload has to do beside its bytes.
const CALL_MAX: Duration = Duration::from_secs(120);
/// Slower disks are taken for ones that hang.
const BYTES_PER_SECOND_MIN: u64 = 256 << 10;
const PIECE_BYTES: usize = 1 << 20;
/// What the name of an object begins with while it is written.
const TEMPORARY: &str = ".tmp-";

pub struct FileSystemBucket(Arc<Inner>);

struct Inner {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Where names begin.
    base: PathBuf,
    name: String,
}

impl FileSystemBucket {
    pub fn new(disk: Arc<dyn Disk>, root: PathBuf, prefix: &str) -> FileSystemBucket {
        let (base, name) = (root.join(prefix), format!("fs: {}", root.display()));
        FileSystemBucket(Arc::new(Inner { disk, root, base, name }))
    }

    /// Does it on a thread that may wait for a disk. One that hangs keeps its thread.
    async fn run<T: Send + 'static>(
        &self,
        object: &str,
        after: Duration,
        work: impl FnOnce(&Inner) -> Result<T, BucketError> + Send + 'static,
    ) -> Result<T, BucketError> {
        let inner = self.0.clone();
        let working = tokio::task::spawn_blocking(move || work(&inner));
        match tokio::time::timeout(after, working).await {
            Ok(Ok(done)) => done,
            Ok(Err(panicked)) => {
                let source = io::Error::other(panicked);
                Err(BucketError::Io { object: object.to_owned(), source })
            }
            Err(_) => Err(BucketError::Timeout { object: object.to_owned(), after }),
        }
    }
}

#[async_trait]
impl Bucket for FileSystemBucket {
    fn name(&self) -> &str {
        &self.0.name
    }

    async fn exists(&self, object: &str) -> Result<bool, BucketError> {
        let name = object.to_owned();
        let look = move |inner: &Inner| {
            inner.exists(&name).map_err(|source| BucketError::Io { object: name, source })
        };
        self.run(object, CALL_MAX, look).await
    }

    async fn upload(&self, object: &str, content: Content) -> Result<(), BucketError> {
        let after = CALL_MAX + Duration::from_secs(content.len() / BYTES_PER_SECOND_MIN);
        let name = object.to_owned();
        self.run(object, after, move |inner| inner.upload(&name, &content)).await
    }
}

impl Inner {
    fn exists(&self, object: &str) -> io::Result<bool> {
        let path = self.base.join(object);
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
        match self.disk.list(dir) {
            Ok(entries) => Ok(entries.iter().any(|entry| entry.name == name && !entry.is_dir)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(err) => Err(err),
        }
    }

    fn upload(&self, object: &str, content: &Content) -> Result<(), BucketError> {
        let path = self.base.join(object);
        let dir = path.parent().unwrap_or(&self.root).to_owned();
        let mut temporary = OsString::from(TEMPORARY);
        temporary.push(path.file_name().unwrap_or_default());
        let temporary = dir.join(temporary);
        let failed = |source| BucketError::Io { object: object.to_owned(), source };
        self.disk.create_dir_all(&dir).map_err(failed)?;
        self.write(object, &temporary, content)?;
        self.disk.rename(&temporary, &path).map_err(failed)?;
        self.sync_names(&dir).map_err(failed)
    }

    fn write(&self, object: &str, path: &Path, content: &Content) -> Result<(), BucketError> {
        let failed = |source| BucketError::Io { object: object.to_owned(), source };
        let into = self.disk.create(path).map_err(failed)?;
        match content {
            Content::Bytes(bytes) => into.write_all_at(bytes, 0).map_err(failed)?,
            Content::File { file, len } => {
                let mut piece = vec![0; PIECE_BYTES];
                let mut at = 0;
                while at < *len {
                    let wanted = PIECE_BYTES.min(usize::try_from(*len - at).unwrap_or(PIECE_BYTES));
                    let read = file.read_at(&mut piece[..wanted], at);
                    let read = read.map_err(|source| BucketError::Read {
                        object: object.to_owned(),
                        source,
                    })?;
                    if read == 0 {
                        return Err(BucketError::Shorter { object: object.to_owned() });
                    }
                    into.write_all_at(&piece[..read], at).map_err(failed)?;
                    at += read as u64;
                }
            }
        }
        into.sync().map_err(failed)
    }

    /// Makes the names durable that lead to what is in `dir`.
    fn sync_names(&self, dir: &Path) -> io::Result<()> {
        for dir in dir.ancestors() {
            self.disk.sync_dir(dir)?;
            if dir == self.root {
                break;
            }
        }
        // The root's own name is in a directory that may be closed to us.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::disk::faulty::FaultyDisk;
    use crate::disk::read_file;

    fn bucket(disk: &FaultyDisk) -> FileSystemBucket {
        FileSystemBucket::new(Arc::new(disk.clone()), PathBuf::from("/root"), "p")
    }

    async fn put(disk: &FaultyDisk, object: &str, bytes: &[u8]) -> Result<(), BucketError> {
        bucket(disk).upload(object, Content::Bytes(Bytes::copy_from_slice(bytes))).await
    }

    #[tokio::test]
    async fn objects_lie_below_the_prefix() {
        let disk = FaultyDisk::new();
        assert!(!bucket(&disk).exists("a/b").await.unwrap());
        put(&disk, "a/b", b"1").await.unwrap();
        assert!(bucket(&disk).exists("a/b").await.unwrap());
        assert!(!bucket(&disk).exists("a").await.unwrap(), "a directory is no object");
        assert!(!bucket(&disk).exists("a/b/c").await.is_ok_and(|exists| exists));
        assert_eq!(read_file(&disk, Path::new("/root/p/a/b"), 9).unwrap(), b"1");
        assert_eq!(bucket(&disk).name(), "fs: /root");
        // A file of several pieces, and one that is shorter than it was.
        let bytes: Vec<u8> = (0..3 * PIECE_BYTES + 7).map(|i| (i % 251) as u8).collect();
        let file = disk.create(Path::new("/file")).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let len = bytes.len() as u64;
        let content = Content::File { file: file.clone(), len };
        bucket(&disk).upload("a/file", content).await.unwrap();
        assert!(read_file(&disk, Path::new("/root/p/a/file"), len).unwrap() == bytes);
        let content = Content::File { file, len: len + 1 };
        let error = bucket(&disk).upload("a/file", content).await.unwrap_err();
        assert!(matches!(error, BucketError::Shorter { .. }), "{error}");
        assert!(read_file(&disk, Path::new("/root/p/a/file"), len).unwrap() == bytes);
    }

    /// The bytes may be the only ones left by the next day.
    #[tokio::test]
    async fn an_object_is_the_old_or_the_new_one_wherever_the_machine_stops() {
        let mut stops = 0;
        loop {
            let disk = FaultyDisk::new();
            put(&disk, "a/b", b"old").await.unwrap();
            disk.fail_all_operations(stops);
            let done = put(&disk, "a/b", b"new one").await;
            for after in [disk.after_kill(), disk.after_power_cut()] {
                let bytes = read_file(&after, Path::new("/root/p/a/b"), 9).unwrap();
                assert!(bytes == b"new one" || done.is_err() && bytes == b"old", "{stops}");
                put(&after, "a/b", b"new one").await.unwrap();
            }
            if done.is_ok() {
                break;
            }
            stops += 1;
        }
        assert!(stops >= 5, "{stops}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_given_up() {
        let disk = FaultyDisk::new();
        disk.stall(Path::new("/root"));
        let of_task = disk.clone();
        let uploading = tokio::spawn(async move { put(&of_task, "a/b", b"1").await });
        tokio::task::yield_now().await;
        disk.wait_stalled(1);
        tokio::time::advance(CALL_MAX + Duration::from_secs(1)).await;
        let error = uploading.await.unwrap().unwrap_err();
        assert!(matches!(error, BucketError::Timeout { .. }), "{error}");
        disk.release(Path::new("/root"));
    }
}
