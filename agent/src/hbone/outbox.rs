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

    /// Waits until something may be added, in the order of those who wait.
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
        let Inner { limit, waiting, emptied } = &*self.outbox;
        let before = waiting.fetch_sub(self.length, Ordering::AcqRel);
        let after = before - self.length;
        if before <= limit / 2 {
            return;
        }
        if after <= limit / 2 {
            // Whoever was woken may have had nothing to add: at the latest now it is everybody's turn.
            emptied.notify_waiters();
        } else if after < *limit {
            // Not later: those who add all the time would keep it from emptying, and the others from adding.
            emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use bytes::BytesMut;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_room_has_it_in_turn_while_others_go_on_adding() {
        let outbox = Outbox::new(100);
        let mut pieces: VecDeque<_> = (0..10).map(|_| outbox.put(vec![7; 10])).collect();
        assert!(outbox.is_full());
        let mut turns = Vec::new();
        let waiter = |outbox: Outbox| async move {
            outbox.room().await;
            outbox.put(vec![7; 10])
        };
        for _ in 0..3 {
            turns.push(tokio::spawn(waiter(outbox.clone())));
            tokio::task::yield_now().await;
        }
        for done in 0..3 {
            assert_eq!(turns.iter().filter(|turn| turn.is_finished()).count(), done);
            drop(pieces.pop_front());
            tokio::task::yield_now().await;
            assert!(turns[done].is_finished() && outbox.is_full(), "{done}");
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_an_empty_outbox() {
        let outbox = Outbox::new(100);
        let pieces: Vec<_> = (0..10).map(|_| outbox.put(vec![7; 10])).collect();
        // They have room in turn, and add nothing.
        let waiters: Vec<_> = (0..30)
            .map(|_| {
                let outbox = outbox.clone();
                tokio::spawn(async move { outbox.room().await })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(pieces);
        for waiter in waiters {
            timeout(Duration::from_secs(5), waiter).await.unwrap().unwrap();
        }
        assert_eq!(outbox.0.waiting.load(Ordering::Relaxed), 0);
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
