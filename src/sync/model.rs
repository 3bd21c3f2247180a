//! Stand-ins for what loom lacks. Each keeps the contract that the program relies on, and no
//! more: the models are about our protocols, not about the insides of these.

#![expect(missing_docs, reason = "the originals have the documentation")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::Condvar;
use loom::sync::Mutex;
use loom::sync::atomic::AtomicBool;

/// An atomic of loom's with the one method that it does not have.
macro_rules! atomic {
    ($name:ident, $number:ty) => {
        #[derive(Debug, Default)]
        pub struct $name(loom::sync::atomic::$name);

        impl $name {
            pub fn new(value: $number) -> Self {
                Self(loom::sync::atomic::$name::new(value))
            }

            pub fn load(&self, order: Ordering) -> $number {
                self.0.load(order)
            }

            pub fn store(&self, value: $number, order: Ordering) {
                self.0.store(value, order);
            }

            pub fn fetch_add(&self, value: $number, order: Ordering) -> $number {
                self.0.fetch_add(value, order)
            }

            pub fn fetch_sub(&self, value: $number, order: Ordering) -> $number {
                self.0.fetch_sub(value, order)
            }

            /// # Errors
            /// Gives the value back if there is nothing to update it to.
            pub fn try_update(
                &self,
                set_order: Ordering,
                fetch_order: Ordering,
                update: impl FnMut($number) -> Option<$number>,
            ) -> Result<$number, $number> {
                self.0.fetch_update(set_order, fetch_order, update)
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);
atomic!(AtomicUsize, usize);

/// A value that the first one sets; the others wait for it.
#[derive(Debug, Default)]
pub struct OnceLock<T> {
    value: std::sync::OnceLock<T>,
    is_set: AtomicBool,
    setting: Mutex<()>,
}

impl<T> OnceLock<T> {
    pub fn new() -> Self {
        Self {
            value: std::sync::OnceLock::new(),
            is_set: AtomicBool::new(false),
            setting: Mutex::new(()),
        }
    }

    pub fn get(&self) -> Option<&T> {
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub fn get_or_init(&self, init: impl FnOnce() -> T) -> &T {
        if let Some(value) = self.get() {
            return value;
        }
        let _setting = self.setting.lock().expect("no model panics in it");
        let value = self.value.get_or_init(init);
        self.is_set.store(true, Ordering::Release);
        value
    }
}

/// What the kernel keeps in an eventfd.
#[derive(Debug, Default)]
pub struct WakeCount {
    count: Mutex<u64>,
    is_readable: Condvar,
}

impl WakeCount {
    pub fn notify(&self) {
        *self.count.lock().expect("no model panics in it") += 1;
        self.is_readable.notify_all();
    }

    pub fn drain(&self) -> bool {
        std::mem::take(&mut *self.count.lock().expect("no model panics in it")) > 0
    }

    /// Sleeps while the count is zero.
    pub fn wait(&self) {
        let mut count = self.count.lock().expect("no model panics in it");
        while *count == 0 {
            count = self.is_readable.wait(count).expect("no model panics in it");
        }
    }
}

#[derive(Debug)]
struct Queue<T> {
    messages: Mutex<VecDeque<T>>,
    capacity: usize,
}

#[derive(Debug)]
pub struct Sender<T>(Arc<Queue<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

#[derive(Debug)]
pub struct Receiver<T>(Arc<Queue<T>>);

#[derive(Debug)]
pub enum TrySendError<T> {
    Full(T),
    /// No model drops a receiver before its senders.
    Disconnected(T),
}

#[derive(Debug)]
pub struct TryRecvError;

/// A queue of at most `capacity` messages, which come out in the order in which they went in.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Queue { messages: Mutex::new(VecDeque::new()), capacity });
    (Sender(Arc::clone(&queue)), Receiver(queue))
}

impl<T> Sender<T> {
    /// # Errors
    /// Gives the message back if the queue is full.
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let mut messages = self.0.messages.lock().expect("no model panics in it");
        if messages.len() == self.0.capacity {
            return Err(TrySendError::Full(message));
        }
        messages.push_back(message);
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// # Errors
    /// If there is no message now.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut messages = self.0.messages.lock().expect("no model panics in it");
        messages.pop_front().ok_or(TryRecvError)
    }

    pub fn try_iter(&self) -> impl Iterator<Item = T> + '_ {
        std::iter::from_fn(|| self.try_recv().ok())
    }
}
