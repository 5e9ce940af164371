//! A binary heap that takes the very steps of Go's `container/heap`, so that what is equal comes in
//! the order in which it comes there.

/// The least of its items comes first. Whoever calls says what is less, and always the same.
pub(super) struct GoHeap<T>(Vec<T>);

impl<T> Default for GoHeap<T> {
    fn default() -> GoHeap<T> {
        GoHeap(Vec::new())
    }
}

impl<T> GoHeap<T> {
    /// The one that [`GoHeap::pop`] takes.
    pub(super) fn peek(&self) -> Option<&T> {
        self.0.first()
    }

    pub(super) fn push(&mut self, item: T, is_less: impl Fn(&T, &T) -> bool) {
        self.0.push(item);
        let items = &mut self.0;
        let mut at = items.len() - 1;
        while at > 0 {
            let parent = (at - 1) / 2;
            if !is_less(&items[at], &items[parent]) {
                break;
            }
            items.swap(at, parent);
            at = parent;
        }
    }

    pub(super) fn pop(&mut self, is_less: impl Fn(&T, &T) -> bool) -> Option<T> {
        let items = &mut self.0;
        let last = items.len().checked_sub(1)?;
        items.swap(0, last);
        let mut at = 0;
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            if left >= last {
                break;
            }
            let is_right = right < last && is_less(&items[right], &items[left]);
            let least = if is_right { right } else { left };
            if !is_less(&items[least], &items[at]) {
                break;
            }
            items.swap(at, least);
            at = least;
        }
        items.pop()
    }
}
