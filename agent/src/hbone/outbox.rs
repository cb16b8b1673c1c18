//! What waits to be sent on one connection, of all its streams together.
//!
//! HTTP/2 bounds what a stream may send, not what has been taken from its app and not gone yet: a hundred apps that write while the
//! connection is slow would leave a hundred send buffers with the agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::Notify;

/// Counts what waits. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Outbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: usize,
    waiting: AtomicUsize,
    emptied: Notify,
}

impl Outbox {
    /// Full when `limit` bytes wait.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner { limit, waiting: AtomicUsize::new(0), emptied: Notify::new() }))
    }

    /// Whether nothing should be added. One piece may go beyond the limit.
    pub fn is_full(&self) -> bool {
        self.0.waiting.load(Ordering::Acquire) >= self.0.limit
    }

    /// Waits until half of what may wait has gone, when it is full.
    pub async fn room(&self) {
        loop {
            let emptied = self.0.emptied.notified();
            if !self.is_full() {
                return;
            }
            emptied.await;
        }
    }

    /// `piece`, which counts until its last clone has gone.
    pub fn put(&self, piece: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        let length = piece.as_ref().len();
        self.0.waiting.fetch_add(length, Ordering::AcqRel);
        Bytes::from_owner(Waiting { piece, length, outbox: self.0.clone() })
    }
}

struct Waiting<T> {
    piece: T,
    length: usize,
    outbox: Arc<Inner>,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Waiting<T> {
    fn as_ref(&self) -> &[u8] {
        self.piece.as_ref()
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        let before = self.outbox.waiting.fetch_sub(self.length, Ordering::AcqRel);
        let half = self.outbox.limit / 2;
        if before > half && before - self.length <= half {
            self.outbox.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BytesMut;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_full_outbox_has_room_again_when_half_of_it_has_gone() {
        let outbox = Outbox::new(100);
        let pieces: Vec<_> = (0..10).map(|_| outbox.put(vec![7; 10])).collect();
        assert!(outbox.is_full());
        let waiter = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.room().await }
        });
        tokio::task::yield_now().await;
        let mut pieces = pieces.into_iter();
        pieces.by_ref().take(4).for_each(drop);
        tokio::task::yield_now().await;
        assert!(!outbox.is_full() && !waiter.is_finished(), "nobody is woken for each piece");
        drop(pieces.next());
        timeout(Duration::from_secs(5), waiter).await.unwrap().unwrap();
        timeout(Duration::from_secs(5), outbox.room()).await.unwrap();
    }

    #[test]
    fn a_piece_counts_until_its_last_part_has_gone() {
        let outbox = Outbox::new(4);
        let mut piece = outbox.put(BytesMut::from(&b"abcd"[..]));
        let part = piece.split_to(1);
        drop(piece);
        assert!(outbox.is_full());
        assert_eq!(&part[..], b"a");
        drop(part);
        assert!(!outbox.is_full());
    }
}
